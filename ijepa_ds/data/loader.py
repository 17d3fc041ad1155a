"""The infinite stream of a rank's micro-batches, decoded ahead on a thread."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.vision import VisionBackend

logger = logging.getLogger(__name__)

_INSTALL = (
    "pip install nvidia-dali-cuda130 (driver 580 or newer) or nvidia-dali-cuda120 (older drivers), not both: "
    "DALI exists for Linux only"
)
_POLL = 0.2  # seconds between looks at whether the other side still lives
_PATIENCE = 10.0  # seconds to wait at closing for a decoder that is busy


class Backend(Protocol):
    """What turns the plan into pixels."""

    name: str

    def batch(self, micro: int) -> Tensor:
        """Return a micro-batch, uint8 [B, S, S, 3], of memory that is not written again."""

    def close(self) -> None:
        """Release threads and memory."""


class ImageBatches(Iterator[Tensor]):
    """One rank's micro-batches in order, without end: uint8 [B, S, S, 3] on the device.

    There is no state to save: started at step s it gives what a run from step 0 gives at step s, and the
    images of a global batch do not depend on how many ranks and micro-batches share it.

    Attributes:
        backend: "dali" or "torchvision".
    """

    def __init__(
        self,
        cfg: DataConfig,
        index: ImageIndex,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        accumulation: int,
        start_step: int,
        device: torch.device | str,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        """Start decoding.

        Args:
            cfg: Crops, loader, threads, prefetch.
            index: The images, the same on every rank.
            seed: The run's seed.
            batch_size: Images in a global batch: world_size * accumulation * micro_batch.
            micro_batch: Images a device and pass.
            rank: This process.
            world_size: Processes.
            accumulation: Micro-batches a step.
            start_step: The first step to give images for.
            device: Where the images are wanted.
            bad: Positions and reasons of images found unreadable before this start.

        Raises:
            ValueError: when the sizes do not multiply, or the loader asked for is not installed.
        """
        share = Share(rank=rank, world_size=world_size, micro_batch=micro_batch, accumulation=accumulation)
        if share.batch_size != batch_size:
            raise ValueError(
                f"a global batch of {batch_size} is not {world_size} ranks x {accumulation} micro-batches x "
                f"{micro_batch} images; change optimization.batch_size or the number of processes"
            )
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._plan = SamplePlan(cfg, index, seed=seed, share=share, bad=bad)
        backend = _choose_backend(cfg)(self._plan, cfg, device)  # type: ignore[call-arg]
        self.backend = backend.name
        self._ready: queue.Queue[Tensor | Exception] = queue.Queue(maxsize=max(1, cfg.prefetch))
        self._failure: Exception | None = None
        stop = threading.Event()
        self._thread = threading.Thread(
            target=_decode,
            args=(backend, start_step * accumulation, self._ready, stop),
            name="images",
            daemon=True,
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, _shut_down, backend, self._thread, stop)
        # Exit hooks run last in, first out: newer than DALI's, this ends the thread while DALI still works.
        atexit.register(self._finalizer)

    @property
    def found(self) -> dict[int, str]:
        """Position -> reason of the images that this rank could not read so far, those decoded ahead included."""
        return dict(self._plan.found)

    @staticmethod
    def decodes_with_dali(cfg: DataConfig) -> bool:
        """Whether a loader of this configuration would take DALI."""
        return _choose_backend(cfg).name == "dali"

    def add_bad(self, bad: Mapping[int, str]) -> None:
        """Learn what other ranks could not read."""
        self._plan.add(bad)

    def __next__(self) -> Tensor:
        """Return the next micro-batch.

        Raises:
            ValueError: when more than data.max_bad images are unreadable, or after `close`.
            RuntimeError: whatever else failed in the decoding thread.
        """
        if not self._finalizer.alive:
            raise ValueError("the image loader is closed")
        if self._failure is None:
            result = self._wait()
            if isinstance(result, Tensor):
                return self._deliver(result)
            self._failure = result
        raise self._failure

    def close(self) -> None:
        """End the threads; what was decoded ahead is dropped. A second call does nothing."""
        self._finalizer()
        atexit.unregister(self._finalizer)

    def _wait(self) -> Tensor | Exception:
        while True:
            try:
                return self._ready.get(timeout=_POLL)
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    return RuntimeError("the image loader's thread ended without a word")

    def _deliver(self, images: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return images
        if images.device.type == "cuda":
            images.record_stream(torch.cuda.current_stream(self._device))  # it was allocated for the loader's stream
            return images
        return images.to(self._device, non_blocking=True)


def _choose_backend(cfg: DataConfig) -> type[Backend]:
    """Take DALI where it is installed, unless told otherwise.

    Raises:
        ValueError: when DALI is asked for and cannot be imported.
    """
    loader = cfg.loader
    if loader == "torchvision":
        if cfg.decoder not in ("auto", "cpu"):
            raise ValueError(f"data.decoder: {cfg.decoder} needs DALI, but data.loader is torchvision; set it to dali")
        return VisionBackend
    if loader not in ("auto", "dali"):
        raise ValueError(f"data.loader: {loader!r} is not known; choose auto, dali or torchvision")
    try:
        from ijepa_ds.data.dali import DaliBackend
    except ImportError as error:
        if loader == "dali" or cfg.decoder in ("mixed", "mixed_roi"):
            raise ValueError(
                f"data.loader is {loader} and data.decoder {cfg.decoder}, but DALI cannot be imported ({error}): {_INSTALL}"
            ) from error
        logger.warning(
            "!!! DALI cannot be imported (%s): images are decoded by Pillow, slower on the CPU and never "
            "on the GPU. %s. data.loader=torchvision silences this. !!!",
            error,
            _INSTALL,
        )
        return VisionBackend
    return DaliBackend


def _decode(backend: Backend, micro: int, ready: queue.Queue[Tensor | Exception], stop: threading.Event) -> None:
    """The thread: one micro-batch after another until told to stop, or until something fails."""
    while not stop.is_set():
        result: Tensor | Exception
        try:
            result = backend.batch(micro)
        except Exception as error:  # whatever it is, it belongs to who waits for the batch
            result = error
        while not stop.is_set():
            try:
                ready.put(result, timeout=_POLL)
                break
            except queue.Full:
                continue
        if isinstance(result, Exception):
            return
        micro += 1


def _shut_down(backend: Backend, thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    thread.join(_PATIENCE)
    if thread.is_alive():
        logger.warning("the image loader is still decoding after %.0f s; it is left behind", _PATIENCE)
        return
    backend.close()
