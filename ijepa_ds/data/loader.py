"""The infinite stream of a rank's micro-batches, prefetched on a thread."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.values import Values
from ijepa_ds.data.vision import VisionBackend
from ijepa_ds.errors import UserError
from ijepa_ds.storage import Storage

logger = logging.getLogger(__name__)

_INSTALL = (
    "pip install nvidia-dali-cuda130 (driver 580 or newer) or nvidia-dali-cuda120 (older drivers), not both: "
    "DALI exists for Linux only"
)
_POLL = 0.2  # seconds between checks whether the other thread is alive
_LATE = 5.0  # seconds after which a read is worth a word
_CLOSE_TIMEOUT = 10.0  # seconds to wait for a busy decoder


class Backend(Protocol):
    """A decoder of the planned samples."""

    name: str

    def batch(self, micro: int) -> Tensor:
        """Return a micro-batch, uint8 [B, S, S, 3], in memory that the backend does not reuse."""

    def close(self) -> None:
        """Release threads and memory."""


class ImageBatches(Iterator[Tensor]):
    """An endless iterator over one rank's micro-batches on the device.

    A micro-batch is uint8 [B, S, S, 3], or float32 [B, S, S, C] in 0 .. 1 of images that are not RGB of 8 bits (`values`).

    It has no state to save: an iterator started at step s yields the batches that a run from step 0 gets at step s.
    The images of a global batch do not depend on the number of ranks and micro-batches.

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
        on_storage_wait: Callable[[], None] = lambda: None,
        on_late: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Start decoding.

        Args:
            cfg: Crops, loader, threads, prefetch.
            index: The images; the same index on every rank.
            seed: The run's seed.
            batch_size: Images in a global batch: world_size * accumulation * micro_batch.
            micro_batch: Images per device and forward pass.
            rank: Rank of this process.
            world_size: Number of processes.
            accumulation: Micro-batches per step.
            start_step: First step.
            device: Device of the batches.
            bad: Position -> reason of images already known to be unreadable.
            on_storage_wait: Called repeatedly while `__next__` waits for storage that fails.
            on_late: Called repeatedly, with words, while `__next__` waits and a read has not returned for seconds.

        Raises:
            UserError: The sizes are inconsistent, or the configured loader is not installed.
        """
        share = Share(rank=rank, world_size=world_size, micro_batch=micro_batch, accumulation=accumulation)
        if share.batch_size != batch_size:
            raise UserError(
                f"a global batch of {batch_size} is not {world_size} ranks x {accumulation} micro-batches x "
                f"{micro_batch} images; change optimization.batch_size or the number of processes"
            )
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device, self._on_storage_wait, self._on_late = device, on_storage_wait, on_late
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
        self._finalizer = weakref.finalize(self, _shut_down, backend, self._thread, stop, self._plan.reader.storage)
        # Exit hooks run last in, first out: registered after DALI's, this one ends the thread before DALI shuts down.
        atexit.register(self._finalizer)

    @property
    def found(self) -> dict[int, str]:
        """Images that this rank found unreadable, including prefetched ones: position -> reason."""
        return dict(self._plan.found)

    @staticmethod
    def decodes_with_dali(cfg: DataConfig) -> bool:
        """Return whether a loader of this configuration uses DALI."""
        return _choose_backend(cfg).name == "dali"

    def add_bad(self, bad: Mapping[int, str]) -> None:
        """Mark images that other ranks found unreadable: position -> reason."""
        self._plan.add(bad)

    def __next__(self) -> Tensor:
        """Return the next micro-batch.

        Raises:
            UserError: More than data.max_bad images are unreadable.
            StorageError: The storage failed for longer than data.storage_timeout.
            DeviceError: The GPU failed.
            RuntimeError: The decoding thread failed for another reason, or the loader is closed.
        """
        if not self._finalizer.alive:
            raise RuntimeError("the image loader is closed")
        if self._failure is None:
            result = self._wait()
            if isinstance(result, Tensor):
                return self._deliver(result)
            self._failure = result
        raise self._failure

    def close(self) -> None:
        """End the threads and discard prefetched batches; further calls do nothing."""
        self._finalizer()
        atexit.unregister(self._finalizer)

    def _wait(self) -> Tensor | Exception:
        while True:
            try:
                return self._ready.get(timeout=_POLL)
            except queue.Empty:
                storage = self._plan.reader.storage
                if storage.waiting:
                    self._on_storage_wait()
                elif (late := storage.slowest())[0] > _LATE:
                    self._on_late(f"a read of {late[1]} has not returned for {late[0]:.0f} s")
                if not self._thread.is_alive() and self._ready.empty():
                    return RuntimeError("the image loader's thread ended without an error")

    def _deliver(self, images: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return images
        if images.device.type == "cuda":
            images.record_stream(torch.cuda.current_stream(self._device))  # allocated on the loader's stream
            return images
        return images.to(self._device, non_blocking=True)


def _choose_backend(cfg: DataConfig) -> type[Backend]:
    """Return the configured backend; `auto` selects DALI if it is installed.

    Raises:
        ValueError: The configuration requires DALI, which cannot be imported.
    """
    loader = cfg.loader
    if loader == "torchvision" or not Values.of(cfg).plain:
        if cfg.decoder not in ("auto", "cpu"):
            raise UserError(f"data.decoder: {cfg.decoder} needs DALI, but data.loader is torchvision; set it to dali")
        return VisionBackend
    if loader not in ("auto", "dali"):
        raise UserError(f"data.loader: {loader!r} is not known; choose auto, dali or torchvision")
    try:
        from ijepa_ds.data.dali import DaliBackend
    except ImportError as error:
        if loader == "dali" or cfg.decoder in ("mixed", "mixed_roi"):
            raise UserError(
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
    """Run in the thread: decode one micro-batch after another until `stop` is set or an error occurs."""
    while not stop.is_set():
        result: Tensor | Exception
        try:
            result = backend.batch(micro)
        except Exception as error:  # `__next__` raises it in the training thread
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


def _shut_down(backend: Backend, thread: threading.Thread, stop: threading.Event, storage: Storage) -> None:
    stop.set()
    storage.close()
    thread.join(_CLOSE_TIMEOUT)
    if thread.is_alive():
        logger.warning("the image loader is still decoding after %.0f s; its thread keeps running", _CLOSE_TIMEOUT)
        return
    backend.close()
