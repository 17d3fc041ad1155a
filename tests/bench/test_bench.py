"""`ijepa-ds bench ...` on a tiny model: every verb gives the same schema, and figures that hang together."""

import argparse
import json
from pathlib import Path

import pytest

from ijepa_ds.bench.record import record, table
from ijepa_ds.cli import main
from ijepa_ds.options import bench as options
from tests.dist.launched import TINY, prepare


def test_a_record_has_median_and_quartiles() -> None:
    made = record("x.y", "s", [5.0, 1.0, 2.0, 4.0, 3.0], {"model": "tiny"}, share=0.5)
    assert (made["median"], made["quartiles"], made["repeats"], made["share"]) == (3.0, [2.0, 4.0], 5, 0.5)
    assert record("x", "s", [7.0], {})["quartiles"] == [7.0, 7.0]
    assert "3.000 s" in table([made])


def check(path: Path, verb: str) -> dict[str, dict]:
    """The common schema; what -> record."""
    document = json.loads(path.read_text())
    assert document["verb"] == verb
    machine = document["machine"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["threads"] >= 1 and machine["versions"]["torch"]
    for item in document["records"]:
        low, high = item["quartiles"]
        assert low <= item["median"] <= high and item["repeats"] >= 1 and item["unit"] and item["config"]
    return {item["what"]: item for item in document["records"]}


def test_masks(tmp_path: Path) -> None:
    prepare(tmp_path)
    out = tmp_path / "masks.json"
    arguments = ["--config", str(tmp_path / "run.yaml"), "--repeats", "5", "--json", str(out)]
    assert main(["bench", "masks", *arguments, *TINY]) == 0
    found = check(out, "bench masks")
    assert 0 < found["masks.sample"]["median"] < 10 and 0 < found["masks.context"]["median"] < 16


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--ranks", "0"], ["--trace", "/no/such/folder/trace.json"]])
def test_arguments_that_cannot_work_are_refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--config", "run.yaml", "--deepspeed_config", "zero2.json", "--ranks", "1"]
    assert main(["bench", "train", *given, *arguments]) == 2
    assert "--" in capsys.readouterr().err


def test_stages_leave_the_overrides_behind_them_alone() -> None:
    parser = argparse.ArgumentParser()
    options.state(parser)
    needed = ["--config", "x.yaml", "--deepspeed_config", "z.json", "--ranks", "1"]
    args = parser.parse_args([*needed, "--stages", "1,3", "model.name=large"])
    assert args.stages == [1, 3] and args.overrides == ["model.name=large"]
    with pytest.raises(SystemExit):
        parser.parse_args([*needed, "--stages", "4"])
