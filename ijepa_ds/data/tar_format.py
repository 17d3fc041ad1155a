"""The headers of a tar, read strictly: every member up to the archive's end, or an error with the byte.

Python's tarfile and GNU tar stop without an error at a damaged or zeroed header and at the end of the file. For training
that would lose images, so this reader accepts nothing that it does not understand.

Source: POSIX.1-2001 (ustar and pax), the GNU tar manual ("Basic Tar Format").
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from ijepa_ds.data.tar_names import DamageError, header_name, is_damaged_name, long_name, pax_records
from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)
BLOCK = 512
FILE, HARD_LINK, SYMLINK, FOLDER, SPECIAL = "file", "hard link", "symlink", "folder", "special file"

_ZEROS = bytes(BLOCK)
_RECORD = 20 * BLOCK  # usual length of a record; writers fill the last one with zeros
_LARGEST_RECORD = 1 << 20
_EXTENSION_LIMIT = 1 << 20  # bytes of a pax header or long name
_READ = 8 * BLOCK  # bytes per read: a header with its extensions
_KINDS = {b"\0": FILE, b"0": FILE, b"7": FILE, b"1": HARD_LINK, b"2": SYMLINK, b"3": SPECIAL, b"4": SPECIAL, b"5": FOLDER}
_KINDS |= {b"6": SPECIAL, b"S": FILE, b"D": FOLDER, b"V": SPECIAL}
_WITH_DATA = frozenset(b"\x0007SDLKxXg")
_ENDS = ("error", "warn")


class TarMember(NamedTuple):
    """One member of a tar.

    Attributes:
        name: As stored, from a pax header or long name if there is one.
        kind: FILE, HARD_LINK, SYMLINK, FOLDER or SPECIAL.
        offset: First byte of its data.
        num_bytes: Length of its data.
        target: Of a link.
        sparse: Its holes are left out, so its bytes are not contiguous.
    """

    name: bytes
    kind: str
    offset: int = 0
    num_bytes: int = 0
    target: bytes = b""
    sparse: bool = False


class _Blocks:
    """Reads of an open tar, a few blocks at a time."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor, self.path = descriptor, path
        self.num_bytes = os.fstat(descriptor).st_size
        self._start, self._content = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer at the end of the file."""
        if not self._start <= offset <= offset + length <= self._start + len(self._content):
            wanted = max(length, _READ)
            self._content = os.pread(self.descriptor, wanted, offset)  # `tars.scan_tars` reads again after an error
            self._start = offset
        return self._content[offset - self._start :][:length]


def read_members(path: str, end: str = "error") -> Iterator[TarMember]:
    """Yield every member of a tar in its order, without reading its data.

    Args:
        path: An uncompressed tar.
        end: "error" refuses a tar without the two zero blocks that end it; "warn" accepts it if the file ends at a member's
            border, as an interrupted writer leaves it.

    Raises:
        ValueError: Names the archive, the byte, and the number of members before it.
        OSError: A read fails.
    """
    assert end in _ENDS, end
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    count = 0
    try:
        for member in _members(_Blocks(descriptor, path), end):
            yield member
            count += 1
    except DamageError as damage:
        raise UserError(
            f"data.source: {path!r} is damaged or cut short at byte {damage.offset:,}, after {count} whole members: {damage}; "
            "copy it again from its source and compare checksums, or unpack what is left and index the folder"
        ) from None
    finally:
        os.close(descriptor)


def _members(blocks: _Blocks, end: str) -> Iterator[TarMember]:
    at, shared = 0, dict[bytes, bytes]()  # `shared`: of global pax headers
    while at < blocks.num_bytes:
        first, local = at, dict[bytes, bytes]()
        while True:  # extension headers belong to the member behind them
            header = _header(blocks, at)
            if header is None:
                if local:
                    raise DamageError(at, "a member's extended header has no member behind it")
                return _check_end(blocks, at, end)
            kind = header[156:157]
            if kind not in (b"x", b"X", b"g", b"L", b"K"):
                break
            size = _size(header, at)
            content = _extension(blocks, at, size)
            if kind == b"g":
                shared |= pax_records(content, at)
            elif kind in (b"L", b"K"):
                local[b"path" if kind == b"L" else b"linkpath"] = long_name(content, at)
            else:
                local |= pax_records(content, at)
            at += BLOCK + size + -size % BLOCK
        member, at = _member(blocks, header, at, shared | local)
        if b"path" in local and is_damaged_name(local[b"path"], header):
            raise DamageError(first, f"the long name {os.fsdecode(member.name)!r} does not begin as its header says")
        if member.offset + member.num_bytes > blocks.num_bytes:
            raise DamageError(first, f"the file ends inside the data of {os.fsdecode(member.name)!r}")
        yield member
    if at > blocks.num_bytes:
        raise DamageError(blocks.num_bytes, "the file ends inside the padding of the last member")
    _check_end(blocks, at, end)


def _header(blocks: _Blocks, at: int) -> bytes | None:
    """Return a verified header block, or None for a block of zeros."""
    block = blocks.read(at, BLOCK)
    if not block.strip(b"\0"):
        return None
    if len(block) < BLOCK:
        raise DamageError(at, f"the file ends after {len(block)} of the {BLOCK} bytes of a header")
    if not _is_header(block):
        raise DamageError(
            at,
            "the checksum of this header is wrong"
            if at
            else "the file begins without the header of a tar: it is not an uncompressed tar",
        )
    return block


def _is_header(block: bytes) -> bool:
    stored = re.fullmatch(rb"[ \0]*([0-7]{1,8})[ \0]*(?:\0.*)?", block[148:156], re.DOTALL)
    if not stored or len(block) < BLOCK:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    return int(stored[1], 8) in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))  # old tars: signed bytes


def _number(field: bytes, at: int) -> int:
    """Return the value of an octal or binary number field."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise DamageError(at, "a size in this header is negative")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    text = field.partition(b"\0")[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", text):
        raise DamageError(at, f"a size in this header is no number: {field!r}")
    return int(text or b"0", 8)


