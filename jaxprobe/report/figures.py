"""The figures of a run, for a page or a paper: R2 by layer, the map of predicted places, predicted against true."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.host.paths import AnyPath
from jaxprobe.report.canvas import (
    FAINT,
    INK,
    MOST_VECTOR_POINTS,
    MUTED,
    area,
    house_style,
    save,
    write_footer,
    write_title,
)
from jaxprobe.report.map_figure import place_map
from jaxprobe.report.phrases import count, describe_headline, layer_title, with_interval
from jaxprobe.results.results import Run

ACCENT, BASELINE = "#0072B2", "#D55E00"


def write_figures(results: Run) -> list[AnyPath]:
    """Write every figure that suits the run into its figures folder, as PNG and SVG; returns the paths."""
    figures = {"r2_by_layer": r2_by_layer(results)}
    if results.is_place:
        figures["map"] = place_map(results)
    else:
        figures["predicted_against_true"] = predicted_against_true(results)
    return [
        save(figure, results.directory.figures_path / f"{stem}.{suffix}")
        for stem, figure in figures.items()
        for suffix in ("png", "svg")
    ]


def r2_by_layer(results: Run) -> Figure:
    """Test R2 (mean over targets) at every layer with its interval; the embed state is marked as the baseline."""
    with house_style():
        figure = Figure(figsize=(7.2, 4.6))
        axes = figure.add_subplot(area(figure, left=0.62, right=0.75, bottom=0.52, top=1.16))
        mean = results.by_layer("r2")
        x = np.arange(len(results.layers))
        blocks = np.array([layer != "embed" for layer in results.layers])
        axes.fill_between(
            x[blocks], mean["ci_low"][blocks], mean["ci_high"][blocks], color=ACCENT, alpha=0.18, linewidth=0
        )
        axes.plot(x[blocks], mean["value"][blocks], color=ACCENT, linewidth=2, zorder=3)
        _draw_targets(axes, results, blocks)
        _mark_states(figure, axes, results)
        _finish_layer_axes(axes, results)
        write_title(figure, "Test R² by layer", _subtitle(results))
    return figure


def predicted_against_true(results: Run) -> Figure:
    """For each target, the headline layer's prediction against the truth, one dot a test entity."""
    frame = results.test_predictions(results.headline_layer)
    targets = results.targets
    with house_style():
        figure = Figure(figsize=(5.8 * len(targets), 6.4))
        grid = area(figure, left=0.7, right=0.2, bottom=0.85).subgridspec(1, len(targets), wspace=0.25)
        for column, target in enumerate(targets):
            axes = figure.add_subplot(grid[column])
            _draw_scatter(axes, frame[f"true_{target}"], frame[f"predicted_{target}"])
            unit = f" ({results.unit(target)})" if results.unit(target) else ""
            axes.set_xlabel(f"True {target.replace('_', ' ')}{unit}")
            axes.set_ylabel(f"Predicted {target.replace('_', ' ')}{unit}")
        write_title(
            figure, f"{results.model}: {count(len(frame), 'name')} its probe never saw", describe_headline(results)
        )
        write_footer(figure, "Dashed: a perfect prediction.", results.attribution)
    return figure


def _draw_targets(axes: Axes, results: Run, blocks: np.ndarray) -> None:
    """Thin lines for the single targets, where there are several; every line is named at its right end."""
    if len(results.targets) < 2:
        return
    x = np.arange(len(results.layers))
    ends = {"mean": results.by_layer("r2")["value"].iloc[-1]}
    for target in results.targets:
        values = results.by_layer("r2", target)["value"].to_numpy()
        axes.plot(x[blocks], values[blocks], color=MUTED, linewidth=0.9, alpha=0.8)
        ends[target] = values[-1]
    low, high = axes.get_ylim()
    heights = spread_apart(list(ends.values()), 0.055 * (high - min(low, 0)))
    for name, height in zip(ends, heights, strict=True):
        colour = ACCENT if name == "mean" else MUTED
        axes.annotate(
            name, (x[-1], height), (6, 0), textcoords="offset points", va="center", fontsize=7.5, color=colour
        )


