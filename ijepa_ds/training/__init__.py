"""The training loop and everything that happens around a step."""
