"""Does a decoder complete the hidden part of an object? Samples for blocks over about half of the object, measured.

    ijepa-ds data objects --out objects/train --num 8000 --size 64 --seed 0 --dense
    ijepa-ds data objects --out objects/test --num 1500 --size 64 --seed 1 --split test --dense
    python -m benchmarks.completion --decoder runs/quickstart/decoder --train objects/train --test objects/test --out completion

The decoder is one of `--condition patches` or `block`. A block has the size of a training target; it lies where it covers
the share of the object that is nearest to a half. Only the block's pixels are compared: by their root mean square difference
to the image, and by the shape that a classifier names. The classifier sees the block alone; it is trained on blocks of real
training images, half of them blurred. Samples come from the predictor's output (`true`), from another image's at this place
(`shuffled`), from an untrained predictor, and from the target encoder's own tokens (`target`), the upper bound.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.data.transforms import load_eval_images
from ijepa_ds.decoder import network
from ijepa_ds.decoder.condition import PLACE, Conditioner, context_only, outside
from ijepa_ds.decoder.measure import exchanged, open_decoder
from ijepa_ds.decoder.pictures import decoder_pixels, encoder_input
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.plotting.heat import Panel, draw_row
from ijepa_ds.terminal import track

SIZES = ((3, 4), (4, 3))  # height and width of a block in patches
OBJECT = 1  # the number of the large object in OUT/objects
GREY = 128
BATCH = 50


class Set(NamedTuple):
    """Images, their shapes, and the patches of their blocks."""

    pixels: Tensor  # uint8 [n, S, S, 3]
    labels: Tensor  # int64 [n]
    blocks: Tensor  # int64 [n, Kt]
    covered: Tensor  # float [n]: share of the object in the block
    names: list[str]


def block_over_half(inside: np.ndarray, grid: int) -> tuple[np.ndarray, float]:
    """The patches of the block that covers nearest to half of an object, and that share; `inside: [H, W]` is its mask."""
    side = len(inside) // grid
    counts = inside.reshape(grid, side, grid, side).sum(axis=(1, 3))
    found = []
    for height, width in SIZES:
        for top in range(grid - height + 1):
            for left in range(grid - width + 1):
                share = counts[top : top + height, left : left + width].sum() / counts.sum()
                found.append((abs(share - 0.5), top, left, height, width, share))
    _, top, left, height, width, share = min(found)
    rows, columns = np.arange(top, top + height), np.arange(left, left + width)
    return (rows[:, None] * grid + columns[None]).ravel(), float(share)


def read(folder: Path, size: int, grid: int, most: int) -> Set:
    """Evenly spaced images of a folder that `ijepa-ds data objects --dense` wrote."""
    files = sorted((folder / "images").glob("*/*.jpg"))
    if not files:
        raise SystemExit(f"{folder / 'images'} has no classes of JPEGs; write it with `ijepa-ds data objects --dense`")
    files = [files[int(i)] for i in np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round())]
    classes = sorted({file.parent.name for file in files})
    files = [files[int(i)] for i in np.random.default_rng(0).permutation(len(files))]  # neighbours exchange their tokens
    blocks, covered = [], []
    for file in files:
        mask = np.asarray(Image.open(folder / "objects" / file.parent.name / f"{file.stem}.png")) == OBJECT
        block, share = block_over_half(mask, grid)
        blocks.append(block)
        covered.append(share)
    return Set(
        torch.from_numpy(load_eval_images([str(file) for file in files], size, threads=2)),
        torch.tensor([classes.index(file.parent.name) for file in files]),
        torch.from_numpy(np.stack(blocks)),
        torch.tensor(covered),
        [f"{file.parent.name}/{file.stem}" for file in files],
    )


def inside_blocks(blocks: Tensor, grid: int, size: int) -> Tensor:
    """1 in the blocks [n, Kt], 0 elsewhere: float [n, S, S]."""
    marked = torch.zeros(len(blocks), grid * grid).scatter_(1, blocks, 1.0).view(-1, 1, grid, grid)
    return F.interpolate(marked, size=(size, size), mode="nearest")[:, 0]


def only(pixels: Tensor, blocks: Tensor, grid: int) -> Tensor:
    """A classifier's input: the block's pixels alone, and where it is.

    Args:
        pixels: uint8 [n, S, S, 3].
        blocks: patches of the blocks [n, Kt].
        grid: patches along a side.

    Returns:
        float [n, 6, W, W], W the longer side of a block: RGB (grey beside the block), 1 in the block, its top and its left.
    """
    side = pixels.shape[1] // grid
    window = max(max(size) for size in SIZES) * side
    inside = inside_blocks(blocks, grid, pixels.shape[1])
    shown = torch.where(inside[..., None] > 0, pixels.float(), torch.full_like(pixels, GREY, dtype=torch.float32))
    found = F.pad(torch.cat([shown.permute(0, 3, 1, 2) / 127.5 - 1, inside[:, None]], dim=1), (0, window, 0, window))
    top, left = blocks[:, 0] // grid, blocks[:, 0] % grid
    cut = [x[:, t : t + window, n : n + window] for x, t, n in zip(found, top * side, left * side, strict=True)]
    place = torch.stack([top, left], dim=1).float() / grid
    return torch.cat([torch.stack(cut), place[:, :, None, None].expand(-1, -1, window, window)], dim=1)


def classifier(classes: int) -> nn.Module:
    """A small network for blocks of some 16 x 16 pixels."""

    def part(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *part(6, 48), *part(48, 48), nn.MaxPool2d(2), *part(48, 96), *part(96, 96), nn.MaxPool2d(2),
        *part(96, 128), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, classes),
    )  # fmt: skip


def worn(x: Tensor) -> Tensor:
    """Half of the inputs blurred, all with some noise and another brightness: so that shapes count, not sharp edges."""
    colours, rest = x[:, :3], x[:, 3:]
    blurred = F.avg_pool2d(F.pad(colours, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    colours = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, blurred, colours)
    colours = colours + 0.1 * torch.randn(len(x), 1, 1, 1) + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(colours)
    return torch.cat([colours, rest], dim=1)


def fit(inputs: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Train a classifier on inputs [n, 6, W, W]."""
    torch.manual_seed(0)
    model, batch = classifier(int(labels.max()) + 1), 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(inputs) // batch))
    for epoch in track(range(epochs), "classifier", "epochs"):
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            F.cross_entropy(model(worn(inputs[chosen])), labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    return model.eval()


@torch.no_grad()
def named(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of inputs whose shape the classifier names, in percent."""
    right = [(model(x).argmax(dim=1) == y) for x, y in zip(inputs.split(250), labels.split(250), strict=True)]
    return 100 * float(torch.cat(right).float().mean())


def masks_of(blocks: Tensor, grid: int) -> Masks:
    """Blocks [n, Kt] as targets; the context is all patches outside them."""
    return Masks(outside(blocks, grid)[:, None], blocks[:, None])


def conditions_of(conditioner: Conditioner, test: Set, oracle: bool = False) -> Tensor:
    """Conditions [n, width]; the context is all patches outside the block."""
    grid, parts = conditioner.source.grid, []
    for pixels, block in zip(test.pixels.split(BATCH), test.blocks.split(BATCH), strict=True):
        parts.append(conditioner.predict(encoder_input(pixels, conditioner.source), masks_of(block, grid), oracle).vectors)
    return torch.cat(parts)


def draw(decoder: network.Decoder, vectors: Tensor, steps: int, title: str, sample: int = 0) -> Tensor:
    """One sample a condition, uint8 [n, S, S, 3]; the noise of image and sample is the same for all conditions."""
    found = []
    for number, part in enumerate(track(vectors.split(BATCH), title, "batches")):
        seeds = [sample * 1_000_003 + number * BATCH + i for i in range(len(part))]
        found.append(network.sample(decoder, part, seeds, steps))
    return torch.cat(found)


def picture(path: Path, test: Set, drawn: dict[str, list[Tensor]], grid: int, shown: list[int]) -> None:
    """Rows: image, what the predictor sees, two completed images, the whole of a sample, one from another's prediction."""
    side = test.pixels.shape[1]
    panels = []
    for i in shown:
        inside = inside_blocks(test.blocks[i : i + 1], grid, side)[0]
        rows, columns = (inside > 0).any(1).nonzero()[:, 0], (inside > 0).any(0).nonzero()[:, 0]
        marks = ((int(rows[0]), int(columns[0]), len(rows), len(columns)),)

        def completed(sample: Tensor, i: int = i, inside: Tensor = inside) -> np.ndarray:
            return torch.where(inside[..., None] > 0, sample[i], test.pixels[i]).numpy()

        masks = masks_of(test.blocks[i : i + 1], grid)
        panels += [
            Panel("image", test.pixels[i].numpy()),
            Panel("context", context_only(test.pixels[i : i + 1], masks, grid)[0].numpy()),
            *(Panel(f"completed {k + 1}", completed(one), marks=marks) for k, one in enumerate(drawn["true"])),
            Panel("of another image", completed(drawn["shuffled"][0]), marks=marks),
        ]
    draw_row(path, panels, columns=len(panels) // len(shown), title="What the predictor believes about the hidden block")


def main() -> None:
    """Measure, draw, and write OUT/result.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", required=True, type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the run whose conditions are decoded (that of the decoder)")
    parser.add_argument("--train", required=True, type=Path, help="objects with --dense, for the classifier")
    parser.add_argument("--test", required=True, type=Path, help="held-out objects with --dense")
    parser.add_argument("--num", type=int, default=500, help="held-out images (500)")
    parser.add_argument("--epochs", type=int, default=20, help="of the classifier (20)")
    parser.add_argument("--sampler-steps", type=int, default=25, help="of DDIM (25)")
    parser.add_argument("--rows", type=int, default=4, help="images in the picture (4)")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cpu = torch.device("cpu")
    decoder, conditioner, facts = open_decoder(args.decoder, args.checkpoint, cpu)
    untrained = open_decoder(args.decoder, args.checkpoint, cpu, "untrained")[1]
    source, side = conditioner.source, decoder.shape.image_size
    size = source.grid * source.patch_size
    train, test = (read(folder, size, source.grid, most) for folder, most in ((args.train, 10**9), (args.test, args.num)))
    args.out.mkdir(parents=True, exist_ok=True)

    saved = args.out / "classifier.pt"
    if saved.is_file():
        model = classifier(int(train.labels.max()) + 1)
        model.load_state_dict(torch.load(saved, weights_only=True))
        model.eval()
    else:
        model = fit(only(decoder_pixels(train.pixels, side), train.blocks, source.grid), train.labels, args.epochs)
        torch.save(model.state_dict(), saved)

    inside, real = inside_blocks(test.blocks, source.grid, side), decoder_pixels(test.pixels, side)
    true = conditions_of(conditioner, test)
    if facts["condition"] == "patches":
        parts = zip(true.split(BATCH), test.blocks.split(BATCH), strict=True)
        shuffled = torch.cat([exchanged(vectors, block, source.grid) for vectors, block in parts])
    else:
        shuffled = torch.cat([true[:, :-PLACE].roll(1, dims=0), true[:, -PLACE:]], dim=1)
    conditions = {
        "true": true,
        "shuffled": shuffled,
        "untrained predictor": conditions_of(untrained, test),
        "target": conditions_of(conditioner, test, oracle=True),
    }
    drawn = {name: [draw(decoder, vectors, args.sampler_steps, name)] for name, vectors in conditions.items()}
    shown = np.linspace(0, len(real) - 1, args.rows + 2).round().astype(int)[1:-1].tolist()
    few = test._replace(**{key: getattr(test, key)[shown] for key in ("labels", "blocks", "covered")}, pixels=real[shown])
    more = {"shuffled": [drawn["shuffled"][0][shown]], "true": [drawn["true"][0][shown]]}
    more["true"].append(draw(decoder, true[shown], args.sampler_steps, "a second sample", 1))
    picture(args.out / "completion.png", few, more, source.grid, list(range(len(shown))))

    def distance(pixels: Tensor) -> float:
        squares = ((pixels.float() - real.float()) / 255).square().mean(dim=-1) * inside
        return float((squares.flatten(1).sum(1) / inside.flatten(1).sum(1)).sqrt().mean())

    result = {
        "images": len(real),
        "share of the object that is hidden": float(test.covered.mean()),
        "shape named, %": {
            name: named(model, only(one, test.blocks, source.grid), test.labels)
            for name, one in {"real block": real, **{name: one[0] for name, one in drawn.items()}}.items()
        },
        "pixels of the block": {name: distance(one[0]) for name, one in drawn.items()},
        "decoder": facts,
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "decoder"}, indent=2))


if __name__ == "__main__":
    main()
