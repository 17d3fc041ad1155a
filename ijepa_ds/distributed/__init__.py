"""Communication between ranks: the process group, small exchanges in host memory, errors raised together."""
