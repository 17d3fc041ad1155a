"""`data.order=shards`: exact epochs, few shards at a time, the same samples however they are shared, and a known identity."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.config import DataConfig
from ijepa_ds.data.image_order import ImageOrder, plan_identity
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.shard_order import LOOSE, ShardOrder, shards_of
from ijepa_ds.data.sources import open_source

SIZES = (5, 1, 12, 7, 9)  # images of each tar


def picture(number: int) -> bytes:
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(
        file := io.BytesIO(), "PNG"
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars, and a folder of loose files."""
    place = tmp_path_factory.mktemp("shards")
    (place / "loose").mkdir()
    for shard, size in enumerate(SIZES):
        with tarfile.open(place / f"{shard}.tar", "w") as tar:
            for number in range(size):
                info = tarfile.TarInfo(f"{shard}-{number:02d}.png")
                info.size = len(content := picture(100 * shard + number))
                tar.addfile(info, io.BytesIO(content))
    for number in range(10):
        (place / "loose" / f"{number}.png").write_bytes(picture(1000 + number))
    return place


def tars(place: Path) -> ImageIndex:
    return open_source(str(place / "*.tar"))


def config(window: int = 8, **keys) -> DataConfig:
    return DataConfig(source="x", crop_size=16, loader="torchvision", order="shards", shuffle_window=window, **keys)


@pytest.mark.parametrize("size", ["20K", "512M"])  # several tars, of which one holds images of both sources; one tar
def test_shards_of_a_mix_with_weights_keep_its_shares(size: str, tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 40)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number:02d}.png").write_bytes(picture(number))
    (tmp_path / "mix.yaml").write_text("sources:\n  - {source: a, weight: 3}\n  - {source: b, weight: 1}\n")
    shards = tmp_path / "shards"
    assert cli.main(["data", "shard", str(tmp_path / "mix.yaml"), "--out", str(shards), "--size", size]) == 0
    index = open_source(str(shards))
    shown = ImageOrder(config(window=16), index, 1).indices(np.arange(20 * 40))
    counts = np.bincount(shown, minlength=60)
    assert counts[:20].sum() == pytest.approx(600, abs=10) and counts.min() > 0, counts  # three quarters are of a


@pytest.mark.parametrize(("sizes", "window"), [((1,), 1), ((7,), 3), (SIZES, 1), (SIZES, 8), (SIZES, 10**6), ((1,) * 30, 4)])
def test_every_epoch_holds_every_image_once_and_epochs_differ(sizes: tuple[int, ...], window: int) -> None:
    order, total = ShardOrder(np.array(sizes), window), sum(sizes)
    epochs = order.indices(np.arange(3 * total), 1).reshape(3, total)
    assert (np.sort(epochs) == np.arange(total)).all()
    assert total < 10 or not (epochs[0] == epochs[1]).all()
    assert total < 10 or not (order.indices(np.arange(total), 2) == epochs[0]).all()
    alone = [int(order.indices(np.array([n]), 1)[0]) for n in range(3 * total)]
    assert alone == epochs.flatten().tolist()


