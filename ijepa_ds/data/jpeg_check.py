"""Warnings of libjpeg about a JPEG, and which of them mean that pixels are wrong."""

from __future__ import annotations

import re

import numpy as np

_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}
_HOLE = 128  # zeros in a row
_READ_AHEAD = 17  # bytes
_LEFT_OVER = 0.1  # share of a file behind its last pixel that means a wrong size in the header


def jpeg_damage(content: bytes, strict: bool = False) -> str:
    """Return libjpeg's first warning that means wrong pixels; empty for whole JPEGs and other formats.

    This finds JPEGs with damaged bytes inside and with a wrong size in the header, which loaders fill with grey or wrong
    pixels. Junk between markers and damaged metadata leave all pixels as they are.

    Args:
        content: The file's bytes.
        strict: Return every warning, also of harmless bytes.
    """
    import simplejpeg  # late: only the check needs it

    if content[:2] != b"\xff\xd8":
        return ""
    try:
        simplejpeg.decode_jpeg(content if strict else without_metadata(content), strict=True)
    except ValueError as error:
        text = str(error)
        if text.startswith("tj"):  # a limit of this interface: Pillow decodes the file
            return ""
        return text if strict or not _harmless(text, len(content)) else _hidden_damage(content, text)
    return ""


def _harmless(warning: str, num_bytes: int) -> bool:
    """Whether a warning is about a few bytes before a marker that no restart of the decoder follows."""
    match = re.search(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})", warning)
    if not match:
        return False
    restart = 0xD0 <= int(match[2], 16) <= 0xD7  # the decoder lost its place
    return not restart and int(match[1]) <= _LEFT_OVER * num_bytes


def _hidden_damage(content: bytes, warning: str) -> str:
    """Return why bytes left over before a JPEG's end are the rest of damaged pixels; empty if nothing says so.

    libjpeg's warning is the same for bytes that were added and for pixels that a damaged byte made shorter. Of damaged
    ones two signs tell most: a hole of zeros, and a last byte that is not filled up with ones, as encoders do.
    """
    import simplejpeg

    scan = content.find(b"\xff\xda")
    ends = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]").search(content, scan + 2)
    left = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if not ends or not left or content[ends.start() + 1] != _END:  # several scans
        return ""
    if re.compile(rb"\0{%d}" % _HOLE).search(content, scan, ends.start() - int(left[1])):
        return f"{warning}, behind a hole of zeros"

    def pixels(part: bytes) -> np.ndarray | None:
        try:
            return np.asarray(simplejpeg.decode_jpeg(part + b"\xff\xd9", strict=True))
        except ValueError:
            return None

    last, whole = ends.start() - int(left[1]), None  # libjpeg does not count up to 8 bytes that it has read ahead
    for shorter in range(last, max(scan, last - _READ_AHEAD), -1):
        found = pixels(content[:shorter])
        if found is None and whole is not None:
            break
        last, whole = (shorter, found) if found is not None else (last, whole)
    byte = content[last - 1]
    if whole is None or byte == 0xFF or content[last - 2 : last] == b"\xff\0":
        return ""
    used = byte | ~byte & (byte + 1)  # the lowest zero is a bit of the last code, unless pixels are missing
    changed = pixels(content[: last - 1] + bytes([used]) + b"\0" * (used == 0xFF))
    if changed is None or not np.array_equal(changed, whole):
        return ""
    return f"{warning}, and the scan before them does not end as one"


def without_metadata(content: bytes) -> bytes:
    """Return a JPEG without application segments, comments and junk before its first scan.

    JFIF's and Adobe's segments stay: colours depend on them.
    """
    kept, at = [content[:2]], 2
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 4 > len(content):
            return content
        marker = content[at + 1]
        if marker in (0xFF, 0x00) or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (_START_OF_SCAN, _END):
            return b"".join([*kept, content[at:]])
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[at:end])
        at = end
