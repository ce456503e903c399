"""Dots with their intervals, a row for each thing and a panel for each metric."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.report.canvas import BEHIND, FAINT, INK, MUTED, area, house_style, r2_limits, write_title
from jaxprobe.report.phrases import number

# metric -> its name on an axis, in the order of the panels.
METRICS = {
    "accuracy": "Test accuracy",
    "r2": "Test R²",
    "r2_block_mean": "R² about these rows' mean",
    "r2_train_mean": "R² about the training mean",
    "proximity_error": "Proximity error (chance: 0.5)",
    "error_km_median": "Median error, km",
    "error_km_mean": "Mean error, km",
}
# Both colour and marker tell the kinds apart.
STYLES = ({"color": "#0072B2", "marker": "o"}, {"color": "#D55E00", "marker": "D"})
ROW, HEAD, TOP, BOTTOM, PANEL = 0.23, 0.3, 0.85, 0.85, 2.3  # inches


def draw_dots(frame: pd.DataFrame, kinds: Mapping[str, str], title: str, subtitle: str) -> Figure:
    """A figure of scores: sections of rows, a panel for each metric, up to two kinds of dot in a row.

    Args:
      frame: section, row, kind (strings), metric, value, ci_low, ci_high; sections and rows are drawn in its order.
      kinds: kind -> what the legend calls it.
      title, subtitle: lines at the top.
    """
    sections = {name: list(dict.fromkeys(part["row"])) for name, part in frame.groupby("section", sort=False)}
    metrics = [metric for metric in METRICS if metric in set(frame["metric"])]
    names = 0.3 + 0.068 * max(len(name) for labels in sections.values() for name in labels)
    heights = [HEAD * bool(name) + ROW * len(labels) for name, labels in sections.items()]
    with house_style():
        figure = Figure(figsize=(max(names + PANEL * len(metrics) + 0.25, 5.4), sum(heights) + TOP + BOTTOM))
        space = area(figure, left=names, right=0.25, bottom=BOTTOM, top=TOP)
        grid = space.subgridspec(len(sections), len(metrics), height_ratios=heights, wspace=0.16, hspace=0)
        for column, metric in enumerate(metrics):
            part = frame[frame["metric"] == metric]
            limits = axis_limits(part, metric)
            for i, (name, labels) in enumerate(sections.items()):
                axes = figure.add_subplot(grid[i, column])
                _draw_rows(axes, part[part["section"] == name], labels, list(kinds), limits)
                axes.set_ylim(len(labels) - 0.5, -0.5 - HEAD * bool(name) / ROW)
                _finish(axes, labels if column == 0 else [], METRICS[metric] if i == len(sections) - 1 else "")
                if column == 0 and name:
                    place = {"transform": _inches_and_rows(figure, axes), "bbox": BEHIND}  # it may reach over the axes
                    axes.text(0.13 - names, -0.75, name, fontsize=9, fontweight="bold", **place)
        handles = [Line2D([], [], linestyle="", label=kinds[k], **s) for k, s in zip(kinds, STYLES, strict=False)]
        figure.legend(handles=handles, loc="lower left", frameon=False, fontsize=8.5, ncols=2, borderaxespad=0.3)
        write_title(figure, title, subtitle)
    return figure


def axis_limits(frame: pd.DataFrame, metric: str) -> tuple[float, float]:
    """The range that a metric's axis shows: 0, every value and interval; of R2 what `r2_limits` keeps."""
    values = frame[["value", "ci_low", "ci_high"]].to_numpy()
    if metric.startswith("r2"):
        return r2_limits(values)
    values = values[np.isfinite(values)]
    low, high = min(values.min(initial=0), 0.0), values.max(initial=0)
    if metric == "proximity_error":
        high = max(high, 0.55)
    return low - 0.04 * (high - low) * (low < 0), high + 0.06 * (high - low)


def _draw_rows(
    axes: Axes, frame: pd.DataFrame, labels: list[str], kinds: list[str], limits: tuple[float, float]
) -> None:
    """The dots of one section and metric; a value left of the limits is written there, with an arrow, none at 0."""
    place = {label: i for i, label in enumerate(labels)}
    apart = 0.17 if frame.groupby("row")["kind"].nunique().gt(1).any() else 0.0
    for kind, shift, style in zip(kinds, (-apart, apart), STYLES, strict=False):
        part = frame[frame["kind"] == kind]
        y = part["row"].map(place).to_numpy() + shift
        # Clipped to just beyond the axis: coordinates of 1e53 are more than a picture can hold.
        edges = limits[0] - 1, limits[1] + 1
        ends = (part[name].clip(*edges) for name in ("ci_low", "ci_high"))
        axes.hlines(y, *ends, color=style["color"], linewidth=1.1, zorder=2)
        axes.plot(part["value"].clip(*edges), y, linestyle="", markersize=4.2, zorder=3, **style)
        written = {"fontsize": 6.5, "va": "center", "color": style["color"], "bbox": BEHIND, "zorder": 4}
        for value, height in zip(part["value"], y, strict=True):
            if np.isnan(value):
                axes.text(0, height, "no score", **written)
            elif value < limits[0]:
                axes.text(limits[0], height, f"◂ {number(value, 1)}", **written)
    axes.set_xlim(limits)


def _finish(axes: Axes, labels: list[str], name: str) -> None:
    """Row names on the left and the metric's name below, where they are given."""
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=INK)
    axes.tick_params(axis="x", labelbottom=bool(name), bottom=bool(name))
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(bool(name))
    axes.grid(True, axis="x", color=FAINT, linewidth=0.5)
    low, high = axes.get_xlim()
    if low <= 0 <= high:
        axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    axes.set_axisbelow(True)
    axes.set_xlabel(name)


def _inches_and_rows(figure: Figure, axes: Axes):
    """A transform: across in inches from the axes' left side, down in the axes' own rows."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    side = axes.get_position().x0 * figure.get_figwidth()
    inches = figure.dpi_scale_trans + ScaledTranslation(side, 0, figure.dpi_scale_trans)
    return blended_transform_factory(inches, axes.transData)
