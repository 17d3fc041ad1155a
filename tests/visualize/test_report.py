"""`ijepa-ds report`: one file with everything in it; a browser opens it without complaint, on any screen. TensorBoard runs."""

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from torch.utils.tensorboard import SummaryWriter

from ijepa_ds import cli
from ijepa_ds.plotting import curves
from ijepa_ds.telemetry.dashboard import LAYOUT
from ijepa_ds.telemetry.health import Health
from tests.chromium import chromium, measure, open_page
from tests.dist.pool import free_port
from tests.processes import die_with_parent
from tests.waiting import limit, wait_until
from tests.weights_cases import small_config, write_run

TAGS = ("probe/target_std", "probe/prediction_std", "probe/target_effective_rank", "speed/images_per_second", "time/data_wait")


def finished_run(folder: Path, images: Path, loss: float) -> Path:
    """A run directory with events as training writes them, a checkpoint, an evaluation and an alarm."""
    cfg = small_config(folder)
    write_run(folder, cfg)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"source: .*", f"source: {images}", text))
    writer = SummaryWriter(str(folder))
    writer.add_custom_scalars(LAYOUT)
    for step in range(1, 30):
        writer.add_scalar("loss", loss / step, step)
        for tag in TAGS:
            writer.add_scalar(tag, 1.0 + np.sin(step), step)
    writer.add_image("images/masks", np.full((20, 30, 3), 100, dtype=np.uint8), 29, dataformats="HWC")
    writer.close()
    (folder / "environment.json").write_text(json.dumps({"world_size": 2}))
    (folder / "eval").mkdir()
    result = {"scores": {"20-NN": 40.4, "linear": 48.9}, "baseline": {"scores": {"20-NN": 25.4}}}
    (folder / "eval" / "result.json").write_text(json.dumps(result))
    dense = {"task": "depth", "scores": {"AbsRel": 0.1234, "delta1": 80.0}, "unranked": ["AbsRel", "delta1"]}
    dense["baselines"] = {"pixels": {"scores": {"AbsRel": 0.4}}, "untrained": {"scores": {"AbsRel": 0.3, "delta1": 9.0}}}
    (folder / "eval" / "depth").mkdir()
    (folder / "eval" / "depth" / "result.json").write_text(json.dumps(dense))
    Image.new("RGB", (20, 20)).save(folder / "eval" / "depth" / "depth.png")
    Health(folder).point(9, {"probe/target_std": 0.001})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same name."""
    place = tmp_path_factory.mktemp("runs")
    (place / "images").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{i}.png")
    return [finished_run(place / name / "run", place / "images", loss) for name, loss in (("<a>", 1.0), ("b", 2.0))]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    """Their report."""
    out = runs[0].parent.parent / "report"
    assert cli.main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out / "report.html"


def test_everything_is_in_it(page: Path) -> None:
    text = page.read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "&lt;a&gt;/run" in text and "b/run" in text and "<a>" not in text
    for words in ("40.4 (untrained 25.4)", "48.9", "partial_collapse", "rank-hours", "Masks", "Nothing but"):
        assert words in text, words
    for words in ("0.123 (pixels 0.400, untrained 0.300)", "80.000 (untrained 9.000)", "b/run, eval/depth: depth"):
        assert words in text, words
    assert not list(page.parent.glob(".*"))
    assert {"loss.png", "rank.png", "std.png", "masks_0.png", "pca_1.png"} <= {path.name for path in page.parent.iterdir()}


def test_what_differs_is_shown(runs: list[Path], tmp_path: Path) -> None:
    changed = runs[1] / "config.yaml"
    before = changed.read_text()
    changed.write_text(before.replace("lr: 0.001", "lr: 0.002"))
    try:
        assert cli.main(["report", *map(str, runs), "--out", str(tmp_path)]) == 0
    finally:
        changed.write_text(before)
    text = (tmp_path / "report.html").read_text()
    assert '<tr class="differs"><th>optimization.lr</th><td class="n">0.001</td><td class="n">0.002</td></tr>' in text


def test_images_are_read_as_the_run_read_them(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`image_column` and `max_pixels` of the run; of other images, its `max_pixels` only."""
    content = [(runs[0].parent.parent / "images" / f"{i}.png").read_bytes() for i in range(5)]
    parquet.write_table(pa.table({"thumbnail": [b"no image"] * 5, "photo": content}), tmp_path / "images.parquet")
    run = finished_run(tmp_path / "run", tmp_path / "images.parquet", 1.0)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("image_column: .*", "image_column: photo", text))
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "pca_0.png").is_file()
    (run / "config.yaml").write_text(re.sub("max_pixels: .*", "max_pixels: 1000", text))
    given = ["--images", str(runs[0].parent.parent / "images")]
    assert cli.main(["report", str(run), *given, "--out", str(tmp_path / "report")]) == 2
    assert "48x48 pixels, more than data.max_pixels = 1000" in capsys.readouterr().err


