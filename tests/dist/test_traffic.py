"""What a step sends at every ZeRO stage with the shipped settings: bytes against the least possible, gathers a block."""

from collections.abc import Callable

import pytest

from tests.dist.jobs_traffic import BLOCK, DEPTH, PREDICTOR_DEPTH
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]
SCALARS = 256  # bytes of norms and overflow flags


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_go_to_their_owners_only(stage: int, ranks: Ranks) -> None:
    for found in ranks(2).run("count", module="tests.dist.jobs_traffic", stage=stage):
        assert found["calls"]["forward"] == {}
        assert found["calls"]["backward"] == {"reduce": 2}  # a bucket, to each owner
        assert found["calls"]["ema"] == {"allgather_base": 2}  # the target, with and without weight decay
        assert found["calls"]["optimizer"]["allgather_base"] == 4
        assert found["bytes"]["optimizer"].get("allreduce", 0) <= SCALARS
        assert found["moved"] <= 1.01 * found["least"]


@pytest.mark.parametrize("stage", [1, 2])
def test_more_ranks_than_owners_share_the_reduction(stage: int, ranks: Ranks) -> None:
    """Two collectives a bucket; the second sends a bucket's bytes, divided by the number of ranks."""
    shared = {"use_multi_rank_bucket_allreduce": True}
    results = ranks(4).run("count", module="tests.dist.jobs_traffic", stage=stage, extra=shared)
    for found in results:
        assert found["calls"]["backward"] == {"reduce_scatter_base": 1, "alltoall_base": 1}
    moved, least = (sum(found[key] for found in results) for key in ("moved", "least"))
    gradients = sum(found["bytes"]["backward"]["reduce_scatter_base"] for found in results)
    assert moved <= 1.01 * (least + 2 * gradients / 4)  # of sent and received bytes, `Traffic` counts the more


def test_all_reduced_gradients_would_fail_this(ranks: Ranks) -> None:
    """DeepSpeed's own function for `use_multi_rank_bucket_allreduce: true`."""
    job = {"module": "tests.dist.jobs_traffic", "stage": 2, "own": True}
    (found, _) = ranks(2).run("count", **job, extra={"use_multi_rank_bucket_allreduce": True})
    assert found["calls"]["backward"].keys() == {"allreduce"} and found["moved"] > 1.3 * found["least"]


def test_a_model_too_large_to_keep_is_gathered_once_a_block_and_pass(ranks: Ranks) -> None:
    """Room for four blocks, none kept for its backward pass: as `zero3.json` is to a model of a hundred billion."""
    room = {
        "stage3_prefetch_bucket_size": int(2.5 * BLOCK),
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 4 * BLOCK,
        "reduce_bucket_size": int(2.5 * BLOCK),
    }
    for found in ranks(2).run("count", module="tests.dist.jobs_traffic", stage=3, extra=room):
        blocks = DEPTH + PREDICTOR_DEPTH  # trained ones; the target has DEPTH of its own, forward only
        assert found["calls"]["forward"].keys() == {"allgather_base"}
        assert found["calls"]["forward"]["allgather_base"] <= DEPTH + blocks
        assert found["calls"]["backward"]["allgather_base"] <= blocks
        assert found["calls"]["backward"]["reduce_scatter_base"] <= blocks
        assert found["calls"]["ema"] == {}
        assert found["moved"] <= 1.1 * found["least"]
