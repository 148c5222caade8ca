"""Pictures of patches, made once and saved as PNG files or as SVG elements of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.nucleotides import BASE_CODE, IS_REPEAT_MASKED, OTHER_CODE, UPPER
from hyena_blt_savanna.patching.inspection import THIS, Inspection
from hyena_blt_savanna.patching.inspection_composition import (
    EVERYTHING,
    OTHER_LETTERS,
    ClassFigures,
    homopolymers,
    tandem_repeats,
)
from hyena_blt_savanna.patching.inspection_rules import Agreement, Cutting
from hyena_blt_savanna.patching.inspection_stretch import Stretch, Windows
from hyena_blt_savanna.patching.rules import PatchRuleConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """What draws on a figure, and the size that it wants, width and height in inches."""

    draw: Callable[[Figure], None]
    inches: tuple[float, float]


_INK, _SVG_INK, _GREY = "#23272e", "#010203", "#8b919a"
_PALETTE = ("#3b7dd8", "#e0862d", "#2f9e77", "#c9549b", "#8a6fd1", "#c0504d", "#5fa8c9", "#a08a3c")
_BASE_COLOURS = ("#2f9e77", "#3b7dd8", "#d99a1c", "#d1495b", _GREY)
_UNIFORM_NATS = float(np.log(4))
_LEAST_WINDOWS = 20
_PIXELS_PER_INCH = 108


def pictures_of(inspection: Inspection) -> dict[str, Picture]:
    """All pictures of an inspection, by name; those that it has nothing for are left out."""
    cuttings, sample = inspection.cuttings, inspection.sample
    rules = {name: cutting.rule for name, cutting in cuttings.items() if name != THIS or len(cuttings) == 1}
    pictures = {
        "stretch": picture_of_stretch(inspection.example, inspection.example_starts),
        "lengths": picture_of_lengths({name: cutting.lengths for name, cutting in cuttings.items()}),
        "entropies": picture_of_entropies(sample.entropies[BASE_CODE[sample.bases] != OTHER_CODE], rules),
        "composition": picture_of_composition(inspection.composition),
    }
    if len(cuttings) > 1:
        pictures["agreement"] = picture_of_agreement(inspection.agreement, cuttings)
    if len(inspection.windows.middles) >= _LEAST_WINDOWS:
        pictures["along"] = picture_along(inspection.windows, inspection.coding_in_windows)
    return pictures


def colours(names: Mapping[str, Any] | list[str]) -> dict[str, str]:
    """One colour for each cutting, by name; the one that is inspected is drawn in grey."""
    others = [name for name in names if name != THIS]
    return {THIS: _GREY} | {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(others)}


def picture_of_lengths(lengths: Mapping[str, NDArray[np.int32]]) -> Picture:
    """How often each patch length occurs, one panel a cutting.

    Args:
        lengths: int32 [P] in bases, by name of the cutting.
    """
    num_columns = min(3, len(lengths))
    num_rows = -(-len(lengths) // num_columns)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        palette = colours(lengths)
        panels: list[Axes] = list(figure.subplots(num_rows, num_columns, sharex=True, squeeze=False).flat)
        longest = max(int(each.max()) for each in lengths.values())
        for panel, (name, each) in zip(panels, lengths.items(), strict=False):
            shares = 100 * np.bincount(each, minlength=longest + 1)[1:] / len(each)
            panel.bar(np.arange(1, longest + 1), shares, color=palette[name], width=0.86)
            mean, std = float(each.mean()), float(each.std())
            panel.axvline(mean, color=_ink(), linewidth=1.0, linestyle=(0, (3, 2)))
            panel.set_title(f"{name}: {mean:.2f} ± {std:.2f}")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_xlim(0.3, longest + 0.7)
        for panel in panels[len(lengths) :]:
            panel.set_axis_off()
        figure.supxlabel("patch length (bases)", fontsize=9)
        figure.supylabel("patches (%)", fontsize=9)

    return Picture(draw, (2.7 * num_columns + 0.5, 1.75 * num_rows + 0.5))


def picture_of_entropies(entropies: NDArray[np.float32], rules: Mapping[str, PatchRuleConfig]) -> Picture:
    """How entropies are distributed, with the threshold of each rule that has one.

    Args:
        entropies: float32 [L], nats, of bases A, C, G and T.
        rules: by name; calibrated.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        low = float(np.quantile(entropies, 0.004))
        top = max(_UNIFORM_NATS, float(entropies.max()))
        shares, edges = np.histogram(entropies, bins=120, range=(min(low, top - 0.01), top))
        axes.stairs(100 * shares / len(entropies), edges, fill=True, color=_PALETTE[0], alpha=0.85)
        palette = colours(rules)
        for name, rule in rules.items():
            threshold = getattr(rule, "threshold_nats", None)
            if threshold is not None:
                above = 100 * float((entropies > threshold).mean())
                label = f"threshold of {name}: {threshold:.4f} nats ({above:.0f} % above)"
                axes.axvline(threshold, color=palette[name], linewidth=1.4, label=label)
        axes.axvline(_UNIFORM_NATS, color=_ink(), linewidth=0.9, linestyle=":", label="ln 4: nothing is known")
        axes.axvline(float(entropies.mean()), color=_ink(), linewidth=0.9, linestyle="--", label="mean")
        axes.set(xlabel="entropy of a base (nats)", ylabel="bases (%)")
        axes.set_xlim(edges[0], top + 0.01 * (top - edges[0]))
        axes.legend(loc="upper left")

    return Picture(draw, (7.2, 3.1))


