"""Training that waits for its images twice as long as it computes, on any machine: `python -m tests.dist.slow_images ...`."""

import sys
import time

from torch import Tensor

from ijepa_ds import train
from ijepa_ds.data.loader import ImageBatches


def main() -> int:
    following, given = ImageBatches.__next__, [time.monotonic()]

    def late(self: ImageBatches) -> Tensor:
        time.sleep(2 * (time.monotonic() - given[0]))
        batch = following(self)
        given[0] = time.monotonic()
        return batch

    ImageBatches.__next__ = late  # type: ignore[method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
