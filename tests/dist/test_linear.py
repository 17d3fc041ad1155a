"""Training has the same bits with `ijepa_ds.zero.linear` and `zero.owners` as with DeepSpeed, on real ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.pool import Pool
from tests.dist.test_zero import assert_same_bits

pytestmark = pytest.mark.dist
NOTHING_KEPT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 5000}
SHARED = {"use_multi_rank_bucket_allreduce": True, "reduce_bucket_size": 50_001}
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "bfloat16": (2, "bfloat16", {}),
    "float32, accumulated, small parameters stay whole": (
        2,
        "float32",
        {"optimization": {"max_micro_batch": 2}, "extra": {"stage3_param_persistence_threshold": 700}},
    ),
    "gathered again in backward": (2, "bfloat16", {"extra": NOTHING_KEPT}),
    # Two ranks: the sum of two numbers has no order.
    "stage 1": (2, "bfloat16", {"stage": 1, "extra": SHARED}),
    "stage 2": (2, "bfloat16", {"stage": 2, "extra": SHARED}),
    "stage 2, float32, accumulated, overlapped, many buckets": (
        2,
        "float32",
        {
            "stage": 2,
            "optimization": {"max_micro_batch": 2},
            "extra": SHARED | {"overlap_comm": True, "reduce_bucket_size": 20_000},
        },
    ),
    "hpZ": (4, "bfloat16", {"extra": {"zero_hpz_partition_size": 2}}),
}


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_have_the_same_bits(name: str, ranks: Callable[[int], Pool], images: Path, tmp_path: Path) -> None:
    world, precision, more = CASES[name]
    settings = {
        "precision": precision,
        "extra": more.get("extra", {}),
        "stage": more.get("stage", 3),
        **more.get("optimization", {}),
    }
    results = ranks(world).run(
        "train_both_ways", module="tests.dist.jobs_linear", place=str(images), folder=str(tmp_path), **settings
    )
    for own, ours in results:
        assert own["losses"] == ours["losses"] and ours["losses"][-1] < ours["losses"][0]
        assert own["target"].keys() == ours["target"].keys() and ours["target"]
        assert [key for key, values in own["target"].items() if not np.array_equal(values, ours["target"][key])] == []
    assert_same_bits(results[0][0]["folder"], results[0][1]["folder"])
