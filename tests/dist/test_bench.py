"""The benchmarks that need an engine, on the pool's ranks: a tiny model, two ranks, real images."""

from pathlib import Path

import pytest

from tests.dist.launched import prepare
from tests.dist.test_zero import Ranks

pytestmark = pytest.mark.dist


def measured(ranks: Ranks, verb: str, place: Path) -> dict[str, dict]:
    """Rank 0's records by name."""
    results = ranks(2).run("bench_verb", verb=verb, place=str(prepare(place)), steps=2)
    return {item["what"]: item for item in results[0]["records"]}


def test_step_ema_and_comm(ranks: Ranks, tmp_path: Path) -> None:
    step = measured(ranks, "step", tmp_path)
    parts = [step[f"step.{part}"]["median"] for part in ("masks", "forward", "backward", "optimizer", "ema")]
    assert min(parts) > 0 and step["step.all"]["median"] > 0
    assert 0 < step["step.matmul_share"]["median"] < 1 and "step.mfu" not in step and step["step.images"]["median"] > 0
    ema = measured(ranks, "ema", tmp_path)
    assert ema["ema.update"]["repeats"] == 2 and ema["ema.loop"]["median"] > 0
    comm = measured(ranks, "comm", tmp_path)
    assert comm["comm.all_reduce.64MiB"]["median"] > comm["comm.all_reduce.1MiB"]["median"]
    trained = sum(comm["comm.step.moved"]["config"]["parameters"].values())
    assert comm["comm.step.moved"]["median"] >= 2 * 4 * trained  # at least a gradient and a weight each


def test_train_tells_where_a_real_run_spends_its_time(ranks: Ranks, tmp_path: Path) -> None:
    found = measured(ranks, "train", tmp_path)
    parts = ("data_wait", "masks", "target", "context", "predictor", "backward", "optimizer", "ema", "report")
    assert all(found[f"train.{part}"]["median"] > 0 for part in parts)
    assert sum(found[f"train.{part}"]["share"] for part in parts) == pytest.approx(1, abs=0.15)
    assert found["train.profiled_collectives"]["median"] > 0 and 0 < found["train.matmul_share"]["median"] < 1
    assert not list((tmp_path / "out" / "checkpoints").glob("step_*"))
    assert (tmp_path / "trace.json").stat().st_size > 1000
