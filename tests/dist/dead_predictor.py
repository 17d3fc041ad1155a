"""Training with a predictor that says the same everywhere, whatever it is asked: `python -m tests.dist.dead_predictor ...`."""

import sys

from torch import Tensor

from ijepa_ds import train
from ijepa_ds.model import vit


def main() -> int:
    alive = vit.Predictor.forward

    def dead(self: vit.Predictor, z: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        said = alive(self, z, context, targets)
        return said.mean(dim=(0, 1, 2, 3), keepdim=True).expand_as(said)

    vit.Predictor.forward = dead  # type: ignore[method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
