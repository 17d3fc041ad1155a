"""Files that cannot be read during the run: named, replaced by others, everything else unchanged."""

import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import ENTRY, Part
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.order import sample_indices, stand_ins
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.sources import open_source

SIDE, BATCH, COUNT, STEPS = 16, 6, 20, 5  # 30 samples: one epoch and a half


@pytest.fixture(params=["torchvision", "dali"])
def loader(request) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


@pytest.fixture
def folder(tmp_path) -> ImageIndex:
    for i in range(COUNT):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (40 + i, 60 - i, 3), dtype=np.uint8)).save(tmp_path / f"{i:02d}.jpg")
    return open_source(str(tmp_path))


def stream(folder: ImageIndex, loader: str, *, rank=0, world_size=1, start_step=0, **keys) -> ImageBatches:
    cfg = DataConfig(source=folder.source, crop_size=SIDE, loader=loader, crop_scale=(0.95, 1.0), **keys)
    return ImageBatches(
        cfg, folder, seed=0, batch_size=BATCH, micro_batch=BATCH // world_size, rank=rank,
        world_size=world_size, accumulation=1, start_step=start_step, device="cpu",
    )  # fmt: skip


def run(folder: ImageIndex, loader: str, **keys) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    source = stream(folder, loader, **keys)
    images = torch.cat([next(source) for _ in range(STEPS)])
    source.close()
    return images, found(source, folder)


def found(source: ImageBatches, folder: ImageIndex) -> list[tuple[str, str]]:
    return [(folder.paths[position], reason) for position, reason in sorted(source.found.items())]


def spoil(path: str, how: str) -> None:
    with open(path, "rb") as file:
        content = file.read()
    if how == "vanished":
        os.remove(path)
    else:
        spoilt = {"empty": b"", "text": b"<html>404</html>", "cut": content[: len(content) // 2]}[how]
        with open(path, "wb") as file:
            file.write(spoilt)


@pytest.mark.parametrize("how", ["vanished", "empty", "text", "cut"])
def test_a_bad_file_is_named_and_replaced_and_the_others_are_unchanged(folder, loader, how, caplog):
    clean, none = run(folder, loader)
    assert none == []
    spoil(folder.paths[7], how)
    with caplog.at_level(logging.WARNING):
        images, bad = run(folder, loader)
    assert [path for path, _ in bad] == [folder.paths[7]]
    expected = {"vanished": "No such file", "empty": "empty file"}.get(how, "when it was indexed")
    assert bad[0][1] and expected in bad[0][1]
    assert folder.paths[7] in caplog.text
    indices = sample_indices(np.arange(STEPS * BATCH), COUNT, 0)
    differ = (images != clean).flatten(1).any(dim=1).numpy()
    assert np.array_equal(differ, indices == 7)
    # The stand-in is another image under the window drawn for this sample: a copy at 7's place gives it too.
    (number,) = np.flatnonzero(indices == 7)[:1].tolist()
    drawn = int(stand_ins(number, COUNT, 0)[0])
    assert drawn != 7
    shutil.copy(folder.paths[drawn], folder.paths[7])
    copied = open_source(folder.source)
    assert torch.equal(run(copied, loader)[0][number], images[number])


def test_neighbours_that_are_bad_too_are_passed_over(folder, loader):
    for index in (19, 0, 1):
        spoil(folder.paths[index], "text")
    images, bad = run(folder, loader)
    assert sorted(path for path, _ in bad) == [folder.paths[i] for i in (0, 1, 19)]
    assert images.shape == (STEPS * BATCH, SIDE, SIDE, 3)


def test_ranks_and_restarts_come_to_the_same_substitutes(folder, loader):
    for index in (3, 4, 11, 15):
        spoil(folder.paths[index], "vanished")
    whole, _ = run(folder, loader)
    halves = [run(folder, loader, rank=rank, world_size=2)[0].unflatten(0, (STEPS, BATCH // 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), whole)
    assert torch.equal(run(folder, loader, start_step=3)[0][: 2 * BATCH], whole[3 * BATCH :])


def test_more_than_max_bad_stops_with_a_list(folder, loader):
    for index in range(0, COUNT, 2):
        spoil(folder.paths[index], "text")
    source = stream(folder, loader, max_bad=3)
    with pytest.raises(ValueError, match=r"more than data\.max_bad = 3") as error:
        for _ in range(STEPS):
            next(source)
    source.close()
    assert len(source.found) == 4
    for path, _ in found(source, folder):
        assert path in str(error.value)


def test_nothing_left_stops(folder, loader):
    for path in folder.paths:
        spoil(path, "vanished")
    source = stream(folder, loader)
    with pytest.raises(ValueError, match=r"more than data\.max_bad_share = 0\.25 \(30\.00% of 20\)"):
        next(source)
    source.close()


def test_another_image_in_a_file_s_place_is_noticed(folder):
    with open(folder.paths[5], "rb") as file:
        num_bytes = len(file.read())
    Image.new("RGB", (50, 40)).save(folder.paths[5])
    os.truncate(folder.paths[5], num_bytes)  # as long as before
    _, bad = run(folder, "torchvision")
    assert bad == [(folder.paths[5], "50x40 pixels, but 55x45 when it was indexed")]


def test_a_failure_of_dali_that_no_image_explains_is_raised(folder, monkeypatch):
    dali = pytest.importorskip("ijepa_ds.data.dali")

    def fail(self):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(dali.DaliBackend, "_run", fail)
    source = stream(folder, "dali")
    with pytest.raises(RuntimeError, match="out of memory"):
        next(source)
    source.close()
    assert source.found == {}


def plan_of(parts: list[Part], bad: dict[int, str]) -> SamplePlan:
    """A plan of one image a micro-batch over sources of one-pixel images."""
    count = sum(part.count for part in parts)
    entries = np.zeros(count, ENTRY)
    entries["width"] = entries["height"] = 1
    names = np.zeros(0, np.uint8)
    index = build_index(
        source="x", entries=entries, names=names, containers=(), classes=(), bad=bad, problems=(), parts=tuple(parts)
    )
    share = Share(rank=0, world_size=1, micro_batch=1000, accumulation=1)
    return SamplePlan(DataConfig(source="x"), index, seed=3, share=share)


def test_stand_ins_spread_over_the_source_and_stay_in_it() -> None:
    """A folder of 200 unreadable images in a row: the one behind it must not take the place of all of them."""
    parts = [Part("one", 1000, None), Part("two", 500, None)]
    plan = plan_of(parts, {at: "cut" for at in range(1200, 1400)})
    before = sample_indices(np.arange(6000), 1500, 3)
    after = np.concatenate([plan.samples(micro).indices for micro in range(6)])
    replaced = before != after
    assert np.array_equal(replaced, (before >= 1200) & (before < 1400)) and replaced.sum() == 800
    stand_ins = after[replaced]
    assert ((stand_ins >= 1000) & ((stand_ins < 1200) | (stand_ins >= 1400))).all()
    assert np.unique(stand_ins, return_counts=True)[1].max() <= 12  # 800 draws over 300 images


def test_a_source_without_a_readable_image_is_replaced_by_the_others() -> None:
    plan = plan_of([Part("one", 900, None), Part("two", 100, None)], {at: "cut" for at in range(900, 1000)})
    assert (plan.samples(0).indices < 900).all()
    nearly = plan_of([Part("one", 1000, None)], {at: "cut" for at in range(1000) if at != 617})
    assert (nearly.samples(0).indices == 617).all()
