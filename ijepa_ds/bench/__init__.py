"""Measurements of time, memory and traffic of runs on this machine."""
