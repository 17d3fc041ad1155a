"""Experiment files of the published code are read as they are; what means nothing here is said."""

from pathlib import Path

import pytest
import yaml

from ijepa_ds.config import Config, ConfigError, load, plan_batch
from ijepa_ds.config.published import load_any

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENT = {
    "data": {
        "batch_size": 128,
        "color_jitter_strength": 0.0,
        "crop_scale": [0.3, 1.0],
        "crop_size": 224,
        "image_folder": "imagenet/",
        "num_workers": 8,
        "pin_mem": True,
        "root_path": "/datasets",
        "use_color_distortion": False,
        "use_gaussian_blur": False,
        "use_horizontal_flip": False,
    },
    "logging": {"folder": "/logs/vith14", "write_tag": "jepa"},
    "mask": {
        "allow_overlap": False,
        "aspect_ratio": [0.75, 1.5],
        "enc_mask_scale": [0.85, 1.0],
        "min_keep": 10,
        "num_enc_masks": 1,
        "num_pred_masks": 4,
        "patch_size": 14,
        "pred_mask_scale": [0.15, 0.2],
    },
    "meta": {
        "copy_data": False,
        "load_checkpoint": False,
        "model_name": "vit_huge",
        "pred_depth": 12,
        "pred_emb_dim": 384,
        "read_checkpoint": None,
        "use_bfloat16": True,
    },
    "optimization": {
        "ema": [0.996, 1.0],
        "epochs": 300,
        "final_lr": 1.0e-06,
        "final_weight_decay": 0.4,
        "ipe_scale": 1.0,
        "lr": 0.001,
        "start_lr": 0.0002,
        "warmup": 40,
        "weight_decay": 0.04,
    },
}


def experiment(tmp_path: Path, **changes: object) -> Path:
    """The file with `section__key=value` changed, `...` taking a key away."""
    sections = {name: dict(section) for name, section in EXPERIMENT.items()}
    for key, value in changes.items():
        section, name = key.split("__")
        if value is ...:
            del sections[section][name]
        else:
            sections[section][name] = value
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(sections, default_flow_style=None), encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_any(path, overrides)
    return [line.replace(f"{path.parent}/", "") for line in error.value.problems]


def lines_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), start=1) if text in line)


@pytest.mark.parametrize(
    ("name", "gpus", "changes"),
    [
        ("in1k_vith14", 16, {}),
        ("in1k_vith16_448", 128, {"data__batch_size": 16, "data__crop_size": 448, "mask__patch_size": 16}),
        (
            "in22k_vith14",
            64,
            {"data__batch_size": 32, "optimization__epochs": 66, "optimization__warmup": 3},
        ),
        (
            "in22k_vitg16",
            128,
            {
                "data__batch_size": 16,
                "mask__patch_size": 16,
                "meta__model_name": "vit_giant",
                "meta__pred_depth": 16,
                "optimization__epochs": 44,
                "optimization__warmup": 3,
            },
        ),
    ],
)
def test_our_files_say_the_same_as_the_published_ones(tmp_path: Path, name: str, gpus: int, changes: dict[str, object]) -> None:
    theirs, _ = load_any(experiment(tmp_path, **changes), [f"published.num_gpus={gpus}"])
    ours = load(CONFIGS / f"{name}.yaml")
    assert theirs.model == ours.model and theirs.masks == ours.masks
    assert theirs.optimization == ours.optimization
    assert theirs.optimization.batch_size == 2048
    assert theirs.data.crop_size == ours.data.crop_size and theirs.data.crop_scale == ours.data.crop_scale
    o = theirs.optimization
    plan = plan_batch(o.batch_size, o.max_micro_batch, gpus, theirs.masks.truncation_group)
    assert (plan.micro_batch, plan.accumulation) == (theirs.masks.truncation_group, 1)


