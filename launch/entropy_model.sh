#!/usr/bin/env bash
# Trains a neural entropy model out of fold, and cuts the data with it:
#
#   launch/entropy_model.sh DATA RUN [CONFIG.yaml ...] [key=value ...]
#   FOLDS=4 launch/entropy_model.sh genomes/ecoli_k12 runs/entropy configs/model/entropy_kmers.yaml
#
# DATA: a folder of tools/prepare_genomes.py. RUN gets a training run of each of FOLDS models (2 if left out) that leave
# one stretch of the training data out, one of the model that has seen all of it, and the frozen models beside them.
# CONFIG: in place of configs/model/entropy.yaml; keys are those of the training run. The boundaries get the name
# ANNOTATION ("neural" if left out). Steps that are finished are not repeated.
set -euo pipefail

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit 0
fi
if [[ $# -lt 2 ]]; then
    usage >&2
    exit 2
fi
if [[ ! ${FOLDS:-2} =~ ^[0-9]+$ || ${FOLDS:-2} -lt 2 ]]; then
    echo "FOLDS is ${FOLDS}: give at least 2, so that each stretch of the data has a model that has not seen it" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
data=$1
run=$2
folds=${FOLDS:-2}
configs=()
overrides=()
for argument in "${@:3}"; do
    if [[ $argument == *.yaml || $argument == *.yml ]]; then configs+=("$argument"); else overrides+=("$argument"); fi
done
if [[ ${#configs[@]} -eq 0 ]]; then configs=("$ROOT/configs/model/entropy.yaml"); fi

train() {
    "$ROOT/launch/train.sh" "${configs[@]}" "$ROOT/configs/training/entropy.yaml" "run=$run/$1" "data.folder=$data" \
        data.annotation=null "${@:2}" ${overrides[@]+"${overrides[@]}"}
    "$PYTHON" "$ROOT/tools/freeze_entropy_model.py" "$run/$1" --to "$run/$1.safetensors"
}

paths=()
for ((fold = 0; fold < folds; fold++)); do
    train "fold_$fold" "data.left_out.fold=$fold" "data.left_out.folds=$folds"
    paths+=("$run/fold_$fold.safetensors")
done
train whole
"$PYTHON" "$ROOT/tools/annotate_patches.py" "$ROOT/configs/patching/budget_neural.yaml" "data=$data" \
    "name=${ANNOTATION:-neural}" "folds=$folds" "entropy_model.path=$run/whole.safetensors" \
    "entropy_model.fold_paths=[$(IFS=,; echo "${paths[*]}")]"
