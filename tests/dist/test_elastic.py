"""A checkpoint is the same state at any world size, ZeRO stage and micro-batch, and training goes on as if undisturbed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ijepa_ds.bench.checkpoint import report
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.telemetry.events import read_scalars
from tests import reference
from tests.dist.launched import prepare
from tests.dist.pool import Pool
from tests.dist.test_zero import TRAIN, assert_same_bits, mean_losses, plain_run, relative, worst

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]
Place = tuple[int, int]  # world size, ZeRO stage
SAVED, LAST = 10, 24  # steps
CASES = [  # saved at, resumed at, optimization.max_micro_batch
    ((2, 3), (1, 2), 128),
    ((2, 3), (4, 2), 128),
    ((2, 3), (2, 2), 2),
    ((1, 2), (2, 3), 128),
    ((1, 2), (1, 1), 4),
    ((4, 1), (2, 0), 128),
    ((2, 0), (2, 1), 128),
]


@pytest.fixture(scope="module")
def undisturbed(images: Path) -> reference.Trained:
    """All steps by the reference."""
    return plain_run(images, LAST)


@pytest.fixture(scope="module")
def saved(ranks: Ranks, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Place], str]:
    """The checkpoint of the first steps at a world size and stage; made once."""
    made: dict[Place, str] = {}

    def save(at: Place) -> str:
        if at not in made:
            run = str(tmp_path_factory.mktemp("saved"))
            settings: dict = {**TRAIN, "place": str(images), "run": run, "stage": at[1], "until": SAVED}
            made[at] = ranks(at[0]).run("train", **settings)[0]["folder"]
        return made[at]

    return save


def name(value: object) -> str:
    """Of a case in pytest's output."""
    return f"{value[0]}-ranks-stage-{value[1]}" if isinstance(value, tuple) else f"micro-batch-{value}"


@pytest.mark.parametrize(("before", "after", "micro_batch"), CASES, ids=name)
def test_resumed_elsewhere_equals_undisturbed(
    before: Place,
    after: Place,
    micro_batch: int,
    saved: Callable[[Place], str],
    ranks: Ranks,
    tmp_path: Path,
    images: Path,
    undisturbed: reference.Trained,
) -> None:
    world, stage = after
    again = ranks(world).run("save_again", stage=stage, resume=saved(before), folder=str(tmp_path / "again"))[0]
    assert_same_bits(saved(before), again)  # weights, moments, EMA: nothing got lost on the way
    settings: dict = {**TRAIN, "place": str(images), "stage": stage, "max_micro_batch": micro_batch}
    results = ranks(world).run("train", **settings, run=str(tmp_path / "run"), resume=saved(before), until=LAST)
    for folder, steps in ((again, SAVED), (results[0]["folder"], LAST)):
        manifest = CheckpointReader(Path(folder)).manifest
        assert (manifest["world_size"], manifest["zero_stage"], manifest["adam_step"]) == (*after, steps)

    np.testing.assert_allclose(mean_losses(results), undisturbed.losses[SAVED:], rtol=1e-4)
    differences = worst(results[0]["folder"], undisturbed.model)  # of every parameter: also of those without weight decay
    assert max(differences.values()) < 1e-4, differences
    for parameter, value in undisturbed.model.target_encoder.named_parameters():  # what the forward pass really uses
        for result in results:
            assert relative(result["target"][parameter], value.detach().numpy()) < 1e-4, parameter


@pytest.mark.parametrize("stage", [0, 2])
def test_every_number_is_saved_once_by_one_rank_and_a_save_leaves_no_step_waiting_for_the_disk(
    stage: int, ranks: Ranks, tmp_path: Path
) -> None:
    """Through `ijepa-ds bench checkpoint`'s ranks, on real images."""
    results = ranks(2).run("bench_saves", stage=stage, place=str(prepare(tmp_path)), saves=2)
    for result in results:
        assert len(result["stall"]) == len(result["safe"]) == len(result["synchronous"]) == len(result["behind"]) == 2
        assert all(stall < safe for stall, safe in zip(result["stall"], result["safe"], strict=True))
    shares, parameters = results[0]["bytes"], results[0]["parameters"]
    names = 2 * 4 * 100 * 120  # bytes: four entries a parameter and rank in the headers of the files
    assert sum(shares) < 16 * parameters + names
    assert max(shares) < 1.1 * min(shares)
    assert not list((tmp_path / "run").iterdir())
    assert "bytes a parameter" in report(results)


def test_the_mean_of_a_window_is_the_same_with_and_without_a_restart(ranks: Ranks, images: Path, tmp_path: Path) -> None:
    """Points come every 10 steps; the run is stopped after 7 of them and continues on other ranks."""
    settings: dict[str, Any] = {"module": "tests.dist.loop", "place": str(images), "stage": 2, "steps": 20}
    ranks(1).run("train", **settings, run=str(tmp_path / "straight"))
    ranks(2).run("train", **settings, run=str(tmp_path / "again"), until=7)
    ranks(1).run("train", **settings, run=str(tmp_path / "again"))
    (steps, straight), (same, again) = (read_scalars(tmp_path / name)["loss"] for name in ("straight", "again"))
    assert steps.tolist() == same.tolist() == [10, 20]
    np.testing.assert_allclose(again, straight, rtol=1e-5)
