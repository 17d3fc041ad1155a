r"""Names of files and runs that are no UTF-8, or hold `$`, `_`, `^`, quotes or newlines, in all that is shown of them."""

import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ijepa_ds import cli, config
from ijepa_ds.plotting.style import literal
from ijepa_ds.shown import shown
from ijepa_ds.telemetry.event_log import Log
from tests.dist.launched import SMALL, finished, prepare
from tests.evals_cases import write_images
from tests.weights_cases import small_config

ODD = [b"caf\xe9", b"a$b_c^d$", b"$\\frac{x}$", b"two\nlines", b"\"q'<b>&amp;", b"_first", b"tab\tbell\x07", "漢字 é".encode()]


def odd_images(root: Path) -> None:
    """One class folder for each odd name, with images of that name."""
    for number, name in enumerate(ODD):
        write_images(root, {f"class{number}": 2})
        (root / f"class{number}" / "0.png").rename(
            Path(os.fsdecode(os.path.join(os.fsencode(root / f"class{number}"), name + b".png")))
        )
        (root / f"class{number}").rename(Path(os.fsdecode(os.path.join(os.fsencode(root), name))))


class Page(html.parser.HTMLParser):
    """Reads a page; notes tags that the page's own code does not write."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9", r"caf\xe9"),
        (b"two\nlines", r"two\nlines"),
        (b"\x00\x7f\xff", r"\x00\x7f\xff"),
        ("漢字 é".encode(), "漢字 é"),
        (b"a$b_c", "a$b_c"),
    ],
)
def test_a_name_as_one_line_of_text(name: bytes, text: str) -> None:
    assert shown(os.fsdecode(name)) == text and shown(text) == text


@pytest.mark.parametrize("name", ODD)
def test_a_title_is_drawn_as_it_is(name: bytes, tmp_path: Path) -> None:
    """matplotlib takes text between two dollars for a formula: `a$b_c^d$` would lose its signs, and `\\frac{x}` fail."""
    figure = Figure()
    title = figure.text(0, 0, literal(os.fsdecode(name)), parse_math=True, family="DejaVu Sans")
    drawn, is_math = title._preprocess_math(title.get_text())  # type: ignore[attr-defined]
    assert not is_math and drawn == shown(os.fsdecode(name))


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # DejaVu Sans has no Chinese
def test_pictures_pages_and_scores(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd_images(tmp_path / "images")
    given = ["--checkpoint", str(run_dir), "--device", "cpu"]
    out = tmp_path / 'out "$a_b$<i>'
    assert cli.main(["visualize", "pca", *given, "--images", str(tmp_path / "images"), "--num", "16", "--out", str(out)]) == 0
    text = (out / "index.html").read_text(encoding="utf-8")
    assert not Page(text).tags & {"b>", "i"} and r"caf\xe9.png" in text and "a$b_c^d$.png" in text and r"two\nlines.png" in text
    train = ["--train", str(tmp_path / "images"), "--test", str(tmp_path / "images")]
    assert cli.main(["eval", "knn", *given, *train, "--k", "1", "--out", str(tmp_path / "eval")]) == 0
    classes = json.loads((tmp_path / "eval" / "result.json").read_text())["data"]["classes"]
    assert {os.fsencode(name) for name in classes} == set(ODD)


def test_a_report_of_runs_with_odd_names(tmp_path: Path) -> None:
    runs = [tmp_path / os.fsdecode(name) for name in ODD[1:7]]  # of the first one, see below
    write_images(tmp_path / "plain" / "images", {"a": 4}, size=48)
    for number, run in enumerate(runs):
        run.mkdir()
        config.save_resolved(small_config(tmp_path / "plain"), run / "config.yaml")
        log = Log(run, 0, purge_step=1)
        for step in range(1, 5):
            log.scalars(step, {"loss": 1.0 / step + number})
        log.close()
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "report")]) == 0
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert "i" not in page.tags
    for run in runs:
        assert cli.main(["summary", "--run", str(run), "--out", str(tmp_path / "summary.png")]) == 0


def test_a_folder_for_tensorboard_must_be_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / "run.yaml").write_text("optimization: {steps: 2, warmup_steps: 1, batch_size: 8}\ndata: {source: x}\n")
    with pytest.raises(config.ConfigError, match=r"override run.dir=caf\\xe9: is not UTF-8, which YAML requires"):
        config.load(tmp_path / "run.yaml", [f"run.dir={name}", "model.name=tiny"])
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(config.ConfigError, match=r"run.dir: .*caf\\xe9/out is not UTF-8, which TensorBoard requires"):
        config.load(tmp_path / "run.yaml", ["run.dir=out", "model.name=tiny"])
    given = ["--checkpoint", "x", "--train", "x", "--test", "x", "--out", str(tmp_path / name)]
    assert cli.main(["eval", "knn", *given]) == 2
    assert r"caf\xe9: is not UTF-8" in capsys.readouterr().err


def test_a_message_with_such_a_name_is_no_traceback(tmp_path: Path) -> None:
    name = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    command = [sys.executable, "-m", "ijepa_ds.cli", "checkpoint", "list", name]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONUTF8": "1"})
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"caf\\udce9 has no folder checkpoints" in done.stderr


@pytest.mark.dist
def test_a_run_on_such_names(tmp_path: Path) -> None:
    place = prepare(tmp_path)
    odd_images(place / "odd")
    broken = os.path.join(os.fsencode(place / "odd"), b"a$b_c^d$", b"br\xf6ken\n.jpg")
    Path(os.fsdecode(broken)).write_bytes(b"\xff\xd8\xff no image")
    arguments = ["--config", "run.yaml", "--deepspeed_config", "zero0.json", *SMALL, "run.picture_every=1", "run.probe_every=1"]
    more = [
        "data.source=odd",
        "data.loader=torchvision",
        "data.max_bad_share=0.5",
        "optimization.steps=2",
        "optimization.warmup_steps=1",
    ]
    result = finished(place, [*arguments, *more, "model.precision=float32"], 0)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in (place / "out" / "bad_samples.jsonl").read_text().splitlines()]
    assert [os.fsencode(row["path"]) for row in rows] == [broken]
    assert "Traceback" not in result.stdout + result.stderr and np.isfinite(
        json.loads((place / "out" / "completed.json").read_text())["loss"]
    )
