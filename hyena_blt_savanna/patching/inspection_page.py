"""An inspection as one page of HTML that needs nothing else: pictures as SVG, figures as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape

from hyena_blt_savanna.patching.inspection import Inspection
from hyena_blt_savanna.patching.inspection_figures import as_svg, pictures_of
from hyena_blt_savanna.patching.inspection_text import (
    composition_rows,
    describe_rule,
    key_figures,
    rule_rows,
    show_bases,
)

_MOST_SHOWN_BASES = 3000

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


def as_page(inspection: Inspection) -> str:
    """The page, as text of HTML."""
    title = escape(f"Patches of {inspection.stretch.title}")
    figures = json.dumps(inspection.to_dict(), indent=1).replace("<", "\\u003c")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{title}</h1><p>{escape(describe_rule(inspection.stretch.rule))}</p>",
            *(f"<p>{escape(note)}</p>" for note in inspection.stretch.notes),
            "<dl>",
            *(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in key_figures(inspection)),
            "</dl>",
            *_sections(inspection),
            f'<script type="application/json" id="figures">{figures}</script>',
            "</body></html>\n",
        ]
    )


def _sections(inspection: Inspection) -> Iterator[str]:
    pictures = {name: as_svg(picture, name) for name, picture in pictures_of(inspection).items()}
    example, num_sampled = inspection.example, len(inspection.sample.bases)
    last = example.first + len(example.bases) - 1
    yield from _section(
        "The cuts",
        f"Bases {example.first:,} to {last:,}, their entropies, and the patches of each rule; a change of shade is a "
        "cut. Repeats have a grey ground. All rules are calibrated to the same mean length.",
        pictures["stretch"],
    )
    if len(inspection.stretch.bases) <= _MOST_SHOWN_BASES:
        yield f"<pre>{escape(chr(10).join(show_bases(inspection.stretch)))}</pre>"
    yield from _section(
        "Lengths", "Mean and standard deviation above each panel; dashed: the mean.", pictures["lengths"]
    )
    yield from _section(
        "Entropies", "How uncertain the entropy model is of each base, given those before it.", pictures["entropies"]
    )
    if "along" in pictures:
        yield from _section(
            "Along the stretch",
            "Repeats: homopolymers of five bases or more, and exact tandem repeats of units of two to six bases in "
            "three copies or more. Dotted: the mean.",
            pictures["along"],
        )
    yield from _section(
        "By composition",
        "Bases of a class over the patches that start in it: the mean patch length where the class is everything. "
        f"GC content is that of windows of 128 bases. Of {num_sampled:,} bases.",
        pictures["composition"],
        *_table(*composition_rows(inspection)),
    )
    yield from _section(
        "Rules",
        f"Each calibrated on {num_sampled:,} bases of this very stretch to the mean length of this cut. Nats a patch: "
        "the information in it, by the entropy model.",
        *_table(*rule_rows(inspection)),
    )
    if inspection.agreement:
        yield from _section(
            "Agreement",
            "Share of cuts that two cuttings have in common, forced ones left out; below it, what two random cuttings "
            "with as many cuts would share.",
            *_agreement(inspection),
        )


def _section(title: str, text: str, *blocks: str) -> Iterator[str]:
    yield f"<section><h2>{title}</h2><p>{text}</p>"
    for block in blocks:
        yield f"<figure>{block}</figure>" if block.startswith("<svg") else block
    yield "</section>"


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr>'
    yield from (f"<th>{escape(cell)}</th>" for cell in header)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def _agreement(inspection: Inspection) -> Iterator[str]:
    names = list(inspection.cuttings)
    heads = "".join(f"<th>{escape(name)}</th>" for name in names[:-1])
    yield f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>'
    for row, b in enumerate(names[1:], start=1):
        cells = []
        for a in names[:row]:
            found = inspection.agreement[a, b]
            cells.append(
                f'<td style="background: rgba(var(--mark), {0.8 * found.share:.3f})">{100 * found.share:.1f} %'
                f"<small>chance {100 * found.by_chance:.1f} %</small></td>"
            )
        yield f"<tr><th>{escape(b)}</th>{''.join(cells)}{'<td></td>' * (len(names) - 1 - row)}</tr>"
    yield "</tbody></table></div>"
