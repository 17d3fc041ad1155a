"""What training on a CPU needs that a GPU does not (measured: docs/LOG.md)."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch
from torch import nn

from ijepa_ds import cpu_linear


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself; others emulate it, several times slower than float32."""
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def unlink_shared_buffers(rank: int) -> None:
    """Take the name off this rank's buffer of DeepSpeed's CPU collectives, once all ranks have mapped it.

    DeepSpeed leaves 66 MiB a rank in /dev/shm for ever otherwise, also after a crash, and a later run with the same port would
    start on what an earlier one left there.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


def tune(model: nn.Module, dtype: torch.dtype) -> None:
    """Make steps of this process fast.

    The fused attention kernel's bfloat16 backward is several times slower here than plain matrix products; float32 products
    are slow on some processors (`cpu_linear`); and glibc gives every large tensor back to the system and page-faults it in
    again, unless told not to.
    """
    if dtype == torch.float32 and cpu_linear.onednn_is_faster():
        cpu_linear.use_onednn(model)
    if dtype == torch.bfloat16:
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # timm's attentions and parallel blocks
                module.fused_attn = False  # type: ignore[assignment]
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
