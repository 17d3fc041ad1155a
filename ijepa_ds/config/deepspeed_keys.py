"""The configuration keys of DeepSpeed 0.19.8: which are accepted, and why the others are refused.

DeepSpeed ignores unknown top-level keys, so the list is kept here (from `deepspeed/runtime/config.py` and
`runtime/zero/config.py`). The JSON defines how a run is distributed over devices, never what it computes, and only in ways
that keep the float32 EMA target exact.
"""

from __future__ import annotations

from collections.abc import Mapping


def _by_key(reasons: Mapping[str, str]) -> dict[str, str]:
    """`reason -> "key key"` as `key -> reason`."""
    return {key: reason for reason, keys in reasons.items() for key in keys.split()}


# Memory, communication and diagnostics: passed on as written.
ALLOWED = set(
    "aio comet comms_logger communication_data_type csv_monitor disable_python_gc dump_state flops_profiler "
    "gradient_predivide_factor log_level memory_breakdown prescale_gradients steps_per_print tensorboard timers "
    "wall_clock_breakdown wandb zero_optimization".split()
)
# What to use in the YAML of the run instead.
OWNED = _by_key(
    {
        "model.activation_checkpointing": "activation_checkpointing",
        "model.precision": "amp bf16 bfloat16 torch_autocast",
        "model.precision: bfloat16": "fp16",
        "model.precision (accumulated gradients are float32 wherever DeepSpeed can)": "data_types",
        "nothing: batches are always whole": "dataloader_drop_last",
        "optimization.batch_size": "train_batch_size",
        "optimization.clip_grad": "gradient_clipping",
        "optimization.lr, weight_decay, betas and eps": "optimizer",
        "optimization.max_micro_batch": "gradient_accumulation_steps train_micro_batch_size_per_gpu",
        "optimization.warmup_epochs, lr, start_lr and final_lr": "scheduler",
    }
)
_CHECKPOINTS = "this package writes checkpoints (run.checkpoint_every, run.keep_last)"
_DEPRECATED = "DeepSpeed has deprecated it"
_REMOVED = "DeepSpeed has removed it"
_STALE = "it delays master weights, so the EMA would read stale ones"
REFUSED = _by_key(
    {
        _CHECKPOINTS: "checkpoint datastates_ckpt",
        _REMOVED: "compression_training curriculum_learning eigenvalue graph_harvesting nebula progressive_layer_drop "
        "quantize_training sparse_attention sparse_gradients",
        f"{_REMOVED}; a run resumes on another number of devices when it is restarted": "elasticity",
        "accumulation follows from optimization.batch_size": "managed_gradient_accumulation",
        "compiled ZeRO replaces the hooks that update the EMA target": "compile",
        "gradients are averaged over ranks": "gradient_allreduce_op",
        "it has no meaning for this model": "hybrid_engine vocabulary_size",
        "it starts training runs of its own": "autotuning",
        "it would change what is computed": "weight_quantization",
        "the EMA target is sharded over data-parallel ranks only": "data_parallel_size expert_parallel pipeline "
        "seq_parallel_communication_data_type sequence_parallel_size tensor_parallel use_data_before_expert_parallelism",
        "the optimizer is AdamW, which is tested": "zero_allow_untested_optimizer",
        "the order of the images is a function of the seed and the step": "data_efficiency",
        "the updated weights would not reach the other ranks": "disable_allgather",
        "this package sets it when the optimizer is offloaded": "zero_force_ds_cpu_optimizer",
    }
)
ZERO_ALLOWED = set(
    "allgather_bucket_size allgather_partitions contiguous_gradients enable_sanity_checks ignore_unused_parameters leaf_module "
    "log_trace_cache_warnings memory_efficient_linear offload_optimizer offload_param overlap_comm override_module_apply "
    "reduce_bucket_size reduce_scatter stage stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save "
    "stage3_max_live_parameters stage3_max_reuse_distance stage3_model_persistence_threshold "
    "stage3_module_granularity_threshold stage3_param_persistence_threshold stage3_prefetch_bucket_size "
    "stage3_use_all_reduce_for_fetch_params sub_group_size use_multi_rank_bucket_allreduce zero_hpz_partition_size".split()
)
ZERO_REFUSED = _by_key(
    {
        _CHECKPOINTS: "pipeline_loading_checkpoint",
        _DEPRECATED: "legacy_stage1 stage3_gather_fp16_weights_on_model_save",
        f"{_DEPRECATED}; checkpoints of this package resume on any number of devices": "elastic_checkpoint",
        f"{_DEPRECATED}; use offload_optimizer": "cpu_offload",
        f"{_DEPRECATED}; use offload_param": "cpu_offload_param",
        f"{_DEPRECATED}; use pin_memory in offload_optimizer": "cpu_offload_use_pin_memory",
        _REMOVED: "mics_hierarchical_params_gather mics_shard_size zeropp_loco_param",
        _STALE: "zenflow",
        "parameters and master weights no longer match, so the EMA would be wrong": "round_robin_gradients",
        "quantised weights or gradients change what is computed": "zero_quantized_gradients "
        "zero_quantized_nontrainable_weights zero_quantized_weights",
        "the EMA target's flat buffers are laid out without padding": "parameter_alignment",
        "the gradient norm is logged": "compute_grad_norm",
        "the optimizer is AdamW": "save_muon_momentum_buffer_in_memory",
        "this package restores weights and master weights": "load_from_fp32_weights",
    }
)
OFFLOAD_ALLOWED = {
    "offload_optimizer": {"buffer_count", "device", "fast_init", "nvme_path", "pin_memory"},
    "offload_param": {"device", "pin_memory"},
}
OFFLOAD_DEVICES = {"offload_optimizer": ("cpu", "nvme", "none"), "offload_param": ("cpu", "none")}
OFFLOAD_REFUSED = _by_key(
    {
        _STALE: "super_offload",
        "it is for NVMe": "buffer_count buffer_size max_in_cpu",
        "it is for super_offload": "cpuadam_cores_perc",
        "the EMA does not read master weights on two devices at once": "ratio",
        "the EMA would read files that are still being written": "pipeline_read pipeline_write",
        "the target's swapped-out weights cannot be written; parameters go to cpu, optimizer states to nvme": "nvme_path",
    }
)


