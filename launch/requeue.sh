#!/usr/bin/env bash
# Puts a Slurm job back into the queue when its step has ended early; called by slurm/train.sbatch:
#
#   launch/requeue.sh CODE
#
# CODE is the step's exit code. Not after 2 (a mistake in what was given) and 3 (the training has diverged), nor after
# MAX_RESTARTS starts (100 if left out); then the job fails with CODE. After 75 rank 0 has done it already, as a rule.
set -euo pipefail

if [[ $# -ne 1 || $1 == -h || $1 == --help ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
code=$1
restarts=${SLURM_RESTART_COUNT:-0}
if [[ $code -eq 2 || $code -eq 3 ]]; then
    echo "exit code $code: the job is not put back into the queue" >&2
elif [[ $restarts -ge ${MAX_RESTARTS:-100} ]]; then
    echo "exit code $code after $restarts restarts: the job is not put back into the queue any more" >&2
elif [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") == *JobState=CANCELLED* ]]; then
    echo "exit code $code: the job was cancelled" >&2
else
    echo "exit code $code: the job goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" || echo "scontrol could not requeue the job: submit it again" >&2
fi
exit "$code"
