"""Measurements against a plain implementation, and between revisions. Run from the checkout: `python -m benchmarks.compare`."""
