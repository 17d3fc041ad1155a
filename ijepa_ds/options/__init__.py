"""The options of commands whose code needs PyTorch, so that `--help` and errors in a command line need not wait for it."""
