"""Ladders of runs: models of growing size times budgets of images, and what their scores let one expect of the next."""
