"""Memory, communication and time of a run on paper: arithmetic over a configuration, no network is built.

Sources of every formula: docs/plan.md. Checked against real steps in tests/dist/test_plan.py.
"""
