# The only place for environment settings; sourced by the scripts beside it and by slurm/*.sbatch. What is set already
# stays; what differs between clusters is set by a file of slurm/clusters.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [ -z "${PYTHON:-}" ]; then
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; else PYTHON="$(command -v python3)"; fi
fi
export PYTHON
export PATH="$(dirname "$PYTHON"):$PATH"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# What shares a node's cores are the tasks that sbatch was asked for, or else the ranks.
NUM_RANKS="${SLURM_NTASKS_PER_NODE:-${NUM_RANKS:-}}"
# How srun starts programs of MPI: one task needs none.
if [ "${SLURM_NTASKS:-}" = 1 ]; then MPI_TYPE=none; fi
export MPI_TYPE="${MPI_TYPE:-pmix}"

num_gpus=0
if command -v nvidia-smi >/dev/null; then num_gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l)"; fi

if [ "$num_gpus" -eq 0 ]; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
    # DeepSpeed decorates functions that are not used here with torch.compile, which loads for two seconds.
    export TORCHDYNAMO_DISABLE="${TORCHDYNAMO_DISABLE:-1}"
    NUM_RANKS="${NUM_RANKS:-1}"
    # The ranks share the cores; more threads than cores slow each other down.
    num_threads=$(($(nproc) / NUM_RANKS))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((num_threads > 0 ? num_threads : 1))}"
    # Threads that wait may spin for some microseconds only: where anything else runs on the cores, spinning as long as
    # is the default made a step ten times slower.
    export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-5000}"
else
    NUM_RANKS="${NUM_RANKS:-$num_gpus}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
export NUM_RANKS

# srun gives a rank one core, unless it is told otherwise.
if [ -n "${SLURM_CPUS_ON_NODE:-}" ]; then
    num_cpus=$((SLURM_CPUS_ON_NODE / NUM_RANKS))
    export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-$((num_cpus > 0 ? num_cpus : 1))}"
fi

# torch 2.13 renames collectives that DeepSpeed 0.19 calls, and says so at each call.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore::FutureWarning:torch.distributed.c10d_logger}"

# Tensors of some megabytes come and go at each layer: reusing their pages saves the kernel from clearing new ones
# (a tenth of a step on a CPU). From 16 MB on they go back to the kernel at once: kept, what lies between them would
# double the memory of a long window. In pages of 2 MB, where the kernel has them, that costs no time.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-16777216}"
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
