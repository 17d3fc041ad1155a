"""Roofline model of a step: the lower bound from arithmetic, memory and links, and an expected range."""

from __future__ import annotations

from dataclasses import dataclass

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.flops import Flops, flops_of
from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import GB, Device
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.traffic import Message, traffic_of

# Assumed share of the data sheet's rate that a large ViT reaches. The published H/14 run reached 19 % overall, CAPI and
# ViT-22B report 55-58 %. Not measured with this code.
FAST, SLOW = 0.75, 0.40
_ADAM_BYTES, _EMA_BYTES = 28, 12  # per parameter: AdamW reads w, m, v, g and writes w, m, v; the EMA reads two, writes one


@dataclass(frozen=True)
class Timing:
    """Seconds of a step.

    Attributes:
        products: Matrix products at the device's peak rate.
        elementwise: Norms, GELU and residual sums at the memory's peak bandwidth.
        optimizer: AdamW and EMA at the memory's peak bandwidth.
        sending: All messages at the links' peak bandwidth.
        exposed: The part of `sending` that computation cannot hide.
        roofline: Lower bound of the step time.
        fast, slow: Expected range of the step time.
        mfu: Model FLOPs utilisation at `fast`, at `slow` and at the roofline.
        images_per_second: Over all devices, at `fast` and `slow`.
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
    """Return the estimated times of a step."""
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
    for when, hideable in hidden.items():
        spent = sum(sending[m.purpose] for m in messages if m.when == when)
        exposed += max(0.0, spent - hideable)
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
    """Return the seconds of a message: its bytes around the ring over the bandwidth of the slowest link."""
    crosses = message.group > spread.gpus
    machine = device.network_gbps * spread.gpus  # all ports of a machine together
    rate = min(device.link_gbps, machine) if crosses and spread.gpus > 1 else machine if crosses else device.link_gbps
    return message.sent / (rate * GB)


def _passes(flops: Flops, seconds: float) -> tuple[float, float]:
    """Return the seconds of the forward and of the backward passes."""
    forward = flops.target + (flops.context + flops.predictor) / 3
    return seconds * forward / flops.executed, seconds * (1 - forward / flops.executed)


def elementwise_bytes(work: Work) -> float:
    """Return the bytes that elementwise operations read and write for one image.

    A backward pass moves twice the bytes of a forward pass.
    """
    t, b = work.tokens, work.weight_bytes
    context = work.contexts * t.context * _moved(work.size, b)
    predictor = work.contexts * work.targets * (t.context + t.target) * _moved(work.predictor, b)
    target = work.patches * _moved(work.size, b)
    rounds = 3 if work.checkpointing == "none" else 4
    return target + rounds * (context + predictor)


def _moved(size: Size, b: int) -> float:
    """Return the bytes per token in the forward pass of all blocks: two norms, two residual sums, GELU."""
    norms, sums, gelu = 2 * (4 + b) * size.width, 2 * (8 + b) * size.width, 2 * b * size.mlp_hidden
    return size.depth * float(norms + sums + gelu)