def spread_apart(values: list[float], gap: float) -> list[float]:
    """Move values up or down so that neighbours are at least `gap` apart; order and centre of each cluster stay."""
    order = np.argsort(values, kind="stable")
    clusters: list[list[float]] = []
    for value in np.asarray(values)[order]:
        clusters.append([float(value)])
        # A cluster is its members' values; it takes (n - 1) gaps around their mean.
        while len(clusters) > 1 and _bottom(clusters[-1], gap) - _top(clusters[-2], gap) < gap:
            last = clusters.pop()
            clusters[-1] += last
    moved = np.concatenate([_bottom(cluster, gap) + gap * np.arange(len(cluster)) for cluster in clusters])
    result = np.empty(len(values))
    result[order] = moved
    return result.tolist()


def _bottom(cluster: list[float], gap: float) -> float:
    return float(np.mean(cluster)) - gap * (len(cluster) - 1) / 2


def _top(cluster: list[float], gap: float) -> float:
    return float(np.mean(cluster)) + gap * (len(cluster) - 1) / 2


def _mark_states(figure: Figure, axes: Axes, results: Run) -> None:
    """Mark the headline layer and the embed state; what they are stands under the title, where no line crosses it."""
    headline, embed = results.score(results.headline_layer, "r2"), results.score("embed", "r2")
    position = results.layers.index(results.headline_layer)
    axes.plot([position], [headline.value], "o", color=ACCENT, markersize=8, markeredgecolor="white", zorder=5)
    title = layer_title(results.headline_layer)
    lines = [("o", ACCENT, f"{title}, chosen on the training rows: {with_interval(headline)}")]
    if embed is not None and results.headline_layer != "embed":
        axes.axhline(embed.value, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        errors = [[embed.value - embed.ci_low], [embed.ci_high - embed.value]] if embed.has_interval else None
        axes.errorbar([0], [embed.value], yerr=errors, fmt="D", color=BASELINE, markersize=6, capsize=3, zorder=4)
        lines.append(("D", BASELINE, f"embed, the baseline (what the last token alone tells): {with_interval(embed)}"))
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=text)
        for marker, colour, text in lines
    ]
    height = figure.get_figheight()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.6 / height),
        frameon=False,
        fontsize=8.5,
        labelcolor="linecolor",
        handletextpad=0.2,
        borderaxespad=0.2,
    )


def _finish_layer_axes(axes: Axes, results: Run) -> None:
    count_layers = len(results.layers)
    step = max(1, round(count_layers / 12))
    ticks = [
        i
        for i, layer in enumerate(results.layers)
        if not layer.isdecimal() or (int(layer) % step == 0 and (i > 1 or results.layers[0] != "embed" or step == 1))
    ]
    axes.set_xticks(ticks, [results.layers[i] for i in ticks])
    axes.set_xlim(-0.8, count_layers - 0.4)
    low, high = axes.get_ylim()
    # A probe worse than the mean by far would press the rest together; below -1 the line leaves the picture.
    axes.set_ylim(max(min(low, 0), -1), high)
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("Residual stream after block")
    axes.set_ylabel("Test R²")


def _draw_scatter(axes: Axes, true: pd.Series, predicted: pd.Series) -> None:
    axes.scatter(
        true, predicted, s=5, color=ACCENT, alpha=0.35, linewidths=0, rasterized=len(true) > MOST_VECTOR_POINTS
    )
    # A few far values (antiquity among historical figures) must not press the rest into a corner.
    low, high = np.quantile(np.concatenate([true, predicted]), (0.002, 0.998))
    margin = 0.08 * (high - low)
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _subtitle(results: Run) -> str:
    prompt = f", prompt “{results.wording}”" if results.wording not in ("", "{}") else ""
    return f"{results.model} · {results.dataset}{prompt} · 95 % interval"
