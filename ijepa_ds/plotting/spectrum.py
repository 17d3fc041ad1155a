"""Spectra of features: the share of variance per principal direction, one curve per encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ijepa_ds.plotting.style import INK, MUTED, TRAINED, UNTRAINED, plain_axes, save

_FLOOR = 1e-9  # smaller shares are drawn at this value


def write_spectra(path: Path, spectra: Mapping[str, Sequence[float]], *, title: str) -> None:
    """Write spectra as a PNG.

    Args:
        path: File to write.
        spectra: Shares of the variance, largest first, by encoder; the last encoder is highlighted.
        title: Title.
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes, title)
    for number, (name, shares) in enumerate(spectra.items()):
        last = number == len(spectra) - 1
        values = np.maximum(np.asarray(shares, dtype=np.float64), _FLOOR)
        axes.plot(np.arange(1, len(values) + 1), values, color=TRAINED if last else UNTRAINED, linewidth=1.8, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("direction", fontsize=9, color=MUTED)
    axes.set_ylabel("share of the variance", fontsize=9, color=MUTED)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    save(figure, path)
