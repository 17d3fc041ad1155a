"""`ijepa-ds init`: its choices fit the images, its files pass every check of a start, and its commands train."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds import cli, config
from ijepa_ds.begin import command
from ijepa_ds.begin.choose import Found, choose
from ijepa_ds.config import deepspeed_json
from ijepa_ds.errors import UserError
from ijepa_ds.examples import shipped
from ijepa_ds.masks import sampler, thin


def found(**change: object) -> Found:
    start = {"images": 1_281_167, "shorter": 375.0, "smallest": 300.0, "classes": 1000, "gpus": 8}
    return Found(**(start | {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)} | change))  # type: ignore[arg-type]


def test_imagenet_gets_what_was_published() -> None:
    choice = choose(found(gpus=16))
    assert (choice.crop, choice.patch, choice.model, choice.batch, choice.epochs) == (224, 16, "large", 2048, 300)
    assert choice.lr == 1e-3 and choice.published_masks and not choice.warnings


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": 30_000_000}, ("huge", 2048, 2)),
        ({"images": 150_000}, ("small", 1024, 1)),
        ({"images": 30_000}, ("small", 256, 1)),
        ({"images": 5_000}, ("tiny", 64, 1)),
        ({"gpus": 0}, ("tiny", 32, 1)),
        ({"images": 5_000, "gpus": 24}, ("tiny", 72, 1)),
    ],
)
def test_model_and_batch_follow_the_number_of_images(change: dict, expected: tuple) -> None:
    choice = choose(found(**change))
    assert (choice.model, choice.batch, choice.stage) == expected
    assert choice.batch % max(1, change.get("gpus", 8)) == 0


@pytest.mark.parametrize("images", [5_000, 50_000, 500_000, 5_000_000])
@pytest.mark.parametrize("shorter", [64, 400])  # both samplers
def test_any_number_of_gpus_gets_large_micro_batches(images: int, shorter: int, tmp_path: Path) -> None:
    usual = choose(found(images=images, shorter=float(shorter), gpus=1)).batch
    for gpus in [*range(1, 33), 40, 48, 64, 96, 512]:
        seen = found(gpus=gpus, shorter=float(shorter), smallest=float(shorter), images=images)
        choice = choose(seen)
        (tmp_path / "config.yaml").write_text(command.configuration("images", tmp_path, seen, choice))
        plan = config.check(config.load(tmp_path / "config.yaml", []), gpus)
        share = choice.batch // gpus
        assert plan.micro_batch >= min(share, 32), (gpus, choice.batch, plan)
        assert usual / 1.5 <= choice.batch <= 1.5 * usual or share == 1 or gpus * 1.5 > usual, (gpus, choice.batch)


@pytest.mark.parametrize("gpus", [0, 1, 8, 24])
@pytest.mark.parametrize("shorter", [32, 40, 64, 100, 130, 160, 200, 1000])
@pytest.mark.parametrize("images", [1_000, 25_000, 20_000_000])
def test_every_choice_passes_the_checks_of_a_start(gpus: int, shorter: int, images: int, tmp_path: Path) -> None:
    seen = found(gpus=gpus, shorter=float(shorter), smallest=float(shorter), images=images)
    choice = choose(seen)
    assert choice.crop <= shorter and 8 <= choice.grid <= 16
    (tmp_path / "config.yaml").write_text(command.configuration("my 'images' $x", tmp_path, seen, choice).replace("$x", "x"))
    cfg = config.load(tmp_path / "config.yaml", [])
    assert cfg.data.source.endswith("/my 'images' x")
    plan = config.check(cfg, max(1, gpus))
    deepspeed_json.load_deepspeed(shipped(f"ds_configs/zero{choice.stage}.json"), cfg, plan)
    made = sampler.build_sampler(cfg.masks, cfg.grid, 0, cfg.optimization.batch_size)
    assert thin.warning(made.planner, cfg.grid) == ""


@pytest.mark.parametrize(
    ("change", "words"), [({"images": 400}, "at least 1,000"), ({"shorter": 20.0}, "at least 32 are needed")]
)
def test_images_that_cannot_do(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(found(**change))


def test_warnings() -> None:
    said = "\n".join(choose(found(images=3_000, smallest=100.0, std=(0.02, 0.2, 0.2), classes=0, gpus=0)).warnings)
    for words in ("few for training from scratch", "will be enlarged", "deviation is 0.020", "no GPU", "no class folders"):
        assert words in said


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("mine") / "images", np.random.default_rng(0)
    for number in range(1_000):
        (root / f"class {number % 4}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (33, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"class {number % 4}" / f"{number}.jpg", quality=60)
    return root


def test_the_verb_writes_a_run_that_would_start(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arguments = ["init", str(tmp_path / "new"), "--data", str(images), "--gpus", "0", "--workers", "1"]
    assert cli.main(arguments) == 0
    assert "nothing would stop the run" in capsys.readouterr().out
    cfg = config.load(tmp_path / "new" / "config.yaml", [])
    assert cfg.data.crop_size == 32 and cfg.model.patch_size == 4 and cfg.masks.sampler == "unbiased"
    assert 0.4 < cfg.data.mean[0] < 0.6 and not (tmp_path / "new" / "run").exists()
    assert cli.main(arguments) == 2  # nothing is written over
    assert "exists" in capsys.readouterr().err


def test_several_machines_get_a_torchrun_for_each() -> None:
    assert "torchrun --nnodes 3 --rdzv_backend c10d" in command.commands(Path("new"), "images", found(gpus=24))
    assert "--nnodes" not in command.commands(Path("new"), "images", found(gpus=8))


@pytest.mark.dist
def test_its_command_trains(images: Path, tmp_path: Path) -> None:
    from tests.dist.launched import finished

    assert cli.main(["init", str(tmp_path / "new"), "--data", str(images), "--gpus", "0", "--workers", "1"]) == 0
    files = ["--config", "new/config.yaml", "--deepspeed_config", "new/deepspeed.json"]
    short = [
        "optimization.epochs=null",
        "optimization.warmup_epochs=null",
        "optimization.steps=2",
        "optimization.warmup_steps=1",
    ]
    done = finished(tmp_path, [*files, *short], 0, program="ijepa_ds.train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "new" / "run" / "completed.json").is_file()
