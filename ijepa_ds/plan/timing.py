"""Time of a step: what the device, its links and its host need; the larger of host and device time rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.flops import Flops, flops_of
from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import GB, Device
from ijepa_ds.plan.host import Code, Host, host_of
from ijepa_ds.plan.latency import latency_of
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.traffic import Message, traffic_of

_ADAM, _EMA = 28, 12  # bytes per parameter: AdamW reads w, m, v, g and writes w, m, v; the EMA reads two, writes one


@dataclass(frozen=True)
class Timing:
    """Seconds of a step.

    Attributes:
        products: Matrix products outside attention, at the rate that products reach.
        attention: Attention's products, at the rate that its kernels reach.
        elementwise: Norms, GELU and residual sums, at the bandwidth that they reach.
        optimizer: Gradients, AdamW and EMA at the same bandwidth.
        sending: All messages, bytes and latencies.
        latency: The part of `sending` that does not depend on bytes.
        exposed: The part of `sending` that computation cannot hide.
        host: The host's work.
        device: Computation, and messages half way between hidden as far as possible and not at all.
        roofline: Lower bound: computation at the data sheet's rates, and `exposed`.
        expected: The larger of host and device time; on a CPU their sum.
        fast, slow: Range around `expected`, with messages hidden as far as possible or not at all.
        limit: What takes longest: "host", "products", "memory" or "network".
        mfu: Model FLOPs over the data sheet's peak: at `expected`, `fast`, `slow` and at the roofline.
        images_per_second: Over all devices, at `expected`, `fast` and `slow`.
    """

    products: float
    attention: float
    elementwise: float
    optimizer: float
    sending: float
    latency: float
    exposed: float
    host: Host
    device: float
    roofline: float
    expected: float
    fast: float
    slow: float
    limit: str
    mfu: tuple[float, float, float, float]
    images_per_second: tuple[float, float, float]


def timing_of(work: Work, spread: Spread, device: Device, code: Code | None = None) -> Timing:
    """Return the estimated times of a step; `code` as in `host_of`."""
    flops, images = flops_of(work), spread.micro_batch * spread.accumulation
    rate, bandwidth = device.flops(work.weight_bytes), device.memory_gbps * GB * device.memory_share
    products = images * (flops.executed - flops.attention) / (rate * device.products_share)
    attention = images * flops.attention / (rate * device.attention_share)
    elementwise = images * elementwise_bytes(work) / bandwidth
    optimizer = optimizer_bytes(work, spread) / bandwidth
    compute = products + attention + elementwise + optimizer
    messages = traffic_of(work, spread)
    sending = {message.purpose: seconds_of(message, spread, device) for message in messages}
    forward, backward = _passes(flops, products + attention + elementwise)
    hidden = {"forward": forward, "backward": backward, "step": 0.0}
    exposed = 0.0
    for when, hideable in hidden.items():
        spent = sum(sending[m.purpose] for m in messages if m.when == when)
        exposed += max(0.0, spent - hideable)
    total = sum(sending.values())
    host = host_of(work, spread, device, messages, code)
    peak = images * flops.executed / rate + (elementwise + optimizer) * device.memory_share
    low, high = device.margin
    fast, middle, slow = (_step(host, compute + network, device) for network in (exposed, (exposed + total) / 2, total))
    fast, expected, slow = low * fast, (low * high) ** 0.5 * middle, high * slow
    roofline = peak + exposed
    model = images * flops.model / rate
    return Timing(
        products=products,
        attention=attention,
        elementwise=elementwise,
        optimizer=optimizer,
        sending=total,
        latency=sum(message.calls * latency_of(message.kind, message.group, spread, device) for message in messages),
        exposed=exposed,
        host=host,
        device=compute + (exposed + total) / 2,
        roofline=roofline,
        expected=expected,
        fast=fast,
        slow=slow,
        limit=_limit(host, products + attention, elementwise + optimizer, (exposed + total) / 2),
        mfu=(model / expected, model / fast, model / slow, model / roofline),
        images_per_second=(spread.images / expected, spread.images / fast, spread.images / slow),
    )


def _step(host: Host, device_seconds: float, device: Device) -> float:
    """Return the seconds of a step: a host runs ahead of its GPU; a CPU does both in turn."""
    return max(host.seconds, device_seconds) if device.asynchronous else host.seconds + device_seconds


def _limit(host: Host, products: float, memory: float, network: float) -> str:
    if host.seconds > products + memory + network:
        return "host"
    parts = {"products": products, "memory": memory, "network": network}
    return max(parts, key=lambda name: parts[name])


def seconds_of(message: Message, spread: Spread, device: Device) -> float:
    """Return the seconds of a message: its bytes over the slowest link's bandwidth, and the latency of its collectives."""
    crosses = message.group > spread.gpus
    machine = device.network_gbps * spread.gpus  # all ports of a machine together
    rate = min(device.link_gbps, machine) if crosses and spread.gpus > 1 else machine if crosses else device.link_gbps
    return message.sent / (rate * GB) + message.calls * latency_of(message.kind, message.group, spread, device)


