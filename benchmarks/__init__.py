"""Comparisons with a plain implementation and between revisions; run from the checkout: `python -m benchmarks.compare`."""
