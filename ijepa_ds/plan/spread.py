"""Distribution of a run over devices: the keys of the DeepSpeed JSON that affect memory and traffic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ijepa_ds.config import BatchPlan

# DeepSpeed 0.19's defaults (runtime/zero/config.py)
_BUCKET = _GATHER = 500_000_000
_SUB_GROUP = 1_000_000_000
_PREFETCH, _REUSE, _LIVE, _PERSIST = 50_000_000, 1_000_000_000, 1_000_000_000, 100_000


@dataclass(frozen=True)
class Spread:
    """Machines, ZeRO stage, batch and communication settings.

    Attributes:
        stage: ZeRO stage.
        nodes: Machines.
        gpus: Devices per machine.
        micro_batch: Images per device and forward pass.
        accumulation: Micro-batches per step.
        hpz: Ranks that share a second copy of the weights (ZeRO++); 1: no such copy.
        offload: Optimizer states and moving average are on the host, in memory or in files.
        offload_weights: Weights of all networks are in host memory.
        bucket: Elements of the gradient bucket.
        gather_bucket: Elements of one all-gather of weights after the step of stages 1 and 2.
        double_bucket: A second bucket overlaps reduction with the backward pass.
        contiguous: Gradients are copied into buckets.
        sub_group: Elements of the sub-groups in which stage 3 runs the optimizer.
        prefetch: Elements that stage 3 prefetches.
        reuse: Stage 3 keeps gathered weights with a reuse distance below this many elements.
        live: Stage 3 prefetches while fewer elements than this are gathered.
        persist: Parameters up to this many elements stay gathered under stage 3.
        reduction: How stages 1 and 2 reduce gradients: "rooted" (to each owner), "shared" (`zero.owners`) or "all_reduce".
    """

    stage: int
    nodes: int
    gpus: int
    micro_batch: int
    accumulation: int
    hpz: int = 1
    offload: bool = False
    offload_weights: bool = False
    bucket: int = _BUCKET
    gather_bucket: int = _GATHER
    double_bucket: bool = False
    contiguous: bool = True
    sub_group: int = _SUB_GROUP
    prefetch: int = _PREFETCH
    reuse: int = _REUSE
    live: int = _LIVE
    persist: int = _PERSIST
    reduction: str = "shared"

    @property
    def world(self) -> int:
        """Number of devices."""
        return self.nodes * self.gpus

    @property
    def images(self) -> int:
        """Images in a global batch."""
        return self.world * self.micro_batch * self.accumulation


def spread_of(ds_config: dict[str, Any], plan: BatchPlan, nodes: int, gpus: int) -> Spread:
    """Return the distribution that a complete DeepSpeed configuration describes (`deepspeed_json.load_deepspeed`)."""
    zero = ds_config.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    return Spread(
        stage=stage,
        nodes=nodes,
        gpus=gpus,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        hpz=int(zero.get("zero_hpz_partition_size", 1)),
        offload=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_weights=zero.get("offload_param", {}).get("device", "none") != "none",
        bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
        gather_bucket=int(zero.get("allgather_bucket_size", _GATHER)),
        double_bucket=bool(zero.get("overlap_comm", False)) and stage in (1, 2),
        contiguous=bool(zero.get("contiguous_gradients", True)),
        sub_group=int(zero.get("sub_group_size", _SUB_GROUP)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", _PREFETCH)),
        reuse=int(zero.get("stage3_max_reuse_distance", _REUSE)),
        live=int(zero.get("stage3_max_live_parameters", _LIVE)),
        persist=int(zero.get("stage3_param_persistence_threshold", _PERSIST)),
        reduction=_reduction(zero),
    )


def _reduction(zero: dict[str, Any]) -> str:
    """How stages 1 and 2 reduce gradients, by the keys of "zero_optimization"."""
    if not zero.get("reduce_scatter", True):
        return "all_reduce"
    return "shared" if zero.get("use_multi_rank_bucket_allreduce", True) else "rooted"
