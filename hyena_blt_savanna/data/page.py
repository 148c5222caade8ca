"""The frame of a page of HTML that needs nothing else: style, key figures, sections and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #23272e; --soft: #69707c; --paper: #ffffff; --card: #f4f6f9; --line: #dde2e9;
  --mark: 59, 125, 216; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa3b0; --paper: #15181d; --card: #1e2229;
  --line: #333a45; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .4rem; }
p { margin: .3rem 0 .8rem; color: var(--soft); max-width: 50rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; font-variant-numeric: tabular-nums; }
figure { margin: .8rem 0; overflow-x: auto; } figure svg { height: auto; max-width: 100%; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 500; }
td small { color: var(--soft); display: block; font-size: .75rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; overflow: auto;
  max-height: 28rem; font-size: .8rem; }
"""


def begin_page(title: str, notes: Iterable[str], figures: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The page down to its first section.

    Args:
        title: of the page, plain text.
        notes: paragraphs below it, plain text.
        figures: names and values, plain text.
    """
    title = escape(title)
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{title}</h1>"
    yield from (f"<p>{escape(note)}</p>" for note in notes)
    yield "<dl>"
    yield from (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    yield "</dl>"


def begin_section(title: str, text: str) -> Iterator[str]:
    """A heading and what is below it, both plain text."""
    yield f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>"


def end_section() -> Iterator[str]:
    """The end of a section."""
    yield "</section>"


def as_html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table of plain text."""
    yield '<div class="scroll"><table><thead><tr>'
    yield from (f"<th>{escape(cell)}</th>" for cell in header)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def end_page(data: str | None = None) -> Iterator[str]:
    """The page's end.

    Args:
        data: JSON that the page carries; None: none.
    """
    if data is not None:
        escaped = data.replace("<", "\\u003c")
        yield f'<script type="application/json" id="figures">{escaped}</script>'
    yield "</body></html>\n"
