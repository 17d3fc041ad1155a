"""Where a run continues: the newest checkpoint that is whole and its own, or the one asked for, and no other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ijepa_ds import config
from ijepa_ds.checkpoint import run_dir, run_lock
from ijepa_ds.config import Config, DataConfig, ModelConfig, OptimizationConfig, RunConfig
from ijepa_ds.errors import CheckpointError
from tests.checkpoint_cases import write


def config_of(place: Path, resume: str = "auto", lr: float = 1e-3) -> Config:
    return Config(
        run=RunConfig(dir=str(place), resume=resume),
        data=DataConfig(source="images"),
        model=ModelConfig(name="tiny"),
        optimization=OptimizationConfig(batch_size=8, steps=50, warmup_steps=2, lr=lr),
    )


def save(cfg: Config, step: int, damage: dict[str, object] | None = None) -> Path:
    """A checkpoint of a run of this configuration."""
    folder = write(Path(cfg.run.dir), step, torch.zeros(8), [])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"fingerprint": config.fingerprint(cfg), "config": config.to_text(cfg)} | (damage or {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def start(cfg: Config, said: list[str] | None = None) -> int | None:
    """The step of the checkpoint that a run continues from."""

    def say(text: str, *values: object) -> None:
        (said if said is not None else []).append(text % values)

    reader = run_dir.find_start(cfg, run_dir.look(cfg), say=say)
    return reader.manifest["step"] if reader else None


def test_a_checkpoint_of_another_configuration_is_named_with_what_differs_and_the_older_one_taken(tmp_path: Path) -> None:
    cfg, said = config_of(tmp_path), list[str]()
    save(cfg, 10)
    foreign = save(config_of(tmp_path, lr=3e-4), 20)
    assert start(cfg, said) == 10
    (message,) = said
    assert str(foreign) in message and "another configuration (optimization.lr: 0.0003 -> 0.001)" in message
    with pytest.raises(CheckpointError, match=r"step_00000020 was saved from another configuration \(optimization.lr"):
        start(config_of(tmp_path, resume=str(foreign)))  # a path is never replaced by another


@pytest.mark.parametrize("text", [None, 7, "", "model: !!python/object/apply:os.mkdir [x]", "run: {"])
def test_a_configuration_that_cannot_be_read_is_told_by_its_fingerprint(text: object, tmp_path: Path) -> None:
    cfg = config_of(tmp_path)
    save(cfg, 10, {"fingerprint": "0123456789abcdef", "config": text})
    with pytest.raises(CheckpointError, match="another configuration .*fingerprint 0123456789abcdef, this one is"):
        start(cfg)
    assert not Path("x").exists()


def test_only_others_checkpoints_are_no_reason_for_a_fresh_start(tmp_path: Path) -> None:
    save(config_of(tmp_path, lr=3e-4), 20)
    with pytest.raises(CheckpointError, match="refusing to start from scratch"):
        start(config_of(tmp_path))


def test_a_path_is_taken_although_older_ones_are_there_and_refused_where_it_is_damaged(tmp_path: Path) -> None:
    cfg = config_of(tmp_path)
    save(cfg, 10)
    path = save(cfg, 20)
    asked = replace(cfg, run=replace(cfg.run, resume=str(path)))
    assert start(asked) == 20
    next(path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated"):
        start(asked)
    with pytest.raises(ValueError, match="newer checkpoint"):  # another branch would begin in the same folder
        start(replace(cfg, run=replace(cfg.run, resume=str(path.with_name("step_00000010")))))
    with pytest.raises(ValueError, match=r"run.resume is never, but .* has checkpoints"):
        start(replace(cfg, run=replace(cfg.run, resume="never")))


def test_the_folder_of_a_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    config.save_resolved(config_of(tmp_path), tmp_path / "config.yaml")
    assert start(config_of(tmp_path)) is None
    with pytest.raises(ValueError, match=r"another configuration:\n  optimization.lr: 0.001 -> 0.002"):
        start(config_of(tmp_path, lr=2e-3))


def lengths(place: Path, steps: int, cooldown: int = 0, **run: object) -> Config:
    """A run of warm-up, constant and cool-down."""
    cfg = config_of(place)
    o = replace(
        cfg.optimization, steps=steps, schedule="wsd", cooldown_steps=cooldown, final_weight_decay=0.04, ema=(0.99, 0.99)
    )
    return replace(cfg, optimization=o, run=replace(cfg.run, **run))


def test_a_run_is_made_longer_while_it_is_constant_and_not_once_it_cools_down(tmp_path: Path) -> None:
    first = lengths(tmp_path, 30, 10)
    config.save_resolved(first, tmp_path / "config.yaml")
    save(first, 20, {"images": 16})
    assert start(first) == start(lengths(tmp_path, 90, 30)) == start(lengths(tmp_path, 20)) == 20
    with pytest.raises(ValueError, match=r"20, but with the new length \(optimization.steps: 30 -> 25\) only the first 15"):
        start(lengths(tmp_path, 25, 10))
    save(first, 30, {"images": 16})
    assert start(first) == 30
    with pytest.raises(ValueError, match="step_00000030 was saved at step 30, .* only the first 20 .* run.branch_from"):
        start(lengths(tmp_path, 90, 30))  # never silently from step 20 over what is there
    with pytest.raises(ValueError, match="another configuration:\n  optimization.lr"):
        start(replace(first, optimization=replace(first.optimization, lr=2e-3)))


def test_a_branch_begins_elsewhere_once_and_then_goes_on_with_its_own(tmp_path: Path) -> None:
    trunk = lengths(tmp_path / "trunk", 30, 10)
    begin, late = save(trunk, 10, {"images": 16}), save(trunk, 30, {"images": 16})
    branch = lengths(tmp_path / "branch", 14, 4, branch_from=str(begin))
    assert start(branch) == 10
    save(branch, 12, {"images": 16})
    assert start(branch) == 12
    with pytest.raises(ValueError, match="saved at step 30"):
        start(lengths(tmp_path / "other", 40, 4, branch_from=str(late)))
    with pytest.raises(CheckpointError, match="another configuration"):
        start(replace(config_of(tmp_path / "cosine"), run=replace(branch.run, dir=str(tmp_path / "cosine"))))


def test_a_place_that_cannot_be_written_is_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    run_dir.check_writable(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".probe*"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="file cannot be written"):
        run_lock.lock(tmp_path / "file")
    (tmp_path / "run" / "checkpoints").rmdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    (tmp_path / "run" / "health.jsonl").mkdir()
    with pytest.raises(ValueError, match="checkpoints cannot be written") as error:
        run_dir.check_writable(tmp_path / "run")
    assert "health.jsonl cannot be written (Is a directory)" in str(error.value)
