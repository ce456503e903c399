"""The figures of a run, for a page or a paper: R2 by layer, the map of predicted places, predicted against true."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.host.paths import AnyPath
from jaxprobe.report.canvas import (
    BEHIND,
    FAINT,
    INK,
    MOST_VECTOR_POINTS,
    MUTED,
    area,
    dot_size,
    house_style,
    keep_labels_inside,
    r2_limits,
    save,
    shortened,
    write_footer,
    write_title,
)
from jaxprobe.report.map_figure import place_map
from jaxprobe.report.phrases import count, describe_headline, layer_title, number, site_kind, with_interval
from jaxprobe.results.results import Run
from jaxprobe.sites import axis_positions

ACCENT, BASELINE = "#0072B2", "#D55E00"
# Sites inside of blocks have lines of their own: kind -> colour and name.
INSIDE = {"mid": ("#009E73", "between attention and MLP"), "mlp": ("#CC79A7", "the MLP's neurons")}


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
    x = np.array(list(axis_positions(results.layers).values()))
    kinds = np.array([site_kind(layer) for layer in results.layers])
    blocks = np.isin(kinds, ("block", "final_norm"))
    lines = {target: results.by_layer("r2", target) for target in ("mean", *results.targets)}
    if len(results.targets) < 2:
        lines = {"mean": lines["mean"]}
    drawn = [lines["mean"].to_numpy().ravel(), *(line["value"].to_numpy() for line in lines.values())]
    low, high = r2_limits(np.concatenate(drawn))
    # Clipped to just below the axis: coordinates of -1e53 are more than a picture can hold.
    lines = {target: line.clip(low - 1, high + 1) for target, line in lines.items()}
    with house_style():
        more = 0.17 * len(set(kinds) & set(INSIDE))  # lines of the legend
        figure = Figure(figsize=(7.2, 4.6 + more))
        axes = figure.add_subplot(area(figure, left=0.62, right=0.75, bottom=0.52, top=1.16 + more))
        axes.set_ylim(low, high)
        mean = lines["mean"][blocks]
        axes.fill_between(x[blocks], mean["ci_low"], mean["ci_high"], color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(x[blocks], mean["value"], color=ACCENT, linewidth=2, zorder=3)
        for kind, (colour, _) in INSIDE.items():
            if (at := kinds == kind).any():
                axes.plot(x[at], lines["mean"]["value"][at], color=colour, linewidth=1.4, marker="o", markersize=2.5)
        _draw_targets(axes, lines, x, blocks)
        _mark_states(figure, axes, results, x)
        _mark_below(axes, results, x)
        _finish_layer_axes(axes, results, x)
        write_title(figure, "Test R² by layer", _subtitle(results))
        keep_labels_inside(figure)
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
        keep_labels_inside(figure)
        write_footer(figure, _outside_words(frame, figure, targets), results.attribution)
    return figure


def _draw_targets(axes: Axes, lines: dict[str, pd.DataFrame], x: np.ndarray, blocks: np.ndarray) -> None:
    """Thin lines for the single targets, where there are several; every line is named at its right end."""
    if len(lines) < 2 or not blocks.any():
        return
    for target, line in lines.items():
        if target != "mean":
            axes.plot(x[blocks], line["value"][blocks], color=MUTED, linewidth=0.9, alpha=0.8)
    low, high = axes.get_ylim()
    ends = {target: float(np.clip(line["value"][blocks].iloc[-1], low, high)) for target, line in lines.items()}
    ends = {target: end for target, end in ends.items() if np.isfinite(end)}
    heights = spread_apart(list(ends.values()), 0.055 * (high - low))
    for name, height in zip(ends, heights, strict=True):
        colour = ACCENT if name == "mean" else MUTED
        text = name.replace("_", " ")
        axes.annotate(
            shortened(text, 14),
            (x[blocks][-1], height),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=colour,
        )


def spread_apart(values: list[float], gap: float) -> list[float]:
    """Move values up or down so that neighbours are at least `gap` apart; order and centre of each cluster stay."""
    if not values:
        return []
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


def _mark_states(figure: Figure, axes: Axes, results: Run, x: np.ndarray) -> None:
    """Mark the headline layer and the embed state; what they are stands under the title, where no line crosses it."""
    headline, embed = results.score(results.headline_layer, "r2"), results.score("embed", "r2")
    at = dict(zip(results.layers, x, strict=True))
    low, high = axes.get_ylim()
    shown = lambda value: np.clip(value, low - 1, high + 1)
    axes.plot(
        [at[results.headline_layer]],
        [shown(headline.value)],
        "o",
        color=ACCENT,
        markersize=8,
        markeredgecolor="white",
        zorder=5,
    )
    title = layer_title(results.headline_layer)
    lines = [("o", ACCENT, f"{title}, chosen on the training rows: {with_interval(headline)}")]
    if embed is not None and results.headline_layer != "embed":
        axes.axhline(shown(embed.value), color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([at["embed"]], [shown(embed.value)], "D", color=BASELINE, markersize=6, zorder=4)
        # A line from end to end, not bars from the value: a percentile interval need not hold it.
        ends = [shown(embed.ci_low), shown(embed.ci_high)]
        axes.plot([at["embed"]] * 2, ends, "-_", color=BASELINE, markersize=7, linewidth=1.5, zorder=4)
        lines.append(("D", BASELINE, f"embed, the baseline (what the token alone tells): {with_interval(embed)}"))
    present = set(map(site_kind, results.layers))
    lines += [("o", colour, name) for kind, (colour, name) in INSIDE.items() if kind in present]
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


def _mark_below(axes: Axes, results: Run, x: np.ndarray) -> None:
    """A mark at the lower edge for every state whose R2 lies below the axis, and the least of them in words."""
    values, (bottom, _) = results.by_layer("r2")["value"].to_numpy(), axes.get_ylim()
    below = np.isfinite(values) & (values < bottom)
    if not below.any():
        return
    axes.plot(x[below], [bottom] * below.sum(), "v", color=BASELINE, markersize=6, clip_on=False, zorder=6)
    least = int(np.nanargmin(values))
    words = f"▼ below the axis: {count(int(below.sum()), 'state')}, the least {number(values[least], 3)} "
    words += f"({layer_title(results.layers[least])})"
    axes.text(0.015, 0.06, words, transform=axes.transAxes, fontsize=7.5, color=BASELINE, bbox=BEHIND, zorder=7)


def _finish_layer_axes(axes: Axes, results: Run, x: np.ndarray) -> None:
    # About twelve ticks, first those that always stand there, and none so close to another that they touch.
    step = max(1, round((x[-1] - x[0]) / 12)) if len(x) > 14 else 1
    always = ("embed", "final_norm", results.headline_layer)
    kept: list[tuple[float, str]] = []
    for at, layer in sorted(zip(x, results.layers, strict=True), key=lambda pair: pair[1] not in always):
        wide = 0.055 * (x[-1] - x[0])
        regular = layer in always or (site_kind(layer) == "block" and at % step == 0)
        if regular and all(abs(at - other) > wide for other, _ in kept):
            kept.append((at, layer))
    axes.set_xticks([at for at, _ in kept], [{"final_norm": "norm"}.get(layer, layer) for _, layer in kept])
    axes.set_xlim(x[0] - 0.8, x[-1] + 0.6)
    axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("Residual stream after block")
    axes.set_ylabel("Test R²")


def _draw_scatter(axes: Axes, true: pd.Series, predicted: pd.Series) -> None:
    few = len(true) < 300
    axes.scatter(
        true,
        predicted,
        s=dot_size(len(true), least=5),
        color=ACCENT,
        alpha=0.7 if few else 0.35,
        linewidths=0,
        rasterized=len(true) > MOST_VECTOR_POINTS,
    )
    limits = scatter_limits(true, predicted)
    axes.plot(limits, limits, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def scatter_limits(true: pd.Series, predicted: pd.Series) -> tuple[float, float]:
    """The range of both axes: nearly all values, for a few far ones (antiquity) must not press the rest together."""
    values = np.concatenate([true, predicted]).astype(np.float64)
    low, high = np.quantile(values[np.isfinite(values)], (0.002, 0.998)) if np.isfinite(values).any() else (0.0, 0.0)
    margin = 0.08 * (high - low) or 0.08 * abs(low) or 1.0
    return float(low - margin), float(high + margin)


def _outside_words(frame: pd.DataFrame, figure: Figure, targets: Sequence[str]) -> str:
    """What the dashed line is, and how many points the axes leave out."""
    outside = np.zeros(len(frame), bool)
    for axes, target in zip(figure.axes, targets, strict=True):
        for kind in ("true", "predicted"):
            outside |= ~frame[f"{kind}_{target}"].between(*axes.get_xlim()).to_numpy()
    words = "Dashed: a perfect prediction."
    return words + (f" {count(int(outside.sum()), 'point')} outside the frame." if outside.any() else "")


def _subtitle(results: Run) -> str:
    prompt = f", prompt “{results.wording}”" if results.wording not in ("", "{}") else ""
    return f"{results.model} · {results.dataset}{prompt} · 95 % interval"
