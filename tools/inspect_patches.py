"""python tools/inspect_patches.py DATA [--region REGION] [--patcher FOLDER] [--html FILE]

Shows how sequence is cut into patches: bases, cuts and entropies, figures, and what other rules would do. DATA is a
dataset's folder, the path of one of its splits (FOLDER/test), or a FASTA file. REGION is RECORD:FROM-TO of a FASTA
file; of a dataset SPLIT:FROM-TO, or SPLIT/NUMBER:FROM-TO in a document. Bases count from 1, both ends included.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.evaluation.inspection import read_stretch
from hyena_blt_savanna.patching.inspection import inspect
from hyena_blt_savanna.patching.inspection_figures import write_pictures
from hyena_blt_savanna.patching.inspection_page import as_page
from hyena_blt_savanna.patching.inspection_rules import RULE_CLASSES
from hyena_blt_savanna.patching.inspection_text import as_text


def main() -> int:
    """Reads the command line, prints, and writes what is asked for."""
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--region", help="default: all of it; of a dataset's folder, the test")
    parser.add_argument("--patcher", type=Path, help="folder of a patcher, a checkpoint or a run: cut anew with it")
    parser.add_argument("--annotation", help="name of a dataset's boundaries; default: patches")
    parser.add_argument("--gff", type=Path, help="GFF3 file of a FASTA file: which bases are coding")
    parser.add_argument("--rules", nargs="*", default=list(RULE_CLASSES), help="to compare; default: all there are")
    parser.add_argument("--html", type=Path, help="write a page with pictures here")
    parser.add_argument("--figures", type=Path, help="write the pictures into this folder, as PNG files")
    given = parser.parse_args()
    try:
        stretch = read_stretch(given.data, given.region, given.patcher, given.annotation, given.gff)
        inspection = inspect(stretch, given.rules)
        print(as_text(inspection))
        if given.html:
            write_whole(given.html, as_page(inspection).encode())
        if given.figures:
            write_pictures(inspection, given.figures)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
