"""python tools/import_savanna_data.py PREFIX TARGET

Writes a dataset of ours from one of Savanna's, whose tokens are bytes in uint16 or uint8. PREFIX and TARGET are paths
without .bin; annotate TARGET's folder next (tools/annotate_patches.py). Prints the manifest.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hyena_blt_savanna.conversion.savanna_data import import_dataset


def main() -> int:
    """Reads the command line, converts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="PREFIX")
    parser.add_argument("target", type=Path, metavar="TARGET")
    given = parser.parse_args()
    try:
        given.target.parent.mkdir(parents=True, exist_ok=True)
        print(json.dumps(import_dataset(given.source, given.target).to_dict(), indent=2))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
