"""ijepa_ds: a DeepSpeed scale-out toolkit for pretraining image joint-embedding predictive models (I-JEPA)."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_encoder` on first access, so that importing the package stays cheap."""
    if name == "load_encoder":
        from ijepa_ds.weights import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
