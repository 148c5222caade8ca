"""Pictures of a report, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9822b", "#8a8f98"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
"""What matplotlib is told for every picture of results."""
DOTS_PER_INCH = 160
"""Of the PNG files."""
_UNIFORM_BITS = 2.0


def draw_loss(path: Path, training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> None:
    """Bits per base over the steps.

    Args:
        path: the picture.
        training: lines of metrics with `step` and `bits_per_base`.
        validation: likewise; may be empty.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        steps, bits = _curve(training)
        axes.plot(steps, bits, color=_BLUE, linewidth=1.0, label="training")
        if validation:
            axes.plot(*_curve(validation), color=_ORANGE, marker="o", markersize=3.5, label="validation")
        axes.axhline(_UNIFORM_BITS, color=_GREY, linewidth=0.8, linestyle=":", label="four equal bases")
        # The first steps are far above what matters.
        settled = bits[len(bits) // 10 :]
        axes.set_ylim(top=max(_UNIFORM_BITS, float(np.nanmax(settled))) + 0.02)
        axes.set(xlabel="step", ylabel="bits per base", title="Loss")
        axes.legend()

    _save(path, (6.4, 3.6), draw)


def draw_patch_lengths(path: Path, lengths: NDArray[np.int32]) -> None:
    """How often each patch length occurs.

    Args:
        path: the picture.
        lengths: int32 [P], bases.
    """

    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        counts = np.bincount(lengths)
        axes.bar(np.arange(1, len(counts)), 100 * counts[1:] / len(lengths), color=_BLUE, width=0.85)
        mean = float(lengths.mean())
        axes.axvline(mean, color=_ORANGE, linewidth=1.2, label=f"mean {mean:.2f} bases")
        axes.set(xlabel="patch length (bases)", ylabel="patches (%)", title="Patches of the test data")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    _save(path, (6.4, 3.6), draw)


def draw_entropy(
    path: Path,
    start: int,
    bits: NDArray[np.float32],
    patch_starts: NDArray[np.int64],
    entropies: NDArray[np.float32] | None,
) -> None:
    """What the entropy model expects along a stretch, where patches start, and how surprised the model is.

    Args:
        path: the picture.
        start: the stretch's first base in its sequence, from 0.
        bits: float32 [L], what each base cost the model; NaN where it was not scored.
        patch_starts: int64, bases of the sequence at which patches start.
        entropies: float32 [L], nats; None where the rule needs none.
    """
    positions = np.arange(start, start + len(bits))

    def draw(figure: Figure) -> None:
        panels: list[Axes] = list(figure.subplots(1 if entropies is None else 2, sharex=True, squeeze=False)[:, 0])
        for panel in panels:
            # The step of base i reaches from i - 0.5 to i + 0.5: a boundary lies before its patch's first base.
            panel.vlines(patch_starts - 0.5, 0, 1, transform=panel.get_xaxis_transform(), color=_GREY, linewidth=0.4)
            panel.set_xlim(start - 0.5, start + len(bits) - 0.5)
        if entropies is not None:
            panels[0].step(positions, entropies / np.log(2), where="mid", color=_ORANGE, linewidth=1.0)
            panels[0].set(
                ylabel="entropy (bits)", title="Entropy of each base, by the entropy model (lines: patches start)"
            )
        panels[-1].step(positions, bits, where="mid", color=_BLUE, linewidth=1.0)
        panels[-1].set_ylim(bottom=0)
        panels[-1].set(
            ylabel="cost (bits)", title="What each base cost the trained model", xlabel="position (base, from 0)"
        )

    _save(path, (9.6, 2.4 if entropies is None else 4.4), draw)


def _curve(lines: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # A step that diverged has no number.
    bits = [np.nan if line["bits_per_base"] is None else line["bits_per_base"] for line in lines]
    return np.array([line["step"] for line in lines]), np.array(bits)


def _save(path: Path, inches: tuple[float, float], draw: Any) -> None:
    # Imported here because it takes a second. A figure of its own needs no display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())
