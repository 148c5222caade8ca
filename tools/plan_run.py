"""python tools/plan_run.py configs/model/hyena_blt_7b.yaml configs/training/gpu.yaml [key=value ...]
    --gpus N --gpu-memory-gb M [--utilisation 0.4] [--peak-tflops X] [--patch-bases B]

Memory of a rank by part, operations and expected time of a step, as configured and on the smallest mesh that fits, for
each stage of a run. Needs no GPU, and neither data nor a run folder.
"""

from __future__ import annotations

import argparse
import sys

from hyena_blt_savanna.training.planning import Machine, Planner
from hyena_blt_savanna.training.planning_text import load_run, plan_lines


def main() -> int:
    """Reads the command line, plans, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="YAML files and key=value overrides, as for a training")
    parser.add_argument("--gpus", type=int, required=True, help="of all nodes")
    parser.add_argument("--gpu-memory-gb", type=float, required=True, help="of each, in 10^9 bytes")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak, recomputation included")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of a GPU (default: H100 and H200, bf16)")
    parser.add_argument("--patch-bases", type=float, help="mean length (default: the data's, or 8)")
    given = parser.parse_intermixed_args()
    machine = Machine(given.gpus, given.gpu_memory_gb * 1e9, given.peak_tflops * 1e12, given.utilisation)
    try:
        for line in plan_lines(Planner(load_run(given.sources), machine, given.patch_bases)):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
