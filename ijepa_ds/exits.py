"""Exit codes of a run, and its completion marker, which is more reliable than a launcher's exit code."""

FAILED = 1  # an unexpected error, with its traceback
USER_ERROR = 2  # an error that the user can fix, with one message
LOST = 70  # EX_SOFTWARE: a rank died or hangs, so the job cannot continue
STOPPED = 75  # EX_TEMPFAIL: stopped on request with everything saved; the same command resumes
COMPLETED = "completed.json"  # in the run directory after the last step
