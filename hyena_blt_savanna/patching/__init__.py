"""Entropy models and the rules that cut a sequence into patches."""

from hyena_blt_savanna.patching.patcher import Patcher, compute_entropy, segment_sequence

__all__ = ["Patcher", "compute_entropy", "segment_sequence"]
