"""The image loader on NVIDIA DALI.

On a CPU, DALI's threads decode windows and torch resizes them: torch's antialiased resize of bytes takes a third of
the time of DALI's and is closer to Pillow's. On a GPU, DALI decodes and resizes.

A stateless callback passes order and crops from the plan to DALI, because DALI's own readers tie samples to the
number of shards. DALI cannot skip a bad file: an error ends the whole pipeline, and a new one continues at the same
micro-batch.

Pillow decodes the files that DALI is known to decode differently (`image_header`, `jpeg_scan`), and those at which DALI
fails. DALI gets a small stand-in for each of them, whose pixels are then overwritten.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, types
from torch import Tensor
from torch.nn import functional

from ijepa_ds.config import DataConfig
from ijepa_ds.data.ahead import Content, ReadAhead
from ijepa_ds.data.dali_one import failure
from ijepa_ds.data.dali_pipeline import AHEAD, SIDE, STAND_IN, Inputs, build_pipeline, one_by_one
from ijepa_ds.data.decoder import choose_decoder
from ijepa_ds.data.index_file import BY_PILLOW
from ijepa_ds.data.jpeg_scan import StrayMarkers
from ijepa_ds.data.pillow import decode
from ijepa_ds.data.samples import SamplePlan, Samples
from ijepa_ds.data.vision import read_crop
from ijepa_ds.errors import ContentError, DeviceError

logger = logging.getLogger(__name__)
_ATTEMPTS = 3  # at a micro-batch whose images all decode one by one


class DaliBackend:
    """Micro-batches decoded by DALI."""

    name = "dali"

    def __init__(self, plan: SamplePlan, cfg: DataConfig, device: torch.device, *, decode_only: bool = False) -> None:
        """Prepare to decode the samples of `plan` on `device`.

        Args:
            plan: The samples of every micro-batch.
            cfg: Crop size, flips, threads, decoder.
            device: Where `batch` returns images.
            decode_only: For benchmarks: decode, but return empty batches.
        """
        self._decoder = choose_decoder(cfg.decoder, device)
        self._decode_only = decode_only
        self._plan, self._cfg, self._device = plan, cfg, device
        self._device_id = device.index if device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pipeline: Pipeline | None = None
        self._next = 0
        self._failure: Exception | None = None  # of reading, inside DALI's callback
        self._mirrored: dict[int, np.ndarray] = {}  # flips of the micro-batches that DALI has started
        self._crops: dict[int, dict[int, np.ndarray]] = {}  # their crops by Pillow, position -> uint8 [S, S, 3]
        self._failed: set[int] = set()  # images that Pillow decodes because DALI failed
        self._strays = StrayMarkers(len(plan.index))
        self._pool = ThreadPoolExecutor(cfg.threads, thread_name_prefix="decode")
        self._ahead = ReadAhead(plan, cfg.readers)

    def batch(self, micro: int) -> Tensor:
        """Return a micro-batch, uint8 [B, S, S, 3] on the device, in memory that DALI does not reuse.

        Raises:
            UserError: Too many images are unreadable.
            StorageError: The storage failed for too long.
            DeviceError: DALI fails, and no image is the reason.
        """
        failures = 0
        while True:
            if self._pipeline is None or micro != self._next:
                self._start(micro)
            try:
                return self._run()
            except RuntimeError as error:
                self._pipeline = None  # a DALI pipeline cannot be used after an error
                if self._failure:  # of `_fetch`, which DALI wraps
                    raise self._failure from None
                if not self._reject_unreadable(micro):
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise DeviceError(
                            f"images cannot be decoded, and no image is the reason ({failure(error)}): the GPU is out of "
                            "memory or failing, or its driver does not fit DALI. data.decoder=cpu decodes without it"
                        ) from error

    def close(self) -> None:
        """Delete the pipeline and end the threads."""
        self._pipeline = None
        self._ahead.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, micro: int) -> None:
        """Build the pipeline whose first output is this micro-batch."""
        self._mirrored, self._crops = {}, {}

        def source(info: types.BatchInfo) -> Inputs:
            try:
                samples, contents = self._fetch(micro + info.iteration)
            except Exception as error:
                self._failure = error
                raise
            if self._stream is None:
                self._mirrored[micro + info.iteration] = samples.flips
            crops = {position: part for position, part in enumerate(contents) if part.ndim == 3}
            self._crops[micro + info.iteration] = crops
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
        """Return the pipeline's next output, copied from memory that DALI reuses."""
        assert self._pipeline is not None
        if self._decode_only:
            self._pipeline.run()
            self._crops.pop(self._next)
            images = torch.empty(0)
        elif self._stream is None:
            (windows,) = self._pipeline.run()
            images = self._resized(windows, self._mirrored.pop(self._next))
            _paste(images, self._crops.pop(self._next))
        else:
            with torch.cuda.stream(self._stream):
                (output,) = self._pipeline.run(self._stream)
                images = torch.from_dlpack(output.as_tensor()).clone()
                _paste(images, self._crops.pop(self._next))
            self._stream.synchronize()  # blocks only the loader's thread
        self._next += 1
        return images

    def _resized(self, windows: Any, mirrored: np.ndarray) -> Tensor:
        """Resize DALI's windows into a batch on the CPU: uint8 [B, S, S, 3]."""
        side, count = self._cfg.crop_size, len(mirrored)
        images = torch.empty(count, side, side, 3, dtype=torch.uint8)

        def resize(position: int) -> None:
            window = torch.from_numpy(np.asarray(windows[position])).permute(2, 0, 1)[None]
            crop = functional.interpolate(window, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
            images[position] = crop.flip(1) if mirrored[position] else crop

        list((self._pool.map if self._cfg.threads > 1 else map)(resize, range(count)))
        return images

    def _fetch(self, micro: int) -> tuple[Samples, list[np.ndarray]]:
        """Return the files of a micro-batch, read ahead; unreadable ones are replaced before DALI gets them.

        Returns:
            The samples, and for each the bytes of its file, uint8 [n], or its crop by Pillow, uint8 [S, S, 3].
        """
        while True:
            samples, reads = self._ahead.batch(micro)
            indices = samples.indices.tolist()
            outcomes = list(self._pool.map(partial(self._outcome, samples, reads), range(len(indices))))
            contents = [outcome for outcome in outcomes if not isinstance(outcome, str)]
            if len(contents) == len(indices):
                return samples, contents
            for index, outcome in zip(indices, outcomes, strict=True):
                if isinstance(outcome, str):
                    self._plan.reject(index, outcome)

    def _outcome(self, samples: Samples, reads: list[Future[Content]], position: int) -> np.ndarray | str:
        """The bytes or the crop at a position, or the error text."""
        index = int(samples.indices[position])
        try:
            content = reads[position].result()
            assert isinstance(content, bytes)  # DALI reads plain images only (`loader`)
            kind = self._plan.index.rows([index])["format"][0]
            if index in self._failed or kind & BY_PILLOW or self._strays.found(index, content):
                return self._crop(content, samples, position)
        except ContentError as error:
            return str(error)
        return np.frombuffer(content, dtype=np.uint8)

    def _crop(self, content: bytes, samples: Samples, position: int) -> np.ndarray:
        flip = bool(samples.flips[position])
        cfg = self._cfg
        return read_crop(content, samples.windows[position], flip, cfg.crop_size, cfg.max_pixels, cfg.arrays)

    def _inputs(self, samples: Samples, contents: list[np.ndarray]) -> Inputs:
        windows = samples.windows
        if any(part.ndim == 3 for part in contents):
            by_pillow = np.array([part.ndim == 3 for part in contents])
            windows = np.where(by_pillow[:, None], np.array([0, 0, SIDE, SIDE], dtype=np.int32), windows)
            contents = [STAND_IN if part.ndim == 3 else part for part in contents]
        start, shape = (np.ascontiguousarray(part) for part in np.split(windows, 2, axis=1))
        if self._cfg.horizontal_flip and self._device_id is not None and not self._decode_only:
            return contents, start, shape, samples.flips.astype(np.int32)
        return contents, start, shape

    def _reject_unreadable(self, micro: int) -> bool:
        """Find images at which DALI fails, in this micro-batch or those that it has started; False: none found.

        Pillow decides: it decodes them from now on, or they are unreadable.
        """
        for ahead in range(AHEAD + 1):
            samples, contents = self._fetch(micro + ahead)
            found = self._undecodable(self._inputs(samples, contents))
            if not found:
                continue
            if len(found) == len(contents) and not self._works():
                return False  # out of memory, or a broken driver
            for position, message in found:
                self._decide(int(samples.indices[position]), contents[position].tobytes(), message)
            return True
        return False

    def _decide(self, index: int, content: bytes, message: str) -> None:
        try:
            decode(content, self._cfg.max_pixels, self._cfg.arrays)
        except ContentError as error:
            self._plan.reject(index, str(error))
            return
        self._failed.add(index)
        path = self._plan.reader.display_path(index)
        logger.warning("%r: DALI cannot decode it (%s); Pillow can, and decodes it in this run", path, message)

    def _works(self) -> bool:
        """Whether DALI decodes the stand-in."""
        window = np.array([[0, 0]], dtype=np.int32), np.array([[SIDE, SIDE]], dtype=np.int32)
        mirrored = self._cfg.horizontal_flip and self._device_id is not None and not self._decode_only
        inputs = ([STAND_IN], *window, np.zeros(1, np.int32)) if mirrored else ([STAND_IN], *window)
        return not self._undecodable(inputs)

    def _undecodable(self, inputs: Inputs) -> list[tuple[int, str]]:
        """Decode images one by one; return (position, DALI's message) of those that fail."""
        count = len(inputs[0])
        found: list[tuple[int, str]] = []
        position = 0
        while position < count:
            one = one_by_one(inputs, position)
            pipeline = build_pipeline(one, self._cfg, 1, self._device_id, decoder=self._decoder, single=True)
            pipeline.build()
            try:
                while position < count:
                    pipeline.run()
                    position += 1
            except RuntimeError as error:
                found.append((position, failure(error)))
                position += 1
        return found


def _paste(images: Tensor, crops: dict[int, np.ndarray]) -> None:
    """Overwrite positions of a batch, uint8 [B, S, S, 3], by crops, uint8 [S, S, 3]."""
    for position, crop in crops.items():
        images[position] = torch.from_numpy(crop.copy()).to(images.device)
