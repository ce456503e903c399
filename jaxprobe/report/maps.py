"""What static and interactive maps share: coastlines, the part of the world to show, and a colour for each place."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

# Okabe & Ito (2008), "Color universal design": tell apart under every common kind of colour blindness. Their yellow
# and black are left out: one is lost on white, the other on a dark page. The order keeps neighbours far apart.
OKABE_ITO = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
OTHER_COLOUR = "#8A8A8A"
OTHER = "other"


class Extent(NamedTuple):
    """A rectangle of the equirectangular map, in degrees."""

    west: float
    east: float
    south: float
    north: float

    @property
    def aspect(self) -> float:
        """Height of a degree of latitude over width of a degree of longitude: 1 for the world, true to scale else."""
        if self.east - self.west > 180:
            return 1.0
        return float(1 / np.cos(np.radians((self.south + self.north) / 2)))

    @property
    def shows_coast(self) -> bool:
        """Whether the outlines, good to about 10 km, still look like a coast."""
        return self.east - self.west > 5


# Without Antarctica's interior: nobody lives there, and it would take a tenth of the picture.
WORLD = Extent(-180.0, 180.0, -62.0, 84.0)


class Colouring(NamedTuple):
    """A colour for each row, by group.

    Attributes:
      group: the group's name, e.g. "continent".
      labels: [N] the group of each row, rare ones as "other".
      colours: label -> colour, the most frequent first, "other" last.
    """

    group: str
    labels: np.ndarray
    colours: dict[str, str]


@cache
def read_coastlines() -> np.ndarray:
    """[V, 2] longitude and latitude in degrees; a row of NaN between two outlines.

    Source: Natural Earth, 1:110m, public domain; scripts/make_coastlines makes the file.
    """
    lines = Path(__file__).with_name("coastlines.csv").read_text(encoding="ascii").splitlines()
    points = [line.split(",") if line else ("nan", "nan") for line in lines if not line.startswith("#")]
    return np.array(points, dtype=np.float64)


def extent_of(latitude: np.ndarray, longitude: np.ndarray) -> Extent:
    """The part of the world to show: all of it, or the places with a margin where they fill less than half of it.

    Args:
      latitude: [N] true latitudes in degrees.
      longitude: [N] true longitudes in degrees.
    """
    # A stray place (Guam in a table of the United States) does not shrink the rest to a dot.
    west, east = np.quantile(longitude, (0.005, 0.995))
    south, north = np.quantile(latitude, (0.005, 0.995))
    if east - west > 180:
        return WORLD
    margin = 0.12 * max(east - west, north - south, 0.01)
    return Extent(
        float(max(west - margin, -180)),
        float(min(east + margin, 180)),
        float(max(south - margin, -90)),
        float(min(north + margin, 90)),
    )


def colour_by_group(frame: pd.DataFrame, groups: Sequence[str], ranked: pd.DataFrame) -> Colouring | None:
    """Choose the group whose colours tell most about where a place is; None where no group tells much.

    A group qualifies when its six most frequent values cover nine rows in ten. Of those, the one wins whose group means
    explain most of the variance of the true places (eta squared).

    Args:
      frame: one row per place with group_<name>, true_latitude and true_longitude.
      groups: names of the groups to choose from.
      ranked: the rows by which values are ranked, see `colour_values`.
    """
    best, best_share = None, 0.2  # below a fifth, colours look random on the map
    places = frame[["true_latitude", "true_longitude"]]
    for group in groups:
        colouring = colour_values(group, frame[f"group_{group}"], ranked[f"group_{group}"])
        if np.mean(colouring.labels == OTHER) > 0.1 or len(colouring.colours) < 2:
            continue
        means = places.groupby(colouring.labels).transform("mean")
        share = float(means.var().sum() / places.var().sum())
        if share > best_share:
            best, best_share = colouring, share
    return best


def colour_values(group: str, values: pd.Series, ranked: pd.Series) -> Colouring:
    """Give the six most frequent values a colour each; the rest are "other".

    Args:
      group: the group's name.
      values: [N] the values to colour.
      ranked: the values that say which are frequent: those of all test rows, for every picture of a run, so that a
        colour means the same in all of them.
    """
    frequent = list(ranked.value_counts().index[: len(OKABE_ITO)])
    colours = dict(zip(frequent, OKABE_ITO, strict=False))
    labels = values.where(values.isin(frequent), OTHER).to_numpy(dtype=object)
    if (labels == OTHER).any():
        colours[OTHER] = OTHER_COLOUR
    return Colouring(group, labels, colours)
