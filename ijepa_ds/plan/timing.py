"""Time of a step by roofline: the least that the arithmetic, the memory and the links allow, and what to expect."""

from __future__ import annotations

from dataclasses import dataclass

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.flops import Flops, flops_of
from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import GB, Device
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.traffic import Message, traffic_of

# Matrix products of a large ViT reach this share of the data sheet's rate: the published H/14 run had 19 % in all, CAPI
# and ViT-22B report 55-58 %. An expectation, not a measurement of this code on a GPU.
FAST, SLOW = 0.75, 0.40
_ADAM_BYTES, _EMA_BYTES = 28, 12  # a parameter: AdamW reads w, m, v, g and writes w, m, v; the EMA reads two, writes one


@dataclass(frozen=True)
class Timing:
    """Seconds of a step.

    Attributes:
        products: matrix products at the device's full rate.
        elementwise: norms, GELU, residual sums: bytes at the memory's full rate.
        optimizer: AdamW and EMA, likewise.
        sending: all messages at the links' full rate.
        exposed: of those, what nothing can hide.
        roofline: the least a step can take.
        fast, slow: the range to expect.
        mfu: share of the device's rate that the method's FLOPs make, at `fast`, `slow` and at the roofline.
        images_per_second: of all devices, at `fast` and `slow`.
    """

    products: float
    elementwise: float
    optimizer: float
    sending: float
    exposed: float
    roofline: float
    fast: float
    slow: float
    mfu: tuple[float, float, float]
    images_per_second: tuple[float, float]


def timing_of(work: Work, spread: Spread, device: Device) -> Timing:
    """Seconds of a step of a run on devices like this one."""
    flops, images = flops_of(work), spread.micro_batch * spread.accumulation
    rate, bandwidth = device.flops(work.weight_bytes), device.memory_gbps * GB
    products = images * flops.executed / rate
    elementwise = images * elementwise_bytes(work) / bandwidth
    share = spread.world if spread.stage > 0 else 1
    optimizer = (_ADAM_BYTES * work.count() + _EMA_BYTES * work.count("encoder")) / share / bandwidth
    messages = traffic_of(work, spread)
    sending = {message.purpose: seconds_of(message, spread, device) for message in messages}
    forward, backward = _passes(flops, products + elementwise)
    hidden = {"forward": forward, "backward": backward, "step": 0.0}
    exposed = 0.0
    for when, room in hidden.items():
        spent = sum(sending[m.purpose] for m in messages if m.when == when)
        exposed += max(0.0, spent - room)
    total = sum(sending.values())
    roofline = products + elementwise + optimizer + exposed
    fast = (products + elementwise + optimizer) / FAST + exposed
    slow = (products + elementwise + optimizer) / SLOW + total
    model = images * flops.model / rate
    return Timing(
        products=products,
        elementwise=elementwise,
        optimizer=optimizer,
        sending=total,
        exposed=exposed,
        roofline=roofline,
        fast=fast,
        slow=slow,
        mfu=(model / fast, model / slow, model / roofline),
        images_per_second=(spread.images / fast, spread.images / slow),
    )


def seconds_of(message: Message, spread: Spread, device: Device) -> float:
    """A message at full rate: its bytes around the ring, over the slower of the links it takes."""
    crosses = message.group > spread.gpus
    machine = device.network_gbps * spread.gpus  # all of a machine's ports share what the machine sends
    rate = min(device.link_gbps, machine) if crosses and spread.gpus > 1 else machine if crosses else device.link_gbps
    return message.sent / (rate * GB)


def _passes(flops: Flops, seconds: float) -> tuple[float, float]:
    """Seconds of the forward and of the backward passes."""
    forward = flops.target + (flops.context + flops.predictor) / 3
    return seconds * forward / flops.executed, seconds * (1 - forward / flops.executed)


def elementwise_bytes(work: Work) -> float:
    """Bytes that what is no matrix product reads and writes for one image; a backward pass moves twice the forward's."""
    t, b = work.tokens, work.weight_bytes
    context = work.contexts * t.context * _moved(work.size, b)
    predictor = work.contexts * work.targets * (t.context + t.target) * _moved(work.predictor, b)
    target = work.patches * _moved(work.size, b)
    rounds = 3 if work.checkpointing == "none" else 4
    return target + rounds * (context + predictor)


def _moved(size: Size, b: int) -> float:
    """Bytes a token in all blocks' forward pass: two norms, two residual sums, GELU."""
    norms, sums, gelu = 2 * (4 + b) * size.width, 2 * (8 + b) * size.width, 2 * b * size.mlp_hidden
    return size.depth * float(norms + sums + gelu)
