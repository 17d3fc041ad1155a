"""Checks whether the master weights of a DeepSpeed engine are accessible for a sharded float32 EMA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_QUANTISED = "ranks compute with quantised weights instead of rounded master weights, so the EMA would average other values"


def unsupported(engine: Any) -> list[str]:
    """Reasons why the EMA cannot follow `engine`, each with the key to change; empty if it can."""
    return [*_optimizer(engine), *_zero(engine), *_parallel(engine)]


def _optimizer(engine: Any) -> Iterator[str]:
    if not getattr(engine.optimizer, "param_groups", None):
        yield "the engine has no optimizer, so there are no master weights: give deepspeed.initialize one"
    bf16 = getattr(engine._config, "bfloat16_config", None)
    if getattr(bf16, "bf16_master_weights_and_grads", False):
        yield "bf16.bf16_master_weights_and_grads: bfloat16 master weights lose small updates, an EMA loses more: remove it"


def _zero(engine: Any) -> Iterator[str]:
    zero = engine._config.zero_config
    if getattr(zero, "zenflow", None) is not None:
        yield "zero_optimization.zenflow: it delays master weights, so the EMA would read stale ones: remove it"
    if zero.round_robin_gradients and int(zero.stage) in (1, 2):
        yield (
            "zero_optimization.round_robin_gradients: the layout differs from the one that DeepSpeed reports, so the "
            "EMA would be wrong: remove it"
        )
    for key in ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"):
        if getattr(zero, key, False):
            yield f"zero_optimization.{key}: {_QUANTISED}: remove it"
    for key in ("offload_optimizer", "offload_param"):
        block = getattr(zero, key, None)
        if block is None:
            continue
        on_disk = str(getattr(block.device, "value", block.device)) == "nvme"
        if on_disk and key == "offload_param":
            yield (
                f"zero_optimization.{key}.device nvme: the teacher's partitions are empty between steps, so the EMA "
                "cannot be written into them: offload parameters to cpu, optimizer states to nvme"
            )
        if on_disk and (getattr(block, "pipeline_read", False) or getattr(block, "pipeline_write", False)):
            yield f"zero_optimization.{key}.pipeline_read, pipeline_write: the EMA would read half-written files: remove them"
        if getattr(block, "ratio", 1.0) != 1.0:
            yield f"zero_optimization.{key}.ratio: master weights on two devices at once are not supported: remove it"
        if getattr(block, "super_offload", False):
            yield f"zero_optimization.{key}.super_offload: its asynchronous optimizer delays master weights: remove it"
    if getattr(zero, "mics_shard_size", -1) > 0:
        yield "zero_optimization.mics_shard_size: shards within groups of ranks are not supported; use zero_hpz_partition_size"


def _parallel(engine: Any) -> Iterator[str]:
    if engine.mpu is not None and engine.mpu.get_model_parallel_world_size() > 1:
        yield "model parallelism: the EMA is sharded over data-parallel ranks only"
    if getattr(engine, "has_moe_layers", False):
        yield "expert parallelism: the EMA is sharded over data-parallel ranks only"
