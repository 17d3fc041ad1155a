"""What is written reads back equal, and fingerprints tell tasks apart."""

import json
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from ijepa_ds.config import (
    Config,
    ConfigError,
    DataConfig,
    MasksConfig,
    ModelConfig,
    OptimizationConfig,
    PredictorConfig,
    RunConfig,
    difference,
    fingerprint,
    flatten,
    from_text,
    load,
    save_resolved,
    stored,
    to_text,
)
from ijepa_ds.config.build import nodes as schema_nodes

CONFIG = Config(
    run=RunConfig(dir="/runs/x", seed=7),
    data=DataConfig(source="/data/images: new #1", crop_ratio=(3 / 4, 4 / 3)),
    model=ModelConfig(name="base", predictor=PredictorConfig(width=96, heads=4)),
    masks=MasksConfig(sampler="unbiased", num_targets=3),
    optimization=OptimizationConfig(batch_size=96, steps=10, warmup_steps=2, lr=1 / 3e4, eps=1e-12),
)
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def with_value(key: str, value: object) -> Config:
    *sections, name = key.split(".")
    nodes: list[Any] = [CONFIG]
    for section in sections:
        nodes.append(getattr(nodes[-1], section))
    node = replace(nodes.pop(), **{name: value})
    for section in reversed(sections):
        node = replace(nodes.pop(), **{section: node})
    return node


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_resolved(CONFIG, path)
    assert path.read_text(encoding="utf-8") == to_text(CONFIG)
    assert load(path) == CONFIG
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("source", ["/a/~b", "/a/'quoted' \"twice\"", "/a/é", "/a/" + "long name " * 30, "/a/[x]"])
def test_awkward_paths_survive(tmp_path: Path, source: str) -> None:
    cfg = with_value("data.source", source.strip())
    save_resolved(cfg, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == cfg


def test_text_holds_every_key() -> None:
    written = yaml.safe_load(to_text(CONFIG))
    for key in flatten(CONFIG):
        node = written
        for name in key.split("."):
            assert name in node, key
            node = node[name]


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple((part or 1) / 2 for part in value)
    return value + "x" if isinstance(value, str) else (value or 0) + 1  # type: ignore[operator]


FREE = {
    *(
        "run.dir",
        "run.resume",
        "run.branch_from",
        "run.log_every",
        "run.probe_every",
        "run.picture_every",
        "run.checkpoint_every",
    ),
    *("run.keep_last", "run.keep_every", "run.start_timeout", "run.hang_timeout", "run.max_nonfinite"),
    *("data.source", "data.loader", "data.decoder", "data.threads", "data.readers", "data.prefetch", "data.max_pixels"),
    *("data.max_bad", "data.max_bad_share", "data.class_level", "data.tar_end", "data.storage_timeout"),
    *("data.image_column", "data.label_column", "data.parquet_cache", "data.shown"),
    *("model.activation_checkpointing", "model.recompute", "model.compile", "optimization.max_micro_batch"),
    *("eval.every", "eval.task", "eval.train", "eval.test", "eval.labels", "eval.k", "eval.max_train", "eval.max_test"),
}


@pytest.mark.parametrize("key", flatten(CONFIG))
def test_fingerprint_changes_with_the_task_only(key: str) -> None:
    changed = with_value(key, other(flatten(CONFIG)[key]))
    assert (fingerprint(changed) == fingerprint(CONFIG)) == (key in FREE)
    lines = difference(CONFIG, changed)
    assert [line.split(":")[0] for line in lines] == ([] if key in FREE else [key])


def test_a_length_that_changes_no_step_so_far_is_no_other_task() -> None:
    wsd = with_value("optimization.schedule", "wsd")
    for name, value in {"steps": 99, "cooldown_steps": 5, "final_lr": 1e-5}.items():
        longer = replace(wsd, optimization=replace(wsd.optimization, **{name: value}))
        assert fingerprint(longer) == fingerprint(wsd) and difference(wsd, longer) == []
    assert fingerprint(wsd) != fingerprint(CONFIG)
    assert difference(CONFIG, wsd) == difference(CONFIG, wsd) == ["optimization.schedule: cosine -> wsd"]


def test_a_gate_of_before_there_was_a_key_stays_gelu(tmp_path: Path) -> None:
    """A stored configuration with `swiglu` and without the gate is of a GELU run, which no SiLU run resumes."""
    gated = with_value("model.swiglu", True)
    text = "".join(line for line in to_text(gated).splitlines(keepends=True) if "gate:" not in line)
    assert "swiglu: true" in text and gated.model.gate == "silu"
    before = from_text(text, "x")
    assert before.model.gate == "gelu" and from_text(to_text(gated), "x").model.gate == "silu"
    (tmp_path / "config.yaml").write_text(text)
    assert stored(tmp_path / "config.yaml") == before and load(tmp_path / "config.yaml") == gated
    assert difference(before, gated) == ["model.gate: gelu -> silu"] and fingerprint(before) != fingerprint(gated)
    by_hand = "run: {dir: out}\ndata: {source: x, crop_size: 224}\nmodel: {name: tiny, swiglu: true}\n"
    assert from_text(by_hand + "optimization: {batch_size: 8, steps: 2, warmup_steps: 1}\n", "x").model.gate == "silu"
    with pytest.raises(ConfigError):
        from_text("model: 3\n", "x")
    task = {key: value for key, value in flatten(before).items() if key != "model.gate"}
    assert task == {key: value for key, value in flatten(gated).items() if key != "model.gate"}


def test_fingerprint_is_the_same_in_every_process() -> None:
    assert fingerprint(CONFIG) == fingerprint(replace(CONFIG)) and len(fingerprint(CONFIG)) == 16


def test_difference_reads_well() -> None:
    assert difference(CONFIG, with_value("data.crop_scale", (0.2, 1.0))) == ["data.crop_scale: [0.3, 1.0] -> [0.2, 1.0]"]


def defaults(cls: Any, prefix: str = "") -> dict[str, str]:
    """Key -> what its row in the table shows as default."""
    shown: dict[str, str] = {}
    for spec in fields(cls):
        hint = get_type_hints(cls)[spec.name]
        if is_dataclass(hint):
            shown |= defaults(hint, f"{prefix}{spec.name}.")
        elif spec.default is MISSING:
            shown[prefix + spec.name] = "required"
        else:
            plain = list(spec.default) if isinstance(spec.default, tuple) else spec.default
            text = yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
            shown[prefix + spec.name] = f"`{text}`"
    return shown


def test_the_page_lists_every_key_with_its_default_and_no_other() -> None:
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and "." in cells[0] and not cells[0].endswith(".json`"):
            assert len(cells) == 4 and cells[2] and cells[3], line
            rows[cells[0].strip("`")] = cells[1]
    assert rows == defaults(Config)


def test_a_recorded_checkpoint_of_the_first_release_has_the_same_values_and_fingerprint() -> None:
    """Keys that came later are added to the text, free or at their defaults; nothing else changes."""
    recorded = Path(__file__).parents[1] / "recorded" / "run-0.1" / "checkpoints" / "step_00000002" / "manifest.json"
    manifest = json.loads(recorded.read_text(encoding="utf-8"))
    cfg = from_text(manifest["config"], "manifest.json")
    now, then = to_text(cfg).splitlines(), manifest["config"].splitlines()
    added = [line for line in now if line not in then]
    assert [line for line in now if line not in added] == then
    later = [key for key, node in schema_nodes().items() if "free" in node or "later" in node]
    may_come = {name for key in later for name in key.split(".")}  # with new sections
    assert {"order", "readers"} <= {line.strip().partition(":")[0] for line in added} <= may_come
    assert fingerprint(cfg) == manifest["fingerprint"] == "1ad13876d3c2cf02"


def test_runs_of_the_first_release_go_on() -> None:
    """Keys that came later are not part of the fingerprint until they are used: this is what 0.1.0 wrote."""
    cfg = Config(
        run=RunConfig(dir="x"),
        data=DataConfig(source="y"),
        model=ModelConfig(name="tiny"),
        optimization=OptimizationConfig(batch_size=8, steps=6, warmup_steps=1),
    )
    assert fingerprint(cfg) == "3ebeba9c9820ba5f"
