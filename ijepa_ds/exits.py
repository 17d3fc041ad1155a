"""How a run ends: its exit codes, and the marker that scripts should trust more than any launcher's code."""

FAILED = 1  # an error that nobody foresaw, with its traceback
USER_ERROR = 2  # something to be mended by the user, said in one message
LOST = 70  # EX_SOFTWARE: a rank died or hangs, so the job cannot go on
STOPPED = 75  # EX_TEMPFAIL: stopped when asked, everything is saved, the same command continues
COMPLETED = "completed.json"  # in the run directory when the last step is reached
