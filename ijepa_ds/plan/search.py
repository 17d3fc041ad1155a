"""Search for the fastest distribution of a run over given machines, with the reason against each alternative."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ijepa_ds.config import Config
from ijepa_ds.config.deepspeed_json import MOST_OWNERS
from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import GIB
from ijepa_ds.plan.report import Plan
from ijepa_ds.plan.spread import Spread

# As in the shipped ds_configs/zero0.json ... zero3.json
_SHIPPED: dict[int, dict[str, Any]] = {
    0: {"bucket": 500_000_000, "double_bucket": False},
    1: {"bucket": 100_000_000, "double_bucket": False, "gather_bucket": 200_000_000},
    2: {"bucket": 100_000_000, "double_bucket": True, "gather_bucket": 200_000_000},
    3: {"bucket": 50_000_000, "double_bucket": False, "persist": 0, "sub_group": 100_000_000},
}


SAME = 1.03  # ratio of step times that the model cannot tell apart: it missed the two measured ones by 5 and 6 %


@dataclass(frozen=True)
class Candidate:
    """A ZeRO stage with a kind of checkpointing, compiled or not, with or without hpZ, at its best micro-batch.

    Attributes:
        plan: Its estimates.
        reason: Why it is not proposed; empty for the proposal.
    """

    plan: Plan
    reason: str

    @property
    def name(self) -> str:
        """Name in the table."""
        s = self.plan.spread
        extras = [f"hpZ {s.hpz}"] if s.hpz > 1 else []
        extras += ["compiled"] if self.plan.work.compiled else ["eager"]
        extras += [] if self.plan.work.checkpointing == "none" else [f"{self.plan.work.checkpointing} recompute"]
        return ", ".join([f"ZeRO-{s.stage}", *extras])


def search(cfg: Config, work: Work, spread: Spread, plan: Callable[[Work, Spread], Plan]) -> list[Candidate]:
    """Return all candidates: the proposal first, then by time, then those that do not fit.

    A candidate that the host limits is not proposed if another one fits that it does not limit: its GPUs wait, and host time
    is the least certain figure.

    Args:
        cfg: The run; its global batch is kept.
        work: Shapes of the run.
        spread: The machines; its other keys apply to candidates of the same stage.
        plan: Makes the plan of a candidate (`report.plan_of` with the other arguments filled in).

    Returns:
        At least one candidate. If the first one does not fit, none does.
    """
    best = []
    for family in _families(spread):
        for checkpointing, compiled in _blocks(work):
            shapes = replace(work, checkpointing=checkpointing, compiled=compiled)
            plans = [plan(shapes, option) for option in _batches(cfg, family)]
            fitting = [one for one in plans if one.fits]
            best.append(min(fitting, key=_rank) if fitting else min(plans, key=lambda one: one.memory.peak))
    best.sort(key=lambda one: (not one.fits, one.expected if one.fits else one.memory.peak))
    fitting = [one for one in best if one.fits]
    free = [one for one in fitting if one.timing.limit != "host"] or fitting
    winner = min(free, key=_simplicity(free[0])) if free else best[0]
    best.sort(key=lambda one: one is not winner)
    return [Candidate(one, "" if one is winner and one.fits else _reason(one, winner)) for one in best]


def _blocks(work: Work) -> Iterator[tuple[str, bool]]:
    """Yield the ways of running blocks: recomputation, and whether they are compiled. Selective recomputation is eager."""
    for checkpointing in ("none", "selective", "full"):
        for compiled in (True, False):
            if not (compiled and checkpointing == "selective"):
                yield checkpointing, compiled


def _rank(plan: Plan) -> tuple[bool, int, int]:
    """Sort host-bound plans last, then by time in steps of half a percent, then by larger micro-batch."""
    return plan.timing.limit == "host", round(200 * math.log(plan.expected)), -plan.spread.micro_batch


def _simplicity(fastest: Plan) -> Callable[[Plan], tuple[bool, bool, int, bool, int]]:
    """Return a sort key that prefers the simplest plan among those as fast as the fastest, within `SAME`."""

    def key(plan: Plan) -> tuple[bool, bool, int, bool, int]:
        near = plan.expected <= SAME * fastest.expected
        return not near, plan.work.checkpointing != "none", plan.spread.hpz, not plan.work.compiled, plan.spread.stage

    return key


def _families(spread: Spread) -> Iterator[Spread]:
    for stage, keys in _SHIPPED.items():
        if stage == 3 and spread.world == 1:
            continue  # nothing to partition; stages 1 and 2 save stage 0's waits for the device
        keys = keys | {"reduction": "shared" if spread.world > MOST_OWNERS else "rooted"}
        same = spread if spread.stage == stage else replace(spread, stage=stage, offload=False, offload_weights=False, **keys)
        yield replace(same, hpz=1)
        if stage == 3 and spread.nodes > 1 and spread.gpus > 1:
            yield replace(same, hpz=spread.gpus)


def _batches(cfg: Config, spread: Spread) -> Iterator[Spread]:
    """Yield every micro-batch that divides a device's share and, for published masks, the truncation group."""
    batch, group = cfg.optimization.batch_size, cfg.masks.truncation_group
    share = batch // spread.world
    common = math.gcd(share, group) if cfg.masks.sampler == "published" and batch > group else share
    for micro in range(1, common + 1):
        if common % micro == 0:
            yield replace(spread, micro_batch=micro, accumulation=share // micro)


def _reason(plan: Plan, winner: Plan) -> str:
    if not plan.fits:
        return (
            f"does not fit: {plan.memory.peak / GIB:.1f} of {plan.device.memory_gib:.1f} GiB with "
            f"{plan.spread.micro_batch} image{'s' if plan.spread.micro_batch > 1 else ''} per pass"
        )
    a, b = plan.timing, winner.timing
    more = {
        "host": a.host.seconds - b.host.seconds if a.limit == "host" else 0.0,
        "recomputation": a.products + a.attention - b.products - b.attention,
        "activation traffic": a.elementwise - b.elementwise,
        "optimizer": a.optimizer - b.optimizer,
        "communication": a.sending - b.sending,
    }
    causes = [f"{what} +{seconds:.3f} s" for what, seconds in more.items() if seconds > 0.005 * b.roofline]
    ratio = plan.expected / winner.expected
    if a.limit == "host" and b.limit != "host" and ratio < 1:
        return f"{ratio:.2f} x the time, but the host limits it ({a.host.seconds:.3f} s; the device {a.device:.3f} s)"
    if ratio <= SAME:
        return f"{ratio:.2f} x the time, as fast as can be told; the proposal is simpler"
    return f"{ratio:.2f} x the time: {', '.join(causes) or 'several small costs'}"


def table(candidates: list[Candidate]) -> str:
    """Return one line per candidate."""
    lines = [f"{'way':42} {'micro x acc':>12} {'GiB':>8} {'expected s':>11} {'limited by':>11}  why not"]
    for candidate in candidates:
        plan = candidate.plan
        batch = f"{plan.spread.micro_batch} x {plan.spread.accumulation}"
        lines.append(
            f"{candidate.name:42} {batch:>12} {plan.memory.peak / GIB:8.1f} {plan.expected:11.3f} {plan.timing.limit:>11}  "
            f"{candidate.reason or '<- proposed'}"
        )
    return "\n".join(lines)
