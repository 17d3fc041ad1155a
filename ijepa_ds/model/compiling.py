"""Blocks through `torch.compile`: whether a run compiles them, and how."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from ijepa_ds.config.sizes import ModelConfig
from ijepa_ds.errors import UserError
from ijepa_ds.model.blocks import BLOCKS
from ijepa_ds.model.ijepa import IJEPA

BACKEND = "inductor"  # of torch.compile


def is_compiled(cfg: ModelConfig, device: torch.device) -> bool:
    """Whether the blocks of a run are compiled; `describe` says why.

    Args:
        cfg: `compile` is true, false or None: on a GPU where a compiler works.
        device: Training device.

    Raises:
        ValueError: `compile` is true, and this machine cannot compile.
    """
    if cfg.compile and (problem := _missing(device)):
        raise UserError(f"model.compile: {problem}, or leave model.compile out")
    return bool(cfg.compile) if cfg.compile is not None else not _reason_against(cfg, device)


def describe(cfg: ModelConfig, device: torch.device) -> str:
    """Whether blocks are compiled and who decided it, for the banner."""
    if cfg.compile is not None:
        return f"blocks {'compiled' if cfg.compile else 'not compiled'} (model.compile)"
    reason = _reason_against(cfg, device)
    return f"blocks not compiled ({reason})" if reason else "blocks compiled"


def compile_blocks(model: nn.Module) -> None:
    """Compile what the blocks of a model compute, and its loss, in place; the compiler fuses norms, casts, GELU and sums.

    Only the forward function of a block is compiled. Its hooks stay outside, so that ZeRO-3 gathers the weights before it
    runs and releases them afterwards. Blocks of the same shape share one compilation, for any number of sequences and patches.
    """
    if isinstance(model, IJEPA):
        model.compare = torch.compile(model.compare, dynamic=True, backend=BACKEND)
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = torch.compile(module.forward, dynamic=True, backend=BACKEND)  # type: ignore[method-assign]


def _reason_against(cfg: ModelConfig, device: torch.device) -> str:
    """Why `compile: null` does not compile; empty if it does."""
    if device.type == "cpu":
        return "a CPU has kernels of its own"
    if cfg.activation_checkpointing and cfg.recompute == "selective":
        return "model.recompute: selective"
    return _missing(device)


def _missing(device: torch.device) -> str:
    """What this machine needs before it can compile; empty if nothing."""
    # Triton compiles its launchers with a C compiler, the code for a CPU is C++
    variable, names = ("CC", ["cc", "gcc", "clang"]) if device.type == "cuda" else ("CXX", ["g++", "c++", "clang++"])
    compilers = [os.environ[variable]] if os.environ.get(variable) else names
    if not any(map(shutil.which, compilers)):
        return f"the compiler {' or '.join(compilers)} is missing: install one, or set {variable}"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton is missing or does not know this GPU: pip install triton"
    return ""
