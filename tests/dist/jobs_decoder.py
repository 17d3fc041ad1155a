"""What the ranks of the pool run to test the decoder's training under ZeRO."""

from __future__ import annotations


def train(arguments: list[str]) -> int:
    """`ijepa_ds.train_decoder` as far as its process group, which the pool keeps."""
    from ijepa_ds import train_decoder

    train_decoder.train(arguments)
    return 0
