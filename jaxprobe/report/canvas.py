"""The look that all figures share, and how one is written. Without pyplot: nothing global, no display needed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from jaxprobe.host.paths import AnyPath, replacing

INK, MUTED, FAINT = "#1B1F24", "#5B6470", "#C9CED6"
PNG_DPI = 200
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


def save(figure: Figure, path: AnyPath) -> AnyPath:
    """Write a figure; the format is the path's suffix. The same figure gives the same bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with replacing(path) as temporary, house_style():
        figure.savefig(temporary, dpi=PNG_DPI, metadata=metadata)
    return path
