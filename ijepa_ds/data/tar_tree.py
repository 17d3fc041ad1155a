"""The files that unpacking a tar would give: names cleaned, links followed, later members instead of earlier ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ijepa_ds.data.tar_format import FILE, FOLDER, HARD_LINK, SYMLINK, TarMember

_MOST_LINKS = 40  # followed for one name, as Linux does


class TarFile(NamedTuple):
    """A file of the unpacked tar: its path, and the member that holds its bytes, or why it cannot be read."""

    name: bytes
    member: TarMember
    reason: str = ""


def clean(name: bytes) -> bytes:
    """Return a member's path as unpacking writes it: without `.`, leading and double slashes."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


class TarTree:
    """The tree of files that the members of a tar form.

    Attributes:
        unsafe: Members with `..` in their names, which tar does not unpack.
    """

    def __init__(self, members: Iterable[TarMember]) -> None:
        """Unpack the names of `members`, in order."""
        self._nodes: dict[bytes, TarFile] = {}  # files, links and special files by path
        self._children: dict[bytes, set[bytes]] = {}  # filled when a symlink has to be followed
        self.unsafe: list[TarFile] = []
        for member in members:
            path = clean(member.name)
            if b".." in path.split(b"/"):
                self.unsafe.append(TarFile(path, member, "`..` in the name of a member: tar does not unpack it"))
            elif member.kind == FOLDER or not path:
                self._nodes.pop(path, None)
            else:
                node = self._node(path, member)
                self._nodes.pop(path, None)  # the last of several members with one name, also in the order
                self._nodes[path] = node

    def _node(self, path: bytes, member: TarMember) -> TarFile:
        if member.kind == HARD_LINK:
            target = self._nodes.get(clean(member.target))
            if target is None:
                return TarFile(
                    path, member, f"hard link to {os.fsdecode(member.target)!r}, which does not precede it in the tar"
                )
            return target._replace(name=path)
        if member.kind not in (FILE, SYMLINK):
            return TarFile(path, member, "not a regular file")
        if member.sparse:
            return TarFile(path, member, "sparse member: unpack the tar, and pack it again without --sparse")
        return TarFile(path, member)

    def files(self) -> Iterator[TarFile]:
        """Yield the files in the order of the tar; names that begin with a dot, and what is below them, are left out."""
        if any(node.member.kind == SYMLINK for node in self._nodes.values()):
            for path in self._nodes:
                while path:
                    folder, _, last = path.rpartition(b"/")
                    self._children.setdefault(folder, set()).add(last)
                    path = folder
            found = [*self._walk(b"", b"", frozenset())]
            yield from sorted(found, key=lambda file: file.member.offset)
        else:
            yield from (node for path, node in self._nodes.items() if not _hidden(path))
        yield from (node for node in self.unsafe if not _hidden(node.name.replace(b"../", b"")))

    def _walk(self, shown: bytes, real: bytes, above: frozenset[bytes]) -> Iterator[TarFile]:
        """Yield the files below the folder `real` with names below `shown`; symlinks to a parent folder are left out."""
        if real in above:
            return
        for last in sorted(self._children.get(real, ())):
            if last.startswith(b"."):
                continue
            name, path = (b"/".join(filter(None, (folder, last))) for folder in (shown, real))
            node = self._nodes.get(path)
            if node is not None and node.member.kind == SYMLINK:
                resolved = self._resolve(path)
                if resolved is None:
                    target = os.fsdecode(node.member.target)
                    yield TarFile(name, node.member, f"symbolic link to {target!r}, which the tar does not hold")
                elif resolved in self._nodes:
                    yield self._nodes[resolved]._replace(name=name)
                else:
                    yield from self._walk(name, resolved, above | {real})
            elif node is not None:
                yield node._replace(name=name)
            else:
                yield from self._walk(name, path, above | {real})

    def _resolve(self, path: bytes) -> bytes | None:
        """Return the file or folder at the end of a path with links; None: it leads out of the tar or to nothing."""
        done: list[bytes] = []
        left, links = path.split(b"/")[::-1], 0
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if not done:
                    return None
                done.pop()
                continue
            done.append(part)
            node = self._nodes.get(b"/".join(done))
            if node is not None and node.member.kind == SYMLINK:
                links += 1
                if links > _MOST_LINKS or node.member.target.startswith(b"/"):
                    return None
                done.pop()
                left += node.member.target.split(b"/")[::-1]
        found = b"/".join(done)
        return found if found in self._nodes or found in self._children or not found else None


def _hidden(path: bytes) -> bool:
    return path.startswith(b".") or b"/." in path