def _passes(flops: Flops, seconds: float) -> tuple[float, float]:
    """Return the seconds of the forward and of the backward passes."""
    forward = flops.target + (flops.context + flops.predictor) / 3
    return seconds * forward / flops.executed, seconds * (1 - forward / flops.executed)


def optimizer_bytes(work: Work, spread: Spread) -> float:
    """Return the bytes that gradients, AdamW and EMA move on a rank in one step.

    A gradient is joined to those of its block (2b), copied into a bucket and divided (4b); the rank's share is copied out in
    float32, measured for the norm, and applied; the new weights and the target are rounded to b bytes.
    """
    every, encoder, b = work.count(), work.count("encoder"), work.weight_bytes
    share = spread.world if spread.stage > 0 else 1
    once = (b + 4 + 4 + _ADAM + 4 + b) * every + (_EMA + 4 + b) * encoder
    return 6 * b * every * spread.accumulation + once / share


def elementwise_bytes(work: Work) -> float:
    """Return the bytes that elementwise operations read and write for one image.

    A backward pass moves twice the bytes of a forward pass.
    """
    t = work.tokens
    context = work.contexts * t.context * _moved(work.size, work)
    predictor = work.contexts * work.targets * (t.context + t.target) * _moved(work.predictor, work)
    target = work.patches * _moved(work.target_size, work)
    rounds = 3 if work.checkpointing == "none" else 4
    return target + rounds * (context + predictor)


def _moved(size: Size, work: Work) -> float:
    """Return the bytes per token in the forward pass of all blocks: two norms, two residual sums, GELU or a gate.

    Eager: a norm reads and writes float32, and a cast follows; a sum reads the stream (r) and a branch (b), and writes the
    stream. Compiled: a sum also computes the norm after it. A gate (`swiglu`) reads two halves and writes their product, and
    eager also the activation in between.
    """
    b, r, d = work.weight_bytes, work.residual_bytes, size.width
    gelu = ((3 if work.compiled else 5) if size.swiglu else 2) * b * size.mlp_hidden
    if work.compiled:
        return size.depth * float(4 * (r + b) * d + gelu)
    cast = 8 if b == 2 else 0
    return size.depth * float(2 * (4 + b + cast) * d + 2 * (8 + b) * d + gelu)


def parts_of(timing: Timing) -> Iterator[tuple[str, float]]:
    """Yield the parts of the device's and the host's time, for tables."""
    host = timing.host
    yield "matrix products", timing.products
    yield "attention", timing.attention
    yield "norms, GELU, sums: memory", timing.elementwise
    yield "gradients, AdamW, EMA: memory", timing.optimizer
    yield "host: operations", host.operations
    if host.gradients:
        yield "host: DeepSpeed's gradient hooks", host.gradients
    if host.gathers:
        yield "host: ZeRO-3's module hooks", host.gathers
    if host.collectives:
        yield "host: collectives", host.collectives
    if host.removed:
        yield "host: of that revision only", host.removed
