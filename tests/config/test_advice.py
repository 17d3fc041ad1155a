"""Advice in messages about a configuration is followed here: each value that a message names is accepted."""

import re
from itertools import product
from pathlib import Path

import pytest

from ijepa_ds.config import ConfigError, published
from ijepa_ds.config.fresh import fresh_problems
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.masks.thin import warning

TEXT = """
run: {dir: out}
data: {source: images, crop_size: 224}
model: {name: base, patch_size: 16}
optimization: {batch_size: 256, epochs: 10, warmup_epochs: 1}
"""
# What provokes a message, what the message must say (its groups are the advice), and the overrides that follow it: `{0}` is a
# group, and each `|` separates two ways to follow.
CASES = {
    "crop": (["data.crop_size=230"], r"use (\d+) or (\d+)", "data.crop_size={0} | data.crop_size={1}"),
    "crop of one patch": (["data.crop_size=20"], r"model.patch_size 16; use (\d+)", "data.crop_size={0}"),
    "small crop": (["data.crop_size=33", "model.patch_size=32"], r"model.patch_size 32; use (\d+)", "data.crop_size={0}"),
    "heads": (["model.width=100", "model.heads=6"], r"use width (\d+) or (\d+)", "model.width={0} | model.width={1}"),
    "more heads than channels": (["model.width=8", "model.heads=12"], r"use width (\d+)", "model.width={0}"),
    "positions": (
        ["model.width=250", "model.heads=2"],
        r"positions need; use (\d+) or (\d+)",
        "model.width={0} | model.width={1}",
    ),
    "rotary heads": (["model.rope=true", "model.width=100", "model.heads=6"], r"use width (\d+) or (\d+)", "model.width={0}"),
    "predictor": (
        ["model.predictor.width=100"],
        r"model.predictor.width: width 100 is not a multiple of 12 heads; use width (\d+) or (\d+), or set (\S+heads)",
        "model.predictor.width={0} | model.predictor.width={1} | {2}=4",
    ),
    "both lengths": (
        ["optimization.steps=100"],
        r"set one of them to (null)",
        "optimization.epochs={0} optimization.warmup_epochs=0",
    ),
    "no length": (
        ["optimization.epochs=null"],
        r"give exactly one of (epochs) and (steps)",
        "optimization.{0}=5 | optimization.{1}=5",
    ),
    "ranks": (
        ["optimization.batch_size=100"],
        r"shared equally by 8 devices; use .* or a batch_size of (\d+) or (\d+)",
        "optimization.batch_size={0} | optimization.batch_size={1}",
    ),
    "decoder": (
        ["data.decoder=mixed", "data.loader=torchvision"],
        r"set it to (\w+), or the decoder to (\w+)",
        "data.loader={0} | data.decoder={1}",
    ),
    "resume": (["run.resume=atuo"], r"did you mean '(\w+)'", "run.resume={0}"),
    "recompute": (
        ["model.compile=true", "model.activation_checkpointing=true", "model.recompute=selective"],
        r"use (full)",
        "model.recompute={0}",
    ),
    "warm-up above the peak": (
        ["optimization.start_lr=1", "optimization.lr=0.001"],
        r"; use (\S+)",
        "optimization.start_lr={0}",
    ),
    "tiny passes": (
        ["optimization.batch_size=1000", "masks.truncation_group=128"],
        r"; use (\d+) or (\d+), or another group",
        "optimization.batch_size={0} | optimization.batch_size={1}",
    ),
    "wsd, weight decay": (
        ["optimization.schedule=wsd", "optimization.ema=[0.99,0.99]", "optimization.ipe_scale=1"],
        r"set it to optimization.weight_decay \((\S+)\)",
        "optimization.final_weight_decay={0}",
    ),
    "wsd, stretched": (
        [
            "optimization.schedule=wsd",
            "optimization.ema=[0.99,0.99]",
            "optimization.final_weight_decay=0.04",
            "optimization.ipe_scale=1.25",
        ],
        r"set it to (1)",
        "optimization.ipe_scale={0}",
    ),
    "cool-down": (
        [
            "optimization.cooldown_steps=5",
            "optimization.ema=[0.99,0.99]",
            "optimization.ipe_scale=1",
            "optimization.final_weight_decay=0.04",
        ],
        r"needs optimization.schedule: (wsd)",
        "optimization.schedule={0}",
    ),
    "decimal comma": (["optimization.lr='1,5'"], r"write (\S+)", "optimization.lr={0}"),
    "decimal comma behind a zero": (["optimization.lr='0,001'"], r"write (\S+)$", "optimization.lr={0}"),
    "comma between thousands": (["optimization.batch_size='1,024'"], r"write (\S+)$", "optimization.batch_size={0}"),
    "either comma": (
        ["data.storage_timeout='1,200'"],
        r"write (\S+) or (\S+)",
        "data.storage_timeout={0} | data.storage_timeout={1}",
    ),
    "YAML's base 8": (["run.seed=010"], r"write (\d+), or (\d+) without", "run.seed={0} | run.seed={1}"),
    "YAML's base 60": (["run.seed=1:30"], r"as 90; write (\d+)", "run.seed={0}"),
    "misspelt": (["model.nmae=base"], r"did you mean '(\w+)'", "model.{0}=base"),
    "misspelt as elsewhere": (["optimization.learning_rate=1e-3"], r"did you mean '(\w+)'", "optimization.{0}=1e-3"),
    "in another section": (["model.lr=0.001"], r"'lr' belongs in '(\w+)'", "{0}.lr=0.001"),
    "context tokens": (
        ["masks.context_tokens=60"],
        r"Remove it, or set masks.sampler to (\w+)",
        "masks.sampler={0} masks.min_keep=10 | masks.context_tokens=null",
    ),
    "too many tokens": (
        ["masks.sampler=unbiased", "masks.context_tokens=190"],
        r"expected at most (\d+)",
        "masks.context_tokens={0}",
    ),
    "channel values": (
        ["model.channels=4"],
        r"give (one) for each \(ijepa-ds data stats\)",
        "data.mean=[0.5,0.5,0.5,0.5] data.std=[0.2,0.2,0.2,0.2]",
    ),
    "named channels": (
        ["data.channels=[0,1]"],
        r"names (\d+) channels, but (model.channels) is 3",
        "{1}={0} data.mean=[0.5,0.5] data.std=[0.2,0.2] | data.channels=[2,1,0]",
    ),
    "scales": (["data.scale=[255,255]"], r"give one for all, or (3),", "data.scale=255 | data.scale=[255,255,255]"),
    "offset": (["data.offset=[1]"], r"needs (data.scale)", "{0}=255"),
    "offset above the scale": (["data.offset=[9]", "data.scale=[9]"], r"must be above (data.offset)", "{0}=0"),
    "pictures": (["data.shown=[0,1]"], r"three channels from 0 to (\d)", "data.shown=[{0}] | data.shown=[0,1,{0}]"),
    "DALI, channels": (["data.channels=[2,1,0]", "data.loader=dali"], r"leave it at (auto)", "data.loader={0}"),
    "decoder, channels": (["data.channels=[2,1,0]", "data.decoder=mixed"], r"leave it at (auto)", "data.decoder={0}"),
    "branch": (["run.branch_from=other", "run.resume=never"], r"needs run.resume: (auto)", "run.resume={0}"),
    "evaluation without images": (["eval.every=1000"], r"name (labelled) images", "eval.train=a eval.test=b"),
    "evaluation between checkpoints": (
        ["eval.every=1500", "eval.train=a", "eval.test=b"],
        r"must be a multiple of (run.checkpoint_every) \((\d+)\)",
        "eval.every={1} | {0}=500",
    ),
    "long warm-up": (["optimization.warmup_epochs=20"], r"epochs (\d+) .*; shorten it", "optimization.warmup_epochs={0}"),
    "wsd, momentum": (
        ["optimization.schedule=wsd", "optimization.final_weight_decay=0.04"],
        r"set both to one value, got \[(\S+), ",
        "optimization.ema=[{0},{0}]",
    ),
    "long cool-down": (
        [
            *("optimization.schedule=wsd", "optimization.final_weight_decay=0.04", "optimization.ema=[1,1]"),
            *("optimization.epochs=null", "optimization.steps=10", "optimization.warmup_epochs=null"),
            *("optimization.warmup_steps=5", "optimization.cooldown_steps=6"),
        ],
        r"6 and a warm-up of (\d) are longer than the run",
        "optimization.cooldown_steps={0}",
    ),
    "first crops": (
        ["data.early_crop_size=176"],
        r"needs (data.early_steps)",
        "{0}=100 | data.early_crop_size=null",
    ),
    "steps of first crops": (["data.early_steps=100"], r"needs (data.early_crop_size)", "{0}=176 | data.early_steps=0"),
    "first crops without whole patches": (
        ["data.early_crop_size=180", "data.early_steps=100"],
        r"below data.crop_size (\d+) and a multiple of model.patch_size (16)",
        "data.early_crop_size=176",
    ),
    "first crops too small for the masks": (
        ["data.early_crop_size=112", "data.early_steps=100"],
        r"at least (14) x \1 patches: smaller ones \((\S+)\) or larger crops \((\S+)\)",
        "{1}=8 | {2}=448 data.early_crop_size=224",
    ),
    "masks on few patches": (
        ["data.crop_size=112"],
        r"at least (14) x \1 patches: smaller ones \((\S+)\) or larger crops \((\S+)\)",
        "{1}=8 | {2}=224",
    ),
    "too few patches": (
        ["data.crop_size=16", "masks.sampler=unbiased"],
        r"lower (model.patch_size) or raise (data.crop_size)",
        "{0}=2 | {1}=224",
    ),
    "no whole target": (
        ["masks.sampler=unbiased", "masks.target_scale=[0.001,0.002]"],
        r"Raise (masks.target_scale), or use smaller patches \((\S+)\) or larger crops \((\S+)\)",
        "{0}=[0.15,0.2] | {1}=4 masks.target_scale=[0.01,0.02]",
    ),
    "targets everywhere": (
        ["masks.sampler=unbiased", "masks.num_targets=9", "masks.target_scale=[0.9,1.0]"],
        r"Lower (masks.target_scale) or (masks.num_targets), or",
        "{0}=[0.01,0.02] | {1}=2 {0}=[0.15,0.2]",
    ),
    "rotary, parallel": (
        ["model.rope=true", "model.parallel=true"],
        r"(model.rope): does not go with parallel blocks; use one",
        "model.parallel=false | {0}=false",
    ),
    "odd rotary heads": (
        ["model.rope=true", "model.heads=128"],
        r"rotary positions need a multiple of 4; change (model.heads)",
        "{0}=12",
    ),
    "layers": (["targets.layers=[20]"], r"has blocks 1 to (\d+)", "targets.layers=[{0}]"),
    "mean of no layers": (
        ["targets.combine=mean"],
        r"two or more (targets.layers); remove it, or name them",
        "{0}=[6,12] | targets.combine=concat",
    ),
    "context loss": (
        ["objective.context_warmup=0.1"],
        r"while (objective.context_weight) is 0; remove it, or set the weight",
        "{0}=0.5 | objective.context_warmup=0",
    ),
    "without effect": (
        ["data.shuffle_window=100"],
        r"remove it, or set (data.order): (\w+)",
        "{0}={1} | data.shuffle_window=16384",
    ),
    "percent": (["data.grayscale=5%"], r"such as (\S+) for 5 %", "data.grayscale={0}"),
    "units": (["data.max_pixels=100M"], r"write the number (out)", "data.max_pixels=100000000"),
    "minus": (["masks.min_keep=\u22125"], r"another character than '-': type it (again)", "masks.min_keep=5"),
    "a number for a folder": (["run.dir=2026"], r"put it in (quotes)", "run.dir='2026'"),
    "root": (["run.dir=/"], r"name a folder of its own, such as (\S+)", "run.dir={0}"),
    "placeholder": (["data.source=/path/to/images"], r"write your (path)", "data.source=images"),
}


