#!/usr/bin/env bash
# From a genome to a trained, evaluated model, start to end:
#
#   launch/quickstart.sh [GENOME] [RUN]
#
# GENOME: a name of configs/data/genomes.yaml, or the path of a FASTA file (gzipped or not). RUN: the run folder.
# Steps that are finished are not repeated, and training goes on from its newest checkpoint.
set -euo pipefail

genome=${1:-ecoli_k12}
run=${2:-runs/quickstart}
cd "$(dirname "$0")/.."
source launch/env.sh

started=$SECONDS
step() { printf '\n[%4d s] %s\n' "$((SECONDS - started))" "$1"; }

mkdir -p "$run"
if [[ -f $run/genome.txt && $(<"$run/genome.txt") != "$genome" ]]; then
    echo "$run holds a run on $(<"$run/genome.txt"), not on $genome." >&2
    echo "Choose another folder (make quickstart GENOME=$genome RUN=runs/NAME) or remove $run." >&2
    exit 1
fi
echo "$genome" >"$run/genome.txt"

if [[ -f $genome ]]; then
    fasta=$genome
else
    step "Fetching $genome"
    python tools/fetch_genomes.py "$genome" --to genomes
    fasta=genomes/$genome.fa
fi

step "Preparing $fasta"
python tools/prepare_genomes.py configs/data/quickstart.yaml "inputs=[$fasta]" "output=$run/data"

step "Fitting the entropy model, calibrating and storing patch boundaries"
python tools/annotate_patches.py configs/patching/quickstart.yaml "data=$run/data"

step "Training"
launch/train.sh configs/model/quickstart.yaml configs/training/quickstart.yaml "run=$run" "data.folder=$run/data"

step "Evaluating on the held-out test stretch"
python tools/report.py "$run"

step "Generating 400 bases"
python tools/generate.py "$run" --num-bases 400 --seed 1 | tee "$run/report/generated.fa"

step "Done: $run/report/report.json"
cat "$run/report/report.json"
