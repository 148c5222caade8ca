"""Curves of a benchmark, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.evaluation.report_pictures import DOTS_PER_INCH, STYLE
from hyena_blt_savanna.quality.results import CurvePoint, TrialResult
from hyena_blt_savanna.quality.table import GenomeTable, mean

_STYLE = {**STYLE, "legend.fontsize": 7}
_ROW_INCHES = 4.2
_AXES: list[tuple[str, str, Callable[[TrialResult], float], Callable[[CurvePoint], float]]] = [
    (
        "flops",
        "training operations, entropy model included",
        lambda result: float(result.facts["total_flops"]),
        lambda point: point.flops,
    ),
    ("seconds", "training seconds", lambda result: float(result.facts["seconds"]), lambda point: point.seconds),
    ("bases", "bases seen", lambda result: float(result.facts["bases"]), lambda point: point.bases),
]


def draw_curves(folder: Path, tables: Sequence[GenomeTable]) -> list[Path]:
    """Bits per base on the test windows against operations, seconds and bases: a picture each, a panel a genome.

    The ends of trainings are joined by thick lines; thin lines are the validation of single trainings on their way,
    when their rates were still high, moved to end where the test ends.

    Args:
        folder: for the pictures.
        tables: of the genomes; those without results are left out.

    Returns:
        The pictures.
    """
    filled = [table for table in tables if any(table.results(name) for name in table.plan.benchmark.drawn)]
    if not filled:
        return []
    pictures = []
    for name, label, end_of, place_of in _AXES:
        path = folder / f"{name}.png"

        def draw(figure: Any, label: str = label, end_of: Any = end_of, place_of: Any = place_of) -> None:
            panels = figure.subplots(1, len(filled), squeeze=False)[0]
            for axes, table in zip(panels, filled, strict=True):
                _draw_genome(axes, table, end_of, place_of)
                axes.set(xlabel=label, title=table.genome)
            panels[0].set_ylabel("bits per base, held out")

        _save(path, (1.35 * _ROW_INCHES * len(filled), _ROW_INCHES), draw)
        pictures.append(path)
    return pictures


def _draw_genome(
    axes: Any, table: GenomeTable, end_of: Callable[[TrialResult], float], place_of: Callable[[CurvePoint], float]
) -> None:
    from matplotlib import colormaps

    colors = [colormaps["tab20"](shade) for shade in range(20)]
    axes.set_xscale("log")
    ends = []
    for index, name in enumerate(table.plan.benchmark.drawn):
        results = table.results(name)
        if not results:
            continue
        color = colors[2 * index % 20 + index // 10 % 2]
        xs, ys = [], []
        for multiple in dict.fromkeys(result.multiple for result in results):
            same = [result for result in results if result.multiple == multiple]
            bits = [result.test.bits_per_base for result in same if result.test is not None]
            xs.append(mean(end_of(result) for result in same))
            ys.append(mean(bits))
            axes.vlines(xs[-1], min(bits), max(bits), color=color, linewidth=1.0)
            for result in same:
                shift = result.test.bits_per_base - result.curve[-1].bits_per_base if result.test else 0.0
                places = [place_of(point) for point in result.curve]
                axes.plot(
                    places, [p.bits_per_base + shift for p in result.curve], color=color, linewidth=0.5, alpha=0.35
                )
        ends += ys
        title = table.plan.benchmark.contenders[name].title
        axes.plot(xs, ys, color=color, marker="o", markersize=3.5, linewidth=1.6, label=title)
    lines = dict(table.plan.benchmark.config.genomes[table.genome].lines)
    if table.ngram is not None:
        lines[f"n-gram, order {table.ngram['order']}"] = table.ngram["test"]["bits_per_base"]
    for number, (label, level) in enumerate(lines.items()):
        axes.axhline(level, color="#8a8f98", linewidth=0.8, linestyle=[":", "--", "-."][number % 3], label=label)
    # The first points of a training are far above what matters.
    shown = [*ends, *lines.values()]
    low, high = min(shown), max(shown)
    margin = 0.15 * (high - low) + 0.005
    axes.set_ylim(low - margin, high + margin)
    axes.legend()


def _save(path: Path, inches: tuple[float, float], draw: Callable[[Any], None]) -> None:
    # Imported here because it takes a second. A figure of its own needs no display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        picture = io.BytesIO()
        # Without the version of the library, so that the same curves give the same file.
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_whole(path, picture.getvalue())
