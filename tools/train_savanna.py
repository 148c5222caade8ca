"""Trains through Savanna's pretrain(): one rank of a run; `launch/train_savanna.sh` starts as many as there are.

python tools/train_savanna.py configs/savanna/quickstart.yml train-iters=100
"""

import sys

from hyena_blt_savanna.savanna_plugin.pretrain import main

if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
