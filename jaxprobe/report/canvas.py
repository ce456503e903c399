"""The look that all figures share, and how one is written. Without pyplot: nothing global, no display needed."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D

from jaxprobe.host.paths import AnyPath, replacing

INK, MUTED, FAINT = "#1B1F24", "#5B6470", "#C9CED6"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # text on lines
PNG_DPI = 200
LOWEST_R2 = -1.0  # what lies below is named at the edge: it would press the rest together
# More points than this make an SVG that editors and browsers open slowly; they go in as one picture.
MOST_VECTOR_POINTS = 4000

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    # Names from data are text: a dollar sign in one is no formula.
    "text.parse_math": False,
    "svg.hashsalt": "jaxprobe",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the shared look; a name in a script that the font lacks becomes boxes, which is no reason to warn."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def area(figure: Figure, left: float, right: float, bottom: float, top: float = 0.8) -> SubplotSpec:
    """The area for axes, by its margins in inches; the default top margin leaves room for title and subtitle."""
    width, height = figure.get_size_inches()
    return figure.add_gridspec(
        1, 1, left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height
    )[0]


def write_title(figure: Figure, title: str, subtitle: str) -> None:
    """A bold line and a grey one, at the top left; a line too long for the figure is set smaller."""
    width, height = figure.get_size_inches()
    for top, text, style in (
        (0.12, title, {"fontsize": 13, "fontweight": "bold"}),
        (0.42, subtitle, {"fontsize": 9, "color": MUTED}),
    ):
        line = figure.text(0.13 / width, 1 - top / height, text, ha="left", va="top", **style)
        needed = line.get_window_extent().width / figure.dpi
        line.set_fontsize(line.get_fontsize() * min(1.0, (width - 0.26) / needed))


def write_footer(figure: Figure, note: str, attribution: str) -> None:
    """A note at the bottom left and the attribution at the bottom right."""
    width, height = figure.get_size_inches()
    style = {"va": "bottom", "fontsize": 7.5, "color": MUTED}
    figure.text(0.13 / width, 0.12 / height, note, ha="left", **style)
    figure.text(1 - 0.13 / width, 0.12 / height, attribution, ha="right", **style)


def dot_size(number: int, least: float) -> float:
    """Area of a scatter's dot in square points: large where there are few, so that ten can be seen."""
    return float(np.clip(16000 / max(number, 1), least, 25))


def r2_limits(values: np.ndarray) -> tuple[float, float]:
    """The range of R2 to draw: 0 and every value between LOWEST_R2 and 1, with a margin; NaN is passed over.

    A probe may be worse than the mean by any factor (-750, -1e53); 1 is the best there is.
    """
    values = values[np.isfinite(values)]
    low = max(min(values.min(initial=0.0), 0.0), LOWEST_R2)
    high = min(max(values.max(initial=0.0), 0.1), 1.0)
    margin = 0.05 * (high - low)
    return low - margin * (low < 0), min(high + margin, 1.03)


def keep_labels_inside(figure: Figure) -> None:
    """Make the figure wider on the left until every label of its axes stands inside."""
    outside = 0.08 - min(axes.get_tightbbox().x0 for axes in figure.axes) / figure.dpi
    if outside <= 0:
        return
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + outside, height)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position(
            ((box.x0 * width + outside) / (width + outside), box.y0, box.width * width / (width + outside), box.height)
        )


def legend_below(figure: Figure, handles: Sequence[Line2D], title: str) -> float:
    """A legend in rows above the footer, as wide as the figure allows; returns the height it takes, in inches."""
    width = figure.get_figwidth() - 0.26
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.06, 0.28),
            bbox_transform=figure.dpi_scale_trans,
            ncols=columns,
            frameon=False,
            fontsize=8,
            handletextpad=0.2,
            columnspacing=1.2,
            labelspacing=0.35,
            title=title,
            title_fontsize=8,
            alignment="left",
        )
        box = legend.get_window_extent()
        if box.width / figure.dpi <= width or columns == 1:
            break
        legend.remove()
    return box.height / figure.dpi


def shortened(text: str, most: int) -> str:
    """A text of at most so many letters, the last a dot of three where some are left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def legend_label(name: str, most: int = 40) -> str:
    """A name from data as a legend's label: not empty, not too long, and not hidden, as names with "_" first are."""
    name = shortened(name, most)
    return f" {name}" if name.startswith("_") else name or "(none)"


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG, for a page."""
    written = BytesIO()
    with house_style():
        figure.savefig(written, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return written.getvalue()


def save(figure: Figure, path: AnyPath) -> AnyPath:
    """Write a figure; the format is the path's suffix. The same figure gives the same bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with replacing(path) as temporary, house_style():
        figure.savefig(temporary, dpi=PNG_DPI, metadata=metadata)
    return path
