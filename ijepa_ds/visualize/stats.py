"""`ijepa-ds data stats`: what a source holds, as a table, a picture, and lines to paste into a configuration."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ijepa_ds.arguments import check_at_least
from ijepa_ds.data.channel_statistics import ChannelStatistics
from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.forms import usual_form
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.index_command import scan_options
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.statistics import Statistics, measure
from ijepa_ds.data.transforms import UnreadableError, load_eval_images
from ijepa_ds.data.values import Values
from ijepa_ds.durable import write_text
from ijepa_ds.errors import UserError
from ijepa_ds.plotting.statistics import Picture, write_statistics

logger = logging.getLogger(__name__)
PERCENTILES = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)
_SHOWN = 5  # groups of duplicates, classes
_SHEET, _THUMBNAIL = 40, 96  # images of the contact sheet; pixels


def run(args: argparse.Namespace) -> int:
    """Measure, write the files, print the table; return 0."""
    check_at_least(args, sample=0, workers=1)
    index = open_source(args.source, scan_options(args))
    found = measure(index, args.sample, args.seed, args.workers, args.max_pixels, form=usual_form(index))
    if not found.images:
        raise UserError(f"{args.source}: none of the images looked at can be read: {_listed(index, found)}")
    facts = facts_of(index, found)
    write_text(args.out / "stats.json", json.dumps(facts, indent=2) + "\n")
    write_statistics(args.out / "stats.png", _picture(index, found, args))
    logger.info("%s", table(index, found, facts))
    logger.info("written: %s, %s", args.out / "stats.json", args.out / "stats.png")
    return 0


def facts_of(index: ImageIndex, found: Statistics) -> dict[str, Any]:
    """What `stats.json` holds."""
    sizes = index.sizes[index.readable()].astype(np.int64)
    aspect = np.maximum(sizes[:, 0], sizes[:, 1]) / np.minimum(sizes[:, 0], sizes[:, 1])
    counts = Counter(index.labels[index.readable()].tolist())
    groups = found.duplicates()
    return {
        "source": index.source,
        "images": len(index),
        "unreadable": len(index.bad) + len(found.unreadable),
        "looked_at": found.images,
        "width": _spread(sizes[:, 0]),
        "height": _spread(sizes[:, 1]),
        "aspect_ratio": _spread(aspect),
        "kinds": [{"channels": c, "bits": b, "images": n} for (c, b), n in found.kinds.most_common()],
        **_scales(found),
        "percentiles": {f"{p:g}": row for p, row in zip(PERCENTILES, found.percentiles(PERCENTILES).T.tolist(), strict=True)},
        "constant": len(found.constant),
        "duplicates": sum(len(group) - 1 for group in groups),
        "duplicate_groups": [[index.display_path(position) for position in group] for group in groups[:_SHOWN]],
        "classes": {name: counts[number] for number, name in enumerate(index.classes)},
        "without_class": counts[-1],
    }


def _scales(found: Statistics) -> dict[str, Any]:
    """Mean and deviation; of images that are not RGB of 8 bits also ranges and missing values, in the numbers of the files."""
    if not isinstance(found, ChannelStatistics):
        return {"mean": found.mean().round(4).tolist(), "std": found.deviation().round(4).tolist()}
    low, high = found.whole_range()
    high = np.where(high > low, high, low + 1)  # of a constant channel
    mean, std = found.scaled(low, high)
    facts = {"mean": mean, "std": std, "offset": low, "scale": high, "smallest": found.least, "largest": found.most}
    percent = found.percentiles((1.0, 99.0))
    if (percent[:, 1] > percent[:, 0]).all():
        mean, std = found.clipped(percent[:, 0], percent[:, 1])
        facts |= {"clipped_offset": percent[:, 0], "clipped_scale": percent[:, 1], "clipped_mean": mean, "clipped_std": std}
    facts["without_data"] = found.missing / found.images
    exact = ("offset", "scale", "smallest", "largest")  # a rounded bound would refuse the image that has it
    return {name: [float(value if name in exact else f"{value:.6g}") for value in row] for name, row in facts.items()}


def _paste(facts: dict[str, Any]) -> str:
    """Lines for a configuration."""
    mean = _moments(facts, "mean", "std")
    if "scale" not in facts:
        return f"data:\n{mean}"

    def listed(name: str) -> str:
        values = facts[name] if len(set(facts[name])) > 1 else facts[name][:1]
        return ", ".join(f"{value:g}" if float(f"{value:g}") == value else repr(value) for value in values)

    lines = [
        f"model:\n  channels: {len(facts['mean'])}",
        "data:",
        f"  offset: [{listed('offset')}]",
        f"  scale: [{listed('scale')}]",
        mean,
    ]
    if "clipped_scale" in facts:
        lines += [
            "# or from the 1st to the 99th percentile:\ndata:",
            f"  offset: [{listed('clipped_offset')}]\n  scale: [{listed('clipped_scale')}]\n  outside: clip",
            _moments(facts, "clipped_mean", "clipped_std"),
        ]
    return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.percentile(values, (0, 50, 100)))
    return {"smallest": round(low, 3), "median": round(middle, 3), "largest": round(high, 3)}


def table(index: ImageIndex, found: Statistics, facts: dict[str, Any]) -> str:
    """The facts as text, and the lines for a configuration."""

    def spread(name: str) -> str:
        low, middle, high = (facts[name][key] for key in ("smallest", "median", "largest"))
        return f"{low:g} to {high:g}, median {middle:g}"

    percentiles = " / ".join(" ".join(f"{value:g}" for value in row) for row in found.percentiles(PERCENTILES).tolist())
    kinds = ", ".join(f"{k['images']:,} with {k['channels']} channels of {k['bits']} bits" for k in facts["kinds"])
    lines = [
        ("images", f"{facts['images']:,}, {describe_classes(index)}"),
        ("unreadable", f"{facts['unreadable']:,}" + (f": {_listed(index, found)}" if facts["unreadable"] else "")),
        ("width", spread("width")),
        ("height", spread("height")),
        ("long : short side", spread("aspect_ratio")),
        ("looked at", f"{found.images:,} images: {kinds}"),
        ("mean", _numbers(facts["mean"])),
        ("deviation", _numbers(facts["std"])),
        ("percentiles 1 5 25 50 75 95 99", percentiles),
        *_of_channels(facts),
        ("show nothing", f"{facts['constant']:,} ({100 * facts['constant'] / found.images:.1f} %)"),
        ("duplicates", f"{facts['duplicates']:,} with the bytes of another image"),
    ]
    lines += [("", f"{len(group)} x {group[0]}") for group in facts["duplicate_groups"]]
    if facts["classes"]:
        sizes = sorted(facts["classes"].values())
        without = f"; {facts['without_class']:,} images without a class" if facts["without_class"] else ""
        lines.append(("images a class", f"{sizes[0]:,} to {sizes[-1]:,}, median {sizes[len(sizes) // 2]:,}{without}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines) + f"\n\nfor the configuration:\n{_paste(facts)}"


def _of_channels(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "scale" not in facts:
        return []
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in zip(facts["smallest"], facts["largest"], strict=True))
    missing = ", ".join(f"{100 * share:.2g} %" for share in facts["without_data"])
    return [("range of each channel", ranges), ("values without data", missing)]


def _moments(facts: dict[str, Any], mean: str, std: str) -> str:
    """Two lines for a configuration; the deviation of a constant channel, which a run refuses, becomes 1."""
    constant = "" if all(facts[std]) else "  # 1: a constant channel"
    return f"  mean: [{_numbers(facts[mean])}]\n  std: [{_numbers([value or 1.0 for value in facts[std]])}]{constant}"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" if abs(value) >= 0.05 or not value else f"{value:.4g}" for value in values)


def _listed(index: ImageIndex, found: Statistics) -> str:
    return describe(index.list_bad() + [(index.display_path(position), text) for position, text in found.unreadable])


def _shown_values(found: Statistics, index: ImageIndex) -> Values:
    """How thumbnails are read: from the 1st to the 99th percentile of each channel."""
    if not isinstance(found, ChannelStatistics):
        return index.values
    low, high = found.percentiles((1.0, 99.0)).T
    high = np.where(high > low, high, low + 1)
    count = len(low)
    return Values(count=count, low=tuple(low), high=tuple(high), clip=True, fill=(0.0,) * count, layout=index.values.layout)


def _picture(index: ImageIndex, found: Statistics, args: argparse.Namespace) -> Picture:
    unreadable = {position for position, _ in found.unreadable}
    readable = np.array([position for position in index.readable().tolist() if position not in unreadable])
    chosen = np.random.default_rng(args.seed).permutation(readable)[:_SHEET]
    try:
        values = _shown_values(found, index)
        sheet = values.pictured(
            load_eval_images(ImageFiles(index, np.sort(chosen)), _THUMBNAIL, 2, args.max_pixels, values=values)
        )
    except UnreadableError as error:  # an image beside the sample
        logger.warning("%s: the picture has no contact sheet", error)
        sheet = np.zeros((0, _THUMBNAIL, _THUMBNAIL, 3), np.uint8)
    return Picture(
        title=Path(index.source).name or index.source,
        sizes=index.sizes[readable],
        values=found.histogram() if isinstance(found, ChannelStatistics) else found.values / found.images,
        limits=(float(found.least.min()), float(found.most.max())) if isinstance(found, ChannelStatistics) else (0.0, 255.0),
        classes=dict(zip(index.classes, np.bincount(index.labels[index.labels >= 0]).tolist(), strict=False)),
        sheet=sheet,
    )
