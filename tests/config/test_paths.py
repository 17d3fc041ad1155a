"""Paths and numbers of a configuration are never guessed: expanded, or refused with what to write."""

from pathlib import Path

import pytest

from ijepa_ds.config import ConfigError, published, yaml_tree
from ijepa_ds.config.paths import expand

HERE = {"SCRATCH": "/scratch/me", "EMPTY": "", "TWICE": "$SCRATCH/x"}
YAML = """run: {dir: %s}
data: {source: images, crop_size: 64}
model: {name: tiny, patch_size: 8}
masks: {sampler: unbiased}
optimization: {batch_size: 8, steps: 2, warmup_steps: 1}
"""


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("$SCRATCH/x", "/scratch/me/x"),
        ("${SCRATCH}/x_$SCRATCH", "/scratch/me/x_/scratch/me"),
        ("runs/x", "runs/x"),
        ("runs/a~b", "runs/a~b"),
        ("data/shards-{000..127}.tar", "data/shards-{000..127}.tar"),
        ("data/path_to_x", "data/path_to_x"),
        ("a:b//c", "a:b//c"),
    ],
)
def test_paths_that_are_understood(text: str, path: str) -> None:
    assert expand(text, HERE) == (path, "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$NOWHERE/x", "$NOWHERE is not set"),
        ("${NOWHERE}/x", "export NOWHERE"),
        ("$EMPTY/x", "$EMPTY is empty"),
        ("${SCRATCH:-/tmp}/x", "only $NAME and ${NAME} are expanded"),
        ("$TWICE/y", "$TWICE is '$SCRATCH/x', which is not expanded again; export TWICE with its full path"),
        ("$1", "only $NAME"),
        ("runs/x$", "only $NAME"),
        ("~nobody_here/x", "~nobody_here is no user of this host"),
        ("$replace_this_with_absolute_path", "placeholder"),
        ("<run dir>/x", "placeholder"),
        ("/path/to/imagenet", "placeholder"),
        ("/your_path_to/logs", "placeholder"),
        ("runs/CHANGE_ME", "placeholder"),
        ("%SCRATCH%/x", "placeholder"),
        ("{{ run_dir }}/x", "placeholder"),
        ("s3://bucket/runs", "s3:// begins an address; only paths of this host are understood"),
        ("https://host/a.tar", "https:// begins an address"),
        ("file:///data/images", "file:// begins an address"),
        ("hf://datasets/x", "hf:// begins an address"),
        (r"C:\runs\x", "begins an address"),
        ("a\0b", "cannot hold the character of code 0"),
    ],
)
def test_paths_that_are_refused(text: str, problem: str) -> None:
    path, found = expand(text, HERE)
    assert path == text and problem in found


def test_home_and_existing_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/x", {}) == ("/home/me/x", "")
    (tmp_path / "<odd>").mkdir()
    assert expand(str(tmp_path / "<odd>"), {}) == (str(tmp_path / "<odd>"), "")


def load(tmp_path: Path, written: str, *overrides: str) -> tuple[str, list[str]]:
    file = tmp_path / "run.yaml"
    file.write_text(YAML % written)
    cfg, notes = published.load_any(file, overrides)
    return cfg.run.dir, notes


