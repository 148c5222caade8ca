"""Trains a model: one rank of a run; `launch/train.sh` starts as many as there are.

python tools/train.py configs/training/quickstart.yaml run=runs/mine training.optimizer.lr=1e-3
"""

import sys

from hyena_blt_savanna.training.pretrain import main

if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
