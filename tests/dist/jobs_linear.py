"""Training with DeepSpeed's own collectives of stage 3, and with `ijepa_ds.zero.linear`. Run on every rank of the pool."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from tests.dist import jobs

MOMENTS = ("exp_avg", "exp_avg_sq")


def train_both_ways(steps: int, precision: str, extra: dict[str, Any], **optimization: Any) -> list[dict[str, Any]]:
    """Losses, masters, moments and average of this rank: with DeepSpeed's own functions, then with ours."""
    from deepspeed import comm as dist
    from deepspeed.runtime.zero import stage3
    from deepspeed.utils import groups

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.zero import linear

    initialise_distributed()
    # 97 is divisible by no number of ranks: partitions need padding
    cfg = jobs.tiny_config(precision, model={"mlp_hidden": 97}, **optimization)
    found = []
    for ours in (False, True):
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, made once a process: these ranks have many lives
        with nullcontext() if ours else linear.deepspeeds_own():
            engine, plan = jobs.make_engine(cfg, 3, dist.get_world_size(), extra)
            assert engine.note == ""
            assert (stage3.reduce_scatter_coalesced is linear.reduce_scatter_coalesced) == ours
            losses = jobs.train_steps(engine, cfg, plan, dist.get_rank(), 0, steps)
            moments = [engine.layout.moments(slot) for slot in range(engine.layout.num_slots)]
            state = {}  # by pieces of parameters: the padding between them has no defined values
            for piece in engine.layout.pieces:
                kept = {"master": engine.layout.master(piece.slot)} | {k: moments[piece.slot][k] for k in MOMENTS}
                state |= {(piece.name, k): engine.layout.view(values, piece) for k, values in kept.items()}
            for piece in engine.ema.pieces:
                state[piece.name, "ema"] = engine.ema.layout.view(engine.ema.average[piece.slot], piece)
            target = jobs._gathered_target(engine)
        arrays = {key: tensor.detach().cpu().clone().numpy() for key, tensor in state.items()}
        found.append({"losses": losses, "state": arrays, "target": target})
    return found
