"""The text of a list: its encoding, its lines, and lines that hold more than a name."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ijepa_ds.data.walk import is_image
from ijepa_ds.errors import UserError

BLANKS = b" \t\xc2\xa0"
_OTHER_ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_WIDE = 0.25  # share of zero bytes at every other place that only UTF-16 has


def text_of(path: str | Path, where: str) -> bytes:
    """Return the bytes of a text file without a UTF-8 byte-order mark.

    Args:
        path: The file.
        where: Its name in messages.

    Raises:
        ValueError: It is UTF-16 or UTF-32, has zero bytes, or lines that end in CR alone.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _OTHER_ENCODINGS.items() if content.startswith(mark)), "") or _wide(content)
    if encoding:
        command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > list.utf8{Path(path).suffix}"
        raise UserError(f"{where} is {encoding} text, expected UTF-8: `{command}`")
    if b"\0" in content:
        at = content.index(b"\0")
        line = content.count(b"\n", 0, at) + 1
        raise UserError(f"{where}, line {line}: a zero byte at byte {at:,}: the file is damaged, or is no list")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content and b"\n" not in content:
        raise UserError(f"{where} has lines that end in CR alone: `tr '\\r' '\\n' < {shlex.quote(str(path))} > list.lf.txt`")
    return content


def plain_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of every line that is not blank, without its line break."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip(BLANKS + b"\r"):
            yield number, line.removesuffix(b"\r")


def label_on_line(line: bytes) -> bool:
    """Return whether a line looks like `path label` or `label path`."""
    after = re.fullmatch(rb"(.*\.\w{2,5})[ \t,;|]+\S.*", line.strip())
    before = re.fullmatch(rb"\S+[ \t,;|]+(\S.*)", line.strip())
    return bool(after and is_image(after[1]) and not is_image(line.strip())) or bool(before and is_image(before[1]))


def _wide(content: bytes) -> str:
    """The kind of UTF-16 of a text without a byte-order mark, by its zero bytes; empty for other texts."""
    even, odd = content[0::2].count(0), content[1::2].count(0)
    if max(even, odd) < max(1, _WIDE * len(content) / 2) or min(even, odd) > max(even, odd) / 8:
        return ""
    return "UTF-16LE" if odd > even else "UTF-16BE"


def is_utf8(value: bytes) -> bool:
    """Return whether a value is UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_utf8(value: bytes, where: str) -> None:
    """Check that a value is UTF-8.

    Args:
        value: A value or a line.
        where: The list and the line, for the message.

    Raises:
        ValueError: It is not; the text names the byte.
    """
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: {os.fsdecode(value)!r} is no UTF-8 text (0x{value[error.start]:02x} is its byte {error.start + 1}); "
            "convert the list, for example `iconv -f LATIN1 -t UTF-8`"
        ) from None
