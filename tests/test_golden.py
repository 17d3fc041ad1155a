"""Everything that is drawn or scheduled is what it was: files in tests/golden."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ijepa_ds import counter
from tests.golden import __main__ as command
from tests.golden import values


@pytest.mark.parametrize("subject", values.SUBJECTS)
def test_values_are_the_frozen_ones(subject: str) -> None:
    header, frozen = values.read(values.path_of(subject))
    assert header == values.HEADER, "run `python -m tests.golden --write`"
    assert len(frozen) >= 5
    found = values.differences(subject, frozen, values.SUBJECTS[subject].lines())
    assert not found, "\n".join([*found, "intended? see tests/golden/__main__.py"])


def test_every_file_belongs_to_a_subject() -> None:
    assert {path.stem for path in values.FOLDER.glob("*.txt")} == set(values.SUBJECTS)


def test_the_changelog_names_the_order_version(repository: Path) -> None:
    text = " ".join((repository / "CHANGELOG.md").read_text(encoding="utf-8").split())
    assert f"order version {counter.ORDER_VERSION}:" in text.lower(), "describe what is drawn differently"


@pytest.mark.parametrize(
    ("subject", "factor", "same"),
    [("flips", 1, True), ("schedules", 1 + 1e-13, True), ("schedules", 1 + 1e-11, False), ("start_values", 1.00001, False)],
)
def test_floats_have_a_tolerance_and_integers_none(subject: str, factor: float, same: bool) -> None:
    now = {"case": repr(3.0 * factor) if factor != 1 else "3"}
    frozen = {"case": "3.0" if factor != 1 else "3"}
    assert (not values.differences(subject, frozen, now)) == same
    assert values.differences("flips", {"case": "1 0 1"}, {"case": "1 0 0"})
    assert values.differences("schedules", {"case": "1.0 2.0"}, {"case": "1.0"})


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files of two quick subjects."""
    monkeypatch.setattr(values, "SUBJECTS", {name: values.SUBJECTS[name] for name in ("flips", "schedules")})
    for name in values.SUBJECTS:
        shutil.copy(values.path_of(name), tmp_path)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_writing_refuses_to_change_a_value_under_the_same_version(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = two / "flips.txt"
    for old, new in (("seed 0, samples from 0: ", "seed 0, samples from 0: 0 "), ("seed 3, samples from 995", "seed 3")):
        before = path.read_text()
        replace(path, old, new)
        held = path.read_text()
        assert command.main(["--write"], two) == 1
        assert path.read_text() == held
        text = capsys.readouterr().out
        assert "flips, seed" in text and values.HEADER in text and "raise ORDER_VERSION" in text and "CHANGELOG.md" in text
        path.write_text(before)
    assert command.main(["--write"], two) == 0


def test_writing_adds_cases_and_follows_a_new_version(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: (two / f"{name}.txt").read_text() for name in values.SUBJECTS}
    lines = whole["flips"].splitlines(keepends=True)
    (two / "flips.txt").write_text("".join(lines[:-1]))
    (two / "schedules.txt").unlink()
    assert command.main([], two) == 0  # a comparison writes nothing
    assert not (two / "schedules.txt").exists()
    assert command.main(["--write"], two) == 0
    assert {name: (two / f"{name}.txt").read_text() for name in values.SUBJECTS} == whole
    replace(two / "flips.txt", "seed 0, samples from 0: ", "seed 0, samples from 0: 0 ")
    monkeypatch.setattr(values, "HEADER", "order version 99")
    assert command.main(["--write"], two) == 0
    assert (two / "flips.txt").read_text() == whole["flips"].replace(lines[0], "order version 99\n")
