"""Impossible values, contradictions between keys, and the cutting of the batch."""

from dataclasses import replace

import pytest

from ijepa_ds.config import (
    BatchPlan,
    Config,
    ConfigError,
    DataConfig,
    MasksConfig,
    ModelConfig,
    OptimizationConfig,
    PredictorConfig,
    RunConfig,
    check,
    plan_batch,
    problems,
)

GOOD = Config(
    run=RunConfig(dir="runs/x"),
    data=DataConfig(source="images"),
    model=ModelConfig(name="huge", patch_size=14),
    optimization=OptimizationConfig(batch_size=2048, epochs=300.0, warmup_epochs=40.0),
)


def changed(section: str, **values: object) -> Config:
    return replace(GOOD, **{section: replace(getattr(GOOD, section), **values)})


def test_a_good_run_has_no_problems() -> None:
    assert problems(GOOD) == [] and problems(GOOD, 16) == []
    assert check(GOOD, 16) == BatchPlan(micro_batch=128, accumulation=1, world_size=16)


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("run", {"seed": -1}, "run.seed: must be at least 0 and below 9.22337e+18, got -1"),
        ("run", {"dir": " "}, "run.dir: is empty; name a folder"),
        ("run", {"keep_last": 0}, "run.keep_last: must be at least 1, got 0"),
        (
            "run",
            {"resume": "ato"},
            "run.resume: 'ato' is neither auto, never nor an existing checkpoint; did you mean 'auto'?",
        ),
        (
            "data",
            {"crop_size": 225},
            "data.crop_size: 225 is not a multiple of model.patch_size 14; use 224 or",
        ),
        ("data", {"crop_scale": (0.0, 1.0)}, "data.crop_scale: must be a pair [a, b] with 0 < a <= b <= 1"),
        ("data", {"crop_ratio": (2.0, 1.0)}, "data.crop_ratio: must be a pair [a, b] with 0 < a <= b, got"),
        ("data", {"std": (0.2, 0.0, 0.2)}, "data.std: must be above 0 and at most 1, got [0.2, 0.0, 0.2]"),
        ("data", {"mean": (127.0, 127.0, 127.0)}, "data.mean: must be at least 0 and below 1"),
        ("data", {"grayscale": 1.5}, "data.grayscale: must be from 0 to 1, got 1.5"),
        (
            "data",
            {"color_jitter": (0.4, 0.4, 0.4, 0.6)},
            "data.color_jitter: must be at least 0, the last from 0 to 0.5, got [0.4, 0.4, 0.4, 0.6]",
        ),
        ("data", {"loader": "torch"}, "data.loader: 'torch' is not known; did you mean 'torchvision'?"),
        ("model", {"name": "vit_huge"}, "model.name: 'vit_huge' is not known; did you mean 'huge'?"),
        ("model", {"precision": "bf16"}, "model.precision: 'bf16' is not known"),
        (
            "model",
            {"residual": "bfloat16", "precision": "float32"},
            "model.residual: bfloat16 needs model.precision: bfloat16 (it is float32); set that, or leave model.residual out",
        ),
        ("model", {"residual": "bfloat16", "precision": "auto"}, "model.residual: bfloat16 needs model.precision: bfloat16"),
        (
            "model",
            {"precision": "bfloat"},
            "model.precision: 'bfloat' is not known; did you mean 'bfloat16'?",
        ),
        ("model", {"patch_size": 0}, "model.patch_size: must be at least 1, got 0"),
        (
            "model",
            {"heads": 7},
            "model.heads: width 1280 is not a multiple of 7 heads; use width 1260 or 1288",
        ),
        (
            "model",
            {"width": 1282},
            "model.width: width 1282 is not a multiple of 16 heads; use width 1280 or",
        ),
        (
            "model",
            {"width": 66, "heads": 3},
            "model.width: width 66 is not a multiple of 4, which the sine-cosine positions need; use 60 or 72",
        ),
        (
            "model",
            {"predictor": PredictorConfig(width=390)},
            "model.predictor.width: width 390 is not a multiple of 16 heads; use width 384 or 400, or set "
            "model.predictor.heads",
        ),
        (
            "model",
            {"predictor": PredictorConfig(width=390, heads=10)},
            "model.predictor.width: width 390 is not a multiple of 4",
        ),
        (
            "masks",
            {"sampler": "publised"},
            "masks.sampler: 'publised' is not known; did you mean 'published'?",
        ),
        (
            "masks",
            {"target_scale": (0.5, 1.5)},
            "masks.target_scale: must be a pair [a, b] with 0 < a <= b <= 1",
        ),
        (
            "model",
            {"compile": True, "activation_checkpointing": True, "recompute": "selective"},
            "model.recompute: selective does not go with model.compile, which leaves no single products to keep: use full",
        ),
        ("masks", {"min_keep": 200}, "masks.target_scale: (0.15, 0.2) and "),
        (
            "optimization",
            {"ema": (1.0, 0.9)},
            "optimization.ema: must be a pair [a, b] with 0 <= a <= b <= 1",
        ),
        ("optimization", {"lr": 0.0}, "optimization.lr: must be above 0, got 0.0"),
        ("optimization", {"betas": (0.9, 1.0)}, "optimization.betas: must be at least 0 and below 1"),
        ("optimization", {"steps": 10}, "optimization.steps: both epochs (300) and steps (10) are given"),
        (
            "optimization",
            {"epochs": None},
            "optimization.epochs: missing; give exactly one of epochs and steps",
        ),
        ("optimization", {"warmup_epochs": None}, "optimization.warmup_epochs: missing; give exactly one of"),
        (
            "optimization",
            {"warmup_epochs": 301.0},
            "optimization.warmup_epochs: 301 is longer than the schedules (epochs 300 times ipe_scale 1)",
        ),
    ],
)
def test_each_refusal_names_key_and_remedy(section: str, values: dict[str, object], line: str) -> None:
    found = [str(problem) for problem in problems(changed(section, **values))]
    assert any(text.startswith(line) for text in found), found


