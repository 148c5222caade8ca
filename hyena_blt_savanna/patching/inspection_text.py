"""An inspection for the terminal: the bases with their cuts and entropies, and the figures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hyena_blt_savanna.patching.inspection import Inspection
from hyena_blt_savanna.patching.inspection_stretch import Stretch, information
from hyena_blt_savanna.patching.rules import PatchRuleConfig

LINE_BASES = 60
_MOST_SHOWN_BASES = 3000
_MOST_LISTED_PATCHES = 40
_BARS = "▁▂▃▄▅▆▇█"
_CUT, _TICK = "|", "╷"
_LEGEND = (
    f"{_CUT} patch starts   {_TICK} tenth base   {_BARS[0]} at most {{:.3f}} nats   {_BARS[-1]} at least {{:.3f}} nats"
)


def as_text(inspection: Inspection) -> str:
    """All that is to be said on a terminal."""
    stretch = inspection.stretch
    blocks = [f"{stretch.title}\n{describe_rule(stretch.rule)}", *stretch.notes]
    if len(stretch.bases) <= _MOST_SHOWN_BASES:
        blocks.append("\n".join(show_bases(stretch)))
        if len(stretch.starts) <= _MOST_LISTED_PATCHES:
            blocks.append("\n".join(list_patches(stretch)))
    else:
        blocks.append(f"{len(stretch.bases):,} bases: give a region of at most {_MOST_SHOWN_BASES:,} to see them")
    blocks += ["\n".join(_summary(inspection)), "\n".join(_rules(inspection))]
    blocks += ["\n".join(_agreement(inspection)), "\n".join(_composition(inspection))]
    return "\n\n".join(block for block in blocks if block)


def describe_rule(rule: PatchRuleConfig) -> str:
    """A rule and its settings in one line."""
    settings = {key: value for key, value in rule.to_dict().items() if key not in ("kind", "min_patch_bases")}
    longest = settings.pop("max_patch_bases")
    parts = [f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()]
    return ", ".join([f"rule {rule.kind}", *parts, f"patches of {rule.min_patch_bases} to {longest} bases"])


def show_bases(stretch: Stretch, line_bases: int = LINE_BASES) -> Iterator[str]:
    """Lines of a stretch: a tick over each tenth base, the bases with a bar before each cut, entropies under them.

    Args:
        stretch: what is shown.
        line_bases: bases of a line.
    """
    low, high = np.quantile(stretch.entropies, (0.02, 0.98))
    heights = np.clip((stretch.entropies - low) / max(float(high - low), 1e-6), 0, 1)
    bars = [_BARS[index] for index in np.minimum((heights * len(_BARS)).astype(np.int64), len(_BARS) - 1)]
    is_start = np.zeros(len(stretch.bases), dtype=np.bool_)
    is_start[stretch.starts] = True
    width = len(f"{stretch.first + len(stretch.bases):,}")
    for begin in range(0, len(stretch.bases), line_bases):
        stop = min(begin + line_bases, len(stretch.bases))
        ticks, letters, entropies = "", "", ""
        for i in range(begin, stop):
            ticks += " " * int(is_start[i]) + (_TICK if (stretch.first + i) % 10 == 0 else " ")
            letters += _CUT * int(is_start[i]) + _letter(int(stretch.bases[i]))
            entropies += " " * int(is_start[i]) + bars[i]
        yield f"{'':{width}}  {ticks}".rstrip()
        yield f"{stretch.first + begin:{width},}  {letters}"
        yield f"{'':{width}}  {entropies}"
    yield _LEGEND.format(low, high)


def list_patches(stretch: Stretch) -> Iterator[str]:
    """A line for each patch that starts in a stretch: where, how long, how many nats, which bases."""
    yield f"{'base':>12} {'length':>7} {'nats':>7}  bases"
    all_nats = information(stretch.entropies, stretch.starts) if len(stretch.starts) else np.zeros(0)
    for start, length, nats in zip(stretch.starts, stretch.lengths, all_nats, strict=True):
        letters = "".join(map(_letter, stretch.bases[start : start + length].tolist()))
        more = "…" if start + length > len(stretch.bases) else ""
        yield f"{stretch.first + start:>12,} {length:>7} {nats:>7.3f}  {letters}{more}"


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip()


def key_figures(inspection: Inspection) -> list[tuple[str, str]]:
    """What is asked first: names and values."""
    found = inspection.summary
    quantiles = " ".join(f"{nats:.3f}" for nats in found.entropy_quantiles.values())
    rows = [
        ("bases", f"{found.num_bases:,}"),
        ("patches", f"{found.num_patches:,}"),
        ("mean length", f"{found.mean_bases:.3f} bases (standard deviation {found.std_bases:.3f})"),
        ("of one base", f"{100 * found.share_of_single_bases:.2f} % of the patches"),
        ("of the greatest length", f"{100 * found.share_at_maximum:.2f} % of the patches"),
        ("information", f"{found.mean_nats:.3f} nats a patch (standard deviation {found.std_nats:.3f})"),
        ("entropies", f"{quantiles} nats (5, 25, 50, 75, 95 % of the bases have no more)"),
    ]
    if found.drift is None:
        return [*rows, ("drift", "not known: what the rule was calibrated on is not at hand")]
    known = inspection.stretch.calibrated_mean_bases
    return [*rows, ("drift", f"{100 * found.drift:+.2f} % in mean length, calibrated to {known:.3f} bases")]


def rule_rows(inspection: Inspection) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the cuttings."""
    header = ["cut by", "limit (nats)", "patches", "mean length", "spread", "nats a patch", "spread"]
    rows = []
    for name, (mean_nats, std_nats) in inspection.information().items():
        cutting = inspection.cuttings[name]
        limit = cutting.rule.limit_nats
        row = [name, "" if limit is None else f"{limit:.4f}", f"{len(cutting.lengths):,}"]
        row += [f"{cutting.lengths.mean():.3f}", f"{cutting.lengths.std():.3f}", f"{mean_nats:.3f}", f"{std_nats:.3f}"]
        rows.append(row)
    return header, rows


