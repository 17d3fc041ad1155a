"""Exit codes of a run, and its markers of completion and of a stop, which are more reliable than a launcher's exit code."""

FAILED = 1  # an unexpected error, with its traceback
USER_ERROR = 2  # an error that the user can fix, with one message
LOST = 70  # EX_SOFTWARE: a rank died or hangs, so the job cannot continue
STOPPED = 75  # EX_TEMPFAIL: the same command resumes. Stopped on request with everything saved, or storage or network failed
COMPLETED = "completed.json"  # in the run directory after the last step
REQUESTED = "stopped.json"  # in the run directory after a stop on request: a supervisor does not start it again
