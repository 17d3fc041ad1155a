"""What `tests/soak.py` gives to the launcher: the trainer, with a log of the images that it trains on in `samples/`."""

import os
import sys
from pathlib import Path

from ijepa_ds import train
from tests.dist.faults import log_samples

if __name__ == "__main__":
    log_samples(Path("samples"), int(os.environ["RANK"]))
    sys.exit(train.main())
