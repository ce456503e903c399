"""Scores of several runs as lines: against relative depth, and against the size of the model."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.report.canvas import FAINT, LOWEST_R2, area, house_style, legend_label, r2_limits, write_title
from jaxprobe.report.maps import OKABE_ITO

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
NUMBER_METRICS = {"r2": "Test R²", "spearman": "Spearman"}
CLASS_METRICS = {"accuracy": "Test accuracy", "balanced_accuracy": "Balanced"}


def draw_depths(frame: pd.DataFrame, metrics: Mapping[str, str], fixed: Sequence[str]) -> Figure:
    """Scores against relative depth: a panel for each table and metric, a line for each run.

    Where the runs are of models of several sizes, lines are coloured by size, and a row of panels shows the first
    metric of each run's headline layer against it.

    Args:
      frame: dataset, line (its name in the legend), model, metric, depth, value, ci_low, ci_high, parameters (NaN
        where not known) and headline (whether this is the layer that the run chose).
      metrics: two of them, and what their axes are called.
      fixed: what all runs have in common, for the subtitle.
    """
    sizes = frame.groupby("line", sort=False)["parameters"].first()
    by_size = len(sizes) > 1 and sizes.notna().all() and sizes.nunique() > 1
    styles = _styles_by_size(sizes) if by_size else dict(zip(sizes.index, _styles(), strict=False))
    datasets, rows = list(dict.fromkeys(frame["dataset"])), len(metrics) + by_size
    below = 0.6 + 0.19 * len(styles)
    with house_style():
        figure = Figure(figsize=(max(5.4, 3.1 * len(datasets) + 0.8), 1.6 + 1.9 * rows + 0.45 * by_size + below))
        space = area(figure, left=0.72, right=0.2, bottom=below, top=0.95)
        grid = space.subgridspec(rows + by_size, len(datasets), hspace=0.1, wspace=0.1, height_ratios=_heights(by_size))
        for row, (metric, name) in enumerate(metrics.items()):
            shared = None
            for column, dataset in enumerate(datasets):
                axes = shared = figure.add_subplot(grid[row, column], sharey=shared)
                _draw_lines(axes, frame[(frame["dataset"] == dataset) & (frame["metric"] == metric)], styles)
                last = row == len(metrics) - 1
                _name(axes, name * (column == 0), "Relative depth" * last, dataset * (row == 0))
            shared.set_ylim(*_limits(frame[frame["metric"] == metric]))
        if by_size:
            first, name = next(iter(metrics.items()))
            chosen, shared = frame[frame["headline"] & (frame["metric"] == first)], None
            for column, dataset in enumerate(datasets):
                axes = shared = figure.add_subplot(grid[-1, column], sharey=shared)
                _draw_sizes(axes, chosen[chosen["dataset"] == dataset], styles)
                _name(axes, f"{name}, layer chosen" * (column == 0), "Parameters without the head", "")
            shared.set_ylim(*_limits(chosen))
        handles = [
            Line2D([], [], label=legend_label(label, 90), linewidth=2, **style) for label, style in styles.items()
        ]
        figure.legend(handles=handles, loc="lower left", frameon=False, fontsize=8.5, borderaxespad=0.4)
        scale = "0: the embedding, 1: after the last block · 95 % interval over test rows"
        write_title(figure, "Test scores by layer" + " and size" * bool(by_size), " · ".join([*fixed, scale]))
    return figure


def _heights(by_size: bool) -> list[float]:
    """Of the rows of panels; an empty one makes room for the numbers below relative depth."""
    return [1.0, 1.0, 0.12, 1.0] if by_size else [1.0, 1.0]


def _name(axes: Axes, left: str, below: str, above: str) -> None:
    axes.tick_params(labelleft=bool(left), labelbottom=bool(below))
    axes.set_ylabel(left)
    axes.set_xlabel(below)
    axes.set_title(above, loc="left", fontsize=10)
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _limits(frame: pd.DataFrame) -> tuple[float, float]:
    return r2_limits(frame[["value", "ci_low", "ci_high"]].to_numpy(np.float64))


def _draw_lines(axes: Axes, frame: pd.DataFrame, styles: dict[str, dict]) -> None:
    for line, part in frame.groupby("line", sort=False):
        part = part.sort_values("depth")
        # Far outside of the panel a line is drawn with errors of its own.
        low, high, value = (part[name].clip(LOWEST_R2 - 1, 2) for name in ("ci_low", "ci_high", "value"))
        axes.fill_between(part["depth"], low, high, alpha=0.15, linewidth=0, color=styles[line]["color"])
        axes.plot(part["depth"], value, linewidth=1.8, **styles[line])
    axes.set_xlim(-0.02, 1.02)


def _draw_sizes(axes: Axes, frame: pd.DataFrame, styles: dict[str, dict]) -> None:
    """One dot a run with its interval; a grey line joins the runs of one prompt."""
    for _, part in frame.groupby("prompt", sort=False):
        part = part.sort_values("parameters")
        axes.plot(part["parameters"], part["value"].clip(LOWEST_R2 - 1, 2), color=FAINT, linewidth=1.2, zorder=1)
    for line, part in frame.groupby("line", sort=False):
        low, high, value = (part[name].clip(LOWEST_R2 - 1, 2) for name in ("ci_low", "ci_high", "value"))
        colour = styles[line]["color"]
        axes.vlines(part["parameters"], low, high, color=colour, linewidth=1.1, zorder=2)
        axes.plot(part["parameters"], value, color=colour, marker="o", markersize=4.5, linestyle="", zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda count, _: size_in_words(count))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    ticks = np.unique(frame["parameters"])
    if len(ticks) <= 8:
        axes.set_xticks(ticks)
        axes.set_xticks([], minor=True)
    axes.margins(x=0.08)


def size_in_words(parameters: float) -> str:
    """A number of parameters to two digits: "160 M", "6.9 B"."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= factor:
            count = parameters / factor
            return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"
    return f"{parameters:.0f}"


def _styles() -> Iterator[dict]:
    return itertools.cycle({"color": colour, "linestyle": dash} for dash in DASHES for colour in OKABE_ITO)


def _styles_by_size(sizes: pd.Series) -> dict[str, dict]:
    """The smallest model first and darkest; lines of one size differ in their dashes."""
    ordered = sizes.sort_values(kind="stable")
    steps = {size: step for step, size in enumerate(ordered.unique())}
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.88, len(steps)))
    return {
        line: {"color": mpl.colors.to_hex(colours[steps[size]]), "linestyle": DASHES[nth % len(DASHES)]}
        for (line, size), nth in zip(ordered.items(), ordered.groupby(ordered).cumcount(), strict=True)
    }
