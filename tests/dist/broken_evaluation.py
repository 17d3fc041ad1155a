"""Training whose second evaluation runs out of memory on the last rank: `python -m tests.dist.broken_evaluation ...`."""

import os
import sys
from typing import Any

from torch import Tensor

from ijepa_ds import train
from ijepa_ds.training.streamed import StreamedEncoder

CALL = 2  # two calls an evaluation: eval.train, eval.test


def main() -> int:
    whole, calls = StreamedEncoder.features, [0]

    def features(self: StreamedEncoder, weights: Any, *rest: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == CALL + 1 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            next(weights)  # in the middle of the gathers
            raise RuntimeError("out of memory")
        return whole(self, weights, *rest)

    StreamedEncoder.features = features  # type: ignore[method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
