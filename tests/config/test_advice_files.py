"""Advice about files is followed here: DeepSpeed's JSON, lines of a YAML, published experiment files, the number of images."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ijepa_ds import cli
from ijepa_ds.config import BatchPlan, ConfigError, deepspeed_json, load, published
from ijepa_ds.config import deepspeed_keys as keys
from ijepa_ds.config.build import nodes
from ijepa_ds.config.schedules import Schedule, steps_per_epoch
from tests.config.test_published import experiment

PLAN = BatchPlan(micro_batch=8, accumulation=1, world_size=4)
REMOVED = object()


def json_problems(written: dict[str, Any], place: Path) -> list[str]:
    path = place / "ds.json"
    path.write_text(json.dumps(written))
    try:
        deepspeed_json.read_deepspeed(path, PLAN, 0.0, "float32")
    except ConfigError as error:
        return list(error.problems)
    return []


def with_key(written: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with a dotted key set, or removed."""
    first, _, rest = key.partition(".")
    if rest:
        return written | {first: with_key(written.get(first, {}), rest, value)}
    return {name: old for name, old in written.items() if name != first} | ({} if value is REMOVED else {first: value})


def example(kind: str) -> Any:
    """A value of a kind of `deepspeed_keys.KINDS`."""
    if kind.startswith("one of "):
        return kind.removeprefix("one of ").split(", ")[0]
    if kind.startswith("whole "):
        return int(kind.removeprefix("whole "))
    return {"flag": True, "text": "x", "text or null": None, "list": [], "object": {}, "number": 0.5}[kind]


def section_of(key: str) -> dict[str, Any]:
    """A file in which the section of a key is allowed."""
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    return {"zero_optimization": zero if "offload" in key else {"stage": 3}}


@pytest.mark.parametrize("key", keys.KINDS)
def test_auto(key: str, tmp_path: Path) -> None:
    """`give a number or leave it out`."""
    start, kind = section_of(key), keys.KINDS[key]
    (line,) = json_problems(with_key(start, key, "auto"), tmp_path)
    advice = re.search(r'ds\.json:1: (\S+): "auto" is filled in by .*; give (.*) or leave it out$', line)
    assert advice and advice[1] == key
    assert ("number" in advice[2]) == (kind == "number" or kind.startswith("whole")), line
    for value in (example(kind), REMOVED):
        assert json_problems(with_key(start, key, value), tmp_path) == []


@pytest.mark.parametrize("key", [key for key, kind in keys.KINDS.items() if kind[:5] == "whole"])
def test_the_least_that_is_named_is_accepted(key: str, tmp_path: Path) -> None:
    (line,) = json_problems(with_key(section_of(key), key, -2), tmp_path)
    least = re.search(r"expected a whole number, at least (-?\d+), found -2$", line)
    assert least, line
    assert json_problems(with_key(section_of(key), key, int(least[1])), tmp_path) == []


@pytest.mark.parametrize("key", keys.OWNED)
def test_keys_of_the_yaml(key: str, tmp_path: Path) -> None:
    """`remove it here and use model.precision`: that key exists, and without it the file is accepted."""
    (line,) = json_problems({key: {}}, tmp_path)
    named = re.findall(r"(?:model|optimization)\.\w+", line.partition("and use ")[2])
    assert (named or key == "dataloader_drop_last") and set(named) <= set(nodes())
    assert json_problems({}, tmp_path) == []


