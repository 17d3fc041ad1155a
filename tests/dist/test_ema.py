"""The sharded float32 EMA against a float64 one of gathered master weights: every mode, 1, 2 and 4 ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.jobs_ema import UPDATES, momentum, walk
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]
CPU = {"device": "cpu"}
MODES: dict[str, dict[str, Any]] = {
    "0": {"stage": 0, "dtype": "float32"},
    "0-bf16": {"stage": 0, "dtype": "bfloat16"},
    "1": {"stage": 1, "dtype": "float32"},
    "1-bf16": {"stage": 1, "dtype": "bfloat16"},
    "1-bf16-accumulated": {"stage": 1, "dtype": "bfloat16", "accumulate_in": "fp32", "accumulation": 2},
    "2": {"stage": 2, "dtype": "float32"},
    "2-bf16": {"stage": 2, "dtype": "bfloat16"},
    "2-bf16-accumulated": {"stage": 2, "dtype": "bfloat16", "accumulate_in": "fp32", "accumulation": 2},
    "2-offload": {"stage": 2, "dtype": "bfloat16", "zero": {"offload_optimizer": CPU}},
    "3": {"stage": 3, "dtype": "float32"},
    "3-bf16": {"stage": 3, "dtype": "bfloat16"},
    "3-bf16-accumulated": {"stage": 3, "dtype": "bfloat16", "accumulate_in": "fp32", "accumulation": 2},
    "3-offload": {"stage": 3, "dtype": "bfloat16", "zero": {"offload_optimizer": CPU}},
    "3-offload-all": {"stage": 3, "dtype": "bfloat16", "zero": {"offload_optimizer": CPU, "offload_param": CPU}},
    "3-hpz": {"stage": 3, "dtype": "bfloat16", "zero": {"zero_hpz_partition_size": 2}},
    "3-persistent": {"stage": 3, "dtype": "bfloat16", "zero": {"stage3_param_persistence_threshold": 1_000_000}},
}
HPZ = "zero_hpz_partition_size"
ON_RANKS = [(name, world) for world in (1, 2, 4) for name in MODES if world % MODES[name].get("zero", {}).get(HPZ, 1) == 0]
MODULE = "tests.dist.jobs_ema"


def whole(results: list[dict[str, Any]], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """The average of all ranks put together; every element must come from somewhere."""
    found = {name: np.full(size, np.nan, dtype=np.float32) for name, size in sizes.items()}
    for result in results:
        for name, (start, values) in result["shards"].items():
            found[name][start : start + len(values)] = values
    assert all(np.isfinite(v).all() for v in found.values())
    return found


def distance(ours: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


SHAPES = {
    "embed.weight": (19, 7),
    "embed.bias": (19,),
    "norm.weight": (19,),
    "norm.bias": (19,),
    "out.weight": (11, 19),
    "out.bias": (11,),
}
SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def exact() -> dict[str, np.ndarray]:
    """The float64 EMA of the prescribed master weights."""
    result = {}
    for name, shape in SHAPES.items():
        path = walk(name, shape).astype(np.float64)
        average = path[0].copy()
        for update in range(UPDATES):
            m = momentum(update)
            average = m * average + (1 - m) * path[update + 1]
        result[name] = average
    return result


@pytest.fixture(scope="module")
def driven(ranks: Ranks) -> Callable[[str, int], list[dict[str, Any]]]:
    """Results of `drive` for a mode and a world size, made once."""
    known: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def get(name: str, world: int) -> list[dict[str, Any]]:
        if (name, world) not in known:
            known[name, world] = ranks(world).run("drive", module=MODULE, mode=MODES[name])
        return known[name, world]

    return get


@pytest.mark.parametrize(("name", "world"), ON_RANKS)
def test_a_thousand_updates_are_exact_and_the_same_bits_everywhere(name: str, world: int, driven: Any, exact: dict) -> None:
    mode, results = MODES[name], driven(name, world)
    average, reference = whole(results, SIZES), whole(driven("0", 1), SIZES)
    for parameter, wanted in exact.items():
        start = walk(parameter, SHAPES[parameter])[0].astype(np.float64)
        assert distance(average[parameter], wanted) < 1e-5, parameter
        assert distance(average[parameter] - start, wanted - start) < 1e-3, parameter  # of the way it went: 1,000 roundings
        assert np.array_equal(average[parameter], reference[parameter]), f"{parameter}: other bits than one plain process"
        low = torch.from_numpy(average[parameter]).to(getattr(torch, mode["dtype"])).float().numpy()
        for result in results:  # what the forward pass sees is the average, rounded once
            assert np.array_equal(result["teacher"][parameter].ravel(), low), parameter


@pytest.mark.parametrize(("name", "world"), ON_RANKS)
def test_traffic_and_size_of_the_state(name: str, world: int, driven: Any) -> None:
    mode, results = MODES[name], driven(name, world)
    parameters, width = sum(SIZES.values()), 4 if mode["dtype"] == "float32" else 2
    for result in results:
        if result["kind"] == "flat":  # one all-gather a parameter group, in the teacher's type
            assert result["calls"] == ({"allgather_base": UPDATES} if world > 1 else {}) and result["slots"] == 1
            assert result["bytes"].get("allgather_base", 0) <= UPDATES * width * (parameters + 8 * world)  # padding
        else:
            assert result["calls"] == {}, "an update moved something between ranks"
        shared = 1 if result["kind"] in ("plain", "copied") else world
        padding = 0 if shared == 1 else 8 * len(SIZES)  # elements a rank, at most
        assert result["state_bytes"] <= 4 * (parameters / shared + padding)
        in_teacher = mode["dtype"] == "float32" and mode["stage"] < 3
        assert result["own_bytes"] == (0 if in_teacher else result["state_bytes"])


def test_a_bfloat16_average_fails_this(exact: dict) -> None:
    """The bound can fail: the same updates kept in bfloat16 hardly move."""
    for name, shape in SHAPES.items():
        path = torch.from_numpy(walk(name, shape))
        average = path[0].bfloat16()
        for update in range(UPDATES):
            average.lerp_(path[update + 1].bfloat16(), 1 - momentum(update))
        start = path[0].double().numpy()
        assert distance(average.double().numpy(), exact[name]) > 1e-3
        assert distance(average.double().numpy() - start, exact[name] - start) > 0.3


@pytest.mark.parametrize("name", list(MODES))
def test_real_steps_against_gathered_masters(name: str, ranks: Ranks) -> None:
    results = ranks(2).run("train", module=MODULE, mode=MODES[name], updates=60)
    average = whole(results, SIZES)
    for parameter, wanted in results[0]["wanted"].items():
        start, wanted = results[0]["start"][parameter].ravel(), wanted.ravel()
        assert distance(average[parameter], wanted) < 1e-5, parameter
        assert distance(average[parameter] - start, wanted - start) < 1e-3, parameter
        assert np.abs(wanted - start).max() > 1e-6
    assert results[0]["skipped"] == 0


@pytest.mark.parametrize("name", ["1-bf16-accumulated", "2", "2-bf16", "3-bf16", "3-offload-all"])
def test_a_skipped_step_leaves_the_average_alone(name: str, ranks: Ranks) -> None:
    results = ranks(2).run("train", module=MODULE, mode=MODES[name], updates=6, poison=3)
    assert [r["skipped"] for r in results] == [1, 1]  # a NaN on rank 0 skips the step everywhere
    average = whole(results, SIZES)
    for parameter, wanted in results[0]["wanted"].items():
        assert distance(average[parameter], wanted.ravel()) < 1e-5, parameter


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ({"stage": 2, "zero": {"round_robin_gradients": True}}, "zero_optimization.round_robin_gradients: "),
        ({"stage": 3, "spoil": "tied"}, "'norm.weight' and 'norm.bias' of the student are tied"),
        ({"stage": 2, "spoil": "missing"}, "'norm.bias' is only in the student\n'norm.weight' is only in the student"),
        ({"stage": 3, "spoil": "copied"}, "'embed.bias' is empty in the teacher: a copy.deepcopy of a model"),
        ({"stage": 1, "spoil": "trainable"}, "'embed.bias' of the teacher is trainable: call teacher.requires_grad_(False)"),
        ({"stage": 0, "spoil": "shared"}, "'embed.bias' is the same tensor in both"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(mode: dict, reason: str, ranks: Ranks) -> None:
    for message in ranks(1).run("refusal", module=MODULE, mode={"dtype": "bfloat16", **mode}):
        assert reason in message, message
