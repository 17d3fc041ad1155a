"""Checkpoints and run directories: write, verify and read them, and restore them at any world size."""
