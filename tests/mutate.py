"""Mutation tests: `python -m tests.mutate [WORD ...] [--jobs N]` changes one line at a time and expects a test to fail.

Every mutation of `tests/mutations.py` is applied to a copy of the checkout, and the tests that cover it run there. A mutation
that no test notices is a survivor; the exit code is 1 if there is one that `tests/mutations.py` does not explain. Words select
the mutations whose file or text contains one of them. Takes about 20 s a mutation on two cores.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tests.mutations import EXPLAINED, MUTATIONS, Mutation

REPOSITORY = Path(__file__).parents[1]
LIMIT = 900.0 * float(os.environ.get("TEST_TIMEOUT_SCALE", "1"))  # seconds for the tests of one mutation
FAILED, PASSED = 1, 0  # exit codes of pytest


class Result(NamedTuple):
    """What the tests of a mutation did."""

    code: int | None  # exit code of pytest; None: it ran into the limit
    seconds: float
    output: str


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutations whose file or text contains one of these")
    parser.add_argument("--jobs", type=int, default=2, help="mutations tried at once (default: 2)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Try the mutations; 1 if an unexplained one survived, 2 if the list or the unchanged tests are wrong."""
    arguments = parse_arguments(argv)
    chosen = [m for m in MUTATIONS if not arguments.words or any(w in m.file + m.old + m.new for w in arguments.words)]
    wrong = [problem for m in chosen if (problem := problem_of(m, REPOSITORY))]
    if wrong or not chosen:
        print("\n".join(wrong) or f"no mutation contains {' or '.join(arguments.words)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutate-") as place:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.jobs):
            copies.put(copy_checkout(Path(place) / f"copy-{number}" / "checkout"))

        def unchanged(tests: str) -> Result:
            copy = copies.get()
            try:
                return run_tests(copy, tests)
            finally:
                copies.put(copy)

        def attempt(mutation: Mutation) -> Result:
            copy = copies.get()
            try:
                result = try_mutation(copy, mutation)
            finally:
                copies.put(copy)
            print(f"{verdict(result):9} {result.seconds:5.0f} s  {mutation}", flush=True)
            return result

        with ThreadPoolExecutor(arguments.jobs) as pool:
            groups = sorted({m.tests for m in chosen})
            print(f"{len(chosen)} mutations; first the {len(groups)} groups of tests on the unchanged code", flush=True)
            for tests, result in zip(groups, pool.map(unchanged, groups), strict=True):
                if result.code != PASSED:
                    wrong.append(f"without a mutation, `pytest {tests}` ends with {result.code}:\n{result.output[-3000:]}")
            if wrong:
                print("\n".join(wrong))
                return 2
            results = list(pool.map(attempt, chosen))
    survivors = [m for m, result in zip(chosen, results, strict=True) if verdict(result) == "SURVIVED"]
    broken = [m for m, result in zip(chosen, results, strict=True) if verdict(result) == "BROKEN"]
    print(f"{len(chosen) - len(survivors) - len(broken)} of {len(chosen)} mutations fail a test")
    for mutation in survivors:
        print(f"survived: {mutation}\n    {EXPLAINED.get((mutation.file, mutation.old), 'no test notices it')}")
    for mutation in broken:
        print(f"broken: {mutation}: the tests were not run")
    return int(bool(broken) or any((m.file, m.old) not in EXPLAINED for m in survivors))


def problem_of(mutation: Mutation, checkout: Path) -> str | None:
    """Why a mutation cannot be applied; None: it can."""
    path = checkout / mutation.file
    count = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else 0
    if count != 1:
        return f"tests/mutations.py: {mutation}: the old text occurs {count} times in {mutation.file}, expected once"
    return None


def copy_checkout(place: Path) -> Path:
    """Copy the files of this checkout that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if source.is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place / name)
    if (REPOSITORY.parent / "shared").is_dir():  # optional data beside the checkout
        (place.parent / "shared").symlink_to(REPOSITORY.parent / "shared")
    return place


def try_mutation(checkout: Path, mutation: Mutation) -> Result:
    """Apply a mutation, run its tests, and restore the file."""
    path = checkout / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return run_tests(checkout, mutation.tests)
    finally:
        path.write_text(text, encoding="utf-8")


def run_tests(checkout: Path, tests: str) -> Result:
    """Run pytest on some tests of a checkout, until the first failure."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    given = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    begin = time.monotonic()
    try:
        done = subprocess.run(command, cwd=checkout, env=os.environ | given, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return Result(None, time.monotonic() - begin, "")
    return Result(done.returncode, time.monotonic() - begin, done.stdout + done.stderr)


def verdict(result: Result) -> str:
    """Name of the outcome of a mutation."""
    if result.code == PASSED:
        return "SURVIVED"
    return "failed" if result.code in (FAILED, None) else "BROKEN"  # a run without an end is noticed too


if __name__ == "__main__":
    sys.exit(main())
