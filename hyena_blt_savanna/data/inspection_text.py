"""An inspection of a dataset as plain text, and as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from hyena_blt_savanna.data.corpus.tags import species_of
from hyena_blt_savanna.data.inspection import DatasetInspection
from hyena_blt_savanna.data.page import as_html_table, begin_page, begin_section, end_page, end_section

_BAR_LETTERS = 40
_SHOWN_TAGS = 20
_SHOWN_LENGTHS = 40

Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def as_text(found: DatasetInspection) -> str:
    """What a terminal shows."""
    lines = [str(found.path), *(f"  {name}: {value}" for name, value in key_figures(found))]
    for title, header, rows in tables(found):
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines += ["", title]
        for row in [header, *rows]:
            cells = [
                cell.ljust(width) if column == 0 or cell.startswith("#") else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(("  " + "  ".join(cells)).rstrip())
    for place, text in found.samples.items():
        lines += ["", place, f"  {text}"]
    lines += ["", *_state(found)]
    return "\n".join(lines)


def as_page(found: DatasetInspection) -> str:
    """The same as text of HTML."""
    blocks = [*begin_page(f"Data of {found.path}", _state(found), key_figures(found))]
    for title, header, rows in tables(found):
        blocks += [*begin_section(title, ""), *as_html_table(header, rows), *end_section()]
    blocks += begin_section("Samples", "The beginnings of the first documents.")
    blocks += [f"<p>{escape(place)}</p><pre>{escape(text)}</pre>" for place, text in found.samples.items()]
    return "\n".join([*blocks, *end_section(), *end_page()])


def key_figures(found: DatasetInspection) -> list[tuple[str, str]]:
    """Names and values of the figures that say most."""
    manifests = found.manifests
    num_bases = sum(manifest.num_bases for manifest in manifests)
    return [
        *found.about,
        ("datasets", f"{len(found.shards):,}"),
        ("documents", f"{sum(manifest.num_documents for manifest in manifests):,}"),
        ("bases", f"{num_bases:,}"),
        ("bytes", f"{sum(manifest.num_bytes for manifest in manifests):,}"),
        ("different tags", f"{len(found.tags):,}"),
    ]


def tables(found: DatasetInspection) -> Iterator[Table]:
    """Composition, lengths of documents and patches, and tags."""
    composition = found.composition()
    num_bases = max(1, sum(manifest.num_bases for manifest in found.manifests))
    rows = [[letter, f"{num:,}", f"{100 * num / num_bases:.2f} %"] for letter, num in composition.items()]
    yield "Composition", ["letter", "bases", "share"], rows
    lengths = {f"{1 << power:,} and more": num for power, num in sorted(found.document_lengths().items())}
    yield "Lengths of documents", ["bytes", "documents", ""], list(_bars(lengths))
    for name, strands in found.patches().items():
        for strand, statistics in strands.items():
            title = f"Patches: {name}, {strand} strand, {statistics.num_patches:,} of {statistics.mean_bases:.3f} bases"
            shown = {f"{length:,}": num for length, num in list(statistics.histogram.items())[:_SHOWN_LENGTHS]}
            yield title, ["bases", "patches", ""], list(_bars(shown))
    if found.tags:
        most = sorted(found.tags.items(), key=lambda item: -item[1].num_bases)[:_SHOWN_TAGS]
        rows = [[tag, species_of(tag), f"{num:,}", f"{bases:,}"] for tag, (num, bases) in most]
        yield "Tags with the most bases", ["tag", "species", "documents", "bases"], rows


def _bars(counts: Mapping[str, int]) -> Iterator[list[str]]:
    most = max(counts.values(), default=1)
    for name, num in counts.items():
        yield [name, f"{num:,}", "#" * max(1, round(_BAR_LETTERS * num / most))]


def _state(found: DatasetInspection) -> list[str]:
    problems = found.all_problems
    if problems:
        return [f"{len(problems):,} problem(s)", *problems]
    return [
        "whole: all bytes are what their checksums say" if found.verified else "whole by its sizes; --verify reads it"
    ]
