"""What the tokens of a hidden block contain: a small network reads the object's shape from them, without any decoder.

    python -m benchmarks.tokens runs/objects --train objects/train --test objects/test

Objects and blocks are those of `benchmarks.completion`: 4,000 training and 1,500 test images of `ijepa-ds data objects
--dense`. For each run two lines: the share of shapes read from the predictor's tokens, and from the target encoder's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.completion import Set, conditions_of, read
from ijepa_ds.decoder.condition import Conditioner
from ijepa_ds.weights import open_source

EPOCHS, BATCH = 12, 64


def tokens(conditioner: Conditioner, objects: Set, oracle: bool) -> Tensor:
    """Tokens of the blocks side by side, and their place: float [n, Kt * D + 3]."""
    grid, count = conditioner.grid, len(objects.labels)
    whole = conditions_of(conditioner, objects, oracle).view(count, grid * grid, -1)
    inside = whole.gather(1, objects.blocks[:, :, None].expand(-1, -1, whole.shape[-1]))[..., :-1].flatten(1)
    first, last = objects.blocks[:, 0], objects.blocks[:, -1]
    return torch.cat([inside, torch.stack([first // grid, first % grid, last // grid], dim=1)], dim=1)


def read_shape(train: Tensor, labels: Tensor, test: Tensor, true: Tensor) -> float:
    """Percent of test objects whose shape a small network names."""
    torch.manual_seed(0)
    mean, scale = train.mean(dim=0), train.std(dim=0) + 1e-3
    train, test = (train - mean) / scale, (test - mean) / scale
    layers = [nn.Linear(train.shape[1], 256), nn.GELU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.GELU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(256, int(labels.max()) + 1))
    steps = len(train) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train)).split(BATCH)[:steps]:
            F.cross_entropy(model(train[chosen]), labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        return 100 * float((model.eval()(test).argmax(dim=1) == true).float().mean())


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--train", required=True, type=Path)
    parser.add_argument("--test", required=True, type=Path)
    args = parser.parse_args()
    for run in args.runs:
        conditioner = Conditioner(open_source(run), "patches", torch.device("cpu"))
        size = conditioner.grid * conditioner.source.patch_size
        train, test = (read(folder, size, conditioner.grid, most) for folder, most in ((args.train, 4000), (args.test, 1500)))
        for name, oracle in (("predictor", False), ("target encoder", True)):
            made = [tokens(conditioner, part, oracle) for part in (train, test)]
            print(f"{run}: {name} {read_shape(made[0], train.labels, made[1], test.labels):.1f} %", flush=True)


if __name__ == "__main__":
    main()
