"""The gradient's norm in a few kernels, instead of a few for every parameter; and it alone tells whether a step is skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import Tensor


def norm_once(optimizer: Any) -> None:
    """Spare DeepSpeed's ZeRO optimizers most of what they launch before a step, with the same result.

    At stages 0, 1 and 2 with bfloat16 they look through all gradients for what is not finite, 13 kernels a parameter, and then
    take the norm, 2 kernels a parameter, which is not finite either if any gradient is not, and is asked as well. The first
    is left out; the second is a kernel over many parameters. Of ViT-H (539 parameters) that was 8,000 of 13,400 kernels of a
    step. Gradients in host memory while a GPU computes keep DeepSpeed's way, which takes their norm there.

    Args:
        optimizer: `engine.optimizer` of any stage.
    """
    checker = getattr(optimizer, "overflow_checker", None)
    if checker is not None:  # stage 0: it would also wait for the device at every parameter; the norm is asked afterwards
        checker.has_overflow_serial = lambda params: False
    direct = getattr(optimizer, "get_grad_norm_direct", None)
    if direct is None:
        return

    here = get_accelerator().device_name()

    def norm(gradients: Iterable[Tensor], params: list[Any], norm_type: float = 2) -> Any:
        kept = [g for g in gradients if not getattr(g, "_zero_padding", False)][: len(params)]
        if norm_type != 2 or not kept or any(g.device.type != here for g in kept):
            return direct(kept, params, norm_type)
        norms = torch._foreach_norm([g.detach() for g in kept], 2, dtype=get_norm_dtype())
        # What is left, sums over ranks and the mark for not finite, is DeepSpeed's: of one gradient that has this norm.
        return direct([torch.linalg.vector_norm(torch.stack(norms)).reshape(1)], params[:1], norm_type)

    optimizer.get_grad_norm_direct = norm
    asked = getattr(optimizer, "check_grad_overflow", False) and getattr(optimizer, "compute_grad_norm", False)
    if asked and optimizer.dtype == torch.bfloat16 and not optimizer.cpu_offload:
        optimizer.check_overflow = lambda partition_gradients=True: None
