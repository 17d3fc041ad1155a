"""Exit codes of a run, and its markers of completion and of a stop, which are more reliable than a launcher's exit code."""

import os
from contextlib import suppress
from pathlib import Path

FAILED = 1  # an unexpected error; its traceback is in the log
USER_ERROR = 2  # an error that the user can fix, with one message
LOST = 70  # EX_SOFTWARE: a rank died or hangs, so the job cannot continue
STOPPED = 75  # EX_TEMPFAIL: the same command resumes. Stopped on request with everything saved, or storage or network failed
COMPLETED = "completed.json"  # in the run directory after the last step
REQUESTED = "stopped.json"  # in the run directory after a stop on request: a supervisor does not start it again
_NOTES = "IJEPA_DS_EXIT_CODES"  # environment variable: the file for `note`


def environment_for_notes(file: Path) -> dict[str, str]:
    """Variables under which the ranks of this host `note` their exit codes in a file."""
    return {_NOTES: str(file)}


def note(code: int) -> None:
    """Tell a supervisor of this host the code with which this rank exits: torchrun itself exits with 1 after any failure."""
    path = os.environ.get(_NOTES)
    if path and code:
        with suppress(OSError), open(path, "a", encoding="ascii") as file:
            file.write(f"{code}\n")


def first_noted(file: Path) -> int | None:
    """The code of the first rank that failed; None if none noted one."""
    try:
        lines = file.read_text("ascii").split()
    except (OSError, UnicodeError):
        return None
    return int(lines[0]) if lines and lines[0].isdecimal() else None