# The file, what the message must say, and the keys that follow it
FOLLOWED: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "cpu_offload": (
        {"zero_optimization": {"stage": 2, "cpu_offload": True}},
        r"use (offload_optimizer)",
        {"zero_optimization.cpu_offload": REMOVED, "zero_optimization.{0}": {"device": "cpu"}},
    ),
    "cpu_offload_param": (
        {"zero_optimization": {"stage": 3, "cpu_offload_param": True}},
        r"use (offload_param)",
        {"zero_optimization.cpu_offload_param": REMOVED, "zero_optimization.{0}": {"device": "cpu"}},
    ),
    "pinned memory": (
        {"zero_optimization": {"stage": 2, "cpu_offload_use_pin_memory": True}},
        r"use (\w+) in (offload_optimizer)",
        {
            "zero_optimization.cpu_offload_use_pin_memory": REMOVED,
            "zero_optimization.{1}": {"device": "cpu", "{0}": True},
        },
    ),
    "parameters on disk": (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
        r"parameters go to (cpu), optimizer states to (nvme)",
        {
            "zero_optimization.offload_param.device": "{0}",
            "zero_optimization.offload_optimizer": {"device": "{1}", "nvme_path": "/local"},
        },
    ),
    "no folder for a disk": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
        r"name a (folder) on a local disk",
        {"zero_optimization.offload_optimizer.nvme_path": "/local"},
    ),
    "offload without its stage": (
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        r"needs stage (\d) or more",
        {"zero_optimization.stage": "int {0}"},
    ),
    "parameters without their stage": (
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        r"needs stage (\d),",
        {"zero_optimization.stage": "int {0}"},
    ),
    "stage": ({"zero_optimization": {"stage": 4}}, r"must be 0, 1, 2 or (3)", {"zero_optimization.stage": "int {0}"}),
    "hpZ": (
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}},
        r"divides (4) devices",
        {"zero_optimization.zero_hpz_partition_size": "int {0}"},
    ),
    "hpZ without its stage": (
        {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 2}},
        r"needs stage (3)",
        {"zero_optimization.stage": "int {0}"},
    ),
    "misspelt": (
        {"zero_optimisation": {"stage": 3}},
        r"did you mean '(\w+)'",
        {"zero_optimisation": REMOVED, "{0}": {"stage": 3}},
    ),
    "unknown": ({"speed": 3}, r"(speed): unknown key .*; remove it", {"{0}": REMOVED}),
    "removed": ({"sparse_attention": {}}, r"(sparse_attention): cannot be used here, remove it", {"{0}": REMOVED}),
    "text": ({"steps_per_print": "10"}, r"a whole number, at least (\d)", {"steps_per_print": "int {0}"}),
}


def filled(value: Any, groups: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name.format(*groups): filled(inner, groups) for name, inner in value.items()}
    if not isinstance(value, str):
        return value
    text = value.format(*groups)
    return int(text.removeprefix("int ")) if text.startswith("int ") else text


@pytest.mark.parametrize("name", FOLLOWED)
def test_json_that_follows_is_accepted(name: str, tmp_path: Path) -> None:
    written, pattern, changes = FOLLOWED[name]
    found = json_problems(written, tmp_path)
    match = next((match for line in found if (match := re.search(pattern, line))), None)
    assert match, found
    for key, value in changes.items():
        written = with_key(written, key.format(*match.groups()), value if value is REMOVED else filled(value, match.groups()))
    assert json_problems(written, tmp_path) == []