def test_a_run_whose_start_weights_are_gone(runs: list[Path], tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", runs[0].parent.parent / "images", 1.0)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("init_from: .*", f"init_from: {tmp_path}/gone.pth", text))
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert "The start is left out: " in (tmp_path / "report" / "report.html").read_text()


def test_what_is_no_run(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for given, message in (([tmp_path], "no config.yaml"), ([runs[0], runs[0]], "listed twice"), ([runs[0]] * 9, "at most 8")):
        assert cli.main(["report", *map(str, given), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_curves_are_over_each_other(tmp_path: Path) -> None:
    runs = {"a": {"loss": (np.arange(9), np.arange(9.0))}, "b": {"other": (np.arange(2), np.arange(2.0))}}
    assert curves.draw_chart(tmp_path / "loss.png", curves.CHARTS[0], runs)
    assert not curves.draw_chart(tmp_path / "rank.png", curves.CHARTS[1], runs)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_any_score_of_the_run_has_a_curve(tmp_path: Path) -> None:
    chart = curves.CHARTS[-1]
    point = (np.arange(2), np.arange(2.0))
    for tag in ("eval/5-NN", "eval/mIoU_linear", "eval/delta1"):
        assert curves.draw_chart(tmp_path / "scores.png", chart, {"a": {tag: point, "eval/seconds": point}}), tag
    assert not curves.draw_chart(tmp_path / "scores.png", chart, {"a": {"eval/seconds": point, "eval/RankMe": point}})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_opens_it(width: int, page: Path, tmp_path: Path) -> None:
    seen = measure(page, tmp_path, width)
    assert seen["broken"] == 0 and seen["images"] >= 7
    assert seen["width"] in range(width - 20, max(width, 500) + 1)  # some versions open no window below 500
    assert seen["scroll"] <= seen["width"]  # nothing has to be pushed sideways


@pytest.mark.slow
def test_a_broken_page_would_be_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wrong.write_text('<body><img src="data:image/png;base64,AAAA"><div style="width:3000px">x</div></body>')
    seen = measure(wrong, tmp_path, 400)
    assert seen["broken"] == 1 and seen["scroll"] >= 3000
    wrong.write_text("<body><script>undefinedName()</script></body>")
    with pytest.raises(AssertionError, match="CONSOLE"):
        open_page(wrong.as_uri(), tmp_path, 400)


@pytest.mark.slow
def test_a_page_of_pictures_opens_from_the_disk(runs: list[Path], tmp_path: Path) -> None:
    chromium()
    images = str(runs[0].parent.parent / "images")
    assert cli.main(["visualize", "masks", "--checkpoint", str(runs[0]), "--images", images, "--out", str(tmp_path / "o")]) == 0
    seen = measure(tmp_path / "o" / "index.html", tmp_path, 400)
    assert seen["broken"] == 0 and seen["images"] == 5 and seen["scroll"] <= seen["width"]


@pytest.mark.slow
def test_tensorboard_answers_with_a_finished_runs_tags(runs: list[Path]) -> None:
    port = free_port()
    program = str(Path(sys.executable).parent / "tensorboard")
    command = [program, "--logdir", str(runs[0]), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        tags = wait_for(f"http://127.0.0.1:{port}/data/plugin/scalars/tags")
        assert {"loss", *TAGS} <= set(tags["."])
        layout = wait_for(f"http://127.0.0.1:{port}/data/plugin/custom_scalars/layout")
        assert [category["title"] for category in layout["category"]] == list(LAYOUT)
        address = f"http://127.0.0.1:{port}/data/plugin/custom_scalars/scalars?run=.&tag=%5Eloss%24"
        assert "loss" in wait_for(address)["tag_to_events"]
    finally:
        process.terminate()
        process.wait(limit(100))


def wait_for(address: str) -> dict:
    """The JSON at an address, once there is any."""
    found: dict = {}

    def there() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=limit(60)) as answer:
            found.update(json.loads(answer.read()))
        return bool(found)

    wait_until(there, 300, address, pause=0.5)
    return found
