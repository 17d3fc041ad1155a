"""The decoder at a tiny size, through its real commands: it trains, continues exactly, draws, and is measured."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.decoder import measure, network
from ijepa_ds.decoder.condition import Conditioner, context_only
from ijepa_ds.decoder.pictures import Pictures, training_batches
from ijepa_ds.telemetry.events import read_picture, read_scalars
from ijepa_ds.weights import open_source
from tests.weights_cases import write_run

pytest.importorskip("diffusers", reason="NO DIFFUSERS: the decoder was not tested (pip install 'ijepa_ds[decoder]')")
SMALL = ["--size", "16", "--channels", "16,16", "--batch-size", "4", "--lr", "0.005", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and pictures of one colour each."""
    folder = tmp_path_factory.mktemp("decoder")
    write_run(folder / "run")
    (folder / "images").mkdir()
    for i in range(12):
        colour = np.random.default_rng(i).integers(0, 256, (1, 1, 3), dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (48, 48, 3)).copy()).save(folder / "images" / f"{i:02d}.png")
    return folder


def train(place: Path, out: Path, *more: object) -> int:
    fixed = ["--checkpoint", str(place / "run"), "--data", str(place / "images"), "--out", str(out)]
    return cli.main(["decoder", "train", *fixed, *SMALL, *map(str, more)])


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[str, Path]:
    """A few steps of every variant."""
    folders = {name: place / f"d_{name}" for name in ("image", "block", "patches")}
    assert train(place, folders["image"], "--condition", "image", "--steps", 120, "--save-every", 60) == 0
    for name in ("block", "patches"):
        assert train(place, folders[name], "--condition", name, "--steps", 6) == 0
    return folders


@pytest.mark.slow
def test_it_learns(trained: dict[str, Path]) -> None:
    steps, losses = read_scalars(trained["image"])["decoder/loss"]
    assert steps.tolist() == [20, 40, 60, 80, 100, 120] and losses[-2:].mean() < 0.7 * losses[0]
    shown = read_picture(trained["image"], "decoder/samples")
    assert shown is not None and shown[0] == 120 and shown[1].shape == (32, 128, 3)


