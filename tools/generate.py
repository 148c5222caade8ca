"""python tools/generate.py CHECKPOINT --prompt ACGT --num-bases 500 [--temperature 1 --top-k 4 --top-p 0.9 --seed 0]

Draws bases behind a prompt and prints both as FASTA. CHECKPOINT is a run folder or a checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
from pathlib import Path

from hyena_blt_savanna.evaluation.generation import generate
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel


def main() -> int:
    """Reads the command line, generates, prints."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hyena_blt_savanna").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", default="", help="what the sequence begins with; may be empty")
    parser.add_argument("--num-bases", type=int, default=500, help="bases to draw behind the prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most likely base")
    parser.add_argument("--top-k", type=int, help="draw from so many most likely bases only")
    parser.add_argument("--top-p", type=float, help="draw from the most likely bases of this probability together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at-end", action="store_true", help="let the model end the sequence")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    settings = {name: getattr(given, name) for name in ("temperature", "top_k", "top_p", "seed")}
    try:
        model = HyenaBLTModel.load_from_checkpoint(given.checkpoint, given.device)
        drawn = generate(model, given.prompt, given.num_bases, stop_at_end=given.stop_at_end, **settings)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    named = " ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    print(f">generated prompt_bases={len(drawn.prompt)} num_bases={len(drawn.bases)} {named}")
    print(textwrap.fill(drawn.sequence, width=80))
    return 0


if __name__ == "__main__":
    sys.exit(main())
