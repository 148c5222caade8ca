"""python tools/fetch_genomes.py ecoli_k12 lambda --to genomes [--folder DIR ...]

Brings genomes of configs/data/genomes.yaml into a folder as plain FASTA, from the first place that has them: a folder
of yours, a Debian package (no root needed), or NCBI. Prints the paths. Without names it lists what there is.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.data.genomes import fetch_genome, load_genomes


def main(arguments: list[str]) -> int:
    """Fetches the named genomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names from the table")
    parser.add_argument("--to", type=Path, default=Path("genomes"), help="folder for NAME.fa (default: genomes)")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a folder to look into; may repeat")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if not options.names:
            for name, genome in load_genomes().items():
                print(f"{name:<20} {genome.num_bases:>12,} bases  {genome.description}")
        for name in options.names:
            print(fetch_genome(name, options.to, options.folder))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