@pytest.mark.slow
def test_true_conditions_draw_better_than_shuffled_ones(trained: dict[str, Path], place: Path, tmp_path: Path) -> None:
    fixed = ["--decoder", str(trained["image"]), "--images", str(place / "images"), "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(["decoder", "evaluate", *fixed, "--sampler-steps", "12"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == 12 and set(result["differences"]) == {"shuffled - true"}
    low, high = result["differences"]["shuffled - true"]["pixels"]["interval_95"]
    assert 0 < low < high  # plain colours: even so few steps read them


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["block", "patches"])
def test_the_predictor_is_compared_with_an_untrained_one(
    variant: str, trained: dict[str, Path], place: Path, tmp_path: Path
) -> None:
    fixed = ["--decoder", str(trained[variant]), "--images", str(place / "images"), "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(["decoder", "evaluate", *fixed, "--num", "4", "--sampler-steps", "2", "--batch-size", "3"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == (3 if variant == "patches" else 4)  # a batch of one image has no other to exchange with
    assert set(result["differences"]) == {"shuffled - true", "untrained predictor - true"}
    of_blocks = {"pixels of the block", "features of the block"}
    assert set(result["mean"]["true"]) == set(result["differences"]["shuffled - true"]) == {"pixels", "features"} | of_blocks


@pytest.mark.slow
def test_tokens_are_not_exchanged_between_neighbours_of_a_folder(
    trained: dict[str, Path], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are mostly of one class: another image's tokens would draw nearly the right thing."""
    opened, load = [], measure.load_eval_images
    monkeypatch.setattr(
        measure, "load_eval_images", lambda found, *rest, **more: opened.append(found) or load(found, *rest, **more)
    )
    fixed = ["--decoder", str(trained["patches"]), "--images", str(place / "images"), "--device", "cpu", "--sampler-steps", "1"]
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        assert cli.main(["decoder", "evaluate", *fixed, "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
    numbers = [[int(Path(str(image)).stem) for image in images] for images in opened]
    assert all(sorted(found) == list(range(12)) for found in numbers)
    assert numbers[0] == numbers[1] != numbers[2]  # the same for the same seed
    followed = sum(after - before == 1 for found in numbers for before, after in zip(found, found[1:], strict=False))
    assert followed <= 6  # of 33 pairs; in the order of the folder all


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["image", "block", "patches"])
def test_decode_draws_a_page(variant: str, trained: dict[str, Path], place: Path, tmp_path: Path) -> None:
    fixed = ["--decoder", str(trained[variant]), "--images", str(place / "images"), "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(["visualize", "decode", *fixed, "--num", "2", "--samples", "2", "--sampler-steps", "2"]) == 0
    named = re.findall(r'src="([^"]+)"', (tmp_path / "index.html").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*named, "index.html"]) and len(named) == 2
    assert cli.main(["visualize", "decode", *fixed, "--num", "2", "--samples", "2", "--sampler-steps", "2", "--sheet"]) == 0
    assert re.findall(r'src="([^"]+)"', (tmp_path / "index.html").read_text()) == ["sheet.png"]


@pytest.mark.slow
def test_an_interrupted_training_continues_exactly(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(place, whole, "--steps", 7, "--save-every", 3) == 0
    saved, original = [], network.save

    def fail(folder: Path, *rest: object) -> None:
        saved.append(1)
        if len(saved) == 2:
            raise OSError("No space left on device")
        original(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "save", fail)
    assert train(place, cut, "--steps", 7, "--save-every", 3) == 2
    monkeypatch.setattr(network, "save", original)
    assert train(place, cut, "--steps", 7, "--save-every", 3) == 0
    one, other = (network.load(folder)[0].state_dict() for folder in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(cut.glob(".*"))


@pytest.mark.slow
def test_another_training_is_not_overwritten(trained: dict[str, Path], place: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(place, trained["block"], "--condition", "image", "--steps", 6) == 2
    assert "another training (other condition)" in capsys.readouterr().err
    others = place / "others"  # as many images
    others.mkdir(exist_ok=True)
    for path in (place / "images").iterdir():
        (others / f"other {path.name}").write_bytes(path.read_bytes())
    assert train(place, trained["block"], "--data", others, "--steps", 6) == 2
    assert "another training (other data)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--size", "15", "--steps", "0"), "--size 15: expected a multiple of 4"),
        (("--size", "15", "--steps", "0"), "--steps 0"),
        (("--batch-size", "13"), "fewer than a batch"),
    ],
)
def test_impossible_wishes(more: tuple, message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(place, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_damaged_decoder_is_named(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train one with"):
        network.load(tmp_path)
    for name in network.FILES:
        (tmp_path / name).write_bytes((trained["block"] / name).read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        network.load(tmp_path)


def test_a_block_is_told_with_its_place(place: Path) -> None:
    source = open_source(place / "run")
    conditioner = Conditioner(source, "block", torch.device("cpu"))
    images = torch.randn(3, 3, 48, 48)
    told = conditioner.compute(images, seed=4)
    assert told.masks is not None and told.vectors.shape == (3, 52)
    for i in range(3):
        top, left, height, width = (told.boxes[i] * 6).round().int().tolist()
        expected = [r * 6 + c for r in range(top, top + height) for c in range(left, left + width)]
        assert told.masks.targets[i, 0].tolist() == expected
    output = conditioner.model(images, told.masks)
    torch.testing.assert_close(told.vectors[:, :48], output.prediction[:, 0, 0].mean(dim=1))
    oracle = conditioner.compute(images, seed=4, oracle=True)
    torch.testing.assert_close(oracle.vectors[:, :48], output.target[:, 0].mean(dim=1))
    pixels = torch.full((3, 48, 48, 3), 9, dtype=torch.uint8)
    shown = (context_only(pixels, told.masks, 6) == 9).all(dim=-1).sum(dim=(1, 2))
    assert shown.tolist() == [told.masks.context.shape[-1] * 64] * 3


def test_tokens_lie_at_their_patches(place: Path) -> None:
    conditioner = Conditioner(open_source(place / "run"), "patches", torch.device("cpu"))
    images = torch.randn(3, 3, 48, 48)
    told = conditioner.compute(images, seed=4)
    assert told.masks is not None and told.vectors.shape == (3, 36 * 49)
    tokens = told.vectors.view(3, 36, 49)
    output = conditioner.model(images, told.masks)
    for i in range(3):
        block = told.masks.targets[i, 0]
        assert sorted([*block.tolist(), *told.masks.context[i, 0].tolist()]) == list(range(36))  # it sees all the rest
        torch.testing.assert_close(tokens[i, block, :48], output.prediction[i, 0, 0])
        assert tokens[i, block, 48].eq(1).all() and tokens[i].any(dim=1).sum() == len(block)
    exchanged = measure.exchanged(told.vectors, told.masks.targets[:, 0], 6).view(3, 36, 49)
    for i in range(3):
        mine, other = (told.masks.targets[j, 0] for j in (i, i - 1))
        assert torch.equal(exchanged[i, mine], tokens[i - 1, other]) and exchanged[i].any(dim=1).sum() == len(mine)
    decoder = network.Decoder(replace(network.PRESETS["cpu"], grid=6, image_size=48), conditioner.width)
    decoder.set_scale(told.vectors)
    inside = tokens[tokens[..., -1] > 0][:, :48]
    torch.testing.assert_close(decoder.mean, inside.mean(dim=0))
    torch.testing.assert_close(decoder.scale, inside.std(dim=0))
    alone = network.Decoder(network.PRESETS["cpu"], 5)
    alone.set_scale(torch.arange(5.0)[None])  # of one image
    assert alone.scale.isfinite().all() and alone.scale.gt(0).all()


def test_the_loss_counts_the_block_that_the_tokens_tell_about() -> None:
    """One patch of 2 x 2 has a token of 3 numbers; pixels outside weigh a tenth of those inside, the mean stays."""
    shape = replace(network.PRESETS["cpu"], image_size=4, grid=2, outside=0.1)
    conditions = torch.zeros(2, 4, 4)
    conditions[:, 1, 3] = 1
    noise, time = network.noise_schedule("DDPMScheduler"), torch.tensor([10, 990])
    weights = network.loss_weights(noise, time, conditions.flatten(1), shape)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3)), torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(weights[:, 0, :2, 2:], weights[:, :, :2, :2].expand(2, 1, 2, 2)[:, 0] * 10)
    clean = torch.zeros(2, 3, 4, 4)
    beside, block = clean.clone(), clean.clone()
    beside[:, :, 2:], block[:, :, :2, 2:] = 1, 1  # two patches without a token, the patch with one
    torch.testing.assert_close(network.loss(block, clean, weights), 5 * network.loss(beside, clean, weights))
    pooled = network.loss_weights(noise, time, torch.zeros(2, 7), network.PRESETS["cpu"])
    assert pooled.flatten().tolist() == [5.0, 1.0]


def test_batches_are_a_function_of_the_step(place: Path) -> None:
    pictures = Pictures(sorted(map(str, (place / "images").iterdir())), 48)
    first = training_batches(pictures, 6, seed=1, start=0)
    numbers, pixels = zip(*[next(first) for _ in range(10)], strict=True)  # five epochs
    first.close()
    for number, image in zip(np.concatenate(numbers), torch.cat(pixels), strict=True):
        assert np.array_equal(image, np.asarray(Image.open(pictures.images[number])))
    for start in range(0, 60, 12):
        assert sorted(np.concatenate(numbers)[start : start + 12]) == list(range(12))
    for rank in range(3):  # ranks share each batch
        later = training_batches(pictures, 6, seed=1, start=7, rank=rank, world_size=3)
        assert np.array_equal(next(later)[0], numbers[7][2 * rank : 2 * rank + 2])
        later.close()


def test_distances_of_a_block_are_of_its_patches() -> None:
    real = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    drawn = real.clone()
    drawn[0, :4, :4] = 255  # the first of 2 x 2 patches
    blocks = torch.tensor([[0, 1], [0, 1]])
    torch.testing.assert_close(measure._pixel_distance(drawn, real, None, 2), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(measure._pixel_distance(drawn, real, blocks, 2), torch.tensor([0.5**0.5, 0.0]))


def test_intervals() -> None:
    rng = np.random.default_rng(0)
    low, high = measure._interval(rng.normal(0.3, 1.0, 400), 0)["interval_95"]  # type: ignore[misc]
    assert 0.1 < low < 0.3 < high < 0.5
    assert measure._interval(np.zeros(5), 0)["interval_95"] == [0.0, 0.0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_learns_what_the_cpu_began(precision: str, place: Path, tmp_path: Path) -> None:
    """Weights, moments and the average go from one device to the other; the first loss there is the CPU's.

    Later ones drift apart: 1.5 % after 40 steps on an H100, 7.4 % in bfloat16. Why was not looked into (TF32 in convolutions?).
    """
    wish = ["--condition", "block", "--steps", "40", "--save-every", "20", "--precision", precision]
    assert train(place, tmp_path / "cpu", *wish) == 0
    assert train(place, tmp_path / "gpu", *wish, "--device", "cuda") == 0
    (_, on_cpu), (_, on_gpu) = (read_scalars(tmp_path / name)["decoder/loss"] for name in ("cpu", "gpu"))
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], rtol=0.02 if precision == "bfloat16" else 0.002)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.15 if precision == "bfloat16" else 0.03)
    (tmp_path / "cpu" / network.FILES[0]).unlink()
    assert train(place, tmp_path / "cpu", *wish, "--device", "cuda") == 0  # reads the CPU's state
    decoder, _ = network.load(tmp_path / "gpu")
    told = torch.randn(2, decoder.width)
    drawn = [network.sample(decoder.to(device), told.to(device), [1, 2], 5).float() for device in ("cpu", "cuda")]
    assert float((drawn[0] - drawn[1]).abs().mean()) < 2  # of 255: the same noise, other kernels


@pytest.mark.gpu
def test_the_gpu_preset_takes_a_step(place: Path, tmp_path: Path) -> None:
    """At 128 pixels in bfloat16: a step, a checkpoint, pictures."""
    small = ["--preset", "gpu", "--batch-size", "8", "--steps", "2", "--precision", "bfloat16", "--device", "cuda"]
    fixed = ["--checkpoint", str(place / "run"), "--data", str(place / "images"), "--out", str(tmp_path / "out")]
    assert cli.main(["decoder", "train", *fixed, *small]) == 0
    decoder, facts = network.load(tmp_path / "out")
    assert decoder.shape.image_size == 128 and facts["step"] == 2
    assert all(value.isfinite().all() for value in decoder.state_dict().values())
