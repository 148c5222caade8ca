"""python tools/annotate_patches.py configs/patching/budget.yaml data=FOLDER [key=value ...]

Fits the entropy model, calibrates the rule and stores patch boundaries beside a dataset; prints a summary as JSON.
"""

from __future__ import annotations

import json
import logging
import sys

from hyena_blt_savanna.patching.annotate import AnnotationConfig, annotate_dataset


def main(arguments: list[str]) -> int:
    """Loads the configuration and annotates the data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        manifests = annotate_dataset(AnnotationConfig.load(arguments))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({split: manifest.summary() for split, manifest in manifests.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