def test_what_was_expanded_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert load(tmp_path, "$SCRATCH/x") == ("/scratch/me/x", ["run.dir: $SCRATCH/x is /scratch/me/x"])
    assert load(tmp_path, "x", "run.dir=${SCRATCH}/y")[0] == "/scratch/me/y"
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ConfigError, match=r"run\.yaml:1: run\.dir: \$SCRATCH is not set"):
        load(tmp_path, "$SCRATCH/x")
    file = tmp_path / "run.yaml"
    assert published.load_any(file, expand=False)[0].run.dir.endswith("/$SCRATCH/x")  # a command that reads no path


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("seed: 010", "YAML reads 010 in base 8, as 8; write 8, or 10 without the zero in front"),
        ("seed: 1:30", "YAML reads 1:30 in base 60, as 90; write 90, or '1:30' in quotes"),
        ("ema: [0.99, 1:00.5]", "YAML reads 1:00.5 in base 60"),
        ("<<: {seed: 1}", "a YAML merge key (<<) is not supported"),
    ],
)
def test_yaml_that_means_something_else_than_it_looks(line: str, problem: str) -> None:
    root, found = yaml_tree.parse(f"run:\n  {line}\n", "x.yaml")
    assert found and found[0].startswith("x.yaml:2: run") and problem in found[0]
    if "<<" not in line:
        key, _, value = line.partition(": ")
        (override,) = yaml_tree.apply_overrides(root, [f"run.{key}={value}"])
        assert problem in override


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("run.dir: out\n", "x.yaml:1: run.dir: a dot makes no section in a file; write dir inside run"),
        ("run: {dir: a\0b}\n", r"x.yaml:1: holds the character '\x00', which YAML forbids"),
        ("run: " + "[" * 3000, "x.yaml: lists or sections are nested too deep"),
        ("data: {mean: &a [*a, *a]}\n", "or contain themselves"),
    ],
)
def test_yaml_that_is_no_configuration(text: str, problem: str) -> None:
    try:
        _, found = yaml_tree.parse(text, "x.yaml")
    except ConfigError as error:
        found = list(error.problems)
    assert problem in found[0]


def test_numbers_of_other_scripts_are_texts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a number, found '\u0663'"):
        load(tmp_path, "x", "optimization.lr=\u0663")


def test_numbers_that_only_look_special_pass() -> None:
    _, found = yaml_tree.parse("run: {seed: 0, a: 007, b: 0x10, c: -10, d: '010', e: 0.5, f: 1_000, g: 00}\n", "x.yaml")
    assert found == []


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("1,e-3", "a comma is no decimal point: write 1.e-3"),
        ("0,001", "write 0.001"),
        ("1e\u22123", "its minus sign is another character"),
        ("5%", "write the share as a number"),
        ("10k", "units are not read"),
    ],
)
def test_numbers_that_are_texts_are_named_for_what_they_are(written: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimization\.lr: expected a number, found") as caught:
        load(tmp_path, "x", f"optimization.lr={written}")
    assert hint in str(caught.value)


def test_a_key_overridden_twice_is_said(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(YAML % "runs/x")
    cfg, notes = published.load_any(file, ["run.seed=3", "run.dir=a", "run.seed=3", " run.dir =b"])
    assert cfg.run.dir.endswith("/b")
    assert notes == ["run.dir: given 2 times on the command line (a, b); the last is used"]


@pytest.mark.parametrize("folder", ["/", "//", "/tmp/.."])
def test_the_root_is_no_folder_of_a_run(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(YAML % folder)
    with pytest.raises(ConfigError, match=r"run\.yaml:1: run\.dir: /+ is the root of the file system; name a folder"):
        published.load_any(file)


def test_the_folder_of_the_images_is_no_folder_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(YAML % "images/")
    with pytest.raises(ConfigError, match=r"run\.yaml:1: run\.dir: \S+/images is the folder of the images, data\.source"):
        published.load_any(file)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run.dir=runs/a #2", "YAML takes #2 for a comment; put the value in quotes"),
        ("run.seed=1 # mine", "YAML takes # mine for a comment"),
        ("run.seed=18446744073709551616", "run.seed: must be at least 0 and below 9.22337e+18"),
    ],
)
def test_what_an_override_would_lose_is_refused(override: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(YAML % "runs/x")
    with pytest.raises(ConfigError) as error:
        published.load_any(file, [override])
    assert problem in str(error.value)
    assert published.load_any(file, ["run.dir='runs/a #2'"])[0].run.dir.endswith("/runs/a #2")
