"""`ijepa-ds report RUN [RUN ...]`: compare runs in one self-contained HTML file."""

from __future__ import annotations

import argparse
import base64
import logging
from collections.abc import Sequence
from pathlib import Path

from ijepa_ds import config
from ijepa_ds.config.schema import flatten
from ijepa_ds.durable import write_text
from ijepa_ds.plotting.curves import CHARTS, draw_chart
from ijepa_ds.visualize.gallery import Shown, escape, figure, page
from ijepa_ds.visualize.report_pictures import write_masks, write_pca
from ijepa_ds.visualize.report_runs import Run, read_run

logger = logging.getLogger(__name__)
_ALWAYS = ("model.name", "data.source", "data.crop_size", "optimization.batch_size", "optimization.lr", "run.seed")
_MOST_RUNS = 8  # distinguishable colours


def run(args: argparse.Namespace) -> int:
    """Write the report; return exit code 0."""
    if len(args.runs) > _MOST_RUNS:
        raise ValueError(f"{len(args.runs)} runs: at most {_MOST_RUNS} fit in one report")
    names = _names(args.runs)
    runs = [read_run(path, name) for path, name in zip(args.runs, names, strict=True)]
    args.out.mkdir(parents=True, exist_ok=True)
    sections = [_facts(runs), _alarms(runs), _curves(runs, args.out), _scores(runs), _drawn(runs)]
    sections += [_masks(runs, args.out), _pca(runs, args), _configuration(runs)]
    title = args.title or " and ".join(names)
    write_text(args.out / "report.html", page(title, "\n".join(sections)))
    logger.info("written: %s", args.out / "report.html")
    return 0


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names, with as many parent folders as make them unique."""
    whole = [path.resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError("a run is listed twice")
    return ["/".join(parts[-_unique_parts(parts, whole) :]) for parts in whole]


def _unique_parts(parts: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> int:
    count = 1
    while sum(other[-count:] == parts[-count:] for other in others) > 1:
        count += 1
    return count


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[object]]], mark: bool = False) -> str:
    """An HTML table; with `mark`, rows with differing cells are coloured."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in ("", *head))
    lines = []
    for name, cells in rows:
        differs = ' class="differs"' if mark and len({str(cell) for cell in cells}) > 1 else ""
        body = "".join(f'<td class="n">{escape(str(cell))}</td>' for cell in cells)
        lines.append(f"<tr{differs}><th>{escape(name)}</th>{body}</tr>")
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


def _facts(runs: Sequence[Run]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.facts)
    rows = [(key, [run.facts.get(key, "–") for run in runs]) for key in keys]
    return "<h2>Cost</h2>" + _table([run.name for run in runs], rows)


def _alarms(runs: Sequence[Run]) -> str:
    found = [
        f'<li class="alarm"><b>{escape(run.name)}</b>, step {alarm.step}, {escape(alarm.name)}: {escape(alarm.message)}</li>'
        for run in runs
        for alarm in run.alarms
    ]
    return "<h2>Alarms</h2>" + (f"<ul>{''.join(found)}</ul>" if found else '<p class="muted">None.</p>')


def embedded(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _curves(runs: Sequence[Run], out: Path) -> str:
    drawn = []
    for chart in CHARTS:
        path = out / f"{chart.name}.png"
        if draw_chart(path, chart, {run.name: run.scalars for run in runs}):
            drawn.append(figure(Shown(embedded(path), chart.title, chart.words)))
    return f'<h2>Curves</h2><div class="columns">{"".join(drawn)}</div>'


def _scores(runs: Sequence[Run]) -> str:
    rows = [(key, [run.scores.get(key, "–") for run in runs]) for key in dict.fromkeys(k for run in runs for k in run.scores)]
    if not rows:
        none = "No result.json below the runs (<code>ijepa-ds eval ... --out RUN/eval</code> writes one)."
        return f'<h2>Evaluations</h2><p class="muted">{none}</p>'
    return "<h2>Evaluations</h2>" + _table([run.name for run in runs], rows)


def _drawn(runs: Sequence[Run]) -> str:
    drawn = [figure(Shown(embedded(path), f"{run.name}, {title}")) for run in runs for title, path in run.drawn.items()]
    return f"<h2>Pictures of evaluations</h2>{''.join(drawn)}" if drawn else ""


def _masks(runs: Sequence[Run], out: Path) -> str:
    drawn = []
    for number, item in enumerate(runs):
        path = out / f"masks_{number}.png"
        step = write_masks(path, item.path)
        if step is not None:
            words = f"step {step}; image, context, target blocks"
            drawn.append(figure(Shown(embedded(path), f"{item.name}: masks", words)))
    return f'<h2>Masks</h2><div class="columns">{"".join(drawn)}</div>' if drawn else ""


def _pca(runs: Sequence[Run], args: argparse.Namespace) -> str:
    drawn = []
    for number, item in enumerate(runs):
        path = args.out / f"pca_{number}.png"
        words = write_pca(path, item.path, args.images, args.num)
        drawn.append(figure(Shown(embedded(path), f"{item.name}: principal components over training", words)))
    return f"<h2>Principal components of the same images over training</h2>{''.join(drawn)}"


def _configuration(runs: Sequence[Run]) -> str:
    flat = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    several = len(runs) > 1
    differing = [row for row in rows if len({str(cell) for cell in row[1]}) > 1 and row[0] != "run.dir"]
    head = [run.name for run in runs]
    text = "<h2>Configuration</h2>"
    if several:
        text += "<h3>What differs</h3>" + (_table(head, differing) if differing else "<p>Nothing but the directory.</p>")
    shown = [row for row in rows if row[0] in _ALWAYS]
    texts = "".join(
        f"<details><summary>Everything: {escape(run.name)}</summary>"
        f'<pre class="wide">{escape(config.to_text(run.config))}</pre></details>'
        for run in runs
    )
    return text + _table(head, shown, mark=several) + texts
