"""The loader on NVIDIA DALI: windows decoded in C++ threads and resized by torch, or everything on the GPU.

On the CPU, torch's antialiased resize of bytes takes a third of the time of DALI's, and is closer to Pillow's.

Order and crops come from the plan through a stateless callback, not from DALI's readers: theirs tie the
samples to the number of shards. DALI cannot skip a bad file: a failure costs the whole pipeline, which is
built anew at the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.nn import functional

from ijepa_ds.config import DataConfig
from ijepa_ds.data.decoder import choose_decoder
from ijepa_ds.data.headers import READ_ERRORS
from ijepa_ds.data.samples import SamplePlan, Samples
from ijepa_ds.data.vision import complaint, reason_of

_AHEAD = 2  # micro-batches in DALI's own queue: the callback is that far ahead of the output
_READERS = 4  # threads that read files: they wait for the file system most of the time
_ATTEMPTS = 3  # at a micro-batch in which every image can be decoded by itself

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
    """Define the pipeline: encoded image -> window, uint8 [h, w, 3]; on a GPU -> mirrored and resized, [B, S, S, 3].

    The pixels are torchvision's on Pillow: no EXIF rotation, smooth chroma upsampling, antialiased bilinear.

    Args:
        source: Called with the iteration.
        cfg: Crop size, flips, threads.
        batch_size: Images a micro-batch.
        device_id: The GPU to resize on, and to decode on unless `decoder` is "cpu"; None: the CPU.
        decoder: "cpu", "mixed" (whole images, cut out afterwards) or "mixed_roi" (windows only); by default mixed or cpu.
        single: One iteration at a time, nothing ahead, so that a failure is that of the iteration asked for.
        decode_only: Stop after the window on a GPU, too.
    """
    decoder = decoder or ("cpu" if device_id is None else "mixed")
    queue = {"exec_pipelined": False, "exec_async": False, "exec_dynamic": False, "prefetch_queue_depth": 1}
    pipeline = Pipeline(batch_size, cfg.threads, device_id, **(queue if single else {"prefetch_queue_depth": _AHEAD}))
    with pipeline:
        whole = device_id is not None and not decode_only
        mirrored = cfg.horizontal_flip and whole
        num = 4 if mirrored else 3  # DALI warns of an output that nothing uses
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
    """Decode what is in the window."""
    decoding = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
    window = {"start": start, "shape": shape, "axes": [0, 1]}
    if decoder == "mixed":  # whole, then cut: decoding a region on the GPU crashes in nvImageCodec 0.9 (its issue 55)
        return fn.slice(fn.decoders.image(encoded, device="mixed", **decoding), **window)
    device = "mixed" if decoder == "mixed_roi" else "cpu"
    return fn.decoders.image_slice(encoded, device=device, **window, **decoding)


class DaliBackend:
    """Micro-batches by DALI."""

    name = "dali"

    def __init__(self, plan: SamplePlan, cfg: DataConfig, device: torch.device, *, decode_only: bool = False) -> None:
        """Decode what `plan` says on `device`; with `decode_only` `batch` returns nothing of use, for a benchmark."""
        self._decoder = choose_decoder(cfg.decoder, device)
        self._decode_only = decode_only
        self._plan, self._cfg, self._device = plan, cfg, device
        self._device_id = device.index if device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pipeline: Pipeline | None = None
        self._next = 0
        self._mirrored: dict[int, np.ndarray] = {}  # flips of the micro-batches that DALI began
        self._pool = ThreadPoolExecutor(max(_READERS, cfg.threads), thread_name_prefix="read")

    def batch(self, micro: int) -> Tensor:
        """Return a micro-batch, uint8 [B, S, S, 3] on the device, complete and not reused by DALI.

        Raises:
            ValueError: when too many images are unreadable.
            RuntimeError: when DALI fails for another reason.
        """
        failures = 0
        while True:
            if self._pipeline is None or micro != self._next:
                self._start(micro)
            try:
                return self._run()
            except RuntimeError:
                self._pipeline = None  # DALI says that a pipeline is dead after an error
                if not self._reject_unreadable(micro):
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise

    def close(self) -> None:
        """Drop the pipeline and its threads."""
        self._pipeline = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, micro: int) -> None:
        """Build the pipeline whose first output is this micro-batch."""
        self._mirrored = {}

        def source(info: types.BatchInfo) -> Inputs:
            samples, contents = self._fetch(micro + info.iteration)
            if self._stream is None:
                self._mirrored[micro + info.iteration] = samples.flips
            return self._inputs(samples, contents)

        self._pipeline = build_pipeline(
            source,
            self._cfg,
            self._plan.share.micro_batch,
            self._device_id,
            decoder=self._decoder,
            decode_only=self._decode_only,
        )
        self._pipeline.build()
        self._next = micro

    def _run(self) -> Tensor:
        """Take the pipeline's next output, out of memory to which DALI writes a later batch."""
        assert self._pipeline is not None
        if self._decode_only:
            self._pipeline.run()
            images = torch.empty(0)
        elif self._stream is None:
            (windows,) = self._pipeline.run()
            images = self._resized(windows, self._mirrored.pop(self._next))
        else:
            with torch.cuda.stream(self._stream):
                (output,) = self._pipeline.run(self._stream)
                images = torch.from_dlpack(output.as_tensor()).clone()
            self._stream.synchronize()  # only the loader's thread waits
        self._next += 1
        return images

    def _resized(self, windows: Any, mirrored: np.ndarray) -> Tensor:
        """Windows as DALI holds them, resized into a batch: uint8 [B, S, S, 3]."""
        side, count = self._cfg.crop_size, len(mirrored)
        images = torch.empty(count, side, side, 3, dtype=torch.uint8)

        def resize(position: int) -> None:
            window = torch.from_numpy(np.asarray(windows[position])).permute(2, 0, 1)[None]
            crop = functional.interpolate(window, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
            images[position] = crop.flip(1) if mirrored[position] else crop

        list((self._pool.map if self._cfg.threads > 1 else map)(resize, range(count)))
        return images

    def _fetch(self, micro: int) -> tuple[Samples, list[np.ndarray]]:
        """Read a micro-batch's images; what cannot be read is replaced before DALI sees it."""
        while True:
            samples = self._plan.samples(micro)
            indices = samples.indices.tolist()
            some = [indices[first::_READERS] for first in range(min(_READERS, len(indices)))]
            outcomes: list[np.ndarray | str] = [""] * len(indices)
            for first, read in enumerate(self._pool.map(self._read, some)):
                outcomes[first::_READERS] = read
            contents = [outcome for outcome in outcomes if not isinstance(outcome, str)]
            if len(contents) == len(indices):
                return samples, contents
            for index, outcome in zip(indices, outcomes, strict=True):
                if isinstance(outcome, str):
                    self._plan.reject(index, outcome)

    def _read(self, indices: list[int]) -> list[np.ndarray | str]:
        """The bytes of images, or why there are none."""
        outcomes: list[np.ndarray | str] = []
        for index in indices:
            try:
                outcomes.append(np.frombuffer(self._plan.reader.read(index), dtype=np.uint8))
            except READ_ERRORS as error:
                outcomes.append(reason_of(error))
        return outcomes

    def _inputs(self, samples: Samples, contents: list[np.ndarray]) -> Inputs:
        start, shape = (np.ascontiguousarray(part) for part in np.split(samples.windows, 2, axis=1))
        if self._cfg.horizontal_flip and self._device_id is not None and not self._decode_only:
            return contents, start, shape, samples.flips.astype(np.int32)
        return contents, start, shape

    def _reject_unreadable(self, micro: int) -> bool:
        """Find and reject what cannot be decoded, here or in what DALI began next; False: nothing found."""
        for ahead in range(_AHEAD + 1):
            samples, contents = self._fetch(micro + ahead)
            found = self._undecodable(self._inputs(samples, contents))
            said = [complaint(contents[position].tobytes()) for position, _ in found]
            if len(found) == len(contents) > 1 and said[0] is None:
                return False  # not the images: out of memory, a broken driver
            for (position, message), words in zip(found, said, strict=True):
                self._plan.reject(int(samples.indices[position]), words or message)
            if found:
                return True
        return False

    def _undecodable(self, inputs: Inputs) -> list[tuple[int, str]]:
        """Decode images one by one; (position, DALI's message) of those that fail."""
        count = len(inputs[0])
        found: list[tuple[int, str]] = []
        position = 0
        while position < count:
            one = _one_by_one(inputs, position)
            pipeline = build_pipeline(one, self._cfg, 1, self._device_id, decoder=self._decoder, single=True)
            pipeline.build()
            try:
                while position < count:
                    pipeline.run()
                    position += 1
            except RuntimeError as error:
                found.append((position, _last_line(error)))
                position += 1
        return found


def _one_by_one(inputs: Inputs, first: int) -> Callable[[types.BatchInfo], Inputs]:
    """Make a source of batches of one out of a batch's inputs, from position `first` on."""

    def source(info: types.BatchInfo) -> Inputs:
        at = min(first + info.iteration, len(inputs[0]) - 1)
        return tuple(part[at : at + 1] for part in inputs)  # type: ignore[return-value]

    return source


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"DALI: {lines[-1]}" if lines else "DALI: unknown failure"
