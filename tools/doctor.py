"""python tools/doctor.py [--work FOLDER] [--json]

What is installed here, what works (each kernel is run against the plain reference), what is missing, and the command
that mends it. Exit code 0 unless something that training needs is missing or broken.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.training.doctor import as_json, examine, report_lines

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Looks, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(), help="a folder on the disk that runs are written to")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    findings = examine(ROOT, given.work)
    found = as_json(findings)
    print(json.dumps(found, indent=1) if given.json else "\n".join(report_lines(findings)))
    return 0 if found["works"] else 1


if __name__ == "__main__":
    sys.exit(main())
