"""`ijepa-ds visualize`: what the maps show is what the networks do; pages are whole and open without a server."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.config.sizes import Size
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model import attention
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.visualize import looking, patches
from ijepa_ds.weights import WeightsError, build_ijepa, masks_for, open_source
from tests.weights_cases import write_published, write_run

KINDS = ("masks", "pca", "similarity", "attention", "predict")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IJEPA]:
    """A run directory, and the networks in it."""
    folder = tmp_path_factory.mktemp("look") / "run"
    return folder, write_run(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(48, 48), (60, 50), (50, 70), (48, 48), (96, 96)]):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def visualize(kind: str, checkpoint: Path, images: Path, out: Path, *more: object) -> int:
    fixed = ["--checkpoint", str(checkpoint), "--images", str(images), "--out", str(out), "--device", "cpu"]
    return cli.main(["visualize", kind, *fixed, *map(str, more)])


@pytest.mark.parametrize(("kind", "size"), [*((kind, 48) for kind in KINDS), ("predict", 80)])
def test_every_kind_makes_a_page(kind: str, size: int, run: tuple[Path, IJEPA], images: Path, tmp_path: Path) -> None:
    more = ("--image-size", size, "--batch-size", 1, "--num", 2)
    assert visualize(kind, run[0], images, tmp_path / "out", *more) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    named = re.findall(r'src="([^"]+)"', page)
    assert len(named) == 2 and "http" not in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*named, "index.html"])
    for name in named:
        with Image.open(tmp_path / "out" / name) as picture:
            picture.load()
            assert min(picture.size) > 100
            assert np.asarray(picture.convert("RGB")).std() > 10  # not an empty sheet


def test_names_of_files_are_escaped(run: tuple[Path, IJEPA], images: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<script>alert(1)<"
    odd.mkdir()
    odd = odd / "x & y.png"
    odd.write_bytes((images / "0.png").read_bytes())
    assert visualize("masks", run[0], odd, tmp_path / "out") == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "x &amp; y.png" in page and "<script" not in page


def test_predict_reports_the_cosines_of_the_trained_networks(run: tuple[Path, IJEPA], images: Path, tmp_path: Path) -> None:
    assert visualize("predict", run[0], images, tmp_path, "--seed", 5, "--batch-size", 2, "--num", 3) == 0
    source = open_source(run[0])
    masks = masks_for(source, 6, 3, seed=5)
    batch = next(looking.read_pictures([images], 3, 48).batches(source, 8, torch.device("cpu")))
    with torch.no_grad():
        output = run[1](batch, masks)
    cosine = torch.nn.functional.cosine_similarity(output.prediction[:, 0], output.target, dim=-1)
    page = (tmp_path / "index.html").read_text()
    shown = re.search(r"mean cosine, own image</th><td>([^<]+)", page)
    assert shown and float(shown[1]) == pytest.approx(float(cosine.mean()), abs=6e-5)


def test_the_networks_of_a_run_are_read_whole(run: tuple[Path, IJEPA]) -> None:
    loaded, written = build_ijepa(open_source(run[0])), run[1]
    names = [name for name, _ in written.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), written.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_published_checkpoints_have_a_predictor(images: Path, tmp_path: Path) -> None:
    published = write_published(tmp_path / "published.pth.tar")
    assert visualize("predict", published, images, tmp_path / "out", "--heads", 4, "--image-size", 96, "--num", 1) == 0
    assert (tmp_path / "out" / "index.html").is_file()


def test_an_encoder_alone_cannot_predict(
    run: tuple[Path, IJEPA], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["export", "--run", str(run[0]), "--format", "safetensors", "--out", str(tmp_path / "e")]) == 0
    assert visualize("pca", tmp_path / "e", images, tmp_path / "out", "--num", 1) == 0
    assert visualize("predict", tmp_path / "e", images, tmp_path / "none") == 2
    assert "has no predictor" in capsys.readouterr().err and not (tmp_path / "none").exists()
    with pytest.raises(WeightsError, match="no predictor"):
        build_ijepa(open_source(tmp_path / "e"))


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("pca", ("--image-size", 50, "--num", 0), "multiple of the patch size, 8"),
        ("pca", ("--image-size", 50, "--num", 0), "--num 0"),
        ("similarity", ("--patch", "1,6"), "from 0 to 5"),
        ("attention", ("--layer", 2), "blocks 0 to 1"),
        ("pca", ("--remove-position", "--num", 2), "at least 4"),
        ("masks", ("--step", 7), "no checkpoint of step 7"),
    ],
)
def test_impossible_wishes(
    kind: str, more: tuple, message: str, run: tuple[Path, IJEPA], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert visualize(kind, run[0], images, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_there(run: tuple[Path, IJEPA], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for wrong in (tmp_path / "none", tmp_path):
        assert visualize("pca", run[0], wrong, tmp_path / "out") == 2
        assert "--images" in capsys.readouterr().err


OPTIONS = ({}, {"rope": True, "registers": 2}, {"parallel": True, "qk_norm": True}, {"qk_norm": True})


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_is_what_the_fused_kernel_used(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(Size(48, 2, 3, 96, **options), 8, 6).eval()
    initialise(encoder, seed=1)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: object) -> torch.Tensor:
        seen.append((q, k, v, kernel(q, k, v, **more)))
        return seen[-1][-1]

    weights = attention.maps(encoder, images, -1)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    with torch.no_grad():
        encoder(images)
    q, k, v, mixed = seen[1]
    torch.testing.assert_close(attention.weights_of(q, k) @ v, mixed, atol=1e-5, rtol=1e-5)
    registers = options.get("registers", 0)
    torch.testing.assert_close(weights, attention.weights_of(q, k)[..., registers:, registers:])
    assert weights.shape == (2, 3, 36, 36)


def test_the_probe_sees_the_first_attentions(run: tuple[Path, IJEPA]) -> None:
    images, model = torch.randn(5, 3, 48, 48), run[1]
    masks = masks_for(open_source(run[0]), 6, 5, seed=0)
    plain = model(images, masks)
    with attention.EntropyProbe(2) as probe:
        watched = model(images, masks)
    assert torch.equal(plain.prediction, watched.prediction)
    expected = [float(attention.entropy(attention.maps(model.target_encoder, images[:4], layer))) for layer in (0, 1)]
    assert probe.values() == pytest.approx(expected, abs=1e-6)
    for block in model.target_encoder.blocks:
        block.attn.fused_attn = False  # as `cpu.tune` does for bfloat16
    with attention.EntropyProbe(2) as unfused:
        model(images, masks)
    for block in model.target_encoder.blocks:
        block.attn.fused_attn = True
    assert unfused.values() == pytest.approx(expected, abs=1e-5)


def test_entropy_has_its_limits() -> None:
    even, one = torch.full((1, 2, 9, 9), 1 / 9), torch.eye(9).expand(1, 2, 9, 9)
    assert float(attention.entropy(even)) == pytest.approx(1.0, abs=1e-5)
    assert float(attention.entropy(one)) == pytest.approx(0.0, abs=1e-5)


def planted() -> tuple[torch.Tensor, np.ndarray]:
    """4 images of 8 x 8 patches: a square that differs in one direction and varies in three, on a plain ground."""
    generator = torch.Generator().manual_seed(0)
    inside = np.zeros((4, 8, 8), dtype=bool)
    for image in range(4):
        inside[image, 2 : 5 + image % 2, 3:6] = True
    tokens = 0.05 * torch.randn(4, 64, 16, generator=generator)
    flat = torch.from_numpy(inside.reshape(4, 64))
    tokens[flat] += torch.eye(16)[0] * 6
    spread = torch.eye(16)[1:4] * torch.tensor([[1.5], [1.0], [0.7]])
    tokens[flat] += torch.randn(int(flat.sum()), 3, generator=generator) @ spread
    return tokens, inside


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_found_whatever_the_sign(sign: int) -> None:
    tokens, inside = planted()
    colours, foreground = patches.pca_colours(sign * tokens)
    assert np.array_equal(foreground, inside)
    assert np.all(colours[~inside] == 0) and colours.min() >= 0 and colours.max() <= 1
    flat = tokens.reshape(-1, 16).numpy()[inside.reshape(-1)]
    for channel, axis in enumerate((1, 2, 3)):  # each colour is one of the planted directions
        correlation = np.corrcoef(colours[inside][:, channel], flat[:, axis])[0, 1]
        assert abs(correlation) > 0.85


def test_without_position_leaves_what_differs() -> None:
    position, own = torch.randn(1, 9, 5) * 10, torch.randn(6, 9, 5)
    left = patches.without_position(position + own)
    torch.testing.assert_close(left, own - own.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_similarity_is_the_cosine() -> None:
    tokens = torch.randn(3, 16, 7)
    maps = patches.similarity_to(tokens, 6)
    assert maps.shape == (3, 4, 4) and np.allclose(maps[:, 1, 2], 1.0)
    expected = torch.nn.functional.cosine_similarity(tokens[2, 6], tokens[2, 11], dim=0)
    assert maps[2, 2, 3] == pytest.approx(float(expected), abs=1e-6)


def test_agreement_compares_the_same_patches() -> None:
    whole = torch.randn(3, 16, 7)
    targets = torch.stack([torch.tensor([[0, 1], [4, 5]]), torch.tensor([[2, 3], [8, 9]]), torch.tensor([[5, 6], [1, 2]])])
    prediction = torch.stack([whole[i][targets[i]] for i in range(3)])
    own, others = patches.agreement(prediction, whole, targets)
    assert np.allclose(own, 1.0) and others is not None
    pairs = [torch.nn.functional.cosine_similarity(whole[0, 4], whole[i, 4], dim=0) for i in (1, 2)]
    assert others[0, 1, 0] == pytest.approx(float(sum(pairs)) / 2, abs=1e-6)
    assert patches.agreement(prediction[:1], whole[:1], targets[:1])[1] is None


def test_masks_are_those_of_the_run(run: tuple[Path, IJEPA]) -> None:
    source = open_source(run[0])
    masks = masks_for(source, 6, 4, seed=1)
    again = masks_for(source, 6, 4, seed=1)
    assert torch.equal(masks.context, again.context) and masks.targets.shape[:2] == (4, 4)
    larger = masks_for(source, 12, 4, seed=1)
    assert int(larger.targets.max()) >= 36 and isinstance(larger, Masks)
