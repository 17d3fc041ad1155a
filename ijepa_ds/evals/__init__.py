"""Evaluations of frozen encoders: one file each, with a function `evaluate(...)`; needs no DeepSpeed."""
