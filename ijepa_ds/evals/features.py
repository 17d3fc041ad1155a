"""Features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.data.transforms import normalize


@torch.no_grad()
def extract(
    encoder: nn.Module,
    batches: Iterable[np.ndarray],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Average of the encoder's output patches (after its final LayerNorm), for every image.

    Args:
        encoder: images `[B, 3, S, S]` -> `[B, N, D]`; frozen, on `device`.
        batches: uint8 `[B, S, S, 3]` each.
        mean: of pixels in 0..1, as in training.
        std: likewise.
        device: where to compute.

    Returns:
        float32 `[n, D]` on the CPU.

    Raises:
        ValueError: some features are not finite.
    """
    training = encoder.training
    encoder.eval()
    try:
        features = [
            encoder(normalize(torch.from_numpy(batch).to(device), mean, std, torch.float32)).float().mean(dim=1).cpu()
            for batch in batches
        ]
    finally:
        encoder.train(training)
    result = torch.cat(features)
    broken = int((~torch.isfinite(result).all(dim=1)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(result)} images have features that are not finite: a diverged checkpoint?")
    return result
