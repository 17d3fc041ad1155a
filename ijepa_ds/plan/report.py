"""A run's plan, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.model.flops import Flops, flops_of
from ijepa_ds.model.work import Work, drawn_tokens
from ijepa_ds.plan.hardware import GB, GIB, Device
from ijepa_ds.plan.host import Code
from ijepa_ds.plan.memory import Memory, memory_of
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.timing import Timing, parts_of, timing_of
from ijepa_ds.plan.traffic import Links, Message, links_of, traffic_of

RESERVE = 0.05  # of the device's memory, for fragmentation and libraries
_BYTES_SAVED = (12, 4)  # per parameter: master weight and moments; per encoder parameter: moving average


@dataclass(frozen=True)
class Plan:
    """Estimates for one run on one kind of machine.

    Attributes:
        work: Shapes of the run.
        spread: Distribution over devices.
        device: The device.
        memory: Bytes of a rank.
        flops: FLOPs of an image.
        messages: Communication of a step.
        links: Bytes sent per link in a step.
        timing: Seconds of a step.
        steps: Optimizer steps of the whole run; None if the number of images is unknown.
        checkpoint_every: Steps between checkpoints.
        decode_rate: Images a CPU core prepares in a second.
        write_gbps: 10^9 bytes a second that one machine writes.
        early: Number and timing of the steps with smaller crops (`data.early_crop_size`); all other attributes describe
            steps at full size.
    """

    work: Work
    spread: Spread
    device: Device
    memory: Memory
    flops: Flops
    messages: list[Message]
    links: Links
    timing: Timing
    steps: int | None
    checkpoint_every: int
    decode_rate: float
    write_gbps: float
    early: tuple[int, Timing] | None = None

    @property
    def expected(self) -> float:
        """Expected seconds of a step."""
        return self.timing.expected

    @property
    def fits(self) -> bool:
        """Whether the peak fits in the device's memory minus the reserve."""
        return self.memory.peak <= (1 - RESERVE) * self.device.memory_gib * GIB

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, over all ranks."""
        return _BYTES_SAVED[0] * self.work.count() + _BYTES_SAVED[1] * self.work.count("encoder")

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds to write one checkpoint."""
        return self.checkpoint_bytes / self.spread.nodes / (self.write_gbps * GB)

    def hours(self) -> tuple[float, float] | None:
        """Return the fast and slow estimates of the whole run's hours, with checkpoints; None if `steps` is None."""
        if self.steps is None:
            return None
        saving = self.checkpoint_seconds * -(-self.steps // self.checkpoint_every)
        early, small = self.early or (0, self.timing)
        fast, slow = (
            (self.steps - early) * full + early * reduced
            for full, reduced in ((self.timing.fast, small.fast), (self.timing.slow, small.slow))
        )
        return (fast + saving) / 3600, (slow + saving) / 3600


def plan_of(
    cfg: Config,
    work: Work,
    spread: Spread,
    device: Device,
    steps: int | None,
    decode_rate: float = 100.0,
    write_gbps: float = 1.0,
    code: Code | None = None,
) -> Plan:
    """Return all estimates for a run; arguments as in `Plan`, and `code` as in `host.host_of`."""
    if not device.asynchronous and cfg.model.compile is None:
        work = replace(work, compiled=False)  # `model.compile: auto` on a CPU
    messages = traffic_of(work, spread)
    early = min(cfg.data.early_steps, steps or 0)
    return Plan(
        work=work,
        spread=spread,
        device=device,
        memory=memory_of(work, spread, cfg.data.prefetch + 1),
        flops=flops_of(work),
        messages=messages,
        links=links_of(messages, spread),
        timing=timing_of(work, spread, device, code),
        steps=steps,
        checkpoint_every=cfg.run.checkpoint_every,
        decode_rate=decode_rate,
        write_gbps=write_gbps,
        early=(early, timing_of(_small(cfg, work), spread, device, code)) if early else None,
    )


def _small(cfg: Config, work: Work) -> Work:
    """Return the shapes of the steps with smaller crops."""
    first = config.at_step(cfg, 0)
    return replace(work, patches=first.grid**2, tokens=drawn_tokens(first))


def to_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values, in bytes, seconds and FLOPs unless the key names another unit."""
    hours = plan.hours()
    return {
        "spread": asdict(plan.spread) | {"world": plan.spread.world, "images_a_step": plan.spread.images},
        "device": asdict(plan.device),
        "parameters": {part: plan.work.count(part) for part in ("encoder", "predictor")},
        "tokens": asdict(plan.work.tokens) | {"patches": plan.work.patches},
        "memory_bytes": asdict(plan.memory) | {"states": plan.memory.states},
        "fits": plan.fits,
        "flops_per_image": asdict(plan.flops) | {"model": plan.flops.model, "executed": plan.flops.executed},
        "messages": [asdict(m) | {"sent": m.sent} for m in plan.messages],
        "sent_bytes_per_step": asdict(plan.links),
        "step_seconds": asdict(plan.timing) | {"host_seconds": plan.timing.host.seconds},
        "steps": plan.steps,
        "early": plan.early and {"steps": plan.early[0], "step_seconds": asdict(plan.early[1])},
        "hours": hours,
        "device_hours": hours and [hour * plan.spread.world for hour in hours],
        "loader": {
            "images_per_second": plan.timing.images_per_second[1],
            "cpu_cores": plan.timing.images_per_second[1] / plan.decode_rate,
        },
        "checkpoint": {"bytes": plan.checkpoint_bytes, "seconds": plan.checkpoint_seconds},
    }


def table(plan: Plan) -> str:
    """Return the plan as text of about forty lines."""
    s, w, t = plan.spread, plan.work, plan.timing
    lines = [
        f"{s.nodes} x {s.gpus} {plan.device.name}, ZeRO-{s.stage}{f', hpZ {s.hpz}' if s.hpz > 1 else ''}"
        f"{', optimizer' * s.offload}{' and weights' * s.offload_weights}{' on the host' * s.offload}; "
        f"{s.images:,} images a step = {s.world} x {s.micro_batch} x "
        f"{s.accumulation} accumulated; {'bfloat16' if w.weight_bytes == 2 else 'float32'}, activation checkpointing "
        f"{'off' if w.checkpointing == 'none' else w.checkpointing}, blocks {'' if w.compiled else 'not '}compiled",
        f"parameters     encoder {w.count('encoder'):,}, predictor {w.count('predictor'):,}",
        f"tokens         {w.patches} patches; context {w.tokens.context:.1f} (at most {w.tokens.most_context}), "
        f"target block {w.tokens.target:.1f} (at most {w.tokens.most_target})",
        "",
        *_memory_lines(plan),
        "",
        *_flops_lines(plan.flops),
        "",
        *_traffic_lines(plan),
        "",
        "time a step, s",
        *(f"  {name:34} {seconds:9.4f}" for name, seconds in parts_of(t)),
        f"  {'sending (what cannot be hidden)':34} {t.sending:9.4f} ({t.exposed:.4f}), {t.latency:.4f} of it latency",
        f"  {'lower bound by the data sheet':34} {t.roofline:9.4f}   MFU {100 * t.mfu[3]:.0f} %",
        f"  {'device; host':34} {t.device:9.4f}; {t.host.seconds:.4f}, {t.host.kernels:,} kernels",
        f"  {'expected':34} {t.expected:9.4f} ({t.fast:.4f} to {t.slow:.4f}), limited by {LIMITS[t.limit]}",
        f"  {'':34} MFU {100 * t.mfu[0]:.0f} % ({100 * t.mfu[2]:.0f} to {100 * t.mfu[1]:.0f} %), "
        f"{t.images_per_second[0]:,.0f} images/s ({t.images_per_second[2]:,.0f} to {t.images_per_second[1]:,.0f})",
        "",
        *_run_lines(plan),
    ]
    return "\n".join(lines)


def _memory_lines(plan: Plan) -> list[str]:
    m = plan.memory
    lines = ["memory a rank, GiB"]
    lines += [f"  {_MEMORY[name]:34} {value / GIB:9.3f}" for name, value in m.parts().items() if value]
    lines.append(
        f"  {'(activations: all / recomputed)':34} {m.activations_whole / GIB:9.3f} / {m.activations_checkpointed / GIB:.3f}"
    )
    if m.host:
        lines.append(f"  {'on the host':34} {m.host / GIB:9.3f}")
    usable = (1 - RESERVE) * plan.device.memory_gib
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines.append(
        f"  {'peak (not all of it at once)':34} {m.peak / GIB:9.3f}   {verdict}: {usable:.1f} of "
        f"{plan.device.memory_gib:.1f} GiB usable; at the {m.when}"
    )
    return lines


LIMITS = {"host": "the host", "products": "matrix products", "memory": "memory bandwidth", "network": "the network"}
_MEMORY = {
    "weights": "weights",
    "target": "target encoder",
    "masters": "float32 master weights",
    "moments": "AdamW's moments",
    "ema": "float32 moving average",
    "gradients": "gradients",
    "buffers": "buckets, copies, gathered weights",
    "activations": "activations",
    "loader": "images decoded ahead",
}


def _flops_lines(f: Flops) -> list[str]:
    return [
        "GFLOP an image (matrix products)",
        f"  {'target encoder':34} {f.target / GB:9.1f}",
        f"  {'context encoder':34} {f.context / GB:9.1f}",
        f"  {'predictor':34} {f.predictor / GB:9.1f}",
        f"  {'together (MFU counts these)':34} {f.model / GB:9.1f}",
        f"  {'executed, with recomputation':34} {f.executed / GB:9.1f}",
    ]


def _traffic_lines(plan: Plan) -> list[str]:
    if not plan.messages:
        return ["communication  none: one rank"]
    lines = ["communication a step, GB"]
    lines += [f"  {m.purpose:34} {m.bytes / GB:9.3f}   {m.calls:,} x {m.kind} over {m.group}" for m in plan.messages]
    lines.append(
        f"  {'sent by a device in its machine':34} {plan.links.within_machine / GB:9.3f}   at {plan.device.link_gbps:g} GB/s"
    )
    lines.append(
        f"  {'sent by a machine to the next':34} {plan.links.network / GB:9.3f}   at "
        f"{plan.device.network_gbps * plan.spread.gpus:g} GB/s"
    )
    return lines


def _run_lines(plan: Plan) -> list[str]:
    rate, hours = plan.timing.images_per_second[1], plan.hours()  # the loader must keep up with the fastest
    lines = [
        f"loader         {rate:,.0f} images/s in all, {rate / plan.spread.world:,.0f} a device: "
        f"{rate / plan.decode_rate / plan.spread.nodes:,.0f} CPU cores a machine at {plan.decode_rate:g} images/s a core",
        f"checkpoint     {plan.checkpoint_bytes / GB:.2f} GB, {plan.checkpoint_seconds:.1f} s at {plan.write_gbps:g} GB/s "
        "a machine",
    ]
    if hours is None:
        return [*lines, "whole run      unknown: optimization.epochs needs the number of images (--images N)"]
    early = "" if plan.early is None else f" ({plan.early[0]:,} with small crops)"
    days, each = [hour / 24 for hour in hours], [hour * plan.spread.world for hour in hours]
    return [
        *lines,
        f"whole run      {plan.steps:,} steps{early}: {days[0]:.2f} to {days[1]:.2f} days, {each[0]:,.0f} to {each[1]:,.0f} "
        "device-hours",
    ]
