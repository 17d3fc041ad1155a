"""Bytes of compiled blocks, by the compiler's scheduler."""

import pytest
import torch

from benchmarks.block_bytes import of_block
from ijepa_ds.config.sizes import Size


@pytest.mark.slow
def test_bytes_of_a_block() -> None:
    """Products read their inputs and weights once, and write once; the rest reads and writes the residual stream."""
    d, h, tokens = 64, 256, 10_000
    found = of_block(Size(d, 1, 4, h), tokens, trained=False)["forward"]
    elements = tokens * ((d + 3 * d) + (3 * d + d) + (d + d) + (d + h) + (h + d)) + 4 * d * d + 2 * d * h
    assert found["products", "bytes"] == pytest.approx(2 * elements, rel=0.05)
    narrow = of_block(Size(d, 1, 4, h), tokens, trained=False, residual=torch.bfloat16)["forward"]
    assert narrow["products", "bytes"] == found["products", "bytes"]
    assert found["others", "bytes"] - narrow["others", "bytes"] >= 3 * 2 * tokens * d  # read twice and written once at least
    assert 2 * tokens * (d + h) <= narrow["others", "bytes"] < found["others", "bytes"]