def _size(header: bytes, at: int) -> int:
    return _number(header[124:136], at)


def _extension(blocks: _Blocks, at: int, size: int) -> bytes:
    if not 0 < size <= _EXTENSION_LIMIT:
        raise DamageError(at, f"an extended header of {size} bytes, expected 1 to {_EXTENSION_LIMIT}")
    content = blocks.read(at + BLOCK, size)
    if len(content) < size:
        raise DamageError(at, "the file ends inside an extended header")
    return content


def _member(blocks: _Blocks, header: bytes, at: int, pax: dict[bytes, bytes]) -> tuple[TarMember, int]:
    """Return the member of a header at byte `at`, and the byte of the next header."""
    flag = header[156:157]
    if flag not in _KINDS:
        raise DamageError(at, f"a member of the type {flag!r}, which is not supported (a multi-volume or vendor archive)")
    if pax.get(b"size", b"0").isdigit() is False:
        raise DamageError(at, f"a pax header has the size {pax[b'size']!r}")
    name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or header_name(header)
    if not name or b"\0" in name:
        raise DamageError(at, "a member without a name")
    size = int(pax[b"size"]) if b"size" in pax else _size(header, at)
    offset, kind = at + BLOCK, _KINDS[flag]
    sparse = flag == b"S" or any(key.startswith((b"GNU.sparse.", b"SCHILY.realsize")) for key in pax)
    more = flag == b"S" and header[482]
    while more:  # the map of holes continues in further blocks
        block = blocks.read(offset, BLOCK)
        if len(block) < BLOCK:
            raise DamageError(at, "the file ends inside a map of holes")
        offset, more = offset + BLOCK, block[504]
    if kind == HARD_LINK and size:  # some writers store the data again, others only its length
        behind = blocks.read(offset, BLOCK)
        if not behind.strip(b"\0") or _is_header(behind):
            size = 0
        else:
            kind = FILE
    elif flag[0] not in _WITH_DATA:
        size = 0
    if kind == FILE and flag in b"\x000" and name.endswith(b"/"):  # folders of the oldest format
        kind = FOLDER
    target = pax.get(b"linkpath") or header[157:257].partition(b"\0")[0]
    return TarMember(name, kind, offset, size, target, sparse), offset + size + -size % BLOCK


def _check_end(blocks: _Blocks, at: int, end: str) -> None:
    """Check what follows the last member at byte `at`: two blocks of zeros, and zeros to the end of a record."""
    left, place = blocks.num_bytes - at, at
    while place < blocks.num_bytes:
        part = blocks.read(place, 1 << 20)
        if part.strip(b"\0"):
            where = place + len(part) - len(part.lstrip(b"\0"))
            raise DamageError(
                at,
                f"a block of zeros ends the archive here, but other bytes follow at {where:,}: a zeroed header, or several "
                "archives glued together (split them, or unpack with `tar --ignore-zeros` and pack again)",
            )
        place += len(part) or blocks.num_bytes
    needed = at + 2 * BLOCK
    sizes = [_RECORD, *(BLOCK << power for power in range(12))]  # a file is filled up to a record of one of these lengths
    filled = any(blocks.num_bytes == needed + -needed % size for size in sizes if size <= _LARGEST_RECORD)
    if left >= 2 * BLOCK and (left < 2 * BLOCK + _RECORD or filled):
        return
    if left < 2 * BLOCK:
        problem = "the two blocks of zeros that end an archive are missing: its writer was interrupted, or it was cut"
    else:
        problem = f"{left:,} zeros follow the last member, more than one record: members may have been zeroed"
    if end == "error":
        raise DamageError(at, f"{problem}; data.tar_end=warn (--tar-end warn) accepts the members before")
    logger.warning("%r, byte %d: %s; data.tar_end=warn accepts it", blocks.path, at, problem)
