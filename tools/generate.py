"""python tools/generate.py CHECKPOINT --prompt ACGT [CCG ...] --num-bases 500 [--num-samples 3 --top-k 4 --seed 0]

Draws bases behind each prompt, given as letters or as the records of a FASTA file, several times if wanted, and prints
prompts and bases as FASTA. CHECKPOINT is a run folder or a checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import textwrap
from pathlib import Path

from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.evaluation.generation import BATCH_ROWS, generate_many
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel


def main() -> int:
    """Reads the command line, generates, prints."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hyena_blt_savanna").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", nargs="+", default=[], help="what the sequences begin with; by default nothing")
    parser.add_argument("--prompts", type=Path, help="a FASTA file whose records are prompts")
    parser.add_argument("--num-bases", type=int, default=500, help="bases to draw behind each prompt")
    parser.add_argument("--num-samples", type=int, default=1, help="sequences to draw behind each prompt")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most likely base")
    parser.add_argument("--top-k", type=int, help="draw from so many most likely bases only")
    parser.add_argument("--top-p", type=float, help="draw from the most likely bases of this probability together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at-end", action="store_true", help="let the model end the sequence")
    parser.add_argument("--batch-rows", type=int, default=BATCH_ROWS, help="sequences that are drawn side by side")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    settings = {name: getattr(given, name) for name in ("temperature", "top_k", "top_p", "seed")}
    shown = " ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    try:
        records = list(read_fasta(given.prompts)) if given.prompts else []
        prompts = [*given.prompt, *(record.sequence.tobytes().decode() for record in records)] or [""]
        names = [f"generated{number}" for number in range(1, len(given.prompt) + 1)] if len(prompts) > 1 else []
        names = [*names, *(record.name for record in records)] or ["generated"]
        model = HyenaBLTModel.load_from_checkpoint(given.checkpoint, given.device)
        limits = {"stop_at_end": given.stop_at_end, "batch_rows": given.batch_rows}
        sequences = generate_many(model, prompts, given.num_bases, given.num_samples, **settings, **limits)
        for (name, sample), drawn in zip(itertools.product(names, range(given.num_samples)), sequences, strict=True):
            of_sample = f"{name}.{sample + 1}" if given.num_samples > 1 else name
            print(f">{of_sample} prompt_bases={len(drawn.prompt)} num_bases={len(drawn.bases)} {shown}")
            print(textwrap.fill(drawn.sequence, width=80))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
