"""Training with DeepSpeed's own collectives, and with those of `ijepa_ds.zero`. Run on every rank of the pool."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from tests.dist import loop


def train_both_ways(place: str, folder: str, stage: int = 3, **settings: Any) -> list[dict[str, Any]]:
    """Losses, target and checkpoint of a run: with DeepSpeed's own functions, then with ours."""
    from deepspeed.runtime.zero import stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import groups

    from ijepa_ds.zero import linear, owners

    found = []
    for name in ("own", "ours"):
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, made once a process: these ranks have many lives
        with nullcontext() if name == "ours" else linear.deepspeeds_own():
            # 97 is divisible by no number of ranks: partitions need padding
            result = loop.train(place, f"{folder}/{name}", stage=stage, until=20, model={"mlp_hidden": 97}, **settings)
            assert (stage3.reduce_scatter_coalesced is linear.reduce_scatter_coalesced) == (name == "ours")
            average = DeepSpeedZeroOptimizer.average_tensor
            assert (average is owners.average_tensor) == (name == "ours")
        assert result["note"] == ""
        found.append({key: result[key] for key in ("losses", "target", "folder")})
    return found
