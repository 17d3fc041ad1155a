"""What training on a CPU needs that a GPU does not (measured: docs/LOG.md)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from torch import nn

from ijepa_ds.model.cpu import linear


def tune(model: nn.Module, dtype: torch.dtype) -> None:
    """Make steps of this process fast.

    The fused attention kernel's bfloat16 backward is several times slower here than plain matrix products; float32 products
    are slow on some processors (`cpu_linear`).
    """
    if dtype == torch.float32 and linear.onednn_is_faster():
        linear.use_onednn(model)
    if dtype == torch.bfloat16:
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # timm's attentions and parallel blocks
                module.fused_attn = False  # type: ignore[assignment]


def give_memory_back() -> None:
    """From here on freed tensors go back to the system at once: a start frees as much as it keeps."""
    _memory(mmap_from=1 << 18, trim_from=1 << 18)


def keep_memory() -> None:
    """From here on freed tensors stay with this process, for the next step: the system would page-fault them in again.

    What is kept is in pieces, a third of the state of a large model (docs/LOG.md): nothing is kept where that could be missed,
    which is when what the ranks of this machine hold now takes more than a quarter of it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    held = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    if 4 * ranks * held > os.sysconf("SC_PHYS_PAGES"):
        return
    _memory(mmap_from=1 << 30, trim_from=(1 << 31) - 1)
    _reserve_huge_pages(libc)


def _reserve_huge_pages(libc: ctypes.CDLL, block: int = 950 << 20, blocks: int = 2) -> None:
    """Have the next tensors of this process lie in huge pages, whose first touch and use cost less.

    The heap is made larger, in addresses only, and what is new in it marked. torch's own way (THP_MEM_ALLOC_ENABLE) places
    every tensor of 2 MiB and more at a huge page's border, and what is left of its last page goes unused: 300 MiB in a step of
    ViT-S (docs/LOG.md).

    Args:
        libc: the C library.
        block: bytes, below what `_memory` has mapped apart.
        blocks: in all less than what it has given back.
    """
    if not all(hasattr(libc, name) for name in ("sbrk", "madvise", "mallopt")):
        return
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    huge_page, madv_hugepage = 1 << 21, 14
    begin = libc.sbrk(0)
    for address in [libc.malloc(block) for _ in range(blocks)]:
        libc.free(address)  # not touched: no memory yet, and now the end of the heap
    begin, end = -(-begin // huge_page) * huge_page, libc.sbrk(0) // huge_page * huge_page
    if end > begin:
        libc.madvise(begin, end - begin, madv_hugepage)  # refused where the system has none: then as before


def _memory(mmap_from: int, trim_from: int) -> None:
    """Tell glibc, in bytes, from what size on memory is mapped, and from how much on what is free is given back."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, mmap_from)
        libc.mallopt(m_trim_threshold, trim_from)
