"""python tools/prepare_genomes.py configs/data/ecoli.yaml [key=value ...]

Turns FASTA files into indexed datasets for training, validation and test; prints their manifests as JSON.
"""

from __future__ import annotations

import json
import logging
import sys

from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset


def main(arguments: list[str]) -> int:
    """Loads the configuration and prepares the data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        manifests = prepare_dataset(DataConfig.load(arguments))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({name: manifest.to_dict() for name, manifest in manifests.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
