"""A matrix of scores: each square with its number, one scale for all panels."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxprobe.report.canvas import INK, area, house_style, write_title
from jaxprobe.report.phrases import number

SQUARE = (0.72, 0.45)  # inches, width and height of one
BAR = 0.95  # inches for the scale at the right
BELOW = "#DADDE2"  # for what the scale does not show


def draw_matrices(panels: Mapping[str, pd.DataFrame], title: str, subtitle: str, what: str) -> Figure:
    """Test R2 by what a probe was trained on (rows) and tested on (columns).

    Args:
      panels: a panel's name -> matrix with named rows and columns, the same in all of them.
      title, subtitle: lines at the top.
      what: what rows and columns are, in one word.
    """
    first = next(iter(panels.values()))
    left = 0.55 + 0.068 * max(len(str(name)) for name in first.index)
    bottom = 0.5 + 0.04 * max(len(str(name)) for name in first.columns)
    width, height = first.shape[1] * SQUARE[0], first.shape[0] * SQUARE[1]
    wanted = left + len(panels) * width + (len(panels) - 1) * 0.2 + BAR
    size = max(wanted, 5.4), bottom + height + 0.95
    colours = mpl.colormaps["cividis"].with_extremes(under=BELOW, bad="white")
    scale = mpl.colors.Normalize(0, max(float(np.nanmax(matrix.to_numpy(), initial=0.1)) for matrix in panels.values()))
    with house_style():
        figure = Figure(figsize=size)
        space = area(figure, left=left, right=size[0] - wanted + BAR, bottom=bottom, top=0.95)
        grid = space.subgridspec(1, len(panels), wspace=0.2 / width)
        for column, (name, matrix) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[column])
            image = axes.imshow(matrix.to_numpy(np.float64), cmap=colours, norm=scale, aspect="auto")
            for (i, j), value in np.ndenumerate(matrix.to_numpy(np.float64)):
                red, green, blue, _ = colours(scale(value))
                ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
                axes.text(j, i, number_in_words(value), ha="center", va="center", fontsize=8, color=ink)
            axes.set_title(name, loc="left", fontsize=9.5)
            axes.set_xticks(range(matrix.shape[1]), matrix.columns, rotation=30, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(matrix.shape[0]), matrix.index if column == 0 else [""] * len(matrix))
            axes.tick_params(length=0, labelcolor=INK)
            axes.spines[:].set_visible(False)
            axes.set_xlabel(f"Tested on this {what}")
        figure.axes[0].set_ylabel(f"Trained on this {what}")
        box = figure.axes[len(panels) - 1].get_position()
        bar = figure.add_axes((box.x1 + 0.12 / size[0], box.y0, 0.11 / size[0], box.height))
        figure.colorbar(image, cax=bar, extend="min").set_label("Test R² (grey: below 0)", fontsize=8)
        write_title(figure, title, subtitle)
    return figure


def number_in_words(value: float) -> str:
    """Two decimals, or none beyond 10; a dash for what is not a number."""
    return number(value, 2 if abs(value) < 10 else 0)
