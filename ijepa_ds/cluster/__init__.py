"""Hosts and processes of a job: hostfiles, environment, supervision, hang detection, logs of ranks."""
