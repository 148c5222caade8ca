"""python tools/annotate_patches.py configs/patching/budget.yaml data=FOLDER [key=value ...]

Fits the entropy model, calibrates the rule and stores patch boundaries beside a dataset, or beside all shards of a
source; prints a summary as JSON. Many processes share the shards of a source: mpirun -n 64, or srun, before the
same command.
"""

from __future__ import annotations

import json
import logging
import sys

from hyena_blt_savanna.data.corpus.mpi import find_workers
from hyena_blt_savanna.data.corpus.source import is_source
from hyena_blt_savanna.data.corpus.work_sharing import Alone, Workers
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotate_source import annotate_source
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig


def main(arguments: list[str]) -> int:
    """Loads the configuration and annotates the data."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    workers: Workers = Alone()
    try:
        workers = find_workers()
        config = AnnotationConfig.load(arguments)
        if is_source(config.data):
            summary = annotate_source(config, workers).summary()
        else:
            [manifests] = workers.share([1], lambda _: annotate_dataset(config))
            summary = {split: manifest.summary() for split, manifest in manifests.items()}
    except (ValueError, OSError) as error:
        # All ranks end with the same message.
        if workers.rank == 0:
            print(error, file=sys.stderr)
        return 1
    if workers.rank == 0:
        print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
