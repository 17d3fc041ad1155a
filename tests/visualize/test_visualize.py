"""Pictures: the right patches are shown and coloured, PNGs are whole, events are read back as training left them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ijepa_ds import cli
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.plotting.bars import draw_bars, write_bars
from ijepa_ds.plotting.masks import HIDDEN, PALETTE, draw_batch, draw_masks
from ijepa_ds.telemetry.events import read_picture, read_scalars
from ijepa_ds.visualize.summary import running_mean, shown_scores, write_summary

CONTEXT, TARGETS = [[0, 3, 9]], [[5, 6], [6, 7], [12, 13]]  # of a 4 x 4 grid of 8-pixel patches


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (32, 32, 3), dtype=np.uint8)


def panel(picture: np.ndarray, number: int) -> np.ndarray:
    """A panel of 160 pixels; 6 white ones between."""
    return picture[:, number * 166 : number * 166 + 160]


def patch(picture: np.ndarray, number: int) -> np.ndarray:
    """A patch of 40 pixels."""
    row, column = divmod(number, 4)
    return picture[40 * row : 40 * row + 40, 40 * column : 40 * column + 40]


def test_panels(image: np.ndarray) -> None:
    picture = draw_masks(image, CONTEXT, TARGETS, 8)
    assert picture.dtype == np.uint8 and picture.shape == (160, 3 * 160 + 2 * 6, 3)
    large = image.repeat(5, axis=0).repeat(5, axis=1)
    assert np.array_equal(panel(picture, 0), large)
    for number in range(16):
        shown = patch(panel(picture, 1), number)
        expected = patch(large, number) if number in CONTEXT[0] else np.full_like(shown, HIDDEN)
        assert np.array_equal(shown, expected), number


def test_target_blocks_are_coloured(image: np.ndarray) -> None:
    blocks = panel(draw_masks(image, CONTEXT, TARGETS, 8), 2)
    for number in set(range(16)) - {5, 6, 7, 12, 13}:
        outside = patch(blocks, number)
        assert np.all(outside.max(axis=2) == outside.min(axis=2)), number  # no colour, and brighter
        assert outside.min() > 120
    for block, own in ((0, 5), (1, 7), (2, 12)):
        colour = np.array(PALETTE[block])
        middle = patch(blocks, own)[15:25, 15:25].mean(axis=(0, 1))
        plain = patch(image.repeat(5, axis=0).repeat(5, axis=1), own)[15:25, 15:25].mean(axis=(0, 1))
        np.testing.assert_allclose(middle, plain + 0.45 * (colour - plain), atol=1)
        assert np.all(patch(blocks, own)[0] == colour)  # the outline along the top
    assert np.all(patch(blocks, 5)[:, 0] == PALETTE[0])
    assert not np.all(patch(blocks, 12)[5:35, -1] == PALETTE[2])  # none between patches of one block
    assert np.all(patch(blocks, 6)[4:36, 0] == PALETTE[1])  # the second block's edge inside the first
    assert np.all(patch(blocks, 6)[4:36, -1] == PALETTE[0])


def test_several_contexts_and_sizes(image: np.ndarray) -> None:
    assert draw_masks(image, [[0, 5], [1, 2]], TARGETS, 8).shape == (160, 4 * 160 + 3 * 6, 3)
    large = np.zeros((224, 224, 3), dtype=np.uint8)
    assert draw_masks(large, CONTEXT, TARGETS, 16).shape == (224, 3 * 224 + 2 * 6, 3)


def test_wrong_input_is_refused(image: np.ndarray) -> None:
    for wrong, patch_size in ((image.astype(np.float32), 8), (image[:, :16], 8), (image, 5)):
        with pytest.raises(ValueError, match="multiple of"):
            draw_masks(wrong, CONTEXT, TARGETS, patch_size)
    for context, targets, name in (([[16]], TARGETS, "context"), (CONTEXT, [[-1]], "targets")):
        with pytest.raises(ValueError, match=name):
            draw_masks(image, context, targets, 8)


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 3, 2), (8, 4, 2)])
def test_batch(image: np.ndarray, count: int, rows: int, columns: int) -> None:
    images = torch.from_numpy(np.stack([np.full_like(image, 10 * i) for i in range(count)]))
    masks = Masks(torch.tensor(CONTEXT).expand(count, -1, -1), torch.tensor(TARGETS).expand(count, -1, -1))
    picture = draw_batch(images, masks, 8)
    assert picture.shape == (160 * rows + 12 * (rows - 1), 492 * columns + 18 * (columns - 1), 3)
    for i in range(count):
        row, column = divmod(i, 2)
        assert np.all(picture[172 * row : 172 * row + 160, 510 * column : 510 * column + 160] == 10 * i)
    with pytest.raises(ValueError, match="contexts"):
        draw_batch(images[:0], masks, 8)


def write_events(run_dir: Path, first: int, last: int, offset: float, purge: int | None) -> None:
    """One attempt of a run."""
    writer = SummaryWriter(str(run_dir), purge_step=purge)
    for step in range(first, last):
        writer.add_scalar("loss", step + offset, step)
        writer.add_scalar("schedule/lr", 0.5, step)
    writer.add_image("images/masks", np.full((20, 30, 3), last % 256, dtype=np.uint8), last, dataformats="HWC")
    writer.close()


def test_scalars_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(1_700_000_000, 1_700_001_000))
    monkeypatch.setattr("time.time", lambda: float(next(moments)))  # attempts are told apart by their second
    write_events(tmp_path, 1, 12, 0.25, None)
    write_events(tmp_path, 8, 15, 0.5, 8)
    scalars = read_scalars(tmp_path)
    assert set(scalars) == {"loss", "schedule/lr"}
    steps, values = scalars["loss"]
    assert steps.tolist() == list(range(1, 15))
    assert values.tolist() == [step + (0.25 if step < 8 else 0.5) for step in range(1, 15)]
    found = read_picture(tmp_path, "images/masks")
    assert found is not None and found[0] == 15 and found[1].shape == (20, 30, 3) and np.all(found[1] == 15)
    assert read_picture(tmp_path, "images/other") is None


def test_long_runs_are_read_whole(tmp_path: Path) -> None:
    write_events(tmp_path, 0, 12_000, 0.0, None)  # TensorBoard itself would keep a sample of them
    assert len(read_scalars(tmp_path)["loss"][0]) == 12_000


def test_no_events(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no TensorBoard events"):
        read_scalars(tmp_path)


def test_running_mean() -> None:
    line = np.arange(50.0)
    np.testing.assert_allclose(running_mean(line, 5), line)  # a slope stays one, also at the ends
    noise = np.random.default_rng(0).standard_normal(500)
    smooth = running_mean(noise, 10)
    assert smooth[100] == pytest.approx(noise[90:111].mean()) and smooth.std() < 0.4 * noise.std()


def test_bars_have_the_scores_as_heights_and_numbers() -> None:
    axes = Figure().subplots()
    draw_bars(axes, {"20-NN": (20.0, 55.51), "linear": (None, 70.0)}, "scores", chance=10.0)
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert [height for height in heights if height] == [20.0, 55.51, 70.0]
    assert {text.get_text() for text in axes.texts} == {"20.0", "55.5", "70.0"}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["chance 10.0", "untrained", "trained"]


def test_bars_of_one_encoder(tmp_path: Path) -> None:
    write_bars(tmp_path / "new" / "bars.png", {"linear": (None, 100.0)}, title="t")
    with Image.open(tmp_path / "new" / "bars.png") as picture:
        assert picture.width > 700
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bars.png"]


@pytest.mark.parametrize("count", [0, 1, 30, 500])
def test_summary(tmp_path: Path, image: np.ndarray, count: int) -> None:
    masks = draw_masks(image, CONTEXT, TARGETS, 8)
    losses = (np.arange(count), np.geomspace(1.0, 0.001, count) if count else np.array([]))
    write_summary(tmp_path / "s.png", losses=losses, pictures=masks, scores={"20-NN": (30.0, 50.0)}, title="t", subtitle="s")
    with Image.open(tmp_path / "s.png") as picture:
        picture.load()
        assert picture.width == 1800 and 700 < picture.height < 2500
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in PALETTE[:3]:  # the masks are on it
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 4).any()


def test_summary_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir, scores = tmp_path / "run", tmp_path / "eval"
    write_events(run_dir, 1, 40, 0.0, None)
    assert cli.main(["summary", "--run", str(run_dir), "--eval", str(scores), "--out", str(tmp_path / "a.png")]) == 2
    assert "result.json" in capsys.readouterr().err and not (tmp_path / "a.png").exists()
    scores.mkdir()
    result = {
        "scores": {"20-NN": 50.0},
        "baseline": {"scores": {"20-NN": 20.0}},
        "chance": 10.0,
        "checkpoint": {"which": "target", "step": 39},
        "data": {"num_train": 10, "num_test": 5, "num_classes": 2},
    }
    (scores / "result.json").write_text(json.dumps(result))
    heights = []
    for number, extra in enumerate(([], ["--eval", str(scores)], ["--eval", str(scores)])):
        if number == 2:  # an evaluation that has nearest neighbours
            Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
            row = {
                "image": str(tmp_path / "a.png"),
                "class": "a",
                "nearest": [str(tmp_path / "a.png")] * 4,
                "classes": ["a"] * 4,
            }
            result |= {"details": {"neighbours": [row] * 8}, "settings": {"max_pixels": 10**6}}
            (scores / "result.json").write_text(json.dumps(result))
        out = tmp_path / f"{number}.png"
        assert cli.main(["summary", "--run", str(run_dir), *extra, "--out", str(out)]) == 0
        with Image.open(out) as picture:
            assert picture.width == 1800
            heights.append(picture.height)
            black = (np.asarray(picture.convert("RGB")) < 8).all(axis=2)
    assert heights[0] == heights[1] < heights[2]
    assert shown_scores(result | {"unranked": ["20-NN"]}) == {} and shown_scores(result) == {"20-NN": (20.0, 50.0)}
    assert black[heights[1] :].mean() > 0.05 and black[: heights[1] // 2].mean() < 0.02  # the neighbours are below all else


def test_pictures_are_optional(tmp_path: Path) -> None:
    assert read_picture(tmp_path, "images/masks") is None  # the event file was not copied
