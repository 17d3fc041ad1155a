"""DALI pipelines that decode windows of images."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from ijepa_ds.config import DataConfig

SIDE = 16  # pixels of the stand-in for an image that Pillow decodes
AHEAD = 2  # micro-batches in DALI's own queue: the source callback runs that far ahead of the output

# Encoded images uint8 [bytes], window starts and shapes int32 [B, 2]; with data.horizontal_flip also flips int32 [B].
Inputs = tuple[list[np.ndarray], np.ndarray, np.ndarray] | tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]


def build_pipeline(
    source: Callable[[types.BatchInfo], Inputs],
    cfg: DataConfig,
    batch_size: int,
    device_id: int | None,
    *,
    decoder: str | None = None,
    single: bool = False,
    decode_only: bool = False,
) -> Pipeline:
    """Define a pipeline from encoded images to windows.

    The output on a CPU is B windows, uint8 [h, w, 3]; on a GPU it is mirrored and resized, uint8 [B, S, S, 3].
    Decoding matches torchvision on Pillow: no EXIF rotation, smooth chroma upsampling, antialiased bilinear resize.

    Args:
        source: Returns the inputs of an iteration.
        cfg: Crop size, flips, threads.
        batch_size: Images in a micro-batch.
        device_id: GPU that resizes, and decodes unless `decoder` is "cpu"; None: the CPU.
        decoder: "cpu", "mixed" (decode whole images, then crop) or "mixed_roi" (decode windows only); by default mixed or cpu.
        single: Run one iteration at a time without prefetching, so that an error belongs to the requested iteration.
        decode_only: Stop after the window also on a GPU.
    """
    decoder = decoder or ("cpu" if device_id is None else "mixed")
    queue = {"exec_pipelined": False, "exec_async": False, "exec_dynamic": False, "prefetch_queue_depth": 1}
    pipeline = Pipeline(batch_size, cfg.threads, device_id, **(queue if single else {"prefetch_queue_depth": AHEAD}))
    with pipeline:
        whole = device_id is not None and not decode_only
        mirrored = cfg.horizontal_flip and whole
        num = 4 if mirrored else 3  # DALI warns about unused outputs
        dtypes = [types.UINT8, types.INT32, types.INT32, types.INT32][:num]
        encoded, start, shape, *flip = fn.external_source(
            source, num_outputs=num, batch=True, batch_info=True, dtype=dtypes, ndim=[1, 1, 1, 0][:num]
        )
        images = _window(encoded, start, shape, decoder)
        if decoder == "cpu" and device_id is not None:
            images = images.gpu()
        if not whole:
            pipeline.set_outputs(images)
            return pipeline
        side = cfg.crop_size
        images = fn.resize(images, resize_x=side, resize_y=side, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(fn.flip(images, horizontal=flip[0]) if flip else images)
    return pipeline


def _window(encoded: Any, start: Any, shape: Any, decoder: str) -> Any:
    """Decode the windows of encoded images."""
    decoding = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
    window = {"start": start, "shape": shape, "axes": [0, 1]}
    if decoder == "mixed":  # decode whole images: region decoding on the GPU crashes in nvImageCodec 0.9 (its issue 55)
        return fn.slice(fn.decoders.image(encoded, device="mixed", **decoding), **window)
    device = "mixed" if decoder == "mixed_roi" else "cpu"
    return fn.decoders.image_slice(encoded, device=device, **window, **decoding)


def one_by_one(inputs: Inputs, first: int) -> Callable[[types.BatchInfo], Inputs]:
    """Return a source that yields the inputs of a batch one image at a time, from position `first`."""

    def source(info: types.BatchInfo) -> Inputs:
        at = min(first + info.iteration, len(inputs[0]) - 1)
        return tuple(part[at : at + 1] for part in inputs)  # type: ignore[return-value]

    return source


def _make_stand_in() -> np.ndarray:
    Image.new("RGB", (SIDE, SIDE)).save(buffer := io.BytesIO(), "JPEG")
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


STAND_IN = _make_stand_in()
