"""Continued pretraining: every rank's slices of encoder, predictor and target come from the weights that are named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ijepa_ds import config
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.config import Config
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.sources import open_source as open_images
from ijepa_ds.data.transforms import normalize
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.weights import open_source, read_encoder
from ijepa_ds.weights.export import export
from tests.dist import jobs
from tests.dist.launches import losses, refused, start
from tests.dist.pool import Pool
from tests.weights_cases import oracle_tensors, write_published, write_run

pytestmark = pytest.mark.dist
LIKE_THE_ORACLE = [
    "model.width=48",
    "model.depth=2",
    "model.heads=3",
    "model.predictor.width=24",
    "model.predictor.depth=2",
    "model.precision=float32",
    "data.crop_size=48",
]


def plain_model(cfg: Config, parts: dict[str, dict[str, Tensor]]) -> IJEPA:
    """Our networks with a published run's weights, loaded as PyTorch loads them."""
    model = build(cfg)
    for part, tensors in parts.items():
        getattr(model, part).load_state_dict(tensors)
    return model


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_published_checkpoint_under_zero(stage: int, ranks: Callable[[int], Pool], tmp_path: Path) -> None:
    path = write_published(tmp_path / "x-ep3.pth.tar")
    model = plain_model(jobs.tiny_config(), oracle_tensors())
    with torch.no_grad():
        expected = float(model(*jobs.batch(jobs.tiny_config(), 0, 0, 8)).loss)
    results = ranks(2).run("start_from", stage=stage, path=str(path), folder=str(tmp_path / "saved"))
    assert np.mean([r["loss"] for r in results]) == pytest.approx(expected, rel=1e-6)
    for result in results:  # the target has its own weights, not the context encoder's
        for name, parameter in model.target_encoder.named_parameters():
            np.testing.assert_array_equal(result["target"][name], parameter.detach().numpy())
    reader = CheckpointReader(Path(results[0]["folder"]))
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        kind, name = ("ema", "encoder." + rest) if part == "target_encoder" else ("master", name)
        assert torch.equal(reader.read(kind, name), parameter.detach().flatten()), name


def test_one_encoder_and_a_fresh_predictor(ranks: Callable[[int], Pool], tmp_path: Path) -> None:
    from ijepa_ds.model.vit import initial_value

    write_run(tmp_path / "run")
    export(open_source(tmp_path / "run"), tmp_path / "hf", "hf")
    target, _ = read_encoder(tmp_path / "run")
    results = ranks(2).run("start_from", stage=3, path=str(tmp_path / "hf"), folder=str(tmp_path / "saved"))
    reader = CheckpointReader(Path(results[0]["folder"]))
    for name, parameter in target.named_parameters():
        for kind in ("master", "ema"):
            assert torch.equal(reader.read(kind, "encoder." + name), parameter.flatten()), name
    name = "predictor.predictor_embed.weight"
    assert torch.equal(reader.read("master", name), initial_value(name, torch.Size((24, 48)), 3).flatten())


@pytest.mark.parametrize("stage", [0, 3])
def test_ranks_that_measure_different_precisions_take_that_of_rank_0(
    stage: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    one, other = ranks(2).run("resolve_precision", folder=str(tmp_path), stage=stage)
    assert one == other and one[0] == "bfloat16" and one[1]["bf16"] == {"enabled": True}


def first_loss(cfg: Config, model: IJEPA) -> float:
    """The loss of a run's first global batch, computed without its engine."""
    o = cfg.optimization
    batches = ImageBatches(
        cfg.data,
        open_images(cfg.data.source),
        seed=cfg.run.seed,
        batch_size=o.batch_size,
        micro_batch=o.batch_size,
        rank=0,
        world_size=1,
        accumulation=1,
        start_step=0,
        device=torch.device("cpu"),
    )
    try:
        images = normalize(next(batches), cfg.data.mean, cfg.data.std, torch.float32)
    finally:
        batches.close()
    masks = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, o.batch_size).sample(0, 0, o.batch_size, torch.device("cpu"))
    with torch.no_grad():
        return float(model(images, masks).loss)


