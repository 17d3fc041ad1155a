"""A checkpoint is continued only with the images and the order version it was saved with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ijepa_ds import counter
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.config import BatchPlan, DataConfig
from ijepa_ds.data.image_order import plan_identity
from ijepa_ds.data.index_file import ENTRY, Container, Part
from ijepa_ds.training import start
from ijepa_ds.training.continues import check_continues
from tests.checkpoint_cases import write
from tests.dist.jobs import tiny_config


class Images(SimpleNamespace):
    """Stands for an `ImageIndex`."""

    __hash__ = object.__hash__

    def __len__(self) -> int:
        return 24


IMAGES: Any = Images(checksum="abc", bad={}, parts=(Part("images", 24, None),))


def continues(reader: CheckpointReader, images: Any, **keys: Any) -> None:
    check_continues(reader, DataConfig(source="x", **keys), images)


def mixed(*weights: float) -> Any:
    """A mix of the same images with weights."""
    return Images(checksum="abc", bad={}, parts=tuple(Part(str(i), 24 // len(weights), w) for i, w in enumerate(weights)))


def in_shards(*sizes: int) -> Any:
    """The same images in tars."""
    entries = np.zeros(24, ENTRY)
    entries["container"] = np.repeat(np.arange(len(sizes)), sizes)
    tars = tuple(Container(f"{number}.tar", "ab") for number in range(len(sizes)))
    return Images(
        checksum="abc", bad={}, parts=IMAGES.parts, entries=entries, containers=tars, file=None, rows=lambda at: entries[at]
    )


def saved(run_dir: Path, **facts: object) -> CheckpointReader:
    folder = write(run_dir, 10, torch.zeros(8), [])
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": 24, "data_checksum": "abc"} | facts))
    return CheckpointReader(folder)


def test_the_same_version_continues_and_the_next_one_does_not(tmp_path: Path) -> None:
    continues(saved(tmp_path / "same", order_version=counter.ORDER_VERSION), IMAGES)
    with pytest.raises(ValueError, match=f"order version {counter.ORDER_VERSION + 1}, "):
        continues(saved(tmp_path / "next", order_version=counter.ORDER_VERSION + 1), IMAGES)


def test_version_1_continues_where_no_image_is_unreadable(tmp_path: Path) -> None:
    """Only the stand-ins of unreadable images differ. A checkpoint without a version has version 1."""
    continues(saved(tmp_path / "none"), IMAGES)
    with pytest.raises(ValueError, match=r"order version 1, .* version 2: .*revision that saved it.*run\.dir.*init_from"):
        continues(saved(tmp_path / "some", bad_samples=[["a.jpg", "cut", 3]]), IMAGES)
    broken: Any = Images(checksum="abc", bad={3: "cut"}, parts=IMAGES.parts)
    with pytest.raises(ValueError, match="order version 1, "):
        continues(saved(tmp_path / "index", order_version=1), broken)


def test_another_order_version_is_refused(tmp_path: Path) -> None:
    reader = saved(tmp_path, order_version=7)
    with pytest.raises(ValueError, match=rf"{reader.folder} .* order version 7, .* version {counter.ORDER_VERSION}:"):
        continues(reader, IMAGES)


def test_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other images than when .*20 then, 24 now, checksum xyz then, abc now"):
        continues(saved(tmp_path, data_checksum="xyz", images=20), IMAGES)


def test_other_weights_of_a_mix_are_refused(tmp_path: Path) -> None:
    before = start._facts(tiny_config(), BatchPlan(world_size=1, micro_batch=8, accumulation=1), mixed(99, 1))
    reader = saved(tmp_path, **before)
    continues(reader, mixed(9.9, 0.1))  # the same shares
    for other in (mixed(1, 99), IMAGES):
        with pytest.raises(ValueError, match=r"mixes its sources in other shares .*\[\[12, 990\], \[12, 10\]\] then"):
            continues(reader, other)
    continues(saved(tmp_path / "old"), mixed(1, 99))  # a checkpoint that does not record it


def test_a_manifest_records_the_plan(tmp_path: Path) -> None:
    plan = BatchPlan(world_size=1, micro_batch=8, accumulation=1)
    facts = start._facts(tiny_config(), plan, IMAGES)
    assert facts["plan"] == {
        "version": counter.ORDER_VERSION, "images": 24, "checksum": "abc", "mix": None, "order": "global"
    }  # fmt: skip
    continues(saved(tmp_path, **facts), IMAGES)


def test_another_order_is_refused(tmp_path: Path) -> None:
    reader = saved(tmp_path)
    with pytest.raises(
        ValueError, match=r"data\.order .*global then, 3 shards with digest \w+, window 10 now.*data\.shuffle_window"
    ):
        continues(reader, in_shards(8, 8, 8), order="shards", shuffle_window=10)
    keys: Any = {"order": "shards", "shuffle_window": 10}
    plan = plan_identity(DataConfig(source="x", **keys), in_shards(8, 8, 8))
    reader = saved(tmp_path / "shards", plan=json.loads(json.dumps(plan)))
    continues(reader, in_shards(8, 8, 8), **keys)
    for images, other in (
        (in_shards(8, 8, 8), {"shuffle_window": 9}),
        (in_shards(8, 6, 10), {}),
        (IMAGES, {"order": "global"}),
    ):
        with pytest.raises(ValueError, match=r"data\.order takes the images in another order"):
            continues(reader, images, **keys | other)
