"""Memory of the model state on a rank, measured and by formula."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ijepa_ds.training.engine import Engine

PUBLISHED = 20  # bytes a parameter on every rank: float32 weights, gradients, two moments and target encoder


def live_bytes() -> int:
    """Bytes of all tensors of this process; each storage counts once."""
    gc.collect()
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> None:
        if tensor.device.type != "meta" and not tensor.is_sparse:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()

    for thing in gc.get_objects():
        try:
            if not isinstance(thing, Tensor):
                continue
        except (ReferenceError, RuntimeError):  # a weak proxy to a deleted object
            continue
        for tensor in (thing, getattr(thing, "grad", None) if thing.is_leaf else None, getattr(thing, "ds_tensor", None)):
            if isinstance(tensor, Tensor) and type(tensor).__name__ != "FakeTensor":
                count(tensor)
    return sum(storages.values())


def held_bytes(engine: Engine) -> dict[str, int]:
    """Bytes of the model state of this rank in memory, by part; a shared storage counts in the first part only."""
    model, layout = engine.module, engine.layout
    slots = [slot for slot in range(layout.num_slots) if not layout.in_files(slot)]
    moments = [value for slot in slots for key, value in layout.moments(slot).items() if key != "step"]
    seen: set[int] = set()

    def total(tensors: Iterable[Tensor]) -> int:
        new = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
        new = {pointer: size for pointer, size in new.items() if pointer not in seen}
        seen.update(new)
        return sum(new.values())

    def weights(part: nn.Module) -> Iterator[Tensor]:
        for parameter in part.parameters():
            yield parameter.data if not hasattr(parameter, "ds_tensor") else parameter.ds_tensor.data

    return {
        "weights": total([*weights(model.encoder), *weights(model.predictor)]),
        "target": total(weights(model.target_encoder)),
        "masters": total(layout.master(slot) for slot in slots),
        "moments": total(moments),
        "EMA": total(a for slot, a in enumerate(engine.ema.average) if not engine.ema.layout.in_files(slot)),
    }


def state_bytes(stage: int, world_size: int, encoder: int, predictor: int, width: int) -> int:
    """Bytes of model state on a rank between steps: weights, float32 masters, two moments, EMA, and the target.

    Args:
        stage: of ZeRO.
        world_size: ranks.
        encoder: parameters of the context encoder.
        predictor: parameters of the predictor.
        width: bytes of a weight in a pass: 2 for bfloat16, 4 for float32.
    """
    trained = encoder + predictor
    weights, optimizer = width * (trained + encoder), 8 * trained  # with the target; two moments
    if stage == 3 or width == 2:
        optimizer += 4 * encoder  # the EMA is stored separately from the target
    if stage > 0 or width == 2:
        optimizer += 4 * trained  # masters are stored separately from the weights
    if stage == 0:
        return weights + optimizer
    return (weights // world_size if stage == 3 else weights) + optimizer // world_size


def resident_bytes() -> tuple[int, int]:
    """Resident bytes of this process: now, and the peak since the last reset."""
    text = Path("/proc/self/status").read_text()
    now, most = (int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, most


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory counters of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then includes earlier memory


def largest_block(model: nn.Module) -> int:
    """Parameters of the largest unit that is gathered at once."""
    return max(sum(getattr(p, "ds_numel", p.numel()) for p in m.parameters()) for m in _units(model))


def _units(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if getattr(m, "_z3_leaf", False) or not list(m.children())] or [model]
