"""Imported once by the server of `launched.py`, so that its forks have everything at hand."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: E402, F401
import torch  # noqa: E402

torch.set_num_threads(1)

import ijepa_ds.data.vision  # noqa: E402
import ijepa_ds.train  # noqa: E402, F401
