"""Names in a tar: of headers, long names, and pax records; and what is raised where a tar is damaged."""

from __future__ import annotations

import os
import re

_PAX_KEYS = frozenset(b"path linkpath size mtime atime ctime uid gid uname gname comment charset hdrcharset".split())
_FEW_BYTES = 16  # of a name: more differences are another way of shortening it


class DamageError(Exception):
    """What is wrong with the archive, and the byte."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset


def long_name(content: bytes, at: int) -> bytes:
    """Return the name in GNU's header for long names, whose own header is at byte `at`."""
    name = content[:-1] if content.endswith(b"\0") else content
    if not name or b"\0" in name:
        raise DamageError(at, "a long name has zero bytes inside")
    return name


def pax_records(content: bytes, at: int) -> dict[bytes, bytes]:
    """Return the records of a pax header, `LENGTH KEY=VALUE` and a line break each."""
    records, place = {}, 0
    while place < len(content):
        match = re.compile(rb"(\d{1,9}) ([^=\n]+)=").match(content, place)
        last = place + int(match[1]) if match else 0
        if not match or not match.end() < last <= len(content) or content[last - 1 : last] != b"\n":
            raise DamageError(at, "the records of a pax header do not fit")
        if match[2] not in _PAX_KEYS and b"." not in match[2]:  # keys of vendors have a dot
            raise DamageError(at, f"a pax header has the unknown key {os.fsdecode(match[2])!r}")
        records[match[2]] = content[match.end() : last - 1]
        place = last
    return records


def is_damaged_name(name: bytes, header: bytes) -> bool:
    """Whether a name of an extended header differs by a few bytes from its beginning in the member's own header.

    Only the member's own header has a checksum. Usual writers repeat the first 100 bytes there; others are not judged.
    """
    begin = header[:100].partition(b"\0")[0]
    if len(begin) < 99 or not name.isascii() and b"?" in begin:  # "?" for other characters moves the bytes behind it
        return False
    different = sum(a != b for a, b in zip(begin, name, strict=False)) + max(0, len(begin) - len(name))
    return 0 < different <= _FEW_BYTES


def header_name(header: bytes) -> bytes:
    """Return the name in a member's own header."""
    name, prefix = header[:100].partition(b"\0")[0], b""
    if header[257:263] == b"ustar\0":  # GNU's own format keeps other fields there
        end = 476 if header[508:512] == b"tar\0" else 500  # star's format keeps times behind a shorter prefix
        prefix = header[345:end].partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name
