"""Search for the fastest distribution of a run over given machines, with the reason against each alternative."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ijepa_ds.config import Config
from ijepa_ds.config.deepspeed_json import MOST_OWNERS
from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import GIB, Device
from ijepa_ds.plan.report import Plan, plan_of
from ijepa_ds.plan.spread import Spread

# bucket, second bucket: as in the shipped ds_configs/zero0.json ... zero3.json
_SHIPPED: dict[int, dict[str, Any]] = {
    0: {"bucket": 500_000_000, "double_bucket": False},
    1: {"bucket": 100_000_000, "double_bucket": False},
    2: {"bucket": 100_000_000, "double_bucket": True},
    3: {"bucket": 50_000_000, "double_bucket": False, "persist": 0},
}


@dataclass(frozen=True)
class Candidate:
    """A ZeRO stage with a kind of checkpointing, with or without hpZ, at its best micro-batch.

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
        extras += [] if self.plan.work.checkpointing == "none" else [f"{self.plan.work.checkpointing} recompute"]
        return ", ".join([f"ZeRO-{s.stage}", *extras])


def expected(plan: Plan) -> float:
    """Return the geometric mean of the fast and slow step times in seconds, by which candidates are compared."""
    return math.sqrt(plan.timing.fast * plan.timing.slow)


def search(cfg: Config, work: Work, spread: Spread, device: Device, steps: int | None) -> list[Candidate]:
    """Return all candidates: the proposal first, then by time, then those that do not fit.

    Args:
        cfg: The run; its global batch is kept.
        work: Shapes of the run.
        spread: The machines; its other keys apply to candidates of the same stage.
        device: The device.
        steps: Optimizer steps of the whole run.

    Returns:
        At least one candidate. If the first one does not fit, none does.
    """
    best = []
    for family in _families(spread):
        for checkpointing in ("none", "selective", "full"):
            shapes = replace(work, checkpointing=checkpointing)
            plans = [plan_of(cfg, shapes, option, device, steps) for option in _batches(cfg, family)]
            fitting = [plan for plan in plans if plan.fits]
            best.append(min(fitting, key=_rank) if fitting else min(plans, key=lambda plan: plan.memory.peak))
    best.sort(key=lambda plan: (not plan.fits, expected(plan) if plan.fits else plan.memory.peak))
    winner = min((plan for plan in best if plan.fits), key=_simplicity(best[0]), default=best[0])
    best.sort(key=lambda plan: plan is not winner)
    return [Candidate(plan, "" if plan is winner and plan.fits else _reason(plan, winner)) for plan in best]


def _rank(plan: Plan) -> tuple[int, int]:
    """Sort by time in steps of half a percent, then by larger micro-batch, which launches fewer kernels."""
    return round(200 * math.log(expected(plan))), -plan.spread.micro_batch


def _simplicity(fastest: Plan) -> Callable[[Plan], tuple[bool, bool, int, int]]:
    """Return a sort key that prefers the simplest plan within 1 % of the fastest."""

    def key(plan: Plan) -> tuple[bool, bool, int, int]:
        near = expected(plan) <= 1.01 * expected(fastest)
        return not near, plan.work.checkpointing != "none", plan.spread.hpz, plan.spread.stage

    return key


def _families(spread: Spread) -> Iterator[Spread]:
    for stage, keys in _SHIPPED.items():
        if stage and spread.world == 1:
            continue  # nothing to partition
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
        "recomputation": a.products - b.products,
        "activation traffic": a.elementwise - b.elementwise,
        "optimizer": a.optimizer - b.optimizer,
        "communication": a.sending - b.sending,
    }
    causes = [f"{what} +{seconds:.3f} s" for what, seconds in more.items() if seconds > 0.005 * b.roofline]
    ratio = expected(plan) / expected(winner)
    if ratio < 1.005 and not causes:
        return "equally fast; the proposal is simpler"
    return f"{ratio:.2f} x the time: {', '.join(causes) or 'several small costs'}"


def table(candidates: list[Candidate]) -> str:
    """Return one line per candidate."""
    lines = [f"{'way':34} {'micro x acc':>12} {'GiB':>8} {'expected s':>11}  why not"]
    for candidate in candidates:
        plan = candidate.plan
        batch = f"{plan.spread.micro_batch} x {plan.spread.accumulation}"
        lines.append(
            f"{candidate.name:34} {batch:>12} {plan.memory.peak / GIB:8.1f} {expected(plan):11.3f}  "
            f"{candidate.reason or '<- proposed'}"
        )
    return "\n".join(lines)
