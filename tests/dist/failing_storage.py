"""Training whose images cannot be read after the third step: `python -m tests.dist.failing_storage ...`."""

import errno
import os
import sys
from typing import Any

from ijepa_ds import train
from ijepa_ds.training.reporter import Reporter

STEP = 3


def main() -> int:
    opened, broken = os.open, [False]
    after = Reporter.after_step

    def fail(path: Any, *rest: Any, **keys: Any) -> int:
        if broken[0] and os.fsdecode(path).endswith((".jpg", ".png")):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return opened(path, *rest, **keys)

    def after_step(self: Reporter, step: int, *rest: Any) -> None:
        after(self, step, *rest)
        broken[0] = step + 1 >= STEP

    os.open = fail  # type: ignore[assignment]
    Reporter.after_step = after_step  # type: ignore[method-assign]
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
