"""python tools/report.py RUN_FOLDER [key=value ...]

Evaluates a run on all of its test data; writes RUN_FOLDER/report/report.json and pictures, and prints the figures.
Keys are those of `ReportConfig`, such as window_bases, overlap_bases, ngram_order, started_unix_seconds.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.evaluation.report import ReportConfig, write_report


def main(arguments: list[str]) -> int:
    """Reads the command line and writes the report."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hyena_blt_savanna").setLevel(logging.INFO)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        figures = write_report(Path(arguments[0]), ReportConfig.load(arguments[1:]))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
