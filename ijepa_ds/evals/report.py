"""Output of an evaluation: `result.json`, figures, TensorBoard scalars, a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ijepa_ds.durable import write_text
from ijepa_ds.plotting.bars import write_bars
from ijepa_ds.plotting.dense import Shown, write_dense
from ijepa_ds.plotting.neighbours import neighbours_of, reading_of, write_neighbours
from ijepa_ds.plotting.spectrum import write_spectra

RESULT = "result.json"
CHART = "scores.png"
SPECTRUM = "spectrum.png"
NEIGHBOURS = "neighbours.png"


def write_result(out: Path, result: dict[str, Any], shown: Sequence[Shown] = ()) -> list[Path]:
    """Write a result into the folder `out`; `result.json` is replaced atomically.

    Args:
        out: folder.
        result: of an evaluation.
        shown: images with predictions of segment or depth.

    Returns:
        the files written, without TensorBoard's.
    """
    write_text(out / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    written, title = [out / RESULT], f"{result['checkpoint']['which']} encoder{_step(result)}"
    percent = {name: score for name, score in result["scores"].items() if name not in result["unranked"]}
    if percent:
        before = (result["baseline"] or {"scores": {}})["scores"]
        pairs = {name: (before.get(name), score) for name, score in percent.items()}
        names = {"before": (result["baseline"] or {}).get("which"), "after": result["checkpoint"]["which"]}
        write_bars(out / CHART, pairs, title=title, chance=result["chance"], **names)
        written.append(out / CHART)
    if "spectrum" in result["details"]:
        spectra = {which: other["details"]["spectrum"] for which, other in result["baselines"].items()}
        spectra[result["checkpoint"]["which"]] = result["details"]["spectrum"]
        write_spectra(out / SPECTRUM, spectra, title=f"Feature spectrum, {title}")
        written.append(out / SPECTRUM)
    if neighbours := neighbours_of(result):
        write_neighbours(out / NEIGHBOURS, neighbours, *reading_of(result))
        written.append(out / NEIGHBOURS)
    if shown:
        classes = result["data"]["classes"] if result["task"] == "segment" else ()
        written.append(out / f"{result['task']}.png")
        write_dense(written[-1], shown, classes, title)
    _write_events(out, result)
    return written


def _write_events(out: Path, result: dict[str, Any]) -> None:
    with SummaryWriter(str(out)) as writer:
        for name, score in result["scores"].items():
            writer.add_scalar(tag(name), score, result["checkpoint"]["step"] or 0)
        for which, other in result["baselines"].items():
            for name, score in other["scores"].items():
                writer.add_scalar(tag(name, f"eval_{which}"), score, result["checkpoint"]["step"] or 0)


def tag(name: str, section: str = "eval") -> str:
    """TensorBoard tag of a score."""
    return f"{section}/" + name.replace(" ", "_").replace(",", "")


def _step(result: dict[str, Any]) -> str:
    """`, step 1000`; empty where the step is unknown."""
    step = result["checkpoint"]["step"]
    return "" if step is None else f", step {step}"


def table(result: dict[str, Any]) -> str:
    """The scores as a text table, followed by the notes."""
    which, data = result["checkpoint"]["which"], result["data"]
    columns = [(which, result["scores"])] + [(name, other["scores"]) for name, other in result["baselines"].items()]
    wide = max(10, *(len(name) + 2 for name in result["scores"]))
    unranked, dense = set(result["scores"]) <= set(result["unranked"]), result["task"] in ("segment", "depth")
    what = "" if unranked else "percent, " if dense else "top-1 in percent, "
    classes = "" if result["task"] == "depth" else f", {data['num_classes']} classes"
    lines = [
        f"{result['checkpoint']['checkpoint']}{_step(result)}: {what}"
        f"{data['num_train']} training and {data['num_test']} test images{classes}",
        f"{'':<{wide}}" + "".join(f"{name:>12}" for name, _ in columns),
    ]
    for name in result["scores"]:
        values = [
            f"{scores[name]:>12.{3 if result['task'] == 'depth' else 2}f}" if name in scores else f"{'-':>12}"
            for _, scores in columns
        ]
        lines.append(f"{name:<{wide}}" + "".join(values))
    if what and result["chance"] is not None:
        lines.append(f"{'chance':<{wide}}{result['chance']:>12.2f}")
    return "\n".join(lines + _published(result) + [f"note: {note}" for note in result["notes"]])


def _published(result: dict[str, Any]) -> list[str]:
    paper = result["published"]
    if not paper:
        return []
    known = ", ".join(f"{model} {value}" for model, value in paper["all"].items())
    ours = result["scores"].get(paper["score"])
    value = "no number for this model" if paper["value"] is None else f"{paper['value']:.1f}"
    lines = [f"{paper['preset']}: {paper['score']} {ours:.1f} here, published {value} ({known})"] if ours is not None else []
    return lines + ([f"note: {paper['apart']}"] if paper["apart"] else [])
