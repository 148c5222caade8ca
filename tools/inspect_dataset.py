"""python tools/inspect_dataset.py DATA [--verify] [--html FILE]

Shows what a dataset holds and whether it is whole: counts, composition, lengths of documents and patches, tags, a
sample. DATA is the path of a dataset without suffix (FOLDER/train), a folder of datasets, or a source. --verify reads
every byte against the checksums; mpirun or srun shares that among processes. Exit status 1: something is damaged.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.data.corpus.mpi import find_workers
from hyena_blt_savanna.data.inspection import inspect_dataset
from hyena_blt_savanna.data.inspection_text import as_page, as_text
from hyena_blt_savanna.data.whole_files import write_whole


def main() -> int:
    """Reads the command line, prints, and writes the page."""
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--verify", action="store_true", help="read everything against the checksums")
    parser.add_argument("--html", type=Path, help="write a page here")
    given = parser.parse_args()
    try:
        workers = find_workers()
        found = inspect_dataset(given.data, given.verify, workers)
        if workers.rank == 0:
            print(as_text(found))
            if given.html:
                write_whole(given.html, as_page(found).encode())
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if found.all_problems else 0


if __name__ == "__main__":
    sys.exit(main())
