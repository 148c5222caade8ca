"""Checkpoints in and out: native, DeepSpeed, Savanna, Vortex, transformers."""
