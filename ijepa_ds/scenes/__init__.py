"""The renderer of CLEVR-like demo images."""
