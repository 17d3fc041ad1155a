"""The choice of the image decoder, and a test of region decoding on the GPU."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from ijepa_ds.config import DataConfig
from ijepa_ds.data.crops import crop_windows
from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)
_TIMEOUT = 300.0  # seconds; a crashed driver may hang
_TOLERANCE = 2.0  # mean difference of two decodings of one image, of 255


def choose_decoder(setting: str, device: torch.device) -> str:
    """Return the decoder for a device: `cpu`, `mixed` or `mixed_roi`.

    Args:
        setting: `data.decoder`.
        device: The training device.

    Raises:
        ValueError: The setting decodes on a GPU, but the device is none.
    """
    if device.type != "cuda":
        if setting not in ("auto", "cpu"):
            raise UserError(f"data.decoder: {setting} decodes on a GPU, but training runs on {device.type}; use auto or cpu")
        return "cpu"
    if setting != "mixed_roi":
        return "mixed" if setting == "auto" else setting
    error = region_decoding_error(device.index or 0)
    if error:
        logger.warning(
            "!!! data.decoder: mixed_roi fails its test on this GPU (%s): whole images are decoded instead (mixed). "
            "nvImageCodec 0.9 has this bug (its issue 55) !!!",
            error,
        )
        return "mixed"
    return "mixed_roi"


@lru_cache(maxsize=8)
def region_decoding_error(device_id: int) -> str:
    """Test region decoding on a GPU in a separate process, which may crash; return the error, or an empty text."""
    command = [sys.executable, "-m", "ijepa_ds.data.decoder", str(device_id)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT:.0f} s"
    if done.returncode == 0:
        return ""
    output = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return f"exit code {done.returncode}: {output[-1] if output else 'no message'}"


def compare_windows(device_id: int) -> None:
    """Compare region decoding on the GPU with crops of wholly decoded images.

    Raises:
        RuntimeError: DALI fails, or the pixels differ.
    """
    from ijepa_ds.data.dali_pipeline import build_pipeline  # late: DALI is optional

    count = 32
    rng = np.random.default_rng(0)
    contents, sizes = [], []
    for i in range(count):
        size = (int(rng.integers(40, 700)), int(rng.integers(40, 700)))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        coarse.convert("L" if i % 8 == 7 else "RGB").save(buffer := io.BytesIO(), "JPEG", progressive=i % 4 == 3)
        contents.append(np.frombuffer(buffer.getvalue(), np.uint8))
        sizes.append(size)
    width, height = np.array(sizes).T
    windows = crop_windows(width, height, np.arange(count), 0, (0.1, 1.0), (3 / 4, 4 / 3))
    start, shape = (np.ascontiguousarray(part) for part in np.split(windows, 2, axis=1))
    cfg = DataConfig(source="", crop_size=64)
    outputs = []
    for decoder in ("mixed_roi", "mixed"):
        pipeline = build_pipeline(lambda info: (contents, start, shape), cfg, count, device_id, decoder=decoder)
        pipeline.build()
        for _ in range(3):
            (output,) = pipeline.run()
        outputs.append(np.array(output.as_cpu().as_tensor()).astype(np.float32))
    worst = np.abs(outputs[0] - outputs[1]).mean(axis=(1, 2, 3)).max()
    if worst > _TOLERANCE:
        raise RuntimeError(f"pixels of windows differ from those of whole images by {worst:.1f} of 255 on average")


if __name__ == "__main__":
    compare_windows(int(sys.argv[1]))