def refused(path: Path, overrides: list[str], world: int = 8) -> list[str]:
    """All problems of a new run."""
    try:
        cfg, _ = published.load_any(path, overrides, world_size=world)
    except ConfigError as error:
        return list(error.problems)
    return [str(problem) for problem in fresh_problems(cfg, world)]


def thin_contexts(path: Path, overrides: list[str]) -> str:
    """What the mask statistics of an accepted run warn about."""
    cfg, _ = published.load_any(path, overrides)
    return warning(build_sampler(cfg.masks, cfg.grid, 0, cfg.optimization.batch_size).planner, cfg.grid)


@pytest.mark.parametrize("name", CASES)
def test_following_it_is_accepted(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    assert refused(path, []) == []
    provoke, pattern, ways = CASES[name]
    found = refused(path, provoke)
    match = next((match for line in found if (match := re.search(pattern, line))), None)
    assert match, found
    keys = {text.partition("=")[0] for text in provoke}
    for way in ways.split(" | "):
        follow = way.format(*match.groups()).split()
        # a key of which the advice names another spelling, place or value is replaced by it
        gone = (
            keys
            if name in ("misspelt", "misspelt as elsewhere", "in another section")
            else {text.partition("=")[0] for text in follow}
        )
        followed = [text for text in provoke if text.partition("=")[0] not in gone] + follow
        assert refused(path, followed) == [], way
        assert thin_contexts(path, followed) == "", way


@pytest.mark.parametrize(("width", "heads", "rope"), list(product((10, 100, 250), (2, 6, 12), (False, True))))
def test_widths_that_are_named_are_possible(width: int, heads: int, rope: bool, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(TEXT)
    common = [f"model.heads={heads}", f"model.rope={str(rope).lower()}", "model.predictor.heads=4"]
    for line in refused(tmp_path / "run.yaml", [*common, f"model.width={width}"]):
        for number in re.findall(r"use (?:width )?(\d+)(?: or (\d+))?", line):
            for value in filter(None, number):
                assert refused(tmp_path / "run.yaml", [*common, f"model.width={value}"]) == [], line


@pytest.mark.parametrize(("crop", "patch"), list(product((50, 230), (7, 32))))
def test_crops_that_are_named_are_possible(crop: int, patch: int, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(TEXT)
    for line in refused(tmp_path / "run.yaml", [f"data.crop_size={crop}", f"model.patch_size={patch}"]):
        for number in re.findall(r"is not a multiple of .*; use (\d+)(?: or (\d+))?", line):
            for value in filter(None, number):
                found = refused(tmp_path / "run.yaml", [f"data.crop_size={value}", f"model.patch_size={patch}"])
                assert found == [], (line, value)
