"""Evaluation of frozen encoders: one file a task; needs neither DeepSpeed nor DALI."""
