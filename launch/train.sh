#!/usr/bin/env bash
# Trains with the ranks of this node, under the deepspeed launcher:
#
#   launch/train.sh configs/training/quickstart.yaml run=runs/mine
#   NUM_RANKS=2 launch/train.sh configs/a.yaml configs/b.yaml training.optimizer.lr=1e-3
#   launch/train.sh configs/a.yaml num_ranks=2
#   HOSTFILE=hosts.txt launch/train.sh configs/a.yaml
#
# NUM_RANKS is the number of GPUs if left out, or 1. HOSTFILE: the ranks of several nodes that can be reached by ssh, a
# line "HOST slots=RANKS" for each; the launcher is LAUNCHER (pdsh if left out). The same command goes on where a run
# was interrupted. SIGUSR1, SIGTERM and Ctrl-C end the step, save, and leave with exit code 75 (tools/train.py --help).
set -euo pipefail

arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        num_ranks=*) NUM_RANKS="${argument#num_ranks=}" ;;
        *) arguments+=("$argument") ;;
    esac
done

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

port="${MASTER_PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}"
options=(--no_local_rank --master_port "$port" --log_level "${LAUNCHER_LOG_LEVEL:-error}")
if [[ -n ${HOSTFILE:-} ]]; then
    options+=(--hostfile "$HOSTFILE" --launcher "${LAUNCHER:-pdsh}")
    # What env.sh sets goes to the other nodes too; DeepSpeed hands on what such a file lists.
    DS_ENV_FILE="$(mktemp)"
    export DS_ENV_FILE
    env | grep -E '^(DS_ACCELERATOR|TORCHDYNAMO|OMP|GOMP|MALLOC|GLIBC|NCCL|GLOO)[A-Z_]*=' >"$DS_ENV_FILE"
else
    # DeepSpeed would look for /job/hostfile.
    options+=(--hostfile /dev/null --num_gpus "$NUM_RANKS")
fi

# The launcher's processes do not hear SIGUSR1, which they would die of; the ranks do, and one of them is enough.
(trap '' USR1 && exec "$PYTHON" -m deepspeed.launcher.runner "${options[@]}" "$ROOT/tools/train.py" "${arguments[@]}") &
launcher=$!
ask_to_stop() {
    interrupted=1
    "$PYTHON" - "$launcher" <<'END'
import contextlib, signal, sys, psutil

for process in psutil.Process(int(sys.argv[1])).children(recursive=True):
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGUSR1)
END
}
trap ask_to_stop USR1 TERM
# Ctrl-C reaches the launcher by itself, which asks the ranks by SIGTERM and waits for half a minute.
trap 'interrupted=1' INT
interrupted=1
while [[ $interrupted == 1 ]]; do
    interrupted=0
    wait "$launcher" && code=0 || code=$?
done
exit "$code"