STAGES = OptimizationConfig(
    batch_size=64, steps=100, warmup_steps=10, schedule="wsd", cooldown_steps=20, final_weight_decay=0.04, ema=(0.99, 0.99)
)


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("optimization", {"schedule": "wsdd"}, "optimization.schedule: 'wsdd' is not known; did you mean 'wsd'?"),
        ("optimization", {"schedule": "cosine"}, "optimization.cooldown_steps: needs optimization.schedule: wsd"),
        ("optimization", {"cooldown_steps": 95}, "optimization.cooldown_steps: 95 and a warm-up of 10 are longer than the run"),
        ("optimization", {"final_weight_decay": 0.4}, "optimization.final_weight_decay: wsd keeps it constant"),
        ("optimization", {"ema": (0.99, 1.0)}, "optimization.ema: wsd keeps it constant"),
        ("optimization", {"ipe_scale": 1.25}, "optimization.ipe_scale: wsd has no horizon to stretch"),
        ("data", {"early_steps": 10}, "data.early_steps: needs data.early_crop_size"),
        ("data", {"early_crop_size": 112}, "data.early_crop_size: needs data.early_steps"),
        ("data", {"early_crop_size": 224, "early_steps": 9}, "data.early_crop_size: must be below data.crop_size 224"),
        ("data", {"early_crop_size": 113, "early_steps": 9}, "data.early_crop_size: must be below data.crop_size 224 and a"),
        ("data", {"early_crop_size": 56, "early_steps": 9}, "data.early_crop_size: 56 leaves a grid of 4 x 4 patches: "),
        ("model", {"target_precision": "float16"}, "model.target_precision: 'float16' is not known"),
        ("run", {"branch_from": "runs/y/checkpoints/step_10", "resume": "never"}, "run.branch_from: needs run.resume: auto"),
    ],
)
def test_stages_that_contradict_are_refused(section: str, values: dict[str, object], line: str) -> None:
    good = replace(GOOD, optimization=STAGES)
    assert problems(good) == [] and problems(changed("data", early_crop_size=168, early_steps=9)) == []
    found = [str(problem) for problem in problems(replace(good, **{section: replace(getattr(good, section), **values)}))]
    assert found and all(text.startswith(line) for text in found), found


def test_all_at_once() -> None:
    wrong = replace(
        GOOD,
        run=replace(GOOD.run, seed=-1),
        data=replace(GOOD.data, crop_size=225),
        masks=MasksConfig(num_targets=0),
        optimization=replace(GOOD.optimization, steps=10),
    )
    with pytest.raises(ConfigError) as error:
        check(wrong, 3)
    keys = [line.split(": ")[0] for line in error.value.problems]
    assert sorted(keys) == [
        "data.crop_size",
        "masks.num_targets",
        "optimization.batch_size",
        "optimization.steps",
        "run.seed",
    ]


def test_a_mask_that_cannot_be_drawn_is_refused_at_start() -> None:
    """The published code would hang for ever."""
    small = replace(GOOD, data=replace(GOOD.data, crop_size=56))
    assert any(problem.keys[0].startswith("masks") for problem in problems(small))


@pytest.mark.parametrize(
    ("batch", "most", "world", "group", "plan"),
    [
        (2048, 128, 16, 128, BatchPlan(128, 1, 16)),
        (2048, 128, 1, 128, BatchPlan(128, 16, 1)),
        (2048, 100, 8, 128, BatchPlan(64, 4, 8)),
        (2048, 128, 8, 16, BatchPlan(16, 16, 8)),
        (96, 64, 2, None, BatchPlan(48, 1, 2)),
        (192, 64, 2, 64, BatchPlan(32, 3, 2)),  # 48 would divide the share, not the group
        (96, 64, 2, 128, BatchPlan(48, 1, 2)),  # the whole batch lies in one group
        (7, 1, 7, 128, BatchPlan(1, 1, 7)),
    ],
)
def test_plans(batch: int, most: int, world: int, group: int | None, plan: BatchPlan) -> None:
    found = plan_batch(batch, most, world, group)
    assert found == plan and found.batch_size == batch


def test_every_plan_is_exact_and_stays_in_its_group() -> None:
    for batch in range(8, 200, 8):
        for world in (1, 2, 4, 8):
            plan = plan_batch(batch, 24, world, 16)
            assert plan.batch_size == batch and plan.micro_batch <= 24
            assert batch <= 16 or 16 % plan.micro_batch == 0


def test_a_batch_that_cannot_be_shared_names_what_works() -> None:
    with pytest.raises(ConfigError, match="2048 images .* by 6 devices; use 1, 2, 4, 8 devices, .* 2046 or 2052"):
        plan_batch(2048, 128, 6)
    with pytest.raises(ConfigError, match="batch_size of 8$"):
        plan_batch(4, 128, 8)
