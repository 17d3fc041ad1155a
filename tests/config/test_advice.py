"""Advice in messages about a configuration is followed here: each value that a message names is accepted."""

import re
from itertools import product
from pathlib import Path

import pytest

from ijepa_ds import config
from ijepa_ds.config import ConfigError
from ijepa_ds.config.fresh import fresh_problems

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
    "in another section": (["model.lr=0.001"], r"'lr' belongs in '(\w+)'", "{0}.lr=0.001"),
    "context tokens": (
        ["masks.context_tokens=20"],
        r"Remove it, or set masks.sampler to (\w+)",
        "masks.sampler={0} masks.min_keep=10 | masks.context_tokens=null",
    ),
    "too many tokens": (
        ["masks.sampler=unbiased", "masks.context_tokens=190"],
        r"expected at most (\d+)",
        "masks.context_tokens={0}",
    ),
}


def refused(path: Path, overrides: list[str], world: int = 8) -> list[str]:
    """All problems of a new run."""
    try:
        cfg = config.load(path, overrides, world)
    except ConfigError as error:
        return list(error.problems)
    return [str(problem) for problem in fresh_problems(cfg, world)]


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
        gone = keys if name in ("misspelt", "in another section") else {text.partition("=")[0] for text in follow}
        assert refused(path, [text for text in provoke if text.partition("=")[0] not in gone] + follow) == [], way


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
