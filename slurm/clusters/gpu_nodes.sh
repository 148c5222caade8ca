# A cluster of nodes with eight GPUs: what sbatch and the ranks need to know of it. Copy, change, source before sbatch.

# What `sinfo`, your administrators and `sacctmgr show assoc` call them.
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my_project
export SBATCH_TIMELIMIT=24:00:00

# A rank for each.
export SBATCH_GPUS_PER_NODE=8

# The network between nodes: `ip -brief address`, `ibstat`.
export NCCL_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5

# A disk of each node's own, for checkpoints on their way: training.checkpoints.local_folder=/scratch/checkpoints
