"""HTML pages of figures that open from disk without a server, on wide and narrow screens."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ijepa_ds.durable import write_text
from ijepa_ds.shown import shown

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; font: 15px/1.5 system-ui, sans-serif; color: #1f2933;
  background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; } h3 { font-size: 1rem; }
p, li { max-width: 48rem; } .muted, figcaption { color: #5b6672; font-size: .87rem; }
figure { margin: 1rem 0 1.4rem; } img { display: block; max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; }
th, td { text-align: left; padding: .22rem .8rem .22rem 0; border-bottom: 1px solid #e4e8ec; vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; } tr.differs td, tr.differs th { background: #fff6d9; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.5rem; }
.alarm { color: #a3271b; } code { background: #f2f4f6; padding: 0 .25em; }
"""


def escape(text: str) -> str:
    """HTML of a text; names of files become one line of valid text."""
    return html.escape("\n".join(shown(line) for line in text.split("\n")))


@dataclass(frozen=True)
class Shown:
    """A figure with title and caption; `file` is a name relative to index.html, or a data URL."""

    file: str
    title: str
    caption: str = ""


def figure(item: Shown) -> str:
    """HTML of a figure with its caption."""
    title, caption = (escape(shown(text)) for text in (item.title, item.caption))
    words = f"<figcaption><b>{title}</b>{' · ' if caption else ''}{caption}</figcaption>"
    return f'<figure><img src="{escape(item.file)}" alt="{title}">{words}</figure>'


def facts_table(facts: Mapping[str, object]) -> str:
    """HTML table of names and values."""
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def page(title: str, body: str) -> str:
    """A complete HTML document around `body`; only its images are external."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # else the browser requests a favicon
        f"<title>{escape(shown(title))}</title><style>{CSS}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def write_index(out: Path, title: str, words: str, figures: Sequence[Shown], facts: Mapping[str, object]) -> None:
    """Write `out/index.html`: text, figures and a table of facts."""
    body = f"<p>{escape(words)}</p>\n" + "\n".join(figure(item) for item in figures)
    write_text(out / "index.html", page(title, f"{body}\n<h2>Made from</h2>\n{facts_table(facts)}"))
