"""Checkpoints and run directories: write, verify, read and restore at any world size."""
