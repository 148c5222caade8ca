"""An inspection as one page of HTML that needs nothing else: pictures as SVG, figures as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape

from hyena_blt_savanna.data.page import as_html_table, begin_page, begin_section, end_page, end_section
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


def as_page(inspection: Inspection) -> str:
    """The page, as text of HTML."""
    stretch = inspection.stretch
    return "\n".join(
        [
            *begin_page(
                f"Patches of {stretch.title}", [describe_rule(stretch.rule), *stretch.notes], key_figures(inspection)
            ),
            *_sections(inspection),
            *end_page(json.dumps(inspection.to_dict(), indent=1)),
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
        *as_html_table(*composition_rows(inspection)),
    )
    yield from _section(
        "Rules",
        f"Each calibrated on {num_sampled:,} bases of this very stretch to the mean length of this cut. Nats a patch: "
        "the information in it, by the entropy model.",
        *as_html_table(*rule_rows(inspection)),
    )
    if inspection.agreement:
        yield from _section(
            "Agreement",
            "Share of cuts that two cuttings have in common, forced ones left out; below it, what two random cuttings "
            "with as many cuts would share.",
            *_agreement(inspection),
        )


def _section(title: str, text: str, *blocks: str) -> Iterator[str]:
    yield from begin_section(title, text)
    for block in blocks:
        yield f"<figure>{block}</figure>" if block.startswith("<svg") else block
    yield from end_section()


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
