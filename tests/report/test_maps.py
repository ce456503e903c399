"""Coastlines against what is known of the Earth; the choice of frame and colours on tables like the real ones."""

import numpy as np
import pandas as pd
import pytest

from jaxprobe.report.map_figure import _land
from jaxprobe.report.maps import OTHER, WORLD, colour_by_group, colour_values, extent_of, read_coastlines


def outlines():
    coast = read_coastlines()
    pieces = np.split(coast, np.flatnonzero(np.isnan(coast[:, 0])))
    return [piece[~np.isnan(piece[:, 0])] for piece in pieces]


def test_outlines_are_closed_and_inside_the_map():
    for outline in outlines():
        assert (outline[0] == outline[-1]).all()
        assert np.abs(outline[:, 0]).max() <= 180
        assert np.abs(outline[:, 1]).max() <= 90
        steps = np.abs(np.diff(outline[:, 0]))
        # Only Antarctica spans the map, along its lower edge.
        assert steps.max() < 60 or outline[:, 1].max() < -60


def test_land_is_29_percent_of_the_earth():
    """By Green's theorem on the sphere: the area under a line is the integral of sin(latitude) over longitude."""
    total = 0.0
    for outline in outlines():
        longitude, sine = np.radians(outline[:, 0]), np.sin(np.radians(outline[:, 1]))
        total += np.sum(np.diff(longitude) * (sine[1:] + sine[:-1]) / 2)
    share = abs(total) / (4 * np.pi)
    # 29.2 % is the usual figure; ice shelves and islands left out at this scale move it by less than one point.
    assert share == pytest.approx(0.292, abs=0.01)


@pytest.mark.parametrize(
    ("longitude", "latitude", "is_land"),
    [
        (2.35, 48.86, True),  # Paris
        (106.9, 47.9, True),  # Ulaanbaatar
        (-178.0, 66.5, True),  # Chukotka, beyond the date line
        (179.0, 67.5, True),  # and this side of it
        (0.0, -82.0, True),  # Antarctica
        (133.9, -23.7, True),  # Alice Springs
        (-30.0, 30.0, False),  # Atlantic
        (51.0, 42.0, False),  # Caspian Sea
        (179.0, 60.0, False),  # Bering Sea
        (0.0, 0.0, False),  # Gulf of Guinea
    ],
)
def test_known_points_are_on_land_or_at_sea(longitude, latitude, is_land):
    inside = sum(_winding(outline, longitude, latitude) for outline in outlines())
    assert (inside != 0) == is_land
    assert len(_land().vertices) == sum(map(len, outlines()))


def _winding(outline, x, y):
    """Winding number of an outline around a point: +-1 inside, 0 outside."""
    angles = np.unwrap(np.arctan2(outline[:, 1] - y, outline[:, 0] - x))
    return round((angles[-1] - angles[0]) / (2 * np.pi))


def test_frame_is_the_world_or_the_data():
    rng = np.random.default_rng(0)
    assert extent_of(rng.uniform(-50, 70, 500), rng.uniform(-170, 170, 500)) == WORLD
    latitude, longitude = rng.uniform(25, 49, 1000), rng.uniform(-124, -67, 1000)
    latitude[0], longitude[0] = 13.4, 144.8  # Guam does not widen the frame
    frame = extent_of(latitude, longitude)
    assert -135 < frame.west < -124 and -67 < frame.east < -55
    assert 10 < frame.south < 25 and 49 < frame.north < 62
    assert frame.shows_coast
    assert not extent_of(rng.normal(40.7, 0.1, 500), rng.normal(-73.9, 0.1, 500)).shows_coast
    one = extent_of(np.array([48.86]), np.array([2.35]))
    assert one.west < 2.35 < one.east and one.south < 48.86 < one.north


def test_the_group_that_tells_where_places_are_gives_the_colours():
    rng = np.random.default_rng(0)
    zone = rng.integers(0, 4, 400)
    frame = pd.DataFrame(
        {
            "group_kind": rng.choice(["city", "lake"], 400),
            "group_timezone": np.array(["a", "b", "c", "d"])[zone],
            "group_state": [f"s{i}" for i in range(400)],
            "true_latitude": rng.normal(40, 3, 400),
            "true_longitude": -120 + 15 * zone + rng.normal(0, 3, 400),
        }
    )
    chosen = colour_by_group(frame, ("kind", "timezone", "state"), frame)
    assert chosen.group == "timezone"
    assert (chosen.labels == frame["group_timezone"]).all()
    assert colour_by_group(frame, ("kind", "state"), frame) is None


def test_rare_values_share_a_colour():
    values = pd.Series([str(i) for i in range(9) for _ in range(10 - i)])
    many = colour_values("kind", values, values)
    assert list(many.colours) == ["0", "1", "2", "3", "4", "5", OTHER]
    assert (many.labels == OTHER).sum() == 4 + 3 + 2
    assert len(set(many.colours.values())) == 7
