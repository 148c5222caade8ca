"""python tools/evaluate.py CHECKPOINT --data DATA [--region RECORD:FROM-TO] [--patch-factor F] [--annotation NAME]
    [--output FILE]

Bits per base of a model on sequences, in overlapping windows, as JSON. CHECKPOINT is a run folder or a checkpoint;
DATA is a FASTA file or the path of a dataset without its suffix. With --reconstruction: also how many patches the
local modules alone reconstruct from their own vectors, and what linear probes find in these.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.evaluation.bits_per_base import documents_of, evaluate_bits_per_base, stored_patches
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.reconstruction import evaluate_reconstruction


def main() -> int:
    """Reads the command line, evaluates, prints."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hyena_blt_savanna").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="FASTA file, plain or gzipped, or a dataset")
    parser.add_argument("--region", help="RECORD:FROM-TO, counted from 1, both ends included; a record of its own")
    parser.add_argument("--window-bases", type=int, help="default: the longest window of the training")
    parser.add_argument("--overlap-bases", type=int, help="least context of a scored base; default: half a window")
    parser.add_argument("--batch-windows", type=int, default=4, help="windows of one pass")
    parser.add_argument("--reconstruction", action="store_true", help="what the vectors of patches keep")
    parser.add_argument("--patch-factor", type=float, help="multiplies the limit of the rule: 0.5 for shorter patches")
    parser.add_argument("--annotation", help="the dataset's stored boundaries, in place of those of the patcher")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    given = parser.parse_args()
    try:
        model = HyenaBLTModel.load_from_checkpoint(given.checkpoint, given.device)
        if given.annotation is not None and (given.patch_factor is not None or given.reconstruction):
            raise ValueError("--annotation reads stored boundaries: leave --patch-factor and --reconstruction out")
        if given.patch_factor is not None:
            model = model.with_patches(given.patch_factor)
        sizes = (given.window_bases, given.overlap_bases, given.batch_windows)
        figures = {}
        # First, because not every model has patches to reconstruct.
        if given.reconstruction:
            found = evaluate_reconstruction(model, documents_of(given.data, given.region), *sizes)
            figures["reconstruction"] = found.to_dict()
        patches = None if given.annotation is None else stored_patches(given.data, given.annotation)
        documents = documents_of(given.data, given.region)
        figures = evaluate_bits_per_base(model, documents, *sizes, patches=patches).to_dict() | figures
        if given.patch_factor is not None:
            figures = {"patch_factor": given.patch_factor} | figures
        text = json.dumps({"checkpoint": str(given.checkpoint), "data": str(given.data), **figures}, indent=2)
        print(text)
        if given.output:
            write_whole(given.output, (text + "\n").encode())
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
