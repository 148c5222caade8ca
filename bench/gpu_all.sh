#!/usr/bin/env bash
# What docs/gpu.md lists as not measured on one card, in slices of under ten minutes each:
#
#   bench/gpu_all.sh list                     the slices, a line each
#   bench/gpu_all.sh parity step              takes these, one after the other
#   bench/gpu_all.sh all
#   RESULTS=results/h200 bench/gpu_all.sh all
#
# RESULTS (docs/results/gpu if left out) gets a log of each slice and what its command writes. A slice that fails or
# runs past SECONDS_A_SLICE (600) does not end the others, but the exit code is 1. PEAK_TFLOPS (989: H100, H200, dense
# bf16) is what utilisation is a share of. GENOME is a FASTA file, or a name of configs/data/genomes.yaml (ecoli_k12),
# which is fetched where it is not in genomes/. ON_CPU=1 tries the commands where there is no card.
set -uo pipefail

declare -A about=(
    [doctor]="what is installed, which kernels work: each is run against the plain reference"
    [parity]="models and convolutions on the card against float64 and the plain reference"
    [operators_short]="convolutions of 3 to 32 taps by backend, bf16"
    [operators_middle]="convolutions of 64 to 512 taps by backend, bf16"
    [operators_long]="convolutions as long as the sequence by backend, bf16"
    [step]="a step of 12 million parameters against its rivals, 8,192 to 1,048,576 bases"
    [step_1b]="a step of the 1B model against its rivals at 8,192 and 131,072 bases: utilisation"
    [step_1b_fused]="the same with mixers in one kernel of subquadratic-ops"
    [million]="a step of the 1B model over 1,048,576 bases"
    [million_isotropic]="the same of the isotropic model of the same blocks: some minutes a step"
    [profile_1b]="where the 1B model's step goes at 131,072 bases"
    [linear]="products of the 7B's blocks in FP8 against bf16"
    [compile]="torch.compile of each kind of block, and graph breaks"
    [generate]="bases drawn a second by prompt length, against the isotropic model"
    [training]="the quickstart in bf16 on the card, start to end"
)
slices=(
    doctor parity operators_short operators_middle operators_long step step_1b step_1b_fused million million_isotropic
    profile_1b linear compile generate training
)

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '/^set /d'; }

case "${1:-}" in
    "" | -h | --help)
        usage
        exit $(($# == 0))
        ;;
    list)
        for slice in "${slices[@]}"; do printf '%-18s %s\n' "$slice" "${about[$slice]}"; done
        exit 0
        ;;
    all) wanted=("${slices[@]}") ;;
    *) wanted=("$@") ;;
esac
for slice in "${wanted[@]}"; do
    if [[ -z ${about[$slice]:-} ]]; then
        echo "there is no slice $slice: choose from ${slices[*]}, or all" >&2
        exit 2
    fi
done

source "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"
if [[ -z ${ON_CPU:-} ]] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch finds no CUDA device: run python tools/doctor.py, or set ON_CPU=1 to try the commands without one" >&2
    exit 2
fi
genome="${GENOME:-ecoli_k12}"
if [[ -f $genome ]]; then genome="$(realpath "$genome")"; fi
results="${RESULTS:-$ROOT/docs/results/gpu}"
mkdir -p "$results"
results="$(cd "$results" && pwd)"
cd "$ROOT" || exit 2
one_b=configs/model/hyena_blt_1b.yaml
peak=(--peak-tflops "${PEAK_TFLOPS:-989}")
if [[ -z ${ON_CPU:-} ]]; then device=cuda; else device=cpu; fi
fasta="$genome"
if [[ ! -f $fasta ]]; then fasta="genomes/$genome.fa"; fi

# Prints the command of a slice, a word a line.
command_of() {
    local python=("$PYTHON")
    case "$1" in
        doctor) python+=(tools/doctor.py --work "$results") ;;
        parity) python+=(-m pytest -q -m gpu tests/model tests/training) ;;
        operators_short) python+=(bench/operators.py --taps 3 7 16 32) ;;
        operators_middle) python+=(bench/operators.py --taps 64 128 512) ;;
        operators_long) python+=(bench/operators.py --taps L) ;;
        step) python+=(bench/step.py "${peak[@]}" --to "$results/step") ;;
        step_1b) python+=(bench/step.py "$one_b" "${peak[@]}" --lengths 8192 131072 --to "$results/step_1b") ;;
        step_1b_fused)
            python+=(bench/step.py "$one_b" "${peak[@]}" --models hybrid --lengths 8192 131072)
            python+=(--convolution back_to_back --to "$results/step_1b_fused")
            ;;
        million)
            python+=(bench/step.py "$one_b" "${peak[@]}" --models hybrid --lengths 1048576 --to "$results/million")
            ;;
        million_isotropic)
            python+=(bench/step.py "$one_b" "${peak[@]}" --models isotropic --lengths 1048576 --turns 1 --timed 1)
            python+=(--to "$results/million_isotropic")
            ;;
        profile_1b) python+=(bench/profile_step.py "$one_b" --to "$results/profile_1b.md") ;;
        linear) python+=(bench/linear.py --to "$results") ;;
        compile) python=(env TORCHDYNAMO_DISABLE=0 "$PYTHON" bench/compile.py --to "$results") ;;
        generate)
            if [[ ! -f $fasta ]]; then "$PYTHON" tools/fetch_genomes.py "$genome" --to genomes >&2; fi
            python+=(bench/generate.py "$fasta" --to "$results/generate")
            ;;
        training)
            python=(launch/quickstart.sh "$genome" "$results/quickstart")
            python+=(training.precision=bf16)
            ;;
    esac
    if [[ $1 == operators_* ]]; then python+=(--device "$device" --dtype bf16 --to "$results/operators"); fi
    printf '%s\n' "${python[@]}"
}

failed=()
for slice in "${wanted[@]}"; do
    mapfile -t command < <(command_of "$slice")
    echo "== $slice: ${command[*]}"
    began=$SECONDS
    timeout --kill-after=20 "${SECONDS_A_SLICE:-600}" "${command[@]}" 2>&1 | tee "$results/$slice.log"
    code=${PIPESTATUS[0]}
    if [[ $code == 124 || $code == 137 ]]; then echo "$slice ran past ${SECONDS_A_SLICE:-600} s"; fi
    if [[ $code != 0 ]]; then failed+=("$slice"); fi
    echo "== $slice: exit code $code after $((SECONDS - began)) s"
done
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
