"""The pages that every step writes: self-contained HTML, no script, font or style from the network."""

import html
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, BLUE, RED, GREEN, GREY, AMBER = "#1c2733", "#2563a8", "#b3382c", "#2b7a4b", "#8894a0", "#b7791f"
ASIDE = ".aside"  # where a folder is while another takes its place
STYLE = Template("""
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, sans-serif; color: $ink; background: #f6f7f9; margin: 0 }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-x: auto }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .2rem }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
nav, .lead { color: #55626f }
a { color: $blue }
table { border-collapse: collapse; width: 100%; background: #fff; font-size: .92rem; margin: .5rem 0 }
th, td { text-align: left; vertical-align: top; padding: .42rem .6rem; border-bottom: 1px solid #e4e8ec; white-space: pre-line }
th { background: #eef1f4; font-weight: 600 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
td.number { white-space: nowrap }
.pass, .fail, .not { border-radius: 1em; padding: .08em .7em; font-weight: 600; font-size: .85em; white-space: nowrap }
.pass { background: #dcf0e3; color: $green } .fail { background: #f9dfdc; color: $red } .not { background: #e9ecef; color: #55626f }
figure { margin: .6rem 0; background: #fff; border: 1px solid #e4e8ec; padding: .6rem }
figure svg { max-width: 100%; height: auto; display: block; margin: auto }
figcaption { color: #55626f; font-size: .88rem; padding: .3rem }
pre { background: #fff; border: 1px solid #e4e8ec; padding: .8rem; overflow-x: auto; font-size: .85rem }
""").substitute(ink=INK, blue=BLUE, red=RED, green=GREEN)


def page(title: str, lead: str, *parts: str, home: str = "../index.html") -> str:
    """A whole HTML page from a heading, one sentence and ready-made parts."""
    link = f'<nav><a href="{home}">All seven steps</a></nav>' if home else ""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><main>{link}"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>\n{body}\n</main></body></html>\n'
    )


def section(heading: str, *parts: str) -> str:
    """A heading with what belongs under it."""
    return f"<h2>{html.escape(heading)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    """Plain text as a paragraph, `code` in it set as code."""
    return f"<p>{_escaped(text)}</p>"


def preformatted(text: str) -> str:
    """Text whose line breaks matter."""
    return f"<pre>{html.escape(text)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers are set right, pass and fail become badges, `Link` cells links."""
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(isinstance(r[i], int | float | None) for r in rows) for i in range(len(header))]
    mark = [' class="number"' if n else "" for n in numeric]
    head = "".join(f"<th{m}>{html.escape(h)}</th>" for h, m in zip(header, mark, strict=True))
    body = "".join("<tr>" + "".join(f"<td{m}>{_cell(v)}</td>" for v, m in zip(r, mark, strict=True)) + "</tr>\n" for r in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The same in Markdown."""
    cells = [[str(v).replace("|", "\\|").replace("\n", " ") for v in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells))


def plain(number: float) -> str:
    """A number for people: without its fraction from a thousand on, else with the four digits that tell."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


class Link(str):
    """A table cell that links to the path it holds."""


def figure(drawing: "Figure", caption: str) -> str:
    """A matplotlib figure as inline SVG with a caption; the same figure gives the same bytes."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "page", "svg.fonttype": "none"}):
        drawing.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>", "", buffer.getvalue())
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def axes(width: float = 7.0, height: float = 2.8, columns: int = 1, rows: int = 1) -> tuple["Figure", Any]:
    """An empty figure in the style of the pages, sizes in inches; returns it with its axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": GREY, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e8ec", "axes.formatter.limits": (-4, 8),
    }  # fmt: skip
    with mpl.rc_context(style):
        drawing = Figure(figsize=(width, height), layout="constrained")
        return drawing, drawing.subplots(rows, columns)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder that takes `path`'s place when the block ends well, and vanishes when it does not."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def swap(new: Path, path: Path, *, keep: bool = False) -> None:
    """Put a folder in another's place, and the former one away, or where the new one was; killed in between, `heal` puts it back."""
    aside = path.with_name(path.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        os.replace(path, aside)
    os.replace(new, path)
    if keep and aside.exists():
        os.replace(aside, new)
    shutil.rmtree(aside, ignore_errors=True)


def heal(path: Path) -> None:
    """Put back a folder that a killed `swap` left aside."""
    aside = path.with_name(path.name + ASIDE)
    if aside.exists() and not path.exists():
        os.replace(aside, path)


def _cell(value: Any) -> str:
    if isinstance(value, Link):
        return f'<a href="{html.escape(value)}">{html.escape(value)}</a>' if value else ""
    if value in ("pass", "fail", "not measured", "not run"):
        return f'<span class="{str(value).split()[0]}">{value}</span>'
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "–"
    return _escaped(str(value)) if isinstance(value, bool) or not isinstance(value, int | float) else plain(value)


def _escaped(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text))
