"""python bench/quality.py configs/quality/small.yaml [--seconds N] [--workers 2] [--only GLOB] [--list] [--render]

Quality at equal compute: trains the contenders of a benchmark with the same budget of operations on the same data, and
writes docs/results/NAME: a JSON file for each training, table.md and pictures. Results that are there are not made
again, and trainings that were stopped (by --seconds, or Ctrl-C) go on where they were: the same command continues.
Further key=value change the benchmark's configuration.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import torch

from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.datasets import Datasets
from hyena_blt_savanna.quality.ngram_line import make_ngram_line
from hyena_blt_savanna.quality.page import write_page
from hyena_blt_savanna.quality.plan import Plan
from hyena_blt_savanna.quality.results import Results
from hyena_blt_savanna.quality.running import TrialRunner, run_trials

logger = logging.getLogger("hyena_blt_savanna.quality")


def main(arguments: list[str]) -> int:
    """Reads the command line, trains what is missing, writes the page."""
    given = _parse(arguments)
    _log_to_terminal()
    # A job that is ended leaves no training behind, and nothing half-written.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return _run(given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seconds", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time; they share the cores")
    parser.add_argument(
        "--only",
        metavar="GLOB",
        action="append",
        default=[],
        help="contenders or trials by name, ngram for the count model; may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="say what there is and what is missing, and train nothing")
    parser.add_argument("--render", action="store_true", help="write the page from the results, and train nothing")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished trainings")
    parser.add_argument("--genomes", type=Path, action="append", default=[], help="a folder with FASTA files")
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: runs/quality/NAME)")
    parser.add_argument("--results", type=Path, help="folder for results (default: docs/results/NAME)")
    return parser.parse_intermixed_args(arguments)


def _run(given: argparse.Namespace) -> int:
    benchmark = Benchmark.load(given.config, given.overrides)
    name = benchmark.config.name
    plan = Plan(benchmark, given.only)
    results = Results(given.results or Path("docs/results") / name)
    work = given.work or Path("runs/quality") / name
    command = shlex.join(["python", "bench/quality.py", str(given.config), *given.overrides])
    fresh, stale = results.fresh(plan)
    wanted = plan.wanted({name: result.validation_bits for name, result in fresh.items()})
    wants_ngram = not given.only or any(fnmatch.fnmatch("ngram", pattern) for pattern in given.only)
    if not wanted and not wants_ngram:
        raise ValueError(
            f"--only {', '.join(given.only)}: no contender and no trial that can be started now has such a name; "
            f"--list shows the trials, and the contenders are {', '.join(benchmark.contenders)}"
        )
    if given.list:
        for trial in wanted:
            state = "done" if trial.name in fresh else "stale" if trial.name in stale else "missing"
            print(f"{state:<8}{trial.name}")
        return 0
    code = 0
    if not given.render:
        began = time.monotonic()
        num_threads = max(1, (os.cpu_count() or 1) // given.workers)
        torch.set_num_threads(num_threads)
        datasets = Datasets(benchmark, work, given.genomes, num_threads)
        runner = TrialRunner(plan, datasets, results, work, command, num_threads, given.keep)
        if wants_ngram:
            for genome in benchmark.trained_genomes:
                make_ngram_line(benchmark, results, datasets, genome)
        left = None if given.seconds is None else given.seconds - (time.monotonic() - began)
        progress = run_trials(runner, plan, results, given.workers, left)
        logger.info("%d trainings finished, %d failed", len(progress.finished), len(progress.failed))
        code = 1 if progress.failed else 0
    print(write_page(Plan(benchmark), results, command))
    return code


def _log_to_terminal() -> None:
    began = time.monotonic()

    class Clock(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"[{time.monotonic() - began:6.0f} s] {record.getMessage()}"

    handler = logging.StreamHandler()
    handler.setFormatter(Clock())
    package = logging.getLogger("hyena_blt_savanna")
    package.addHandler(handler)
    package.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
