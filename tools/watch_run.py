"""Shows where runs stand, from their metrics.jsonl alone; over a shared disk, while they go on or afterwards.

python tools/watch_run.py runs/mine
python tools/watch_run.py runs/mine --every 10          # again every ten seconds
python tools/watch_run.py runs/mine --stragglers        # the slowest rank of each logging interval
python tools/watch_run.py runs/a runs/b --html page.html  # curves of several runs, compared
"""

import argparse
import sys
import time
from pathlib import Path

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.training.watching import Watched, as_html, as_text, stragglers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", nargs="+", type=Path, help="run folders")
parser.add_argument("--every", type=float, help="show again after so many seconds, until it is interrupted")
parser.add_argument("--html", type=Path, help="write a page with curves")
parser.add_argument("--stragglers", action="store_true", help="show the slowest rank of each logging interval")
options = parser.parse_args()
try:
    while True:
        watched = [Watched.read(run) for run in options.runs]
        if options.html:
            write_whole(options.html, as_html(watched).encode())
        print("\n\n".join(map(stragglers, watched)) if options.stragglers else as_text(watched), flush=True)
        if not options.every:
            break
        time.sleep(options.every)
        print()
except ConfigError as error:
    sys.exit(str(error))