def test_a_window_reads_few_shards() -> None:
    sizes, window = np.full(200, 50), 500
    drawn = ShardOrder(sizes, window).indices(np.arange(sizes.sum()), 0) // 50
    for first in range(0, len(drawn) - window, 1000):
        assert len(np.unique(drawn[first : first + window])) <= 2 * (window // 50 + 1)  # two windows, with their ends
    assert np.unique(drawn[:100]).size > 5  # within it they are mixed
    assert abs(np.corrcoef(np.arange(len(drawn)), drawn)[0, 1]) < 0.15  # shards come in random order


def test_every_order_of_a_window_occurs() -> None:
    drawn = ShardOrder(np.array([3]), 3).indices(np.arange(3 * 300), 0).reshape(-1, 3)
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > 25  # 50 expected, deviation 6.5


def test_shards_are_tars_and_groups_of_loose_files(place: Path, tmp_path: Path) -> None:
    index = tars(place)
    assert shards_of(index, 100).tolist() == list(SIZES)
    assert shards_of(index, 5).tolist() == [5, 1, 4, 4, 4, 3, 4, 4, 5]  # larger ones are cut into equal pieces
    index.save(tmp_path / "tars.index")
    assert shards_of(ImageIndex.open(tmp_path / "tars.index"), 100).tolist() == list(SIZES)
    loose = open_source(str(place / "loose"))
    assert shards_of(loose, LOOSE).tolist() == [10] and shards_of(loose, 4).tolist() == [3, 3, 4]


@pytest.mark.parametrize("weights", ["", "weight: 3", "weight: 1"])
def test_a_mix_keeps_its_shares_and_every_source_its_shards(place: Path, tmp_path: Path, weights: str) -> None:
    rows = [f"  - source: {place / name}\n    {weights}\n" for name in ("loose", "2.tar", "3.tar")]
    (tmp_path / "mix.yaml").write_text("sources:\n" + "".join(rows))
    index = open_source(str(tmp_path / "mix.yaml"))
    order = ImageOrder(config(4), index, 5)
    if not weights:
        assert np.sort(order.indices(np.arange(29))).tolist() == list(range(29))
        return
    drawn = order.indices(np.arange(1000))
    assert np.bincount(np.searchsorted([10, 22, 29], drawn, side="right")).tolist() == [334, 333, 333]
    for first, end in ((0, 10), (10, 22), (22, 29)):  # exact epochs of its own
        counts = np.bincount(drawn[(drawn >= first) & (drawn < end)] - first)
        assert len(counts) == end - first and counts.max() - counts.min() <= 1


def samples(index: ImageIndex, world: int, accumulation: int, start: int, bad: dict[int, str]) -> np.ndarray:
    """Images of global batches of 24, from a step on, int64 [2, 24]."""
    micro = 24 // world // accumulation
    shares = [Share(rank=rank, world_size=world, micro_batch=micro, accumulation=accumulation) for rank in range(world)]
    plans = [SamplePlan(config(), index, seed=3, share=share, bad=bad) for share in shares]
    return np.array(
        [
            [plan.samples(step * accumulation + i).indices for i in range(accumulation) for plan in plans]
            for step in range(start, start + 2)
        ]
    ).reshape(2, 24)


def test_the_samples_do_not_depend_on_ranks_or_restarts_with_stand_ins(place: Path) -> None:
    index, bad = tars(place), {3: "cut", 4: "cut", 20: "cut"}
    whole = samples(index, 1, 1, 4, bad)
    assert not set(bad) & set(whole.flatten().tolist())
    assert set(bad) & set(samples(index, 1, 1, 4, {}).flatten().tolist())
    for world, accumulation in ((2, 1), (3, 4), (8, 3)):
        assert np.array_equal(samples(index, world, accumulation, 4, bad), whole)
    assert np.array_equal(samples(index, 4, 1, 5, bad)[0], whole[1])


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_pixels_come_from_the_planned_images(place: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    cfg, index = DataConfig(source="x", crop_size=16, loader=loader, order="shards", shuffle_window=8), tars(place)
    sizes = {"batch_size": 8, "micro_batch": 8, "rank": 0, "world_size": 1, "accumulation": 1, "device": "cpu"}
    stream = ImageBatches(cfg, index, seed=0, start_step=0, **sizes)
    first = [next(stream) for _ in range(4)]
    stream.close()
    resumed = ImageBatches(cfg, index, seed=0, start_step=3, **sizes)
    assert (next(resumed) == first[3]).all()
    resumed.close()
    other = ImageBatches(DataConfig(source="x", crop_size=16, loader=loader), index, seed=0, start_step=3, **sizes)
    assert not (next(other) == first[3]).all()
    other.close()


def test_the_identity_changes_with_order_window_and_shards(place: Path) -> None:
    index = tars(place)
    found = [plan_identity(cfg, index) for cfg in (DataConfig(source="x"), config(8), config(9), config(100), config(101))]
    assert [found.count(one) for one in found] == [1] * 5
    assert found[0]["order"] == "global" and found[3]["order"]["shards"] == len(SIZES)
    swapped = open_source(str(place / "{1,0,2,3,4}.tar"))
    assert plan_identity(config(100), swapped)["order"]["sizes"] != found[3]["order"]["sizes"]
