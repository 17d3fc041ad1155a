"""Training in which one step's learning rate is a thousand times too large: `python -m tests.dist.one_bad_step ...`."""

import sys
from itertools import count

from ijepa_ds import train
from ijepa_ds.training import engine

BAD_STEP = 20


def main() -> int:
    good, calls = engine.Engine.optimizer_step, count()

    def step(self: engine.Engine, lr: float, weight_decay: float) -> bool:
        return good(self, 1.0 if next(calls) == BAD_STEP else lr, weight_decay)

    engine.Engine.optimizer_step = step  # type: ignore[method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
