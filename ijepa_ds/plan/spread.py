"""How a run is spread over devices: the keys of the DeepSpeed JSON that memory and traffic depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ijepa_ds.config import BatchPlan

# DeepSpeed 0.19's defaults (runtime/zero/config.py)
_BUCKET, _PREFETCH, _REUSE, _LIVE, _PERSIST = 500_000_000, 50_000_000, 1_000_000_000, 1_000_000_000, 100_000


@dataclass(frozen=True)
class Spread:
    """Where everything lies.

    Attributes:
        stage: ZeRO stage.
        nodes: machines.
        gpus: devices of a machine.
        micro_batch: images of a device and pass.
        accumulation: passes a step.
        hpz: ranks that share a second copy of the weights (ZeRO++); 1: no such copy.
        offload: optimizer states and moving average on the host, in memory or in files.
        offload_weights: weights and target's on the host, in memory.
        bucket: elements of the gradient bucket.
        double_bucket: a second bucket, so that reducing overlaps the backward pass.
        contiguous: gradients are copied into buckets.
        prefetch: elements that stage 3 gathers ahead.
        reuse: stage 3 keeps gathered weights that are needed again within so many elements.
        live: elements that stage 3 keeps gathered at most.
        persist: parameters up to this many elements stay gathered under stage 3.
        all_reduce: stages 1 and 2 reduce gradients on every rank, not on their owner alone.
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
    double_bucket: bool = False
    contiguous: bool = True
    prefetch: int = _PREFETCH
    reuse: int = _REUSE
    live: int = _LIVE
    persist: int = _PERSIST
    all_reduce: bool = True

    @property
    def world(self) -> int:
        """Devices."""
        return self.nodes * self.gpus

    @property
    def images(self) -> int:
        """The global batch."""
        return self.world * self.micro_batch * self.accumulation


def spread_of(ds_config: dict[str, Any], plan: BatchPlan, nodes: int, gpus: int) -> Spread:
    """Read a complete DeepSpeed configuration (`config.deepspeed_json.load_deepspeed`)."""
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
        double_bucket=bool(zero.get("overlap_comm", False)) and stage in (1, 2),
        contiguous=bool(zero.get("contiguous_gradients", True)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", _PREFETCH)),
        reuse=int(zero.get("stage3_max_reuse_distance", _REUSE)),
        live=int(zero.get("stage3_max_live_parameters", _LIVE)),
        persist=int(zero.get("stage3_param_persistence_threshold", _PERSIST)),
        all_reduce=bool(zero.get("use_multi_rank_bucket_allreduce", True) or not zero.get("reduce_scatter", True)),
    )
