"""Operators, blocks and the models that are built from them: tensors in, tensors out."""
