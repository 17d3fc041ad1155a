"""Reading a run strictly: every kind of mistake is named with its place, all of them at once."""

from pathlib import Path

import pytest

from ijepa_ds.config import Config, ConfigError, load

GOOD = """\
run:
  dir: runs/x
data:
  source: images
  crop_size: 224
model:
  name: huge
  patch_size: 14
masks:
optimization:
  batch_size: 2048
  lr: 1e-3
  epochs: 300
  warmup_epochs: 40
"""


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def refused(path: Path, *overrides: str) -> list[str]:
    """The lines of the refusal, the file's folder taken away."""
    with pytest.raises(ConfigError) as error:
        load(path, overrides)
    lines = str(error.value).splitlines()
    assert tuple(lines) == error.value.problems
    return [line.replace(f"{path.parent}/", "") for line in lines]


def test_reads_what_is_written_and_defaults(write) -> None:
    cfg = load(write(GOOD))
    assert isinstance(cfg, Config) and cfg.grid == 16
    assert (cfg.optimization.lr, cfg.optimization.epochs) == (1e-3, 300.0)
    assert isinstance(cfg.optimization.epochs, float)
    assert cfg.masks.num_targets == 4 and cfg.data.crop_scale == (0.3, 1.0)


def test_paths_become_absolute(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere/someone")
    cfg = load(write(GOOD), ["data.source=~/photos", "run.resume=runs/y/step10"])
    assert cfg.run.dir == str(tmp_path / "runs/x")
    assert cfg.data.source == "/nowhere/someone/photos"
    assert cfg.run.resume == str(tmp_path / "runs/y/step10")
    assert load(write(GOOD)).run.resume == "auto"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimization.lr=5e-4", "lr", 5e-4),
        ("optimization.lr=2", "lr", 2.0),
        ("optimization.ema=[0.9, 1]", "ema", (0.9, 1.0)),
        ("optimization.batch_size=1_024", "batch_size", 1024),
        ("optimization.max_micro_batch=8", "max_micro_batch", 8),
    ],
)
def test_overrides(write, override: str, key: str, value: object) -> None:
    found = getattr(load(write(GOOD), [override]).optimization, key)
    assert found == value and type(found) is type(value)


def test_overrides_nest_clear_and_last_wins(write) -> None:
    overrides = ["model.predictor.depth=6", "optimization.epochs=null", "optimization.steps=10"]
    overrides += ["optimization.warmup_epochs=null", "optimization.warmup_steps=2"]
    cfg = load(write(GOOD), [*overrides, "run.seed=1", "run.seed=2"])
    assert cfg.model.predictor.depth == 6 and cfg.run.seed == 2
    assert (cfg.optimization.epochs, cfg.optimization.steps) == (None, 10)


