"""Pictures of a report: masks logged by a run, and PCA of its features over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.durable import replacing
from ijepa_ds.errors import UserError
from ijepa_ds.plotting.heat import Panel, draw_row
from ijepa_ds.telemetry.events import read_picture
from ijepa_ds.visualize.looking import encoder_of, read_pictures, tokens_of
from ijepa_ds.visualize.patches import pca_colours, without_position
from ijepa_ds.weights import open_source

_MOST_STEPS = 6  # checkpoints shown, evenly spaced
_BATCH = 16
_ENOUGH = 4  # minimum number of images to subtract position means
_COMPARED = 32  # images for the position means; positions would dominate the components


def write_masks(path: Path, run_dir: Path) -> int | None:
    """Write the last mask picture logged by a run; return its step, or None if there is none."""
    found = read_picture(run_dir, "images/masks")
    if found is None:
        return None
    step, pixels = found
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")
    return step


def write_pca(path: Path, run_dir: Path, images: Sequence[Path] | None, num: int) -> str:
    """Draw PCA of the target's features at the start and at each checkpoint; return the caption.

    Components are computed per column: colours are comparable within a column only.

    Raises:
        ValueError: the images cannot be read.
    """
    source = open_source(run_dir, weights=False)
    assert source.config is not None  # always known for a run
    size = source.grid * source.patch_size
    try:
        options = source.scan_options(own_images=not images)
        pictures = read_pictures(images or [Path(source.config.data.source)], max(num, _COMPARED), size, options)
    except ValueError as error:
        raise ValueError(f"{error}\n(the images of the report's PCA; choose others with --images)") from error
    steps = list_steps(run_dir)
    if len(steps) > _MOST_STEPS:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int)]
    columns: list[tuple[str, np.ndarray]] = []
    lost = ""
    device, removed = torch.device("cpu"), len(pictures.names) >= _ENOUGH
    for step in [0, *steps]:
        opened = source if step == 0 else open_source(run_dir, step=step)
        try:
            encoder, _ = encoder_of(opened, "untrained" if step == 0 else "target", size, device)
        except UserError as error:
            if step or source.config.model.init_from is None:
                raise
            lost = f" The start is left out: {error}."  # its weights are needed no more once there is a checkpoint
            continue
        tokens = tokens_of(encoder, pictures.batches(opened, _BATCH, device))
        if removed:
            tokens = without_position(tokens)
        columns.append((f"step {step}" if step else "step 0, untrained", pca_colours(tokens, foreground=False)[0]))
    panels = []
    shown = np.unique(np.linspace(0, len(pictures.names) - 1, min(num, len(pictures.names))).round().astype(int))
    for i, name in ((int(i), pictures.names[i]) for i in shown):
        panels.append(Panel(name[:24], pictures.pixels[i]))
        panels += [Panel(title, colours[i]) for title, colours in columns]
    draw_row(path, panels, columns=1 + len(columns), title="PCA of patch features, target encoder")
    kept = "only the checkpoints that the run kept are shown (run.keep_last)"
    what = f"the mean over {len(pictures.names)} images at each position is subtracted" if removed else "unchanged"
    return f"Target encoder, {what}; first three components, computed per column; step 0 is the start; {kept}.{lost}"
