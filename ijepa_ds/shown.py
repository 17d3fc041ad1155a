"""File names as text for people: any bytes are possible in a name, and not all of them can be printed, drawn or encoded."""

from __future__ import annotations

import sys


def shown(text: str) -> str:
    r"""One line of valid text: bytes that are no UTF-8 as `\xe9`, newlines and other control characters as `\n`."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    byte = ord(letter) - 0xDC00  # `os.fsdecode` keeps such a byte as a surrogate
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else letter.encode("unicode_escape").decode("ascii")


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, as TensorBoard requires of its folder."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in name)


def print_any_name() -> None:
    """Let both output streams escape what they cannot encode; a message with a file name must not end in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
