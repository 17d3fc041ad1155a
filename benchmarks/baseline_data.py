"""A plain input pipeline: masks by a Python loop in the collator, JPEGs by Pillow in worker processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class MaskCollator:
    """Collates images and draws masks as the published sampler does: one size per batch, positions per image."""

    def __init__(
        self,
        grid: int,
        context_scale: tuple[float, float] = (0.85, 1.0),
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        contexts: int = 1,
        targets: int = 4,
        min_keep: int = 10,
    ) -> None:
        self.grid, self.min_keep, self.contexts, self.targets = grid, min_keep, contexts, targets
        self.context_scale, self.target_scale, self.target_aspect = context_scale, target_scale, target_aspect
        self.generator = torch.Generator()

    def __call__(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Images `[B, ...]`, C contexts and M targets of `[B, K]` patch numbers."""
        return torch.stack(list(images)), *self.masks(len(images))

    def masks(self, images: int) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of one batch; contexts (targets) are truncated to the shortest of the batch."""
        target_size = self._size(self.target_scale, self.target_aspect)
        context_size = self._size(self.context_scale, (1.0, 1.0))
        all_targets, all_contexts = [], []
        for _ in range(images):
            blocks, free = [], []
            for _ in range(self.targets):
                mask, complement = self._block(target_size)
                blocks.append(mask)
                free.append(complement)
            all_targets.append(blocks)
            all_contexts.append([self._block(context_size, free)[0] for _ in range(self.contexts)])
        return _cut(all_contexts), _cut(all_targets)

    def _size(self, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        share = float(torch.rand(1, generator=self.generator))
        area = int(self.grid**2 * (scale[0] + share * (scale[1] - scale[0])))
        ratio = aspect[0] + share * (aspect[1] - aspect[0])
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(height, self.grid - 1), min(width, self.grid - 1)

    def _block(self, size: tuple[int, int], free: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Patch numbers of a block within the `free` patches, and the mask of patches outside the block, `[G, G]`."""
        (height, width), failures, dropped = size, 0, 0
        while True:
            top = int(torch.randint(0, self.grid - height, (1,), generator=self.generator))
            left = int(torch.randint(0, self.grid - width, (1,), generator=self.generator))
            mask = torch.zeros(self.grid, self.grid, dtype=torch.int32)
            mask[top : top + height, left : left + width] = 1
            for allowed in free[: len(free) - dropped]:
                mask *= allowed
            numbers = torch.nonzero(mask.flatten()).squeeze(1)
            if len(numbers) > self.min_keep:
                break
            failures += 1
            if failures == 20:
                failures, dropped = 0, dropped + 1
        complement = torch.ones(self.grid, self.grid, dtype=torch.int32)
        complement[top : top + height, left : left + width] = 0
        return numbers, complement


def _cut(masks: list[list[Tensor]]) -> list[Tensor]:
    """B lists of n masks -> n of `[B, K]`, truncated to the shortest."""
    shortest = min(len(mask) for image in masks for mask in image)
    return [torch.stack([image[n][:shortest] for image in masks]) for n in range(len(masks[0]))]


class Crops(Dataset):
    """Image files and their crop windows, read by Pillow and torchvision."""

    def __init__(self, paths: Sequence[str], windows: Sequence[Sequence[int]], side: int) -> None:
        """`windows`: top, left, height, width of each."""
        self.paths, self.windows, self.side = paths, windows, side

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, position: int) -> Tensor:
        """`[3, side, side]`."""
        from PIL import Image
        from torchvision.transforms import functional

        with open(self.paths[position], "rb") as file, Image.open(file) as opened:
            image = opened.convert("RGB")
        top, left, height, width = self.windows[position]
        crop = functional.resized_crop(image, top, left, height, width, [self.side, self.side])
        return functional.normalize(functional.to_tensor(crop), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_loader(crops: Crops, collator: MaskCollator, batch_size: int, workers: int = 1) -> DataLoader:
    """The loader of a training script, in the order of the files."""
    return DataLoader(crops, batch_size=batch_size, collate_fn=collator, num_workers=workers, drop_last=True)
