"""Kernels and memory settings for training on a CPU (measurements: docs/LOG.md)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from torch import nn

from ijepa_ds import machine
from ijepa_ds.model.cpu import linear


def tune(model: nn.Module, dtype: torch.dtype) -> None:
    """Choose faster kernels for the modules of `model`, whose weights have type `dtype`.

    In bfloat16, attention uses plain matrix products: the backward pass of the fused kernel is several times slower on CPUs.
    In float32, linear layers use oneDNN where it is faster (`cpu.linear`).
    """
    if dtype == torch.float32 and linear.onednn_is_faster():
        linear.use_onednn(model)
    if dtype == torch.bfloat16:
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # timm's attentions and parallel blocks
                module.fused_attn = False  # type: ignore[assignment]


def give_memory_back() -> None:
    """Return freed memory to the system at once from now on; start-up frees as much as it keeps."""
    _memory(mmap_from=1 << 18, trim_from=1 << 18)


def keep_memory() -> None:
    """Keep freed memory in this process from now on, which saves page faults in the next step.

    Fragmentation costs up to a third of the state of a large model (docs/LOG.md). So nothing is kept if the ranks of this
    machine already use more than a quarter of its memory.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    held = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    if 4 * ranks * held * os.sysconf("SC_PAGE_SIZE") > machine.memory_bytes():
        return
    _memory(mmap_from=1 << 30, trim_from=(1 << 31) - 1)
    _reserve_huge_pages(libc)


def _reserve_huge_pages(libc: ctypes.CDLL, block: int = 950 << 20, blocks: int = 2) -> None:
    """Place the next tensors of this process in huge pages, which have fewer page faults and TLB misses.

    This extends the heap by untouched addresses and marks them with `madvise`. PyTorch's option THP_MEM_ALLOC_ENABLE instead
    aligns every tensor of 2 MiB and more to a huge page and wastes the rest of its last page: 300 MiB in a step of ViT-S
    (docs/LOG.md).

    Args:
        libc: the C library.
        block: bytes of one allocation, below the `mmap_from` given to `_memory`.
        blocks: number of allocations; their sum must be below `trim_from`.
    """
    if not all(hasattr(libc, name) for name in ("sbrk", "madvise", "mallopt")):
        return
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_void_p], [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    huge_page, madv_hugepage = 1 << 21, 14
    begin = libc.sbrk(0)
    for address in [libc.malloc(block) for _ in range(blocks)]:
        libc.free(address)  # never touched, so no memory is used; the heap now ends here
    begin, end = -(-begin // huge_page) * huge_page, libc.sbrk(0) // huge_page * huge_page
    if end > begin:
        libc.madvise(begin, end - begin, madv_hugepage)  # fails without effect where huge pages are disabled


def _memory(mmap_from: int, trim_from: int) -> None:
    """Set glibc's thresholds in bytes: `mmap_from` for separate mappings, `trim_from` for returning free memory."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, mmap_from)
        libc.mallopt(m_trim_threshold, trim_from)
