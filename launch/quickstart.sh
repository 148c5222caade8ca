#!/usr/bin/env bash
# From a genome to a trained, evaluated model, start to end:
#
#   launch/quickstart.sh [GENOME] [RUN] [key=value ...]
#
# GENOME: a name of configs/data/genomes.yaml, or the path of a FASTA file (gzipped or not). RUN: the run folder.
# Keys are those of the training run, such as training.optimizer.lr=1e-3.
# Steps that are finished are not repeated, and training goes on from its newest checkpoint.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
genome=${1:-ecoli_k12}
run=${2:-runs/quickstart}
overrides=("${@:3}")
if [[ -f $genome ]]; then genome=$(realpath "$genome"); fi
cd "$(dirname "$0")/.."
source launch/env.sh

started=$(date +%s)
step() { printf '\n[%4d s] %s\n' "$(($(date +%s) - started))" "$1"; }

if [[ -f $run/genome.txt && $(<"$run/genome.txt") != "$genome" ]]; then
    echo "$run holds a run on $(<"$run/genome.txt"), not on $genome." >&2
    echo "Choose another folder (make quickstart GENOME=$genome RUN=runs/NAME) or remove $run." >&2
    exit 1
fi

if [[ -f $genome ]]; then
    fasta=$genome
else
    step "Fetching $genome"
    "$PYTHON" tools/fetch_genomes.py "$genome" --to genomes
    fasta=genomes/$genome.fa
fi

step "Preparing $fasta"
"$PYTHON" tools/prepare_genomes.py configs/data/quickstart.yaml "inputs=['${fasta//\'/\'\'}']" "output=$run/data" \
    >/dev/null
# Not before: a genome that can't be used leaves the folder free for another.
echo "$genome" >"$run/genome.txt"

step "Fitting the entropy model, calibrating and storing patch boundaries"
"$PYTHON" tools/annotate_patches.py configs/patching/budget.yaml "data=$run/data" >/dev/null

step "Training"
launch/train.sh configs/model/quickstart.yaml configs/training/quickstart.yaml "run=$run" "data.folder=$run/data" \
    "${overrides[@]}"

step "Evaluating on the held-out test stretch"
"$PYTHON" tools/report.py "$run" "started_unix_seconds=$started"

if [[ ! $run/report/generated.fa -nt $run/report/report.json ]]; then
    step "Generating 400 bases"
    "$PYTHON" tools/generate.py "$run" --num-bases 400 --seed 1 >"$run/report/generated.fa.partial"
    mv "$run/report/generated.fa.partial" "$run/report/generated.fa"
    cat "$run/report/generated.fa"
fi

step "Done: $run/report/"
