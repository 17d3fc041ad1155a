"""What training on a CPU needs and a GPU does not."""

from ijepa_ds.model.cpu.tuning import computes_bfloat16, give_memory_back, keep_memory, tune

__all__ = ["computes_bfloat16", "give_memory_back", "keep_memory", "tune"]
