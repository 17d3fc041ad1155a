"""Ladders of runs: models times budgets of images, power laws of their scores, and predictions for the next run."""
