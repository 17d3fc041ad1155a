"""JPEGs with a stray marker inside their compressed pixels, at which libjpeg stops and DALI does not.

A damaged byte may turn compressed pixels into a marker. libjpeg, and so Pillow, refuses the file if that marker makes no
sense there. DALI returns the pixels before it and grey ones behind.
"""

from __future__ import annotations

import numpy as np

_SCAN, _END, _TABLES, _INTERVAL = 0xDA, 0xD9, 0xC4, 0xDD
_BETWEEN = frozenset({_SCAN, _TABLES, 0xDB, _INTERVAL, 0xFE, *range(0xE0, 0xF0)})  # segments that may follow a scan


class StrayMarkers:
    """Looks into the scan of every image once."""

    def __init__(self, num_images: int) -> None:
        """Prepare for an index of `num_images` images."""
        self._seen, self._odd = np.zeros(num_images, dtype=bool), set[int]()

    def found(self, index: int, content: bytes) -> bool:
        """Return whether an image's JPEG has a stray marker."""
        if not self._seen[index]:
            if has_stray_marker(content):
                self._odd.add(index)
            self._seen[index] = True
        return index in self._odd


def has_stray_marker(content: bytes) -> bool:
    """Return whether a JPEG has a marker behind its first scan that no encoder writes there.

    Args:
        content: The file's bytes.

    Returns:
        False also for other formats, and for headers that lead to no scan.
    """
    first = _first_scan(content)
    if not first:
        return False
    data = np.frombuffer(content, dtype=np.uint8)
    marked = data[first:-1] == 0xFF
    marked &= data[first + 1 :] != 0
    places = np.flatnonzero(marked) + first
    kinds = data[places + 1]
    places = places[((kinds < 0xD0) | (kinds > 0xD7)) & (kinds != 0xFF)]  # restarts, padding
    behind = first  # of the last segment
    for at in places.tolist():
        if at < behind:
            continue
        kind = content[at + 1]
        if kind == _END:
            return False
        behind = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if kind not in _BETWEEN or not _fits(kind, content[at + 4 : behind], content[behind : behind + 1]):
            return True
    return False


def _first_scan(content: bytes) -> int:
    """The byte behind the header of the first scan; 0 if there is none."""
    at = 2 if content[:2] == b"\xff\xd8" else len(content)
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xFF:
            at += 1
            continue
        kind, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        at += 2 + length
        if kind == _SCAN:
            return at if at < len(content) else 0
    return 0


def _fits(kind: int, segment: bytes, follows: bytes) -> bool:
    """Whether a segment between two scans is whole; `follows` is the byte behind it."""
    if kind == _SCAN:
        return bool(segment) and len(segment) == 4 + 2 * segment[0]
    if follows != b"\xff":
        return False
    if kind == _INTERVAL:
        return len(segment) == 2
    at = 0
    while kind == _TABLES and at < len(segment):
        if segment[at] & 0xEF > 3 or at + 17 > len(segment):
            return False
        at += 17 + sum(segment[at + 1 : at + 17])
    return kind != _TABLES or at == len(segment)