def picture_of_stretch(stretch: Stretch, cuttings: Mapping[str, NDArray[np.int64]]) -> Picture:
    """Some 150 bases with their letters, entropies and the patches of each cutting one above the other.

    Homopolymers and tandem repeats have a grey ground, soft-masked letters are slanted.

    Args:
        stretch: what is drawn.
        cuttings: int64 [P], where patches start in the stretch, by name.
    """
    num = len(stretch.bases)
    row_bases = 75 if num > 90 else num
    num_rows = -(-num // row_bases)
    height = 0.95 + 0.21 * (len(cuttings) + 1)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(num_rows, 1, squeeze=False)[:, 0]
        low, high = np.quantile(stretch.entropies, [0.01, 1.0])
        span = max(float(high - low), 0.02)
        for row, panel in enumerate(panels):
            _draw_row(panel, stretch, cuttings, row * row_bases, row_bases, (float(low), span))
        panels[-1].set_xlabel("base")

    return Picture(draw, (0.118 * row_bases + 1.2, height * num_rows + 0.35))


def _draw_row(
    axes: Axes,
    stretch: Stretch,
    cuttings: Mapping[str, NDArray[np.int64]],
    begin: int,
    row_bases: int,
    scale: tuple[float, float],
) -> None:
    low, span = scale
    stop = min(begin + row_bases, len(stretch.bases))
    positions = np.arange(begin, stop) + stretch.first
    num_lanes = len(cuttings)
    # From the bottom: one lane a cutting, a lane of letters, then the entropies, three lanes high.
    palette = colours(cuttings)
    ticks, labels = [], []
    for lane, (name, starts) in enumerate(cuttings.items()):
        bottom = num_lanes - 1 - lane
        edges = np.unique(np.concatenate([[begin], starts[(starts >= begin) & (starts < stop)], [stop]]))
        # Which patch a piece belongs to decides its shade, also where the row begins within it.
        number = int(np.searchsorted(starts, begin, side="right"))
        pieces = zip(edges[:-1] + stretch.first - 0.5, np.diff(edges), strict=True)
        for index, (left, width) in enumerate(pieces):
            shade = 0.9 if (number + index) % 2 else 0.45
            axes.broken_barh([(left, width)], (bottom + 0.16, 0.68), color=palette[name], alpha=shade, linewidth=0)
        ticks.append(bottom + 0.5)
        labels.append(name)
    for base, position in zip(stretch.bases[begin:stop].tolist(), positions.tolist(), strict=True):
        axes.text(
            position,
            num_lanes + 0.5,
            chr(UPPER[base]) if base > 32 else "·",
            ha="center",
            va="center",
            color=_BASE_COLOURS[BASE_CODE[base]],
            fontsize=7.2,
            family="monospace",
            weight="bold",
            style="italic" if IS_REPEAT_MASKED[base] else "normal",
        )
    repeats = np.flatnonzero((homopolymers(stretch.bases) | tandem_repeats(stretch.bases))[begin:stop])
    boxes = [(positions[0] + index - 0.5, 1.0) for index in repeats.tolist()]
    axes.broken_barh(boxes, (num_lanes + 0.08, 0.84), color=_GREY, alpha=0.25, linewidth=0)
    nats = np.clip((stretch.entropies[begin:stop] - low) / span, 0, 1)
    base_line = num_lanes + 1.1
    axes.stairs(
        base_line + 2.8 * nats, np.append(positions - 0.5, positions[-1] + 0.5), baseline=base_line, fill=True,
        color=_ink(), alpha=0.28, linewidth=0,
    )  # fmt: skip
    axes.set_yticks(
        [base_line, base_line + 2.8, *ticks, num_lanes + 0.5],
        [f"{low:.2f} nats", f"{low + span:.2f} nats", *labels, "base"],
        fontsize=7.5,
    )
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.1, num_lanes + 4.1)
    axes.set_xlim(positions[0] - 1, positions[0] + row_bases)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def picture_along(windows: Windows, coding: NDArray[np.float64] | None) -> Picture:
    """Cuts and entropy along a stretch, beside GC content, repeats and what is coding.

    Windows of which most bases are not known are left empty, and single windows far off may leave a panel.

    Args:
        windows: the stretch in windows.
        coding: float64 [W], share of coding bases; None where that is not known.
    """
    is_shown = windows.known >= 0.5
    tracks: list[tuple[str, NDArray[np.float64], str]] = [
        ("bases per cut", np.where(np.isfinite(windows.bases_per_cut), windows.bases_per_cut, np.nan), _PALETTE[0]),
        ("entropy\n(nats)", windows.nats, _PALETTE[1]),
        ("GC (%)", 100 * windows.gc, _PALETTE[2]),
        ("repeats (%)", 100 * windows.repeats, _PALETTE[3]),
    ]
    if windows.soft_masked.any():
        tracks.append(("soft-\nmasked (%)", 100 * windows.soft_masked, _PALETTE[4]))
    if coding is not None:
        tracks.append(("coding (%)", 100 * coding, _PALETTE[5]))

    def draw(figure: Figure) -> None:
        panels: list[Axes] = list(figure.subplots(len(tracks), 1, sharex=True, squeeze=False)[:, 0])
        for panel, (name, values, colour) in zip(panels, tracks, strict=True):
            shown = np.where(is_shown, values, np.nan)
            panel.plot(windows.middles, shown, color=colour, linewidth=0.9)
            if np.isfinite(shown).any():
                panel.axhline(float(np.nanmean(shown)), color=_GREY, linewidth=0.7, linestyle=":")
                low, high = np.nanquantile(shown, (0.01, 0.99))
                panel.set_ylim(low - 0.4 * (high - low) - 1e-3, high + 0.4 * (high - low) + 1e-3)
            panel.set_ylabel(name, rotation=0, ha="right", va="center")
        panels[-1].set_xlabel(f"base (windows of {windows.width_bases:,} bases)")
        panels[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.align_ylabels()

    return Picture(draw, (8.4, 0.95 * len(tracks) + 0.6))


def picture_of_composition(composition: Mapping[str, ClassFigures]) -> Picture:
    """Bases per cut in each class of bases, a point for each cutting; letters that are no base are left out.

    Args:
        composition: by class of bases.
    """
    names = [name for name in composition if name != OTHER_LETTERS]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        cuttings = list(next(iter(composition.values())).bases_per_cut)
        palette = colours(cuttings)
        heights = np.arange(len(names))[::-1]
        for height in heights[::2]:
            axes.axhspan(height - 0.5, height + 0.5, color=_GREY, alpha=0.1, linewidth=0)
        offsets = np.linspace(0.26, -0.26, len(cuttings)) if len(cuttings) > 1 else [0.0]
        for cutting, offset in zip(cuttings, offsets, strict=True):
            values = [composition[name].bases_per_cut[cutting] for name in names]
            marker, size = ("D", 20) if cutting == THIS else ("o", 26)
            axes.scatter(values, heights + offset, s=size, color=palette[cutting], marker=marker, label=cutting)
        everything = composition[EVERYTHING].bases_per_cut[cuttings[0]]
        axes.axvline(everything, color=_ink(), linewidth=0.8, linestyle=":")
        axes.set_yticks(heights, [f"{name}  ({100 * composition[name].share:.1f} %)" for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel("bases per cut (dotted: mean patch length of everything)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return Picture(draw, (8.2, 0.3 * len(names) + 0.9))


def picture_of_agreement(agreement: Mapping[tuple[str, str], Agreement], cuttings: Mapping[str, Cutting]) -> Picture:
    """Share of cuts that each pair of cuttings has in common, and what chance gives.

    Args:
        agreement: by pair of names.
        cuttings: by name.
    """
    names = list(cuttings)

    def draw(figure: Figure) -> None:
        from matplotlib.colors import to_rgb

        axes = figure.subplots()
        colour = to_rgb(_PALETTE[0])
        for (a, b), found in agreement.items():
            row, column = names.index(b), names.index(a)
            axes.fill_between(
                [column - 0.5, column + 0.5],
                row - 0.5,
                row + 0.5,
                color=(*colour, 0.06 + 0.8 * found.share),
                linewidth=0,
            )
            axes.text(column, row - 0.1, f"{100 * found.share:.1f} %", ha="center", va="center", fontsize=9)
            chance = f"chance {100 * found.by_chance:.1f} %"
            axes.text(column, row + 0.27, chance, ha="center", va="center", fontsize=6.2)
        axes.set_xticks(range(len(names) - 1), names[:-1])
        axes.set_yticks(range(1, len(names)), names[1:])
        axes.set_xlim(-0.55, len(names) - 1.45)
        axes.set_ylim(len(names) - 0.45, 0.45)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return Picture(draw, (0.95 * len(names) + 0.5, 0.62 * len(names) + 0.3))


def write_pictures(inspection: Inspection, folder: Path) -> None:
    """Writes all pictures of an inspection as FOLDER/NAME.png.

    Raises:
        DiskFullError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures_of(inspection).items():
        write_whole(folder / f"{name}.png", as_png(picture))


def as_png(picture: Picture, dots_per_inch: int = 110) -> bytes:
    """A figure as a PNG file on white."""
    return _drawn(picture, _INK, format="png", dpi=dots_per_inch, facecolor="white")


def as_svg(picture: Picture, name: str) -> str:
    """A figure as an SVG element whose lines and letters have the colour of the text around it.

    Args:
        picture: what is drawn.
        name: of this figure on its page; keeps its parts' names apart from other figures'.
    """
    text = _drawn(picture, _SVG_INK, salt=name, format="svg", transparent=True, metadata={"Date": None}).decode()
    text = text[text.index("<svg") :].replace(_SVG_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Two figures of one page may name different parts alike.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    width = round(picture.inches[0] * _PIXELS_PER_INCH)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'width="{width}" role="img"', text, count=1)


def _drawn(picture: Picture, ink: str, salt: str = "", **options: Any) -> bytes:
    # Imported here because it takes a second. A figure of its own needs no display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {
        "font.size": 8.5,
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.titlesize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.hashsalt": salt,
    }
    draw, inches = picture
    out = io.BytesIO()
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas)
        canvas.savefig(out, **options)
    return out.getvalue()


def _ink() -> str:
    """The colour of letters in the picture that is being drawn."""
    import matplotlib

    return str(matplotlib.rcParams["text.color"])
