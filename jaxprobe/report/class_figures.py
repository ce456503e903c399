"""The figures of a run on class labels: accuracy by layer, the confusion matrix, the curves of its probabilities."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxprobe.host.paths import AnyPath
from jaxprobe.report.canvas import FAINT, INK, MUTED, area, house_style, save, shortened, write_footer, write_title
from jaxprobe.report.phrases import count, layer_title
from jaxprobe.results.results import Run

ACCENT, BASELINE = "#0072B2", "#D55E00"
MOST_CLASSES = 16  # of a confusion matrix; the others are one row and one column
OTHERS = "(all others)"
BINS = 10


def write_class_figures(results: Run) -> list[AnyPath]:
    """Write the figures of a run on labels into its figures folder, as PNG and SVG; returns the paths."""
    figures = {
        "accuracy_by_layer": accuracy_by_layer(results),
        "confusion": confusion_figure(results),
        "calibration": calibration_figure(results),
    }
    if len(results.classes) == 2:
        figures["curves"] = curves_figure(results)
    return [
        save(figure, results.directory.figures_path / f"{stem}.{suffix}")
        for stem, figure in figures.items()
        for suffix in ("png", "svg")
    ]


def accuracy_by_layer(results: Run) -> Figure:
    """Test accuracy and balanced accuracy at every state, with the majority's as a line."""
    accuracy, balanced = results.by_layer("accuracy"), results.by_layer("balanced_accuracy")
    x = np.arange(len(results.layers))
    blocks = np.array([layer != "embed" for layer in results.layers])
    majority = control_value(results, "majority")
    with house_style():
        figure = Figure(figsize=(7.2, 4.4))
        axes = figure.add_subplot(area(figure, left=0.62, right=1.3, bottom=0.52, top=0.85))
        low, high = accuracy["ci_low"].to_numpy(), accuracy["ci_high"].to_numpy()
        axes.fill_between(x[blocks], low[blocks], high[blocks], color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(x[blocks], accuracy["value"].to_numpy()[blocks], color=ACCENT, linewidth=2, marker="o", markersize=3)
        axes.plot(x[blocks], balanced["value"].to_numpy()[blocks], color=MUTED, linewidth=1)
        if not blocks.all():
            axes.plot(x[~blocks], accuracy["value"].to_numpy()[~blocks], "D", color=BASELINE, markersize=6)
        place = results.layers.index(results.headline_layer)
        axes.plot([place], [accuracy["value"].iloc[place]], "o", color=ACCENT, markersize=8, markeredgecolor="white")
        names = [
            ("accuracy", accuracy["value"].iloc[-1], ACCENT),
            ("balanced accuracy", balanced["value"].iloc[-1], MUTED),
        ]
        if majority is not None:
            axes.axhline(majority, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            names.append(("majority class", majority, INK))
        axes.set_ylim(0, 1)
        heights = sorted(range(len(names)), key=lambda i: names[i][1])
        at = -1.0
        for i in heights:  # names at the right end, never on each other
            at = max(names[i][1], at + 0.06)
            axes.annotate(
                names[i][0], (1, at), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=8, color=names[i][2], annotation_clip=False,
            )  # fmt: skip
        step = max(1, round(len(x) / 12))
        ticks = [i for i in x if i % step == 0 or i == place]
        axes.set_xticks(ticks, [results.layers[i] for i in ticks])
        axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("Residual stream after block (diamond: embed, what the token alone tells)")
        axes.set_ylabel("Test accuracy")
        title = f"{results.label}, {len(results.classes)} classes: test accuracy by layer"
        write_title(figure, title, f"{results.model} · {results.dataset} · band: 95 % interval")
    return figure


def confusion(results: Run) -> pd.DataFrame:
    """Test rows by true (rows) and predicted (columns) class at the headline layer; rare classes are one."""
    rows = results.test_predictions(results.headline_layer)
    true, predicted = rows[f"true_{results.label}"], rows[f"predicted_{results.label}"]
    common = list(true.value_counts().index[:MOST_CLASSES])
    if len(common) < len(set(true) | set(predicted)):
        true, predicted = (values.where(values.isin(common), OTHERS) for values in (true, predicted))
        common.append(OTHERS)
    return pd.crosstab(true, predicted).reindex(index=common, columns=common, fill_value=0)


def confusion_figure(results: Run) -> Figure:
    """The confusion matrix: each square the share of a true class's test rows that were given a class."""
    matrix = confusion(results)
    shares = (matrix.T / matrix.sum(axis=1).clip(lower=1)).T.to_numpy(np.float64)
    names = [shortened(str(name), 24) for name in matrix.index]
    left = 0.75 + 0.07 * max(map(len, names))
    bottom = 0.75 + 0.055 * max(map(len, names))
    side = 0.42 * len(names) + 0.4
    with house_style():
        figure = Figure(figsize=(max(left + side + 0.3, 5.6), bottom + side + 0.9))
        right = figure.get_figwidth() - left - side
        axes = figure.add_subplot(area(figure, left=left, right=right, bottom=bottom, top=0.9))
        colours, scale = mpl.colormaps["Blues"], mpl.colors.Normalize(0, 1)
        axes.imshow(shares, cmap=colours, norm=scale, aspect="auto")
        for (i, j), number in np.ndenumerate(matrix.to_numpy()):
            if number:
                ink = "white" if shares[i, j] > 0.55 else INK
                axes.text(j, i, f"{number:,}", ha="center", va="center", fontsize=7.5, color=ink)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"Predicted {results.label}")
        axes.set_ylabel(f"True {results.label}")
        rows = count(int(matrix.to_numpy().sum()), "test row")
        write_title(figure, "Which classes it takes for which", f"{layer_title(results.headline_layer)} · {rows}")
    return figure


def calibration_figure(results: Run) -> Figure:
    """How often the probe is right, by how sure it is of the label that it names."""
    rows = results.test_predictions(results.headline_layer)
    right = (rows[f"true_{results.label}"] == rows[f"predicted_{results.label}"]).to_numpy()
    sure = rows["probability"].to_numpy(np.float64)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    filled = [b for b in range(BINS) if (place == b).any()]
    x = np.array([sure[place == b].mean() for b in filled])
    y = np.array([right[place == b].mean() for b in filled])
    n = np.array([(place == b).sum() for b in filled])
    half = 1.96 * np.sqrt(np.maximum(y * (1 - y), 0.25 / n) / n)
    error = results.score(results.headline_layer, "calibration_error")
    with house_style():
        figure = Figure(figsize=(5.2, 5.2))
        axes = figure.add_subplot(area(figure, left=0.65, right=0.25, bottom=0.85, top=0.9))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        ends = [y - np.maximum(y - half, 0), np.minimum(y + half, 1) - y]
        axes.errorbar(x, y, yerr=ends, color=ACCENT, linewidth=1.6, marker="o", markersize=5, capsize=2, elinewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.grid(True, color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("Probability of the label that it names")
        axes.set_ylabel("Share of these rows where it is right")
        found = "" if error is None else f"calibration error {error.value:.3f}"
        write_title(figure, "How sure, and how often right", f"{layer_title(results.headline_layer)} · {found}")
        write_footer(figure, "Dashed: sure as often as right. Bars: 95 % of a share of so many rows.", "")
    return figure


def curves_figure(results: Run) -> Figure:
    """Of two classes: what lowering the bar for the second one finds, beside what it takes wrongly for it."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    rows = results.test_predictions(results.headline_layer)
    second = results.classes[1]
    is_second = (rows[f"true_{results.label}"] == second).to_numpy()
    named = (rows[f"predicted_{results.label}"] == second).to_numpy()
    sure = rows["probability"].to_numpy(np.float64)
    sure = np.where(named, sure, 1 - sure)
    false, found, _ = roc_curve(is_second, sure)
    precision, recall, _ = precision_recall_curve(is_second, sure)
    name = shortened(str(second), 24)
    area_under, share = results.score(results.headline_layer, "auroc"), float(is_second.mean())
    with house_style():
        figure = Figure(figsize=(8.4, 5.0))
        grid = area(figure, left=0.65, right=0.25, bottom=0.78, top=0.8).subgridspec(1, 2, wspace=0.25)
        curves = (
            (false, found, (0, 1), "Share of the others taken for it", "Share of it that is found (recall)", "default"),
            (recall, precision, (share, share), "Share of it that is found (recall)", "Right when named (precision)",
             "steps-pre"),
        )  # fmt: skip
        for place, (x, y, chance, below, left, style) in zip(grid, curves, strict=True):
            axes = figure.add_subplot(place)
            axes.plot([0, 1], chance, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.plot(x, y, color=ACCENT, linewidth=1.8, drawstyle=style)
            axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
            axes.grid(True, color=FAINT, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.set_xlabel(below)
            axes.set_ylabel(left)
        found = f"AUROC {area_under.value:.3f} · {100 * share:.1f} % of {count(len(rows), 'test row')} are “{name}”"
        write_title(figure, f"How “{name}” is found", f"{layer_title(results.headline_layer)} · {found}")
        write_footer(figure, "Dashed: names drawn at random.", "")
    return figure


def control_value(results: Run, control: str, metric: str = "accuracy") -> float | None:
    """A control's score at the headline layer, or None where the run has none."""
    frame = results.controls
    if frame is None:
        return None
    rows = frame[(frame["control"] == control) & (frame["metric"] == metric) & (frame["resampled"] == "rows")]
    return float(rows["value"].iloc[0]) if len(rows) else None
