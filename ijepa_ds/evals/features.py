"""Features of images from a frozen encoder: averages of the output patch tokens (paper, appendix A.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.data.transforms import normalize
from ijepa_ds.model.cpu import linear as onednn


def extract(
    encoder: nn.Module,
    images: Iterable[np.ndarray | Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    layers: int = 1,
    cells: int = 1,
) -> Tensor:
    """Average-pooled patch tokens of images, of the output or of the last layers, concatenated.

    The encoder is moved to `device` and runs in evaluation mode; its modes are restored afterwards.

    Args:
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`; several layers need `blocks` and `norm`.
        images: batches, each uint8 [B, S, S, C] or float32 in 0 .. 1; B may differ.
        mean: per channel, for pixels in 0 .. 1, as in training.
        std: per channel.
        device: of the encoder.
        dtype: of its matrix products (autocast if not float32). The average is computed in float32.
        layers: L, number of last blocks; the final LayerNorm is applied to each, as in VISSL and DINO.
        cells: C; averages of C x C parts of the image are concatenated (`pool`).

    Returns:
        float32 [n, L * C * C * D] on the CPU, in the order of the images; the output's values come last.

    Raises:
        ValueError: no images, a batch of another shape, too few blocks, or features that are not finite.
    """
    pooled = []
    for outputs in forward(encoder, images, ForwardOptions(mean, std, device, dtype, layers)):
        pooled.append(torch.cat([pool(tokens, cells) for tokens in outputs], dim=1).cpu())
    if not pooled:
        raise ValueError("no images to extract features from")
    features = torch.cat(pooled)
    check_finite(features, "the encoder's features")
    return features


def pool(tokens: Tensor, cells: int = 1) -> Tensor:
    """Average tokens in float32: of the whole image, or of each of its cells x cells parts.

    Parts overlap by a patch where `cells` does not divide the grid. The single token of raw pixels stays as it is.

    Args:
        tokens: [B, N, D], of a square grid.
        cells: C, parts along a side.

    Returns:
        [B, D], or [B, C * C * D] with the parts row by row.
    """
    if cells == 1 or tokens.shape[1] == 1:
        return tokens.float().mean(dim=1)
    side = math.isqrt(tokens.shape[1])
    grid = tokens.float().transpose(1, 2).unflatten(2, (side, side))
    return nn.functional.adaptive_avg_pool2d(grid, cells).flatten(2).transpose(1, 2).flatten(1)


class ForwardOptions(NamedTuple):
    """How images pass through an encoder; the fields are arguments of `extract`."""

    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device | str
    dtype: torch.dtype
    layers: int = 1


def forward(encoder: nn.Module, images: Iterable[np.ndarray | Tensor], options: ForwardOptions) -> Iterator[list[Tensor]]:
    """Patch tokens of images, without gradients; errors as in `extract`.

    Yields:
        for each batch the tokens of the last layers, [B, N, D] each, on `device`; the output comes last.
    """
    mean, std, place, dtype, layers = options
    device = torch.device(place)
    encoder.to(device)
    modes = [(module, module.training) for module in encoder.modules()]
    inner: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: inner.append(call[2])) for block in _inner_blocks(encoder, layers)]
    linear = [module for module in encoder.modules() if type(module) is nn.Linear]
    if device.type == "cpu" and dtype == torch.float32 and onednn.onednn_is_faster():
        onednn.use_onednn(encoder)
    encoder.eval()
    try:
        for batch in images:
            pixels = _pixels(batch, len(mean)).to(device)
            with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                output = encoder(normalize(pixels, mean, std, torch.float32))
                patches = [tokens[:, -output.shape[1] :] for tokens in inner]  # registers come first
                outputs = [*(encoder.norm(tokens) for tokens in patches), output]  # type: ignore[operator]
            inner.clear()
            yield outputs
    finally:
        for product in linear:
            product.__class__ = nn.Linear
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def num_layers(encoder: nn.Module) -> int:
    """Number of layers whose tokens are available: the blocks, or 1 for an encoder without `blocks` and `norm`."""
    blocks = getattr(encoder, "blocks", None)
    return len(blocks) if isinstance(blocks, nn.ModuleList) and hasattr(encoder, "norm") else 1


def _inner_blocks(encoder: nn.Module, layers: int) -> list[nn.Module]:
    """The blocks before the last one whose outputs are needed."""
    if not 1 <= layers <= num_layers(encoder):
        raise ValueError(f"layers: expected 1 to the encoder's {num_layers(encoder)} blocks, got {layers}")
    return list(encoder.blocks)[-layers:-1] if layers > 1 else []  # type: ignore[arg-type]


def _pixels(batch: np.ndarray | Tensor, channels: int) -> Tensor:
    pixels = torch.as_tensor(batch)
    known = pixels.dtype == torch.uint8 or pixels.dtype == torch.float32 and bool((pixels.abs() <= 1).all())
    if not known or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != channels:
        expected = f"uint8 [B, S, S, {channels}], or float32 in 0 .. 1"
        raise ValueError(f"expected images as {expected}, got {pixels.dtype} {list(pixels.shape)}")
    return pixels


def check_finite(features: Tensor, what: str) -> None:
    """Check that features have no NaN or infinity.

    Args:
        features: [n, D].
        what: their name in the message.

    Raises:
        ValueError: says how many images are affected.
    """
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise ValueError(
            f"{what} are NaN or infinite for {bad} of {len(features)} images: the weights have diverged "
            "or are not what the file says; evaluate an earlier checkpoint, or look at the run's loss"
        )


def check_features(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    """Check that training and test features can be scored.

    Args:
        train_features: [n, D].
        train_labels: integer [n].
        test_features: [m, D].
        test_labels: integer [m].

    Raises:
        ValueError: sizes that do not match, empty sets, negative labels, or values that are not finite.
    """
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(
                f"{name}: expected features [n, D] and labels [n] with n > 0, "
                f"got {list(features.shape)} and {list(labels.shape)}"
            )
        if int(labels.min()) < 0:
            raise ValueError(f"{name}: labels below 0, which stands for images without a class")
        check_finite(features, f"the {name} features")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(f"train features have {train_features.shape[1]} values, test {test_features.shape[1]}")


def set_image_size(encoder: nn.Module, size: int) -> None:
    """Set up a `model.vit.Encoder` for images of another size.

    Sine-cosine positions are evaluated between the trained ones.

    Args:
        encoder: modified in place.
        size: side of the images in pixels.

    Raises:
        ValueError: `size` is not a multiple of the patch size.
    """
    patch = int(encoder.patch_size)  # type: ignore[arg-type]
    if size < patch or size % patch:
        raise ValueError(f"--image-size {size}: expected a multiple of the encoder's patch size {patch}")
    encoder.set_grid(size // patch)  # type: ignore[operator]