def composition_rows(inspection: Inspection) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the classes of bases."""
    names = list(inspection.cuttings)
    header = ["bases per cut", "bases", "share", "nats a base", *names]
    rows = [
        [name, f"{each.num_bases:,}", f"{100 * each.share:.2f} %", f"{each.mean_nats:.4f}"]
        + [f"{value:.3f}" if np.isfinite(value) else "-" for value in each.bases_per_cut.values()]
        for name, each in inspection.composition.items()
    ]
    return header, rows


def _summary(inspection: Inspection) -> Iterator[str]:
    rows = key_figures(inspection)
    width = max(len(name) for name, _ in rows)
    return (f"{name:<{width}}  {value}" for name, value in rows)


def _rules(inspection: Inspection) -> Iterator[str]:
    num = len(inspection.sample.bases)
    yield f"Rules calibrated to the mean length of this cut, on these {num:,} bases" + (
        f" (sampled from {len(inspection.stretch.bases):,})" if num < len(inspection.stretch.bases) else ""
    )
    yield from table(*rule_rows(inspection))


def _agreement(inspection: Inspection) -> Iterator[str]:
    names = list(inspection.cuttings)
    if len(names) < 2:
        return
    yield "Cuts in common (forced ones left out), and what chance gives"
    rows = []
    for row, b in enumerate(names[1:], start=1):
        pairs = [inspection.agreement[a, b] for a in names[:row]]
        cells = [f"{100 * found.share:.1f} % ({100 * found.by_chance:.1f})" for found in pairs]
        rows.append([b, *cells, *[""] * (len(names) - 1 - row)])
    yield from table(["", *names[:-1]], rows)


def _composition(inspection: Inspection) -> Iterator[str]:
    yield "By composition: bases of a class over the patches that start in it"
    yield from table(*composition_rows(inspection))


def _letter(base: int) -> str:
    return chr(base) if base > 32 else "·"