def test_places_and_notes(tmp_path: Path) -> None:
    cfg, notes = load_any(experiment(tmp_path), ["published.num_gpus=2", "run.dir=/runs/y"])
    assert cfg.data.source == "/datasets/imagenet/train"
    assert (cfg.run.dir, cfg.run.resume, cfg.data.threads) == ("/runs/y", "never", 8)
    assert cfg.optimization.batch_size == 256
    said = "\n".join(notes)
    for word in ("color_jitter_strength", "pin_mem", "write_tag", "copy_data", "once an epoch", "/datasets"):
        assert word in said


def test_colour_and_blur_are_translated(tmp_path: Path) -> None:
    path = experiment(tmp_path, data__use_color_distortion=True, data__color_jitter_strength=0.5, data__use_gaussian_blur=True)
    data = load_any(path, ["published.num_gpus=2"])[0].data
    assert data.color_jitter == (0.4, 0.4, 0.4, 0.1) and data.color_jitter_probability == 0.8
    assert (data.grayscale, data.blur, data.blur_sigma) == (0.2, 0.5, (0.1, 2.0))
    off = load_any(experiment(tmp_path), ["published.num_gpus=2"])[0].data
    assert off.color_jitter == (0, 0, 0, 0) and (off.grayscale, off.blur) == (0, 0)


def test_source_override_replaces_their_folders(tmp_path: Path) -> None:
    path = experiment(tmp_path, data__root_path=..., data__image_folder=...)
    cfg, _ = load_any(path, ["published.num_gpus=2", "data.source=/mine"])
    assert cfg.data.source == "/mine"
    assert any("override data.source=" in line for line in refused(path, "published.num_gpus=2"))


def test_the_number_of_gpus_must_be_said(tmp_path: Path) -> None:
    path = experiment(tmp_path)
    (line,) = refused(path)
    place = f"experiment.yaml:{lines_of(path, 'batch_size')}: data.batch_size: "
    assert line.startswith(place) and "published.num_gpus=16" in line
    assert refused(path, "published.num_gpus=none") == [
        "override published.num_gpus=none: expected a whole number of GPUs, found 'none'"
    ]
    assert "did you mean 'published.num_gpus'?" in refused(path, "published.gpus=3")[0]


def test_everything_wrong_at_once(tmp_path: Path) -> None:
    path = experiment(
        tmp_path,
        data__use_gaussian_blur="yes please",
        data__crop_sise=224,
        mask__min_keep="ten",
        meta__model_name="vit_hug",
        meta__read_checkpoint="jepa-latest.pth.tar",
        optimization__warmup=...,
    )
    lines = refused(path, "published.num_gpus=16", "optimization.lrr=1")
    for start, rest in (
        ("crop_sise", "data.crop_sise: unknown key of the published format; did you mean 'data.crop_size'?"),
        ("use_gaussian_blur", "data.use_gaussian_blur: expected true or false, found 'yes please'"),
        ("min_keep", "masks.min_keep: expected a whole number, found 'ten' (text)"),
        ("model_name", "model.name: 'hug' is not known; did you mean 'huge'?"),
        ("read_checkpoint", "meta.read_checkpoint: the optimiser's state of a published checkpoint"),
    ):
        place = f"experiment.yaml:{lines_of(path, start)}: {rest}"
        assert any(line.startswith(place) for line in lines), (place, lines)
    assert any("optimization.warmup: missing in this published file" in line for line in lines)
    assert any("override optimization.lrr=1: optimization.lrr: unknown key" in line for line in lines)


def test_resume_follows_load_checkpoint(tmp_path: Path) -> None:
    cfg, _ = load_any(experiment(tmp_path, meta__load_checkpoint=True), ["published.num_gpus=2"])
    assert cfg.run.resume == "auto"


def test_our_own_files_pass_through(tmp_path: Path) -> None:
    cfg, notes = load_any(CONFIGS / "in1k_vith14.yaml", ["run.seed=3"])
    assert isinstance(cfg, Config) and cfg.run.seed == 3 and notes == []
    with pytest.raises(ConfigError, match="an experiment file of the published code"):
        load(experiment(tmp_path))
