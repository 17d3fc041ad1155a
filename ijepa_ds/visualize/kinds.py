"""The kinds of `ijepa-ds visualize`: each draws PNGs and describes them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model import attention
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.plotting.heat import Panel, draw_row
from ijepa_ds.plotting.masks import mask_panels
from ijepa_ds.visualize import patches
from ijepa_ds.visualize.gallery import Shown
from ijepa_ds.visualize.looking import Pictures, encoder_of, tokens_of
from ijepa_ds.weights import Source, build_ijepa, masks_for

_MOST_HEADS = 16  # maximum number of heads drawn separately


@dataclass(frozen=True)
class Look:
    """Input and output folder of a drawing."""

    source: Source
    pictures: Pictures
    size: int  # pixels
    device: torch.device
    batch_size: int
    seed: int
    out: Path

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.source.patch_size

    def name(self, number: int) -> str:
        """File name of the picture of an image."""
        return f"{number:03d}.png"


@dataclass(frozen=True)
class Page:
    """Content of a page: title, text, figures, and facts in addition to the common ones."""

    title: str
    words: str
    shown: list[Shown]
    facts: dict[str, object] = field(default_factory=dict)


def draw_masks(look: Look, args: argparse.Namespace) -> Page:
    """Image, what the context shows, the target blocks."""
    masks = masks_for(look.source, look.grid, len(look.pictures.names), look.seed)
    shown = []
    for i, name in enumerate(look.pictures.names):
        context, targets = masks.context[i].numpy(), masks.targets[i].numpy()
        drawn = mask_panels(look.pictures.pixels[i], context, targets, look.source.patch_size)
        sees = f"context encoder: {context.shape[-1]} of {look.grid**2}"
        names = [name[:28], *([sees] * len(context)), f"{len(targets)} target blocks"]
        panels = [Panel(what, picture) for what, picture in zip(names, drawn, strict=True)]
        draw_row(look.out / look.name(i), panels, title="Masks: what the context shows, what has to be predicted")
        shown.append(Shown(look.name(i), name, f"context {masks.context.shape[-1]} of {look.grid**2} patches"))
    words = "From left to right: the image, the context encoder's input, and the target blocks to predict."
    blocks = f"{masks.targets.shape[1]} of {masks.targets.shape[2]} patches each"
    return Page("Masks", words, shown, {"seed of the masks": look.seed, "target blocks": blocks})


def _title(what: str, facts: dict[str, object], source: Source) -> str:
    """Title of a picture: what is drawn, of which encoder, at which step."""
    part = facts["encoder"]
    step = "" if source.step is None or part == "untrained" else f", step {source.step:,}"
    return f"{what}, {part} encoder{step}"


def _features(look: Look, args: argparse.Namespace) -> tuple[Tensor, dict[str, object]]:
    encoder, part = encoder_of(look.source, args.which, look.size, look.device)
    tokens = tokens_of(encoder, look.pictures.batches(look.source, look.batch_size, look.device))
    if args.remove_position:
        tokens = patches.without_position(tokens)
    return tokens, {"encoder": part, "position removed": "yes" if args.remove_position else "no"}


def draw_pca(look: Look, args: argparse.Namespace) -> Page:
    """Image, principal components as colours."""
    tokens, facts = _features(look, args)
    colours, foreground = patches.pca_colours(tokens, not args.background)
    shown = []
    for i, name in enumerate(look.pictures.names):
        panels = [Panel(name[:28], look.pictures.pixels[i]), Panel("first three components", colours[i])]
        share = "" if args.background else f"{100 * foreground[i].mean():.0f} % of the patches are foreground"
        draw_row(look.out / look.name(i), panels, title=_title("PCA of patch features", facts, look.source))
        shown.append(Shown(look.name(i), name, share))
    words = (
        "Patches of similar colour have similar representations. Components are computed on the patches of all images, so "
        "colours can be compared between images."
    )
    if not args.background:
        words += " Black is background: the first component splits the patches; the part with more border patches is left out."
    return Page("Principal components of patch features", words, shown, facts)


def draw_similarity(look: Look, args: argparse.Namespace) -> Page:
    """Image, and one similarity map per selected patch."""
    chosen = args.patch or [(look.grid // 2, look.grid // 2)]
    for patch in chosen:
        _check_patch(patch, look.grid)
    tokens, facts = _features(look, args)
    maps = [patches.similarity_to(tokens, row * look.grid + column) for row, column in chosen]
    shown = []
    for i, name in enumerate(look.pictures.names):
        panels = [Panel(name[:28], look.pictures.pixels[i])]
        for (row, column), values in zip(chosen, maps, strict=True):
            marks = ((row, column, 1, 1),)
            panels.append(Panel(f"to patch {row},{column}", look.pictures.pixels[i], values[i], (-1.0, 1.0), marks))
        title = _title("Similarity of patches", facts, look.source)
        draw_row(look.out / look.name(i), panels, "cosine similarity", title=title)
        spread = ", ".join(f"{values[i].min():.2f} to {values[i].max():.2f}" for values in maps)
        shown.append(Shown(look.name(i), name, f"cosine from {spread}"))
    words = "Cosine similarity of the outlined patch's representation to that of every patch; all maps share one colour scale."
    return Page("Similarity of patches", words, shown, facts)


def _check_patch(patch: tuple[int, int], grid: int) -> None:
    if max(patch) >= grid:
        raise ValueError(f"--patch {patch[0]},{patch[1]}: rows and columns go from 0 to {grid - 1} at this image size")


def draw_attention(look: Look, args: argparse.Namespace) -> Page:
    """Image, the mean over heads, and every head."""
    if args.patch:
        _check_patch(args.patch, look.grid)
    encoder, part = encoder_of(look.source, args.which, look.size, look.device)
    query = None if args.patch is None else args.patch[0] * look.grid + args.patch[1]
    marks = () if args.patch is None else ((*args.patch, 1, 1),)
    shown: list[Shown] = []
    for batch in look.pictures.batches(look.source, look.batch_size, look.device):
        weights = attention.maps(encoder, batch, args.layer)  # [B, heads, N, N]
        rows = weights.mean(dim=2) if query is None else weights[:, :, query]
        maps = rows.reshape(*rows.shape[:2], look.grid, look.grid).cpu().numpy() * look.grid**2
        entropies = [float(attention.entropy(one[None])) for one in weights]
        for values, spread in zip(maps, entropies, strict=True):
            i = len(shown)
            pixels = look.pictures.pixels[i]
            limits = (0.0, float(values.max()))
            panels = [Panel(look.pictures.names[i][:28], pixels)]
            panels.append(Panel("mean of heads", pixels, values.mean(axis=0), limits, marks))
            panels += [Panel(f"head {h}", None, one, limits, marks) for h, one in enumerate(values[:_MOST_HEADS])]
            title = _title(f"Attention of block {args.layer}", {"encoder": part}, look.source)
            draw_row(look.out / look.name(i), panels, "attention x number of patches", title=title)
            shown.append(Shown(look.name(i), look.pictures.names[i], f"entropy {spread:.2f} of 1"))
    whose = "on average over all patches" if query is None else f"by patch {args.patch[0]},{args.patch[1]} (outlined)"
    words = (
        f"Attention to each patch {whose}; 1 is uniform attention. I-JEPA has no class token. Entropy 1 means that every patch "
        "attends to all patches equally, 0 to a single one."
    )
    return Page("Attention", words, shown, {"encoder": part, "block": args.layer, "heads": look.source.size.heads})


def draw_predict(look: Look, args: argparse.Namespace) -> Page:
    """Image, context, and each target block with the cosine of its predicted to its true representations."""
    model = build_ijepa(look.source, look.grid).to(look.device)
    masks = masks_for(look.source, look.grid, len(look.pictures.names), look.seed)
    prediction, whole = _predict(model, look, masks)
    own_cosine, others = patches.agreement(prediction, whole, masks.targets)
    shown = []
    for i, name in enumerate(look.pictures.names):
        title = _title("Predictions from the context against the output", {"encoder": "target"}, look.source)
        draw_row(look.out / look.name(i), _predict_panels(look, masks, i, own_cosine[i]), "cosine", title=title)
        shown.append(Shown(look.name(i), name, _predict_caption(own_cosine[i], None if others is None else others[i])))
    words = (
        "From left to right: the image, the context encoder's input, each target block. Colour is the cosine between the "
        "predictor's output and the target encoder's output for the whole image (0 and below: dark)."
    )
    if others is not None:
        words += (
            " In brackets: the mean cosine of the prediction with other images at the same patches, which position and average "
            "image explain. A prediction that uses its context lies above it."
        )
    facts: dict[str, object] = {"seed of the masks": look.seed, "mean cosine, own image": f"{own_cosine.mean():.4f}"}
    if others is not None:
        facts["mean cosine, other images"] = f"{others.mean():.4f}"
    return Page("Predicted and true representations", words, shown, facts)


def _predict(model: IJEPA, look: Look, masks: Masks) -> tuple[Tensor, Tensor]:
    """Predictions from the first context [n, M, Kt, D], and the true representations of every patch [n, N, D]."""
    predictions, truths = [], []
    for start, batch in enumerate(look.pictures.batches(look.source, look.batch_size, look.device)):
        part = slice(start * look.batch_size, start * look.batch_size + len(batch))
        own = Masks(masks.context[part].to(look.device), masks.targets[part].to(look.device))
        every = torch.arange(look.grid**2, device=look.device).expand(len(batch), 1, -1)
        predictions.append(model.predictor(model.encoder(batch, own.context), own.context, own.targets)[:, 0].float().cpu())
        truths.append(model.targets(batch, Masks(own.context, every))[:, 0].cpu())
    if not all(bool(torch.isfinite(x).all()) for x in predictions + truths):
        raise ValueError("the representations are NaN or infinite: the weights have diverged; take an earlier --step")
    return torch.cat(predictions), torch.cat(truths)


def _predict_caption(own: np.ndarray, others: np.ndarray | None) -> str:
    if others is None:
        return "cosine by block: " + ", ".join(f"{value:.2f}" for value in own.mean(axis=1))
    pairs = zip(own.mean(axis=1), others.mean(axis=1), strict=True)
    return "cosine by block (other images): " + ", ".join(f"{a:.2f} ({b:.2f})" for a, b in pairs)


def _predict_panels(look: Look, masks: Masks, i: int, cosine: np.ndarray) -> list[Panel]:
    pixels, grid, side = look.pictures.pixels[i], look.grid, look.source.patch_size
    seen = np.zeros(grid * grid, dtype=bool)
    seen[masks.context[i, 0].numpy()] = True
    mask = seen.reshape(grid, grid).repeat(side, axis=0).repeat(side, axis=1)
    panels = [Panel(look.pictures.names[i][:28], pixels), Panel("context", np.where(mask[..., None], pixels, np.uint8(128)))]
    for number, block in enumerate(masks.targets[i].numpy()):
        values = np.full(grid * grid, np.nan)
        values[block] = cosine[number]
        top, left = divmod(int(block.min()), grid)
        bottom, right = divmod(int(block.max()), grid)
        marks = ((top, left, bottom - top + 1, right - left + 1),)
        title = f"block {number + 1}: {cosine[number].mean():.2f}"
        panels.append(Panel(title, pixels, values.reshape(grid, grid), (0.0, 1.0), marks))
    return panels
