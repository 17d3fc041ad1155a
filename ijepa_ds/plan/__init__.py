"""Estimates of a run's memory, communication and time, computed from its configuration without building a network.

docs/plan.md lists the source of every formula; tests/dist/test_plan.py compares them with real steps.
"""
