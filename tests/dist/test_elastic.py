"""A checkpoint is the same state at any world size, ZeRO stage and micro-batch, and training goes on as if undisturbed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds.bench.checkpoint import report
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.model.ijepa import IJEPA
from tests import reference
from tests.dist import jobs
from tests.dist.launched import prepare
from tests.dist.pool import Pool
from tests.dist.test_zero import assert_same_bits, relative, worst

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]
Place = tuple[int, int]  # world size, ZeRO stage
SAVED, LAST = 10, 60  # steps
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
def undisturbed() -> tuple[IJEPA, list[float]]:
    """All steps by the obvious single-process trainer, float32."""
    cfg = jobs.tiny_config()
    return reference.train(cfg, jobs.schedule_of(cfg), LAST, lambda step: jobs.batch(cfg, step, 0, 8))


@pytest.fixture(scope="module")
def saved(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Place], str]:
    """The checkpoint of the first steps at a world size and stage; made once."""
    made: dict[Place, str] = {}

    def save(at: Place) -> str:
        if at not in made:
            folder = str(tmp_path_factory.mktemp("saved"))
            made[at] = ranks(at[0]).run("train_and_save", stage=at[1], folder=folder, steps=SAVED)[0]["folder"]
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
    undisturbed: tuple[IJEPA, list[float]],
) -> None:
    results = ranks(after[0]).run(
        "resume_elsewhere",
        stage=after[1],
        resume=saved(before),
        folder=str(tmp_path),
        first=SAVED,
        last=LAST,
        max_micro_batch=micro_batch,
    )
    assert_same_bits(saved(before), results[0]["again"])  # weights, moments, EMA: nothing got lost on the way
    for folder, steps in ((results[0]["again"], SAVED), (results[0]["folder"], LAST)):
        manifest = CheckpointReader(Path(folder)).manifest
        assert (manifest["world_size"], manifest["zero_stage"], manifest["adam_step"]) == (*after, steps)

    model, losses = undisturbed
    np.testing.assert_allclose(np.mean([r["losses"] for r in results], axis=0), losses[SAVED:], rtol=1e-4)
    differences = worst(results[0]["folder"], model)  # of every parameter: also of those without weight decay
    assert max(differences.values()) < 1e-4, differences
    for parameter, value in model.target_encoder.named_parameters():  # what the forward pass really uses
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
