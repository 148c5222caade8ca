"""python tools/convert_checkpoint.py --from FORMAT --to FORMAT SRC DST [--into hyena_blt [--config FILE ...]]
    [--window-bases N] [--no-check] [FILE.yml ...] [key=value ...]

Converts a checkpoint: native, deepspeed, savanna, vortex; to native, savanna, vortex, transformers; deepspeed to
deepspeed for another number of ranks. YAML files and key=value behind the paths are in the source format's own keys,
for what the source doesn't say itself. Prints what was done as JSON; the target is whole or not there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.conversion.convert import AUTO, FORMATS, INTO, Conversion, convert, to_json


def main() -> int:
    """Reads the command line, converts, prints."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("target", type=Path, metavar="DST", help="a folder that is not there yet, or empty")
    parser.add_argument("settings", nargs="*", help="YAML files and key=value of the source format")
    parser.add_argument("--from", dest="source_format", default=AUTO, help=f"{AUTO}, {', '.join(FORMATS)}")
    parser.add_argument("--to", dest="target_format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--into", help=f"{', '.join(INTO)}: the blocks become its global model")
    parser.add_argument("--config", nargs="+", default=[], help="YAML files and key=value of the model of --into")
    parser.add_argument("--window-bases", type=int, help="derive anew what depends on the window")
    parser.add_argument("--no-check", dest="check", action="store_false", help="don't compare the logits")
    given = vars(parser.parse_intermixed_args())
    given |= {"settings": tuple(given["settings"]), "hybrid": tuple(given.pop("config"))}
    try:
        print(to_json(convert(Conversion(**given))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
