"""python tools/permute_patches.py DATA --source NAME --name NAME [--seed N]

Stores the control of a set of patch boundaries beside a dataset: the same lengths in another order. Prints a summary
as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.patching.control import permute_annotation


def main() -> int:
    """Reads the command line, permutes, prints."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the dataset")
    parser.add_argument("--source", default="patches", help="name of the boundaries whose lengths are permuted")
    parser.add_argument("--name", default="permuted", help="name of the new boundaries")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        manifests = permute_annotation(given.data, given.source, given.name, given.seed)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({split: manifest.summary() for split, manifest in manifests.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
