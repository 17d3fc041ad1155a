"""Reading of images from parquet: a row group at a time, and the groups in use stay in memory up to a limit.

Files are read, not mapped: a fault of the storage under a map ends the process, under a read it is an error that can be
waited for.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ijepa_ds.data.index_file import Container
from ijepa_ds.errors import ContentError

logger = logging.getLogger(__name__)
BYTES = "bytes"  # field of an image column of structs, as Hugging Face writes it
_MOST_FILES = 256  # footers in memory
_TOO_MUCH = 4.0  # times as many bytes read as used: worth a warning


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Turn pyarrow's errors about content into ContentError; faults of the storage stay OSErrors."""
    try:
        yield
    except pa.ArrowException as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ContentError(_first_line(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ContentError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def open_parquet(path: str, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a parquet file; its pages are compared with their checksums, where it has them.

    Raises:
        ContentError: The file is damaged or cut short.
        OSError: It cannot be opened.
    """
    with arrow_errors():
        # A text would be taken for a URL, where no file has that name.
        return pq.ParquetFile(pa.OSFile(os.fsencode(path)), metadata=footer, page_checksum_verification=True)


class Rows:
    """The images of one row group."""

    def __init__(self, file: pq.ParquetFile, place: Container) -> None:
        """Read the group of `place` from an open file, the image column alone.

        Raises:
            ContentError: The group is damaged.
            OSError: The read fails.
        """
        with arrow_errors():
            table = file.read_row_group(place.group, columns=[place.column], use_threads=False)
            column = table.column(place.column)
            self._values = pc.struct_field(column, BYTES) if pa.types.is_struct(column.type) else column
        self.num_bytes = self._values.nbytes

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._values)

    def read(self, row: int) -> bytes:
        """Return the bytes of the image in a row.

        Raises:
            ContentError: The row has none.
        """
        content = self._values[row].as_py() if row < len(self) else None
        if content is None:
            raise ContentError("row without bytes: the file has at most the image's path, and images are read from bytes only")
        return content


@dataclass
class _Group:
    """A row group that is read once, however many threads wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: Rows | None = None


class RowGroups:
    """Reads images from parquet files; several threads may call it. The last row groups used stay in memory."""

    def __init__(self, most_bytes: int) -> None:
        """Keep row groups of at most `most_bytes` bytes, and always the last one."""
        self._most = most_bytes
        self._groups: OrderedDict[Container, _Group] = OrderedDict()
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()
        self._held = self._read = self._used = 0  # bytes
        self._warned = False

    def read(self, place: Container, row: int) -> bytes:
        """Return the bytes of the image in a row of a row group.

        Raises:
            ContentError: The row has none, or the group is damaged.
            OSError: The read fails.
        """
        with self._lock:
            group = self._groups.setdefault(place, _Group())
            self._groups.move_to_end(place)
        with group.lock:
            rows = group.rows
            if rows is None:
                rows = group.rows = Rows(self._open(place.path), place)
                self._keep(rows)
        content = rows.read(row)
        self._used += len(content)
        return content

    def forget(self, path: str) -> None:
        """Forget what is known about a file, before it is read again."""
        with self._lock:
            self._footers.pop(path, None)

    def _open(self, path: str) -> pq.ParquetFile:
        with self._lock:
            footer = self._footers.get(path)
        file = open_parquet(path, footer)
        with self._lock:
            self._footers[path] = file.metadata
            self._footers.move_to_end(path)
            if len(self._footers) > _MOST_FILES:
                self._footers.popitem(last=False)
        return file

    def _keep(self, rows: Rows) -> None:
        """Count a group that was read, and drop those that were not used for longest."""
        with self._lock:
            self._held += rows.num_bytes
            self._read += rows.num_bytes
            for place in list(self._groups):
                dropped = self._groups[place].rows
                if self._held <= self._most or dropped is rows:
                    break
                if dropped is not None:
                    self._held -= dropped.num_bytes
                    del self._groups[place]
        if not self._warned and self._read > max(_TOO_MUCH * self._used, 2 * self._most):
            self._warned = True
            logger.warning(
                "parquet: %.1f times as many bytes are read as images use, because the order of the images jumps among more "
                "row groups than %d MiB hold. data.order=shards, a larger data.parquet_cache, or tar shards (`ijepa-ds data "
                "shard`) are faster",
                self._read / max(1, self._used),
                self._most >> 20,
            )
