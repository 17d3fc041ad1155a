"""Hosts and processes: hostfiles, environment, supervision, hang detection, logs of ranks."""
