"""Warnings of libjpeg about a JPEG, and which of them mean that pixels are wrong."""

from __future__ import annotations

import re

_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD9)) | {0x01}
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
        return "" if not strict and _harmless(text, len(content)) else text
    return ""


def _harmless(warning: str, num_bytes: int) -> bool:
    """Whether a warning is about a few bytes before a marker that no restart of the decoder follows."""
    match = re.search(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})", warning)
    if not match:
        return False
    restart = 0xD0 <= int(match[2], 16) <= 0xD7  # the decoder lost its place
    return not restart and int(match[1]) <= _LEFT_OVER * num_bytes


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
