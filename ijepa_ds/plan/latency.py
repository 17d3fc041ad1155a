"""Latency of a collective: what it takes beside its bytes. NCCL's own model, with the constants of its source.

NCCL chooses algorithms by these formulas (`src/graph/tuning.cc`, `ncclTopoTuneModel`; Hu et al. 2025, arXiv 2507.04786,
describe the algorithms). A ring of n ranks takes n - 1 hops for an all-gather or a reduce-scatter and twice as many for an
all-reduce; an all-reduce may take a double binary tree between machines instead. A reduction to one rank passes a chain of
n hops. Constants are those of NCCL's protocol for large messages ("Simple").
"""

from __future__ import annotations

import math

from ijepa_ds.plan.hardware import Device
from ijepa_ds.plan.spread import Spread

START = 8.4e-6  # seconds: start of a ring
# Seconds a tree takes longer for a hop than a ring: it forwards chunks of 256 kB. NVLink: 28 - 3.4 us, network: 50 - 9.6 us.
_TREE_LINK, _TREE_NETWORK = 24.6e-6, 40.4e-6


def latency_of(kind: str, group: int, spread: Spread, device: Device) -> float:
    """Return the seconds of one collective without its bytes.

    Args:
        kind: all_reduce, all_gather, reduce_scatter, reduce or all_to_all.
        group: Number of ranks.
        spread: The machines.
        device: Latencies of its links.
    """
    if group == 1:
        return 0.0
    machines = math.ceil(group / spread.gpus)
    link, network = 1e-6 * device.link_us, 1e-6 * device.network_us
    if kind == "reduce":
        between = machines if machines > 1 else 0
        return START + (group - between) * link + between * network
    ring = (group - machines) * link + (machines - 1) * network
    if kind != "all_reduce":  # an all-to-all sends to every rank directly; counted like a ring, an upper bound
        return START + ring
    per_machine = min(group, spread.gpus)
    tree = (per_machine - 1) * (link + _TREE_LINK) + math.log2(machines) * (network + _TREE_NETWORK)
    return START + 2 * min(ring, tree)
