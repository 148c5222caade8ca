#!/usr/bin/env bash
# Trains through Savanna's own pretrain() with the ranks of this node, under the deepspeed launcher:
#
#   launch/train_savanna.sh configs/savanna/quickstart.yml
#   NUM_RANKS=2 launch/train_savanna.sh model.yml data.yml train-iters=1000
#
# The files are Savanna's YAML with a block hyena-blt (see docs/savanna.md). NUM_RANKS is the number of GPUs if left out,
# or 1. Savanna goes on from `load` where that names a folder with checkpoints.
set -euo pipefail

arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) arguments+=("$argument") ;;
    esac
done

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"

exec "$PYTHON" -m deepspeed.launcher.runner --num_gpus "$NUM_RANKS" --no_local_rank --master_port "$port" \
    --log_level "${LAUNCHER_LOG_LEVEL:-error}" "$ROOT/tools/train_savanna.py" "${arguments[@]}"
