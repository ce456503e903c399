"""The map of predicted places, for a page or a paper."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from jaxprobe.report.canvas import (
    FAINT,
    INK,
    MOST_VECTOR_POINTS,
    area,
    dot_size,
    house_style,
    legend_below,
    legend_label,
    write_footer,
    write_title,
)
from jaxprobe.report.maps import Colouring, Extent, colour_by_group, extent_of, read_coastlines
from jaxprobe.report.phrases import count, describe_headline, layer_title
from jaxprobe.results.results import Run

LAND, SEA, COAST = "#F1EFEA", "#FFFFFF", "#A9B0B9"


def place_map(results: Run) -> Figure:
    """Where the headline layer puts the test places, with small maps of the truth and of the embed state beside it."""
    frame = results.test_predictions(results.headline_layer)
    extent = extent_of(frame["true_latitude"].to_numpy(), frame["true_longitude"].to_numpy())
    colouring = colour_by_group(frame, results.groups, results.test_entities)
    colours = _point_colours(frame, colouring)
    shape = (extent.north - extent.south) * extent.aspect / (extent.east - extent.west)
    has_embed = "embed" in set(results.predictions["layer"]) and results.headline_layer != "embed"
    with house_style():
        main_width, gap = min(7.5, 5.5 / shape), 0.36
        height = main_width * shape
        side_height = (height - gap) / 2
        side_width = side_height / shape
        # The sum of margins and of the space between columns, in inches, besides the maps themselves.
        width = main_width + side_width + 0.13 * 3
        figure = Figure(figsize=(width, height))
        # Below the maps, where it covers no continent.
        bottom = 0.38 + _legend(figure, colouring)
        figure.set_size_inches(width, height + bottom + 0.97)
        grid = area(figure, left=0.13, right=0.13, bottom=bottom, top=0.97).subgridspec(
            2,
            2,
            width_ratios=(main_width, side_width),
            wspace=0.13 / ((main_width + side_width) / 2),
            hspace=gap / side_height,
        )
        size = dot_size(len(frame), least=2)
        main = figure.add_subplot(grid[:, 0], anchor="N")
        _draw_map(main, extent, frame, "predicted", colours, size)
        _panel_name(main, f"Predicted from {layer_title(results.headline_layer)}")
        truth = figure.add_subplot(grid[0, 1], anchor="N")
        _draw_map(truth, extent, frame, "true", colours, size / 4)
        _panel_name(truth, "Where they are")
        if has_embed:
            baseline = figure.add_subplot(grid[1, 1], anchor="S")
            _draw_map(baseline, extent, results.test_predictions("embed"), "predicted", colours, size / 4)
            _panel_name(baseline, "Predicted from the embedding")
        write_title(
            figure,
            f"Where {results.model} puts {count(len(frame), 'place')} its probe never saw",
            describe_headline(results),
        )
        write_footer(figure, _outside(frame, extent), results.attribution)
    return figure


def _draw_map(axes: Axes, extent: Extent, frame: pd.DataFrame, which: str, colours: np.ndarray, size: float) -> None:
    """Land, and a dot for each row of `frame` at its "true" or "predicted" place."""
    if extent.shows_coast:
        # Not add_patch: it would walk every vertex to widen limits that are set below.
        axes.add_artist(PathPatch(_land(), facecolor=LAND, edgecolor=COAST, linewidth=0.5, zorder=1))
    # Drawn in a fixed random order, so that no group hides another because it comes later in the table.
    order = np.random.default_rng(0).permutation(len(frame))
    axes.scatter(
        frame[f"{which}_longitude"].to_numpy()[order],
        frame[f"{which}_latitude"].to_numpy()[order],
        s=size,
        c=colours[order],
        alpha=0.85,
        linewidths=0,
        zorder=2,
        rasterized=len(order) > MOST_VECTOR_POINTS,
    )
    axes.set(xlim=(extent.west, extent.east), ylim=(extent.south, extent.north), aspect=extent.aspect)
    axes.set(facecolor=SEA, xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT)
    if not extent.shows_coast:
        _scale_bar(axes, extent)


def _scale_bar(axes: Axes, extent: Extent) -> None:
    """A bar of a round number of kilometres, for a map without coasts to measure by."""
    km_per_degree = 111.2 / extent.aspect
    wanted = 0.3 * (extent.east - extent.west) * km_per_degree
    power = 10 ** math.floor(math.log10(wanted))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= wanted)
    right = extent.east - 0.03 * (extent.east - extent.west)
    left, y = right - length / km_per_degree, extent.south + 0.04 * (extent.north - extent.south)
    axes.plot([left, right], [y, y], color=INK, linewidth=1.5, solid_capstyle="butt")
    axes.annotate(
        f"{length:g} km", ((left + right) / 2, y), (0, 3), textcoords="offset points", ha="center", fontsize=7
    )


def _land() -> Path:
    """The outlines as one path; a lake is wound the other way round, so it stays empty."""
    coast = read_coastlines()
    outlines = np.split(coast, np.flatnonzero(np.isnan(coast[:, 0])))
    return Path.make_compound_path(*(Path(outline[~np.isnan(outline[:, 0])], closed=True) for outline in outlines))


def _point_colours(frame: pd.DataFrame, colouring: Colouring | None) -> np.ndarray:
    """[N, 4] RGBA of each row: by group, or by true longitude where no group says where a place is."""
    if colouring is None:
        longitude = frame["true_longitude"].rank(pct=True).to_numpy()
        return mpl.colormaps["viridis"](0.05 + 0.85 * longitude)
    palette = {label: mpl.colors.to_rgba(colour) for label, colour in colouring.colours.items()}
    return np.array([palette[label] for label in colouring.labels])


def _legend(figure: Figure, colouring: Colouring | None) -> float:
    """What the colours mean, below the maps; returns its height in inches."""
    if colouring is None:
        words = "Colour: true longitude, dark in the west, light in the east"
        figure.text(0.13, 0.36, words, fontsize=8, transform=figure.dpi_scale_trans)
        return 0.2
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5.5, color=colour, label=legend_label(label))
        for label, colour in colouring.colours.items()
    ]
    return legend_below(figure, handles, f"True {colouring.group.replace('_', ' ')}")


def _panel_name(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8.5, color=INK, loc="left", pad=4)


def _outside(frame: pd.DataFrame, extent: Extent) -> str:
    inside = frame["predicted_longitude"].between(extent.west, extent.east)
    inside &= frame["predicted_latitude"].between(extent.south, extent.north)
    missing = int((~inside).sum())
    return f"{count(missing, 'prediction')} outside the frame." if missing else ""