def _kinds(kinds: Mapping[str, str]) -> dict[str, str]:
    """`kind -> "key key"` as `key -> kind`."""
    return {key: kind for kind, keys in kinds.items() for key in keys.split()}


# Keys of the other objects, which DeepSpeed passes over in silence or refuses without their place.
INNER = {
    "aio": _kinds({"flag": "overlap_events single_submit use_gds", "whole 1": "block_size intra_op_parallelism queue_depth"}),
    "comet": _kinds(
        {
            "flag": "enabled online",
            "text or null": "api_key experiment_key experiment_name mode project workspace",
            "whole 1": "samples_log_interval",
        }
    ),
    "comms_logger": _kinds({"flag": "debug enabled prof_all verbose", "list": "prof_ops"}),
    "csv_monitor": _kinds({"flag": "enabled", "text": "job_name output_path"}),
    "flops_profiler": _kinds(
        {
            "flag": "detailed enabled",
            "text or null": "output_file",
            "whole -1": "module_depth",
            "whole 0": "recompute_fwd_factor",
            "whole 1": "profile_step top_modules",
        }
    ),
    "tensorboard": _kinds({"flag": "enabled", "text": "job_name output_path"}),
    "timers": _kinds({"object": "throughput"}),
    "timers.throughput": _kinds({"flag": "enabled synchronized"}),
    "wandb": _kinds({"flag": "enabled", "text or null": "group team", "text": "project"}),
}
# What a value must be, by dotted key: "flag", "text", "text or null", "list", "object", "number" (above 0), "whole N" (at
# least N), "one of ...".
KINDS = _kinds(
    {
        "flag": "disable_python_gc dump_state memory_breakdown prescale_gradients wall_clock_breakdown",
        "number": "gradient_predivide_factor",
        "object": "aio comet comms_logger csv_monitor flops_profiler tensorboard timers wandb zero_optimization",
        "text": "log_level",
        "whole 1": "steps_per_print",
    }
)
KINDS["communication_data_type"] = "one of fp16, bf16, fp32"
KINDS |= {f"{section}.{key}": kind for section, kinds in INNER.items() for key, kind in kinds.items()}
KINDS |= {
    f"zero_optimization.{key}": kind
    for key, kind in _kinds(
        {
            "flag": "allgather_partitions contiguous_gradients enable_sanity_checks ignore_unused_parameters "
            "log_trace_cache_warnings memory_efficient_linear overlap_comm override_module_apply reduce_scatter "
            "stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params "
            "use_multi_rank_bucket_allreduce offload_optimizer.fast_init offload_optimizer.pin_memory offload_param.pin_memory",
            "whole 0": "stage3_max_live_parameters stage3_max_reuse_distance stage3_model_persistence_threshold "
            "stage3_module_granularity_threshold stage3_param_persistence_threshold stage3_prefetch_bucket_size",
            "whole 1": "allgather_bucket_size offload_optimizer.buffer_count reduce_bucket_size sub_group_size",
        }
    ).items()
}