TEXT = """\
run: {dir: out}
data: {source: images}
model: {name: base}
optimization:
  batch_size: 256
  epochs: 10
  warmup_epochs: 1
"""
# A line and what replaces it, what the message must say, and the lines that follow it
EPOCHS, MODEL = "  epochs: 10", "model: {name: base}"
LINES = {
    "merge key": (EPOCHS, "  epochs: 10\n  <<: {lr: 0.1}", r"write out the (keys)", ["  epochs: 10\n  lr: 0.1"]),
    "dot": (
        MODEL,
        "model: {name: base, predictor.depth: 3}",
        r"write (\w+) inside (\w+)",
        ["model: {{name: base, {1}: {{{0}: 3}}}}"],
    ),
    "twice": (EPOCHS, "  epochs: 10\n  epochs: 12", r"already given at \S+:6; (remove) one", ["  epochs: 10", "  epochs: 12"]),
    "base 8": (EPOCHS, "  epochs: 010", r"write (\d+), or (\d+) without", ["  epochs: {0}", "  epochs: {1}"]),
    "base 60": (EPOCHS, "  epochs: 1:30", r"as 90; write (\d+)", ["  epochs: {0}"]),
    "misspelt": (EPOCHS, "  epoch: 10", r"did you mean '(\w+)'", ["  {0}: 10"]),
    "elsewhere": (
        MODEL,
        "model: {name: base, crop_size: 64}",
        r"'(crop_size)' belongs in '(data)'",
        [MODEL.replace("{", "{{").replace("}", "}}")],
    ),
    "control character": (EPOCHS, "  epochs: 1\x070", r":6: holds the character .*: (remove) it", [EPOCHS]),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_follow_are_accepted(name: str, tmp_path: Path) -> None:
    line, wrong, pattern, ways = LINES[name]
    path = tmp_path / "run.yaml"
    path.write_text(TEXT.replace(line, wrong))
    with pytest.raises(ConfigError) as caught:
        load(path)
    match = next((match for text in caught.value.problems if (match := re.search(pattern, text))), None)
    assert match, caught.value.problems
    for way in ways:
        path.write_text(TEXT.replace(line, way.format(*match.groups())))
        load(path)


# Changes of a published file, overrides, what the message must say, and the changes and overrides that follow it
PUBLISHED: dict[str, tuple[dict[str, Any], list[str], str, dict[str, Any], list[str]]] = {
    "GPUs": ({}, [], r"add (published.num_gpus)=(\d+)", {}, ["{0}={1}"]),
    "misspelt": ({}, ["published.gpus=16"], r"did you mean '(\S+)'", {}, ["{0}=16"]),
    "resume": (
        {"meta__read_checkpoint": "jepa.pth.tar", "meta__load_checkpoint": True},
        ["published.num_gpus=16"],
        r"set it to (null), and start from its weights with (model.init_from)=FILE",
        {"meta__read_checkpoint": None, "meta__load_checkpoint": False},
        ["published.num_gpus=16", "{1}=jepa.pth.tar"],
    ),
    "no folder": ({"logging__folder": ...}, ["published.num_gpus=16"], r"or override (run.dir)", {}, ["published.num_gpus=16"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_that_follow_are_accepted(name: str, tmp_path: Path) -> None:
    changes, overrides, pattern, better, follow = PUBLISHED[name]
    with pytest.raises(ConfigError) as caught:
        published.load_any(experiment(tmp_path, **changes), overrides)
    match = next((match for line in caught.value.problems if (match := re.search(pattern, line))), None)
    assert match, caught.value.problems
    published.load_any(experiment(tmp_path, **better), [text.format(*match.groups()) for text in follow])


def test_a_published_file_where_only_ours_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use the config\.yaml that it writes into run\.dir"):
        load(experiment(tmp_path))


def test_batches_and_epochs_of_few_images(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    cfg = load(path)
    with pytest.raises(ConfigError) as caught:
        steps_per_epoch(100, 256)
    most = re.search(r"lower optimization.batch_size to at most (\d+)", str(caught.value))
    assert most and steps_per_epoch(100, int(most[1])) == 1
    short = replace(cfg, optimization=replace(cfg.optimization, epochs=0.1, warmup_epochs=0.0))
    with pytest.raises(ConfigError, match="raise epochs, or lower batch_size"):
        Schedule.of(short, 4)
    assert Schedule.of(replace(short, optimization=replace(short.optimization, epochs=1.0)), 4).total_steps == 4
    assert Schedule.of(short, 100).total_steps == 10  # a smaller batch: more steps an epoch


def test_a_proposal_with_offloading_names_its_json(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    run = ["plan", "--config", "configs/in1k_vith14.yaml", "--gpus-per-node", "2", "data.source=x", "model.name=7b"]
    run += ["model.patch_size=16", "optimization.batch_size=128"]
    cli.main([*run, "--deepspeed_config", "ds_configs/zero3_offload.json", "--search"])
    advice = re.search(r"^use (\S+\.json) and (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert advice and cli.main([*run, "--deepspeed_config", advice[1], *advice[2].split()]) == 0


def test_the_proposal_of_a_plan_fits(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`use ds_configs/zero3.json and optimization.max_micro_batch=...` of `plan --search`."""
    config = ["plan", "--config", str(repository / "configs" / "in1k_vith14.yaml"), "--gpus-per-node", "8", "--gpu", "a100-80g"]
    cli.main([*config, "--search", "--deepspeed_config", str(repository / "ds_configs" / "zero0.json"), "data.source=x"])
    advice = re.search(r"^use (\S+\.json) and (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert advice
    assert cli.main([*config, "--deepspeed_config", str(repository / advice[1]), "data.source=x", *advice[2].split()]) == 0
