"""Scores of a frozen encoder: one file an evaluation, each with `evaluate(...)`. Needs no DeepSpeed."""
