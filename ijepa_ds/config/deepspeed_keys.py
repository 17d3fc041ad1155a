"""DeepSpeed 0.19.8's configuration keys, and which of them this package lets through.

The names are those that version reads (`deepspeed/runtime/config.py`, `runtime/zero/config.py`); it ignores
an unknown top-level key silently, so the list is kept here. The rule: the JSON says how a run is spread over
devices, never what it computes, and only in ways under which the float32 EMA target stays exact.
"""

# Memory, communication and diagnostics: passed on as written.
ALLOWED = {
    "aio",
    "comet",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "timers",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization",
}

# What the YAML of the run owns -> the key to use there.
OWNED = {
    "activation_checkpointing": "model.activation_checkpointing",
    "amp": "model.precision",
    "bf16": "model.precision",
    "bfloat16": "model.precision",
    "data_types": "model.precision (accumulated gradients are float32 wherever DeepSpeed can)",
    "dataloader_drop_last": "nothing: batches are always whole",
    "fp16": "model.precision: bfloat16",
    "gradient_accumulation_steps": "optimization.max_micro_batch",
    "gradient_clipping": "optimization.clip_grad",
    "optimizer": "optimization.lr, weight_decay, betas and eps",
    "scheduler": "optimization.warmup_epochs, lr, start_lr and final_lr",
    "torch_autocast": "model.precision",
    "train_batch_size": "optimization.batch_size",
    "train_micro_batch_size_per_gpu": "optimization.max_micro_batch",
}

_REMOVED = "DeepSpeed has removed it"
_PARALLEL = "the EMA target is sharded over data-parallel ranks only"
_OTHER = "it has no meaning for this model"
_CHECKPOINTS = "checkpoints are written by this package (run.checkpoint_every, run.keep_last)"

# Everything else DeepSpeed knows -> why it is refused.
REFUSED = {
    "autotuning": "it starts training runs of its own",
    "checkpoint": _CHECKPOINTS,
    "compile": "compiled ZeRO replaces the hooks that keep the EMA target in step",
    "compression_training": _REMOVED,
    "curriculum_learning": _REMOVED,
    "data_efficiency": "the order of the images is a function of the seed and the step",
    "data_parallel_size": _PARALLEL,
    "datastates_ckpt": _CHECKPOINTS,
    "disable_allgather": "the updated weights would not reach the other ranks",
    "eigenvalue": _REMOVED,
    "elasticity": f"{_REMOVED}; a run resumes on another number of devices when it is started again",
    "expert_parallel": _PARALLEL,
    "gradient_allreduce_op": "gradients are averaged over ranks",
    "graph_harvesting": _REMOVED,
    "hybrid_engine": _OTHER,
    "managed_gradient_accumulation": "accumulation follows from optimization.batch_size",
    "nebula": _REMOVED,
    "pipeline": _PARALLEL,
    "progressive_layer_drop": _REMOVED,
    "quantize_training": _REMOVED,
    "seq_parallel_communication_data_type": _PARALLEL,
    "sequence_parallel_size": _PARALLEL,
    "sparse_attention": _REMOVED,
    "sparse_gradients": _REMOVED,
    "tensor_parallel": _PARALLEL,
    "use_data_before_expert_parallelism": _PARALLEL,
    "vocabulary_size": _OTHER,
    "weight_quantization": "it would change what is computed",
    "zero_allow_untested_optimizer": "the optimizer is AdamW, which is tested",
    "zero_force_ds_cpu_optimizer": "set by this package when the optimizer is offloaded",
}

ZERO_ALLOWED = {
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "enable_sanity_checks",
    "ignore_unused_parameters",
    "leaf_module",
    "log_trace_cache_warnings",
    "memory_efficient_linear",
    "offload_optimizer",
    "offload_param",
    "overlap_comm",
    "override_module_apply",
    "reduce_bucket_size",
    "reduce_scatter",
    "stage",
    "stage3_allgather_sequential",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "stage3_use_all_reduce_for_fetch_params",
    "sub_group_size",
    "use_multi_rank_bucket_allreduce",
    "zero_hpz_partition_size",
}

_NUMBERS = "quantised weights or gradients change what is computed"
_LEGACY = "DeepSpeed has deprecated it"

ZERO_REFUSED = {
    "compute_grad_norm": "the gradient norm is logged",
    "cpu_offload": f"{_LEGACY}; use offload_optimizer",
    "cpu_offload_param": f"{_LEGACY}; use offload_param",
    "cpu_offload_use_pin_memory": f"{_LEGACY}; use pin_memory in offload_optimizer",
    "elastic_checkpoint": f"{_LEGACY}; checkpoints of this package resume on any number of devices",
    "legacy_stage1": _LEGACY,
    "load_from_fp32_weights": "weights and master weights are restored by this package",
    "mics_hierarchical_params_gather": _REMOVED,
    "mics_shard_size": _REMOVED,
    "parameter_alignment": "the EMA target's flat buffers are laid out without padding",
    "pipeline_loading_checkpoint": _CHECKPOINTS,
    "round_robin_gradients": "parameters and master weights no longer match, so the EMA would be wrong",
    "save_muon_momentum_buffer_in_memory": "the optimizer is AdamW",
    "stage3_gather_fp16_weights_on_model_save": _LEGACY,
    "zenflow": "it delays master weights, so the EMA would read stale ones",
    "zero_quantized_gradients": _NUMBERS,
    "zero_quantized_nontrainable_weights": f"{_NUMBERS}: the target is not trainable",
    "zero_quantized_weights": _NUMBERS,
    "zeropp_loco_param": _REMOVED,
}

OFFLOAD_ALLOWED = {
    "offload_optimizer": {"buffer_count", "device", "fast_init", "nvme_path", "pin_memory"},
    "offload_param": {"device", "pin_memory"},
}
OFFLOAD_DEVICES = {"offload_optimizer": ("cpu", "nvme", "none"), "offload_param": ("cpu", "none")}
_PARAMETERS_ON_DISK = "the target's swapped-out weights cannot be written to; parameters go to cpu, optimizer states to nvme"
OFFLOAD_REFUSED = {
    "buffer_count": "it is for NVMe",
    "buffer_size": "it is for NVMe",
    "cpuadam_cores_perc": "it is for super_offload",
    "max_in_cpu": "it is for NVMe",
    "nvme_path": _PARAMETERS_ON_DISK,
    "pipeline_read": "the EMA would read files that are still being written",
    "pipeline_write": "the EMA would read files that are still being written",
    "ratio": "master weights on two devices at once are not read by the EMA",
    "super_offload": "its asynchronous optimizer delays master weights, so the EMA would read stale ones",
}
