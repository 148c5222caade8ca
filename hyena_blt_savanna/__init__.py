"""Hyena-BLT-Genome: pretraining of genomic language models on patches of varying length."""

__version__ = "0.1.0"
