"""python tools/freeze_entropy_model.py RUN_OR_CHECKPOINT --to FILE.safetensors [--precision bf16]

Writes a trained isotropic model as a neural entropy model, whose blocks each have a finite reach.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.evaluation.freeze import freeze_entropy_model


def main() -> int:
    """Reads the command line and freezes the model."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="file to write")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the matrix products")
    given = parser.parse_args()
    try:
        freeze_entropy_model(given.checkpoint, given.to, given.precision)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
