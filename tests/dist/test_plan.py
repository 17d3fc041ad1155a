"""The plan against real steps: what ranks hold at rest, at most, and send, at every ZeRO stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ijepa_ds import config
from ijepa_ds.config.deepspeed_json import load_deepspeed
from ijepa_ds.model.work import Tokens, Work, work_of
from ijepa_ds.plan.memory import memory_of
from ijepa_ds.plan.spread import Spread, spread_of
from ijepa_ds.plan.traffic import traffic_of
from tests.dist import jobs, measured
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]
SCALARS = 256  # bytes of norms and overflow flags in a step


def planned(stage: int, world: int, repository: Path, tokens: tuple[int, int], **settings: Any) -> tuple[Work, Spread]:
    """What the plan is made of, with the measured masks."""
    cfg = measured.config_of(ranks=world, **settings)
    batch = config.check(cfg, world)
    ds_config = load_deepspeed(repository / "ds_configs" / f"zero{stage}.json", cfg, batch)
    return work_of(cfg, Tokens(*tokens, *tokens)), spread_of(ds_config, batch, 1, world)


CASES = [
    *[(stage, 2, "small", False) for stage in range(4)],
    (3, 2, "small", True),
    (2, 1, "small", False),
    (3, 4, "small", False),
    *[  # other worlds add no formula: their terms are in the cases above
        pytest.param(stage, world, "small", False, marks=[pytest.mark.slow, pytest.mark.nightly])
        for stage, world in ((0, 1), (3, 1), (0, 4), (1, 4), (2, 4))
    ],
]


@pytest.mark.parametrize(("stage", "world", "name", "checkpointing"), CASES)
def test_plan_is_what_runs(stage: int, world: int, name: str, checkpointing: bool, ranks: Ranks, repository: Path) -> None:
    settings: dict[str, Any] = {"name": name, "micro_batch": 2, "activation_checkpointing": checkpointing}
    results = ranks(world).run("measure", module="tests.dist.measured", stage=stage, **settings)
    for found in results:
        work, spread = planned(stage, world, repository, found["tokens"], **settings)
        memory = memory_of(work, spread)
        for part in ("masters", "moments", "ema"):
            if stage or part != "masters":  # stage 0 in float32: the weights are the masters
                assert getattr(memory, part) == pytest.approx(found["parts"][part], rel=0.03), part
        assert memory.at_rest == pytest.approx(found["at_rest"], rel=0.03)
        assert memory.peak == pytest.approx(found["at_rest"] + found["peak"], rel=0.10)
        assert memory.peak - memory.at_rest == pytest.approx(found["peak"], rel=0.15)  # activations, gradients, buckets
        if world > 1:
            _assert_same_bytes(work, spread, found["sent"])


def _assert_same_bytes(work: Work, spread: Spread, sent: dict[str, tuple[int, int]]) -> None:
    plan: dict[str, int] = {}
    calls: dict[str, int] = {}
    for message in traffic_of(work, spread):
        plan[message.kind] = plan.get(message.kind, 0) + message.bytes
        calls[message.kind] = calls.get(message.kind, 0) + message.calls
    for kind in plan.keys() | sent.keys():
        counted = sent.get(kind, (0, 0))
        assert 0 <= counted[1] - plan.get(kind, 0) <= SCALARS, kind
        if kind != "all_reduce":  # norms and flags are all-reduced
            assert counted[0] == calls[kind], kind


SMALL = {"reduce_bucket_size": 3_000_000}  # so that gradients, not buckets, make the peak
RELEASED = SMALL | {"stage3_prefetch_bucket_size": 3_000_000, "stage3_max_reuse_distance": 0}
LIFETIMES = [
    *[(stage, 2, accumulation, SMALL if stage else {}) for stage in range(3) for accumulation in (1, 4)],
    *[(3, 2, accumulation, RELEASED) for accumulation in (1, 4)],
    *[(3, 4, accumulation, RELEASED | {"zero_hpz_partition_size": 2}) for accumulation in (1, 4)],
]


def _peak_of(results: list[dict[str, Any]], accumulation: int) -> float:
    """The highest of the passes, each at its lowest over ranks and inner micro-batches: a late message keeps its bucket."""
    passes: dict[str, list[int]] = {}
    for found in results:
        for name, _, most in found["phases"]:
            kind, _, number = name.partition(" ")
            inner = number and 0 < int(number) < accumulation - 1
            passes.setdefault(f"inner {kind}" if inner else name, []).append(most)
    return max(min(values) for values in passes.values())


@pytest.mark.parametrize(("stage", "world", "accumulation", "extra"), LIFETIMES)
def test_the_peak_of_bfloat16_steps(stage: int, world: int, accumulation: int, extra: dict, ranks: Ranks) -> None:
    """All micro-batches, the optimizer step and the EMA, in bfloat16; hpZ in machines of two ranks."""
    settings: dict[str, Any] = {"name": "small", "micro_batch": 1, "crop_size": 96, "precision": "bfloat16"}
    settings["accumulation"] = accumulation
    results = ranks(world).run("timeline", module="tests.dist.measured", stage=stage, extra=extra, **settings)
    cfg = measured.config_of(ranks=world, **settings)
    ds_config, batch = jobs.spread(cfg, stage, world, extra)
    gpus = extra.get("zero_hpz_partition_size", world)
    work = work_of(cfg, Tokens(*results[0]["tokens"], *results[0]["tokens"]))
    spread = spread_of(ds_config, batch, world // gpus, gpus)
    memory = memory_of(work, spread)
    assert memory.at_rest == pytest.approx(max(found["at_rest"] for found in results), rel=0.03)
    peak = _peak_of(results, accumulation)
    # Stage 3 takes 20 MB more than planned in all four cases (5 to 7 %); not explained yet.
    # Stage 2 takes 10 to 13 MB more (up to 3.1 %): messages under way keep one or two buckets of 6 MB.
    assert memory.peak == pytest.approx(peak, rel={2: 0.04, 3: 0.08}.get(stage, 0.03))
    _assert_same_bytes(work, spread, results[0]["sent"])
