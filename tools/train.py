"""Trains a model: one rank of a run; `launch/train.sh` and `slurm/train.sbatch` start as many as there are.

python tools/train.py configs/training/quickstart.yaml run=runs/mine training.optimizer.lr=1e-3

Exit codes: 0 trained to the end; 2 a mistake in what was given; 3 the training has diverged; 75 asked to stop by
SIGUSR1 or SIGTERM, and saved. After 75, and after any other code but 2 and 3, the same command goes on.
"""

import sys

from hyena_blt_savanna.training.stop_signals import StopSignals

if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    signals = StopSignals()
    signals.listen()
    # torch and DeepSpeed take seconds to load, and a signal may come meanwhile.
    from hyena_blt_savanna.training.pretrain import main

    sys.exit(main(sys.argv[1:], signals))
