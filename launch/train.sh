#!/usr/bin/env bash
# Trains with the ranks of this node, under the deepspeed launcher:
#
#   launch/train.sh configs/training/quickstart.yaml run=runs/mine
#   NUM_RANKS=2 launch/train.sh configs/a.yaml configs/b.yaml training.optimizer.lr=1e-3
#   launch/train.sh configs/a.yaml num_ranks=2
#
# NUM_RANKS is the number of GPUs if left out, or 1. The same command goes on where a run was interrupted.
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

port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"

exec "$PYTHON" -m deepspeed.launcher.runner --num_gpus "$NUM_RANKS" --no_local_rank --master_port "$port" \
    --log_level "${LAUNCHER_LOG_LEVEL:-error}" "$ROOT/tools/train.py" "${arguments[@]}"
