"""Imported once by the fork server of `pool.py` and `launched.py`: a process that imports this itself takes 9 s of CPU."""

import os
from contextlib import suppress

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401  (it brings torch's compiler)
import torch  # noqa: E402

torch.set_num_threads(1)

import setuptools  # noqa: E402, F401  (DeepSpeed looks for libraries with it)
import tensorboard.summary.writer.event_file_writer  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

import ijepa_ds.cluster.watch  # noqa: E402
import ijepa_ds.data.vision  # noqa: E402
import ijepa_ds.evals.run  # noqa: E402
import ijepa_ds.train  # noqa: E402
import ijepa_ds.training.loop  # noqa: E402, F401

with suppress(ImportError):  # without DALI, the runs take torchvision
    import ijepa_ds.data.dali  # noqa: F401
