"""The images of a run: rank 0 finds them once, the other ranks read the same index."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from torch import distributed as dist

from ijepa_ds.cluster.judge import SCAN
from ijepa_ds.cluster.watch import Watch
from ijepa_ds.config import Config, DataConfig
from ijepa_ds.data.index import ImageIndex, changes, describe
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import is_index, open_index, open_source
from ijepa_ds.distributed.agreement import agree
from ijepa_ds.distributed.exchange import broadcast_object, decide
from ijepa_ds.errors import UserError
from ijepa_ds.storage import Storage

JOURNAL = "images.scan"  # what an interrupted scan has found; the next start goes on from it
_NAMED = 8  # ranks in a message
INDEX = "images.index"  # index of the run's images in its folder: all ranks read it, and a resumed run compares with it


def find_images(cfg: Config, rank: int, watch: Watch) -> ImageIndex:
    """Rank 0 scans the source once and writes an index; all open it, and each checks a share of the files."""
    path = Path(cfg.run.dir) / INDEX

    def scan() -> None:
        if rank != 0:
            return
        index = open_source(cfg.data.source, _scan_options(cfg, watch))
        before = ImageIndex.open(path) if path.exists() else None
        if before and before.checksum != index.checksum and any((path.parent / "checkpoints").glob("step_*")):
            raise UserError(
                f"data.source has other images than when {path.parent} was begun ({len(before)} then, {len(index)} now): "
                f"{describe(changes(before, index))}; restore them, or start again in another run.dir"
            )
        index.save(path)
        (path.parent / JOURNAL).unlink(missing_ok=True)

    def made() -> bool:
        """Whether the source is an index."""
        watch.doing(f"opening data.source {cfg.data.source!r}")
        return storage().call(lambda: is_index(cfg.data.source), repr(cfg.data.source))

    def storage() -> Storage:
        return _scan_options(cfg, watch).storage()

    # rank 0 decides for all: a host that does not see the source must not take another path
    if not broadcast_object(agree(lambda: made() if rank == 0 else None)):
        agree(scan)
        return agree(lambda: storage().call(lambda: open_index(path, cfg.data.source, share()), repr(cfg.data.source)))
    agree(lambda: _check_index_settings(cfg))
    folder = agree(lambda: open_source(cfg.data.source, _scan_options(cfg, watch)))
    _check_same_data(folder)
    return folder


def share() -> tuple[int, int]:
    """This rank and the number of ranks: each checks its share of an index's files."""
    return dist.get_rank(), dist.get_world_size()


def _check_index_settings(cfg: Config) -> None:
    """Refuse a new run that limits the pixels of images that were indexed under another limit."""
    if cfg.data.max_pixels != DataConfig.max_pixels and not (Path(cfg.run.dir) / "config.yaml").exists():
        raise UserError(
            f"data.max_pixels: has no effect with the index {cfg.data.source}, whose images were judged when it was made: "
            "remove it, and give --max-pixels to `ijepa-ds data index`"
        )


def _scan_options(cfg: Config, watch: Watch) -> ScanOptions:
    journal = Path(cfg.run.dir) / JOURNAL
    return replace(ScanOptions.of(cfg.data, progress=True, beat=lambda: watch.alive(SCAN), journal=journal), share=share())


def _check_same_data(folder: ImageIndex) -> None:
    """Check that all ranks see the same files; a rank with another list would silently train on other samples."""
    text = decide((folder.checksum, len(folder), socket.gethostname()), _differences)
    if text:
        raise UserError(f"data.source is not the same everywhere: {text}")


def _differences(seen: list[tuple[str, int, str]]) -> str:
    """The ranks that see other images than rank 0, in words; `seen` has checksum, number of images and host of each."""
    different = [f"rank {rank} on {host}: {n} images" for rank, (sum_, n, host) in enumerate(seen) if sum_ != seen[0][0]]
    more = f"; and {len(different) - _NAMED} more ranks" if len(different) > _NAMED else ""
    return f"rank 0 on {seen[0][2]} has {seen[0][1]} images, but {'; '.join(different[:_NAMED])}{more}" if different else ""
