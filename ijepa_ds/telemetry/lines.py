"""Progress bars in files: one line for each update, without the carriage returns that a terminal needs."""

from __future__ import annotations

import io
from typing import TextIO


class NewLines(io.TextIOBase):
    """A stream for `tqdm(file=...)` that writes each state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a line; the blanks that clear a line of a terminal are left out."""
        for part in text.replace("\n", "\r").split("\r"):
            if part.strip():
                self._stream.write(part.rstrip() + "\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
