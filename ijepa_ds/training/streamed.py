"""Features of an encoder whose weights arrive one after the other: a rank holds one block at a time, never a whole encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import size_of
from ijepa_ds.data.transforms import normalize
from ijepa_ds.evals.features import check_finite
from ijepa_ds.model.blocks import make_blocks
from ijepa_ds.model.cpu import linear as onednn
from ijepa_ds.model.vit import Encoder

TOKENS = 1 << 30  # bytes of tokens that a rank keeps between two blocks, in host memory
Weights = Iterator[tuple[str, Tensor]]


class StreamedEncoder:
    """Average-pooled tokens of images, computed block by block while the weights of the blocks arrive."""

    def __init__(self, cfg: Config, device: torch.device, dtype: torch.dtype) -> None:
        """Build one block, and the layers around the blocks.

        Args:
            cfg: the run.
            device: where blocks are applied.
            dtype: of matrix products (autocast if not float32).
        """
        size = replace(size_of(cfg.model), drop_path=0.0)
        self._cfg, self._device, self._dtype, self._depth = cfg.data, device, dtype, size.depth
        self._around = Encoder(
            replace(size, depth=0), cfg.model.patch_size, cfg.grid, position_grid=cfg.model.position_grid
        ).requires_grad_(False)
        self._block: nn.Module = make_blocks(replace(size, depth=1)).requires_grad_(False)[0]
        self.width = size.width
        self.images_at_once = max(1, TOKENS // (4 * size.width * (cfg.grid**2 + size.registers)))
        weights = sum(parameter.numel() for part in (self._around, self._block) for parameter in part.parameters())
        self.num_bytes = 8 * weights + TOKENS  # a parameter is there twice while it is copied

    @torch.no_grad()
    def features(self, weights: Weights, images: Iterable[np.ndarray], beat: Callable[[], None]) -> Tensor:
        """Compute the averages of an image's tokens, float32 `[n, D]` on the CPU; arguments and errors as in `tokens`."""
        pooled = [tokens.mean(dim=1) for tokens in self.tokens(weights, images, beat)]
        return torch.cat(pooled) if pooled else torch.empty(0, self.width)

    @torch.no_grad()
    def tokens(self, weights: Weights, images: Iterable[np.ndarray], beat: Callable[[], None]) -> list[Tensor]:
        """Compute output tokens; `weights` is read once, in the order of the layers.

        Args:
            weights: name and values, float32 `[numel]`, of every parameter of the encoder.
            images: batches of uint8 `[n, S, S, 3]` or float32 `[n, S, S, C]`, together at most `images_at_once`.
            beat: called after every block.

        Returns:
            float32 `[n, N, D]` on the CPU, for each batch.

        Raises:
            ValueError: tokens are not finite.
            RuntimeError: a parameter is missing or comes out of order.
        """
        for part in (self._around, self._block):
            part.to(self._device).eval()
        if self._device.type == "cpu" and self._dtype == torch.float32 and onednn.onednn_is_faster():
            onednn.use_onednn(self._block)
        try:
            tokens = self._through(weights, images, beat)
            outputs = [self._device_call(self._around.norm, x)[:, self._around.size.registers :] for x in tokens]
        finally:
            for part in (self._around, self._block):
                part.to("cpu")  # free the device memory for training
        for output in outputs:
            check_finite(output.flatten(1), "the encoder's features")
        return outputs

    def _through(self, weights: Weights, images: Iterable[np.ndarray], beat: Callable[[], None]) -> list[Tensor]:
        """Tokens before the last norm: float32 `[n, K, D]` on the CPU, a batch each."""
        tokens: list[Tensor] = []
        current, loaded = -1, 0  # the block whose weights arrive, and how many of them are here
        complete = sum(1 for _ in self._block.parameters())
        for name, values in weights:
            block, inner = _split(name)
            if block is None:
                self._around.get_parameter(name).copy_(values.view_as(self._around.get_parameter(name)))
                continue
            if block != current:
                if block != current + 1:
                    raise RuntimeError(f"weights of block {block} after those of block {current}: this layout is not supported")
                current, loaded = block, 0
            parameter = self._block.get_parameter(inner)
            parameter.copy_(values.view_as(parameter))
            loaded += 1
            if loaded == complete:
                if block == 0:
                    tokens = [self._embed(batch) for batch in images]
                tokens = [self._apply(x) for x in tokens]
                beat()
        if current + 1 != self._depth:
            raise RuntimeError(f"weights of {current + 1} of {self._depth} blocks: this layout is not supported")
        return tokens

    def _embed(self, batch: np.ndarray) -> Tensor:
        pixels = torch.as_tensor(batch).to(self._device)
        return self._device_call(self._around.embed, normalize(pixels, self._cfg.mean, self._cfg.std, torch.float32))

    def _apply(self, tokens: Tensor) -> Tensor:
        return self._device_call(lambda x: self._block(x, *self._around.positions()), tokens)

    def _device_call(self, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            return work(x.to(self._device)).float().cpu()


def _split(name: str) -> tuple[int | None, str]:
    """`blocks.3.norm1.weight` -> (3, "norm1.weight"); None for a parameter outside the blocks."""
    first, _, rest = name.partition(".")
    if first != "blocks":
        return None, name
    number, _, inner = rest.partition(".")
    return int(number), inner
