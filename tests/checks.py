"""All checks: `python -m tests.checks [arguments of pytest]`. ruff first; then pytest, with mypy beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time

PYTEST = ["pytest", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def main(arguments: list[str]) -> int:
    """The exit code of the first check that failed; 0: none did."""
    began = time.monotonic()
    for words in (["check", "."], ["format", "--check", "."]):
        say(f"ruff {' '.join(words)}")
        if code := subprocess.call(["ruff", *words]):
            return code
    with tempfile.TemporaryFile("w+") as output:
        types = subprocess.Popen([sys.executable, "-m", "mypy"], stdout=output, stderr=subprocess.STDOUT)
        say("pytest; mypy runs beside it")
        tests = subprocess.Popen([sys.executable, "-m", *PYTEST, *arguments])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal: wait for them to end
        signal.signal(signal.SIGTERM, lambda number, _: (tests.send_signal(number), types.terminate()))
        code = tests.wait()
        say(f"pytest: {time.monotonic() - began:.0f} s; mypy")
        types.wait()
        output.seek(0)
        print(output.read(), end="", flush=True)
    say(f"{time.monotonic() - began:.0f} s: pytest ended with {code}, mypy with {types.returncode}")
    return code or types.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