def test_the_trainer_continues_a_published_checkpoint_at_its_loss(place: Path) -> None:
    """Two ranks, ZeRO-3; then resumed, when the weights are gone."""
    path = write_published(place / "x-ep3.pth.tar")
    arguments = (*LIKE_THE_ORACLE, "model.init_from=x-ep3.pth.tar", "run.checkpoint_every=2")
    result = start(place, *arguments, "optimization.steps=2", ranks=2, stage=3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "a fresh start from the weights of" in result.stdout
    cfg = config.load(place / "out" / "config.yaml", [])
    assert cfg.model.init_from == str(path) and cfg.model.position_grid is None
    seen = losses(place / "out")
    expected = first_loss(cfg, plain_model(cfg, oracle_tensors()))
    assert seen[min(seen)] == pytest.approx(expected, rel=1e-5)
    fresh = start(place, *LIKE_THE_ORACLE, "optimization.steps=2", "run.dir=fresh")
    assert fresh.returncode == 0 and abs(losses(place / "fresh")[min(seen)] - expected) > 0.01  # the comparison can fail

    changed = start(place, *LIKE_THE_ORACLE, "optimization.steps=2")
    assert "model.init_from" in refused(changed)  # that would be another task
    path.unlink()
    assert "no such file" in refused(start(place, *arguments, "optimization.steps=2", "run.dir=other"))
    again = start(place, *arguments, "optimization.steps=2", ranks=2, stage=3)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr


def test_the_trainer_continues_at_another_image_size(place: Path) -> None:
    write_published(place / "x.pth.tar")
    arguments = (*LIKE_THE_ORACLE, "model.init_from=x.pth.tar", "data.crop_size=64", "optimization.steps=2")
    result = start(place, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 x 8 patches instead of 6 x 6: sine-cosine positions evaluated between the learnt 6 x 6" in result.stdout
    assert config.load(place / "out" / "config.yaml", []).model.position_grid == 6
    encoder, facts = read_encoder(place / "out")
    assert (encoder.grid, facts.position_grid) == (8, 6)
    (place / "x.pth.tar").unlink()
    assert start(place, *arguments).returncode == 0  # the same command resumes, without the weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.width=64", "model.heads=4"], "model.width is 64 here, 48 there"),
        (["model.predictor.depth=1"], "model.predictor.depth is 1 here, 2 there; to start with a fresh predictor"),
        (["model.init_from=nowhere"], "no such file or folder"),
        (["model.init_from=images"], "neither a run directory"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: list[str], message: str, place: Path) -> None:
    write_published(place / "x.pth.tar")
    result = start(place, *LIKE_THE_ORACLE, "optimization.steps=2", "model.init_from=x.pth.tar", *changes)
    assert message in refused(result)
    assert not (place / "out" / "config.yaml").exists()


def test_the_recorded_published_file(shared: Path, place: Path) -> None:
    folder = shared / "oracle" / "small"
    c = json.loads((folder / "figures.json").read_text())["config"]
    sizes = [
        f"model.width={c['embed_dim']}",
        f"model.depth={c['depth']}",
        f"model.heads={c['num_heads']}",
        f"model.predictor.width={c['predictor_embed_dim']}",
        f"model.predictor.depth={c['predictor_depth']}",
        f"data.crop_size={c['image_size']}",
        f"model.patch_size={c['patch_size']}",
        "model.precision=float32",
    ]
    path = folder / "published-format.pth.tar"
    result = start(place, *sizes, f"model.init_from={path}", "optimization.steps=2", ranks=2, stage=2)
    assert result.returncode == 0, result.stdout + result.stderr
    held = torch.load(path, weights_only=True)
    names = ("encoder", "predictor", "target_encoder")
    parts = {part: {k.removeprefix("module."): v for k, v in held[part].items()} for part in names}
    cfg = config.load(place / "out" / "config.yaml", [])
    seen = losses(place / "out")
    assert seen[min(seen)] == pytest.approx(first_loss(cfg, plain_model(cfg, parts)), rel=1e-5)
