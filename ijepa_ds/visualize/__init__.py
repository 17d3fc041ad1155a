"""Galleries, summaries and reports of runs; needs neither DeepSpeed nor a display."""
