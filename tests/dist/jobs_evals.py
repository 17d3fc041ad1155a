"""What the ranks of the pool run to test evaluations."""

from __future__ import annotations

from typing import Any


def pooled_features(folder: str, checkpoint: str, batch_size: int, which: str = "untrained") -> dict[str, Any]:
    """Features of a checkpoint's encoder from all ranks together; on rank 0."""
    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.evals.folders import read_pair
    from ijepa_ds.evals.ranks import World
    from ijepa_ds.evals.session import Session
    from ijepa_ds.evals.settings import Settings
    from ijepa_ds.weights import read_encoder

    initialise_distributed()
    encoder, facts = read_encoder(checkpoint, which)
    settings = Settings(size=facts.image_size, mean=facts.mean, std=facts.std, batch_size=batch_size)
    world = World(dist.get_rank(), dist.get_rank(), dist.get_world_size())
    session = Session(encoder, read_pair(f"{folder}/train", f"{folder}/test"), settings, world=world)
    found = {part: session.pooled(part) for part in ("train", "test")}
    return {part: None if features is None else features.numpy() for part, features in found.items()}
