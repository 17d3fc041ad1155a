"""How a global batch is cut into micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ijepa_ds.config.schema import Config, ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """`micro_batch * accumulation * world_size` images make one optimizer step."""

    micro_batch: int  # images of one device and pass
    accumulation: int  # passes of each device in one step
    world_size: int  # devices

    @property
    def batch_size(self) -> int:
        """The global batch."""
        return self.micro_batch * self.accumulation * self.world_size

    def position(self, rank: int, micro: int) -> int:
        """Position in the global batch of the first image of a rank's micro-batch; both count from 0."""
        return (micro * self.world_size + rank) * self.micro_batch


def plan_batch(batch_size: int, max_micro_batch: int, world_size: int, group: int | None = None) -> BatchPlan:
    """The largest micro-batch, at most `max_micro_batch`, that divides each device's share of the batch.

    Args:
        batch_size: images of one optimizer step over all devices.
        max_micro_batch: most images of one device and pass.
        world_size: devices.
        group: truncation group of the published sampler, or None. The micro-batches of a batch of several groups divide
            them, so that none crosses a group's border.

    Raises:
        ConfigError: the batch cannot be shared equally; the text names world and batch sizes that work.
    """
    if batch_size % world_size:
        working = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        near = sorted(sorted(working, key=lambda n: abs(n - world_size))[:4])
        below = batch_size - batch_size % world_size
        use = f"{', '.join(map(str, near))} devices, or a batch_size of {f'{below} or ' if below else ''}{below + world_size}"
        text = f"{batch_size} images cannot be shared equally by {world_size} devices; use {use}"
        raise ConfigError([f"optimization.batch_size: {text}"])
    share = batch_size // world_size
    common = share if group is None or batch_size <= group else math.gcd(share, group)
    micro_batch = max(n for n in range(1, min(common, max_micro_batch) + 1) if common % n == 0)
    return BatchPlan(micro_batch, share // micro_batch, world_size)


def capped_by(cfg: Config, world_size: int) -> str:
    """Which key keeps the micro-batch of `plan_of` from being larger, in words."""
    o, plan = cfg.optimization, plan_of(cfg, world_size)
    share = o.batch_size // world_size
    if plan.micro_batch == share:
        return f"optimization.batch_size: a device's whole share of {o.batch_size}"
    if plan.micro_batch < plan_batch(o.batch_size, o.max_micro_batch, world_size).micro_batch:
        return f"masks.truncation_group {cfg.masks.truncation_group}, whose borders no micro-batch may cross"
    exact = "" if plan.micro_batch == o.max_micro_batch else f" (the largest divisor of a device's {share} images up to it)"
    return f"optimization.max_micro_batch {o.max_micro_batch}{exact}"


def plan_of(cfg: Config, world_size: int) -> BatchPlan:
    """`plan_batch` for a configuration."""
    o = cfg.optimization
    group = cfg.masks.truncation_group if cfg.masks.sampler == "published" else None
    return plan_batch(o.batch_size, o.max_micro_batch, world_size, group)
