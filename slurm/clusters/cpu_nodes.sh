# A cluster of nodes without GPUs, for preparing data and for small models. Copy, change, source before sbatch.

export SBATCH_PARTITION=cpu
export SBATCH_ACCOUNT=my_project
export SBATCH_TIMELIMIT=12:00:00

# How srun starts MPI programs, for slurm/prepare.sbatch: `srun --mpi=list`.
export MPI_TYPE=pmix

# Two ranks a node, each with half of its cores.
export NUM_RANKS=2

# The network between nodes: `ip -brief address`.
export GLOO_SOCKET_IFNAME=eth0
