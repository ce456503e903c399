"""What a run's probes read along the tokens of one text: layers by tokens, a panel for each target."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxprobe.report.canvas import INK, house_style, keep_labels_inside, legend_label, write_title
from jaxprobe.report.phrases import number
from jaxprobe.results.results import Run

TOKEN, LAYER = 0.5, 0.17  # inches, the width of a token and the height of a layer
LEFT, BOTTOM, BAR = 0.75, 0.8, 0.95  # inches, of the margins and for a panel's scale
MOST_WRITTEN = 24  # tokens, of which the headline layer's values are written out
LONGEST, LONGEST_CLASS = 14, 9  # letters of a token, and of a class in a square


def draw_tokens(run: Run, frame: pd.DataFrame) -> Figure:
    """The probes of every layer at every token of one text.

    Args:
      run: whose probes they are.
      frame: as `runs.predict.predict_tokens` gives it, of one text.
    """
    layers, text = list(frame["layer"].unique()), frame["text"].iloc[0]
    tokens = frame.loc[frame["layer"] == layers[0], "token"].tolist()
    names = ("probability",) if run.label else run.targets
    shape = len(layers), len(tokens)
    width, height = max(len(tokens) * TOKEN, 1.6), max(len(layers) * LAYER, 1)
    size = LEFT + len(names) * (width + BAR), 0.95 + height + BOTTOM
    colours = mpl.colormaps["viridis"]
    with house_style():
        figure = Figure(figsize=size)
        for column, name in enumerate(names):
            values = frame[name].to_numpy(np.float64).reshape(len(tokens), len(layers)).T
            # What targets are like in the table: a probe's value at a token that is no name may lie anywhere.
            spread = (0, 1) if run.label else np.quantile(run.table.targets[:, column], (0.02, 0.98))
            scale = mpl.colors.Normalize(*spread)
            left = LEFT + column * (width + BAR)
            axes = figure.add_axes((left / size[0], BOTTOM / size[1], width / size[0], height / size[1]))
            image = axes.imshow(values, cmap=colours, norm=scale, aspect="auto", origin="lower")
            marked = layers.index(run.headline_layer)
            axes.add_patch(mpl.patches.Rectangle((-0.5, marked - 0.5), len(tokens), 1, fill=False, ec=INK, lw=1.2))
            if len(tokens) <= MOST_WRITTEN:
                labels = frame[run.label].to_numpy(object).reshape(shape[::-1]).T if run.label else values
                for token, value in enumerate(labels[marked]):
                    red, green, blue, _ = colours(scale(values[marked, token]))
                    ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
                    said = legend_label(str(value), LONGEST_CLASS) if run.label else number(value, 0)
                    axes.text(token, marked, said, ha="center", va="center", fontsize=6, color=ink)
            turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
            axes.set_xticks(range(len(tokens)), [legend_label(token, LONGEST) for token in tokens], **turned)
            every = range(0, len(layers), max(1, len(layers) // 12))
            axes.set_yticks(every, [layers[i] for i in every] if column == 0 else [""] * len(every), fontsize=8)
            axes.tick_params(length=0, labelcolor=INK)
            axes.spines[:].set_visible(False)
            beside = ((left + width + 0.1) / size[0], BOTTOM / size[1], 0.11 / size[0], height / size[1])
            bar = figure.colorbar(image, cax=figure.add_axes(beside), extend="neither" if run.label else "both")
            unit = run.unit(name)
            bar.set_label(f"{name} ({unit})" if unit else name, fontsize=8)
            bar.ax.tick_params(labelsize=7)
        figure.axes[0].set_ylabel("Read after layer")
        reads = run.label or ", ".join(names)
        subtitle = f"{run.model}, {run.dataset}, prompt {run.wording!r}; framed: layer {run.headline_layer}"
        write_title(figure, f"{reads}, token by token: {legend_label(text, 60).strip()}", subtitle)
        keep_labels_inside(figure)
    return figure
