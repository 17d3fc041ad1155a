"""`python -m tests.golden`: compare the frozen values with the computed ones. `--write`: write the files.

`--write` adds files and cases. It refuses to change a value under the same order version: raise
`ijepa_ds.counter.ORDER_VERSION` and describe the change in CHANGELOG.md first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.golden import values


def changed(folder: Path) -> list[str]:
    """Values that differ from those frozen under the present order version, or are gone; new cases and files are no change."""
    found = []
    for subject, how in values.SUBJECTS.items():
        path = values.path_of(subject, folder)
        header, frozen = values.read(path) if path.exists() else ("", {})
        if header == values.HEADER:
            now = how.lines()
            found += values.differences(subject, frozen, {case: line for case, line in now.items() if case in frozen})
    return found


def write(folder: Path) -> None:
    """Write all files; lines that are within their tolerance stay as they are."""
    for subject, how in values.SUBJECTS.items():
        path, now = values.path_of(subject, folder), how.lines()
        header, frozen = values.read(path) if path.exists() else ("", {})
        kept = frozen if header == values.HEADER else {}
        text = [values.HEADER, *(f"{case}: {kept.get(case, line)}" for case, line in now.items())]
        path.write_text("\n".join(text) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None, folder: Path = values.FOLDER) -> int:
    """0 if nothing has changed; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Frozen values of everything that is drawn.")
    parser.add_argument("--write", action="store_true", help="write the files; refused where a value changed")
    arguments = parser.parse_args(argv)
    found = changed(folder)
    if found:
        print("\n".join(found))
        print(
            f"{len(found)} values changed under {values.HEADER}: if that is intended, raise ORDER_VERSION in "
            "ijepa_ds/counter.py, add a line with the new version to CHANGELOG.md, and run `python -m tests.golden --write`"
        )
        return 1
    if arguments.write:
        write(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
