"""python tools/prepare_genomes.py configs/data/ecoli.yaml [key=value ...] [--max-bad-records N]

Turns FASTA files into indexed datasets for training, validation and test; prints their manifests as JSON. A
configuration with a `source` makes a source of any size instead, from FASTA, FASTQ, rows of JSON and archives of them
(configs/data/opengenome2); many processes share the work: mpirun -n 64, or srun, before the same command.
"""

from __future__ import annotations

import json
import logging
import sys

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.corpus.mpi import find_workers
from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.work_sharing import Alone, Workers
from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset


def main(arguments: list[str]) -> int:
    """Loads the configuration and prepares the data."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    if "--max-bad-records" in arguments[:-1]:
        option = arguments.index("--max-bad-records")
        arguments[option : option + 2] = [f"max_bad_records={arguments[option + 1]}"]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    workers: Workers = Alone()
    try:
        workers = find_workers()
        if "source" in merge(arguments):
            summary = prepare_source(SourceConfig.load(arguments), workers).summary()
        else:
            [manifests] = workers.share([1], lambda _: prepare_dataset(DataConfig.load(arguments)))
            summary = {name: manifest.to_dict() for name, manifest in manifests.items()}
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
