"""python tools/convert_config.py --to ours|savanna FILE ... [key=value ...] [--window-patches N] [--num-ranks N]

Converts the configuration of a run: Savanna's YAML files of model and data into one of ours, or back. Prints YAML, with
what has no counterpart as comments in front.
"""

from __future__ import annotations

import argparse
import sys

from hyena_blt_savanna.conversion.foreign_yaml import merge_foreign
from hyena_blt_savanna.conversion.savanna_run import from_ours, to_ours
from hyena_blt_savanna.training.run_config import RunConfig


def main() -> int:
    """Reads the command line, converts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="FILE", help="YAML files, and key=value")
    parser.add_argument("--to", choices=("ours", "savanna"), required=True)
    parser.add_argument("--window-patches", type=int, help="positions of a hybrid's global model inside Savanna")
    parser.add_argument("--num-ranks", type=int, default=1, help="of Savanna's run, if it names no train_batch_size")
    given = parser.parse_intermixed_args()
    try:
        if given.to == "ours":
            converted = to_ours(merge_foreign(given.sources), " ".join(given.sources), given.num_ranks)
        else:
            converted = from_ours(RunConfig.load(given.sources), given.window_patches)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(converted.to_yaml(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