def test_everything_wrong_at_once(write) -> None:
    text = """\
run:
  dir: runs/x
  sed: 3
data:
  source: 12
  crop_size: 225
  crop_scale: [0.5, 0.2]
  loader: dalli
optimisation:
  lr: 1
model:
  name: hug
  patch_size: 14
  lr: 3
  predictor: {depth: yes}
optimization:
  batch_size: 2048
  lrr: 2
  epochs: 3
  steps: 10
  warmup_epochs: 1
"""
    lines = refused(write(text), "data.sorce=x")
    expected = [
        "run.yaml:9: optimisation: unknown section; did you mean 'optimization'?",
        "run.yaml:3: run.sed: unknown key; did you mean 'seed'?",
        "override data.sorce=x: data.sorce: unknown key; did you mean 'source'?",
        "run.yaml:5: data.source: expected text, found 12 (whole number); put it in quotes",
        "run.yaml:14: model.lr: unknown key; 'lr' belongs in 'optimization'",
        "run.yaml:15: model.predictor.depth: expected a whole number, found True (true/false)",
        "run.yaml:18: optimization.lrr: unknown key; did you mean 'lr'?",
        "run.yaml:8: data.loader: 'dalli' is not known; did you mean 'dali'? (one of: auto, dali, torchvision)",
        "run.yaml:7: data.crop_scale: must be a pair [a, b] with 0 < a <= b <= 1, got [0.5, 0.2]",
        "run.yaml:6: data.crop_size: 225 is not a multiple of model.patch_size 14; use 224 or 238",
    ]
    assert [line for line in expected if line not in lines] == []
    assert any("model.name: 'hug' is not known; did you mean 'huge'?" in line for line in lines)
    assert any(line.startswith("run.yaml:20: optimization.steps: both epochs (3) and steps") for line in lines)
    assert len(lines) == len(expected) + 2


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("  dir: runs/x\n", "", "run.yaml:1: run.dir: missing; it has no default, expected text"),
        ("  name: huge\n", "", "run.yaml:6: model.name: missing; it has no default, expected text"),
        (
            "  epochs: 300\n",
            "",
            "run.yaml:10: optimization.epochs: missing; give exactly one of epochs and steps",
        ),
        ("run:\n", "run: 3\nrum:\n", "run.yaml:1: run: expected a section with keys, found 3 (whole number)"),
        ("lr: 1e-3", "lr: fast", "run.yaml:12: optimization.lr: expected a number, found 'fast' (text)"),
        ("lr: 1e-3", "lr: .inf", "run.yaml:12: optimization.lr: expected a number, found inf (number)"),
        ("lr: 1e-3", "lr: true", "run.yaml:12: optimization.lr: expected a number, found True (true/false)"),
        ("lr: 1e-3", "lr:", "run.yaml:12: optimization.lr: expected a number, found nothing"),
        (
            "batch_size: 2048",
            "batch_size: 2e3",
            "run.yaml:11: optimization.batch_size: expected a whole number, found '2e3' (text)",
        ),
        (
            "crop_size: 224",
            "crop_scale: [0.1]",
            "run.yaml:5: data.crop_scale: expected a list of 2 numbers, [a, b], found [0.1] (list)",
        ),
        (
            "crop_size: 224",
            "horizontal_flip: 1",
            "run.yaml:5: data.horizontal_flip: expected true or false, found 1 (whole number)",
        ),
        (
            "  crop_size: 224\n",
            "  crop_size: 224\n  crop_size: 448\n",
            "run.yaml:6: data.crop_size: already given at run.yaml:5; remove one of them",
        ),
    ],
)
def test_each_mistake_in_the_file(write, old: str, new: str, line: str) -> None:
    assert old in GOOD
    assert line in refused(write(GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("lr", "override lr: expected section.key=value"),
        ("optimization..lr=3", "override optimization..lr=3: expected section.key=value"),
        ("seed=3", "override seed=3: seed: unknown section"),
        ("run.dir.x=3", "run.dir is a single value (run.yaml:2), it has no keys"),
        ("model={name: huge}", "a whole section; override single keys, such as model.key=value"),
        ("run=3", "run is a section; override one of: dir"),
        ("run.dir=[", "override run.dir=[: the value is not valid YAML"),
        ("run.dir=3", "override run.dir=3: run.dir: expected text, found 3 (whole number); put it in quotes"),
    ],
)
def test_each_mistake_in_an_override(write, override: str, text: str) -> None:
    (line,) = refused(write(GOOD), override)
    assert text in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run: [", "run.yaml:1: not valid YAML"),
        ("run:\n  dir: a\n   seed: 1\n", "run.yaml:3: not valid YAML"),
        ("- a\n", "run.yaml: expected sections such as 'data:' at the top, found sequence"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: not valid YAML: but found another document"),
    ],
)
def test_files_that_are_no_run(write, text: str, expected: str) -> None:
    (line,) = refused(write(text))
    assert line.startswith(expected)


def test_foreign_tags_and_endless_aliases_are_refused(write) -> None:
    lines = refused(write(GOOD.replace("dir: runs/x", "dir: !!python/name:os.system")))
    assert any("run.yaml:2: run.dir: cannot be read" in line for line in lines)
    lines = refused(write(GOOD.replace("masks:\n", "masks: &loop {min_keep: *loop}\n")))
    assert any("nested too deep" in line for line in lines)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        load(tmp_path / "gone.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match=r"image\.yaml: is not UTF-8 text"):
        load(tmp_path / "image.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_an_empty_file_lists_what_is_needed(write) -> None:
    keys = {line.split(": ")[1] for line in refused(write(""))}
    assert {"run.dir", "data.source", "model.name", "optimization.batch_size"} <= keys


def test_a_wrong_value_does_not_blame_others(write) -> None:
    """A crop size that could not be read says nothing about the patch size."""
    lines = refused(write(GOOD.replace("crop_size: 224", "crop_size: big")))
    assert lines == ["run.yaml:5: data.crop_size: expected a whole number, found 'big' (text)"]


def test_world_size_is_checked_with_the_rest(write) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(GOOD), ["optimization.lrr=1"], world_size=3)
    assert "lrr" in error.value.problems[0]
    assert "run.yaml:11: optimization.batch_size: 2048 images cannot be shared" in error.value.problems[1]
