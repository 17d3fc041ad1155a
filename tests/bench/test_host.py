"""`ijepa-ds bench host`: options, table, picture; a measurement of a tiny structure in a pretended world."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from ijepa_ds.bench import host
from ijepa_ds.bench.record import record
from ijepa_ds.cli import main
from ijepa_ds.options import bench as options
from tests.bench.test_bench import check
from tests.dist.launched import TINY, prepare

PARTS = {"forward", "backward", "optimizer", "ema", "step", "start", "backend"}


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.host(parser)
    return parser.parse_args(["--config", "x.yaml", "--deepspeed_config", "z.json", *words])


def test_worlds_leave_the_overrides_behind_them_alone() -> None:
    args = parsed("--world", "64", "1", "64", "model.depth=2", "run.seed=1")
    assert host._worlds(args) == [1, 64] and args.overrides == ["model.depth=2", "run.seed=1"]
    args = parsed("model.depth=2")
    assert host._worlds(args) == [1] and args.overrides == ["model.depth=2"]


@pytest.mark.parametrize("words", [["0"], ["8", "many"], ["model.depth=2"]])
def test_what_is_no_number_of_ranks_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="--world .*expected numbers of ranks"):
        host._worlds(parsed("--world", *words))


def test_a_missing_folder_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--config", "run.yaml", "--deepspeed_config", "zero2.json", "--plot", str(tmp_path / "none" / "x.png")]
    assert main(["bench", "host", *given]) == 2
    assert "--plot" in capsys.readouterr().err


def made(way: str, ranks: int, seconds: float) -> list[dict[str, Any]]:
    config = {"way": way, "ranks": ranks}
    values: dict[str, list[float]] = {part: [seconds, 1.5 * seconds, 2 * seconds] for part in PARTS}
    values |= {"hooks": [0.125]} if way == "zero3" else {}
    values |= {"calls": [1000], "collectives": [6], "bytes": [2**20]}
    return [record(f"host.{way}.{ranks}.{part}", "s", numbers, config) for part, numbers in values.items()]


def test_table_and_picture(tmp_path: Path) -> None:
    from ijepa_ds.bench.host_picture import write

    records = made("plain", 1, 0.02)
    for world in (512, 8):
        records += made("fsdp2", world, 0.1) + made("zero3", world, 0.2) + made("zero3_deepspeed", world, 0.01 * world)
    lines = host.report(records).splitlines()[3:]
    found = [line.split()[:2] for line in lines]
    ways = ("fsdp2", "zero3", "zero3_deepspeed")
    assert found == [["plain", "1"], *([way, world] for way in ways for world in ("8", "512"))]
    assert lines[2].split()[2:9] == ["150.0"] * 5 + ["[100.0,", "200.0]"]
    assert [line.split()[9] for line in lines] == ["-", "-", "-", "125.0", "125.0", "-", "-"]
    write(tmp_path / "host.png", records)
    assert (tmp_path / "host.png").stat().st_size > 10_000


def test_a_failed_measurement_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--config", str(tmp_path / "none.yaml"), "--deepspeed_config", "zero2.json"]
    assert main(["bench", "host", *given]) == 2
    error = capsys.readouterr().err
    assert "plain on 1 ranks ended with exit code 2" in error and "none.yaml" in error


@pytest.mark.slow
def test_every_way_in_a_pretended_world(tmp_path: Path) -> None:
    prepare(tmp_path)
    out, picture = tmp_path / "host.json", tmp_path / "host.png"
    files = ["--config", str(tmp_path / "run.yaml"), "--deepspeed_config", str(tmp_path / "zero3.json")]
    wanted = ["--steps", "2", "--json", str(out), "--plot", str(picture), "--deepspeed-collectives"]
    assert main(["bench", "host", *files, *wanted, "--world", "256", *TINY]) == 0
    found = check(out, "bench host")
    for name in ("plain.1", "fsdp2.256", "zero3.256", "zero3_deepspeed.256"):
        assert all(found[f"host.{name}.{part}"]["median"] >= 0 for part in PARTS)
        parts = sum(found[f"host.{name}.{part}"]["median"] for part in ("forward", "backward", "optimizer", "ema"))
        hooks = found.get(f"host.{name}.hooks")
        assert hooks is None if not name.startswith("zero") else 0 < hooks["median"] < 2 * parts
        assert 0.5 * parts < found[f"host.{name}.step"]["median"] < 2 * parts
    ours, own = "host.zero3.256", "host.zero3_deepspeed.256"
    assert found[f"{own}.calls"]["median"] > 1.5 * found[f"{ours}.calls"]["median"]  # the test of one step can fail
    for count in ("collectives", "bytes"):
        assert found[f"{own}.{count}"]["median"] == found[f"{ours}.{count}"]["median"] > 0
    assert found["host.plain.1.collectives"]["median"] == 0 and picture.stat().st_size > 10_000
