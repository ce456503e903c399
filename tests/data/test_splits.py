"""Grid cells and distances against brute force and the haversine formula."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprobe.data.catalog import load_table
from jaxprobe.data.sphere import nearest_km
from jaxprobe.data.splits import spatial_blocks, split_blocks, with_block_split
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError

DATA = os.environ.get("JAXPROBE_DATA")
PLACES = st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=20)


def haversine_km(lat_a, lon_a, lat_b, lon_b):
    lat_a, lon_a, lat_b, lon_b = map(math.radians, (lat_a, lon_a, lat_b, lon_b))
    h = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(h, 1)))


@given(PLACES, PLACES)
def test_nearest_distance_equals_brute_force(places, others):
    found = nearest_km(*np.array(places).T, *np.array(others).T)
    expected = [min(haversine_km(*place, *other) for other in others) for place in places]
    # arcsin loses half of float64's digits towards the antipode: 1.5e-8 rad, 0.1 m, on either side of the comparison.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=2e-4)


@given(st.floats(-90, 90), st.floats(-180, 180), st.sampled_from([0.1, 0.5, 1, 7, 10, 30, 90, 180]))
def test_a_place_lies_in_the_cell_that_its_block_names(latitude, longitude, cell):
    south, west = map(float, spatial_blocks(np.array([latitude]), np.array([longitude]), cell)[0].split(","))
    slack = 1e-9  # degrees: an edge of the grid, k * 0.1, is itself rounded
    assert south - slack <= latitude <= south + cell + slack
    assert -90 <= south < 90 and -180 <= west < 180
    east_of_edge = (longitude - west + slack) % 360  # round the globe: 180 is -180
    assert east_of_edge <= cell + 2 * slack


def test_known_cells():
    blocks = spatial_blocks(np.array([90, -90, 45, 40.7, 0]), np.array([0, -180, 180, -73.9, -0.1]), 10)
    assert blocks.tolist() == ["80,0", "-90,-180", "40,-180", "40,-80", "0,-10"]
    for cell in (0, -1, 181):
        with pytest.raises(InputError, match="degrees"):
            spatial_blocks(np.zeros(1), np.zeros(1), cell)


@settings(deadline=None)
@given(
    st.integers(20, 120),
    st.integers(0, 10_000),
    st.sampled_from([5.0, 20.0]),
    st.sampled_from([0.0, 300.0, 1500.0]),
    st.floats(0.1, 0.5),
)
def test_block_split(rows, seed, cell, buffer, fraction):
    rng = np.random.default_rng(seed)
    latitude, longitude = rng.uniform(-90, 90, rows), rng.uniform(-180, 180, rows)
    split = split_blocks(latitude, longitude, cell_degrees=cell, buffer_km=buffer, test_fraction=fraction, seed=seed)
    assert not (split.is_test & split.is_train).any()
    assert 0 < split.is_test.mean() <= fraction
    assert not set(split.block[split.is_test]) & set(split.block[~split.is_test])
    for row in np.flatnonzero(~split.is_test):
        nearest = min(
            haversine_km(latitude[row], longitude[row], latitude[test], longitude[test])
            for test in np.flatnonzero(split.is_test)
        )
        assert split.is_train[row] == (nearest >= buffer)
    again = split_blocks(latitude, longitude, cell_degrees=cell, buffer_km=buffer, test_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(again.is_test, split.is_test)


def test_splits_that_are_not_possible():
    near = np.zeros(10)
    with pytest.raises(InputError, match="Each of the 1 cells of 10 degrees has more than 20%"):
        split_blocks(near, near, cell_degrees=10)
    apart = np.arange(10.0)
    with pytest.raises(InputError, match="Every training row lies within 5000 km"):
        split_blocks(apart, apart, cell_degrees=1, buffer_km=5000)
    with pytest.raises(InputError, match="buffer"):
        split_blocks(apart, apart, cell_degrees=1, buffer_km=-1)


def test_a_table_under_a_block_split():
    latitude, longitude = np.meshgrid(np.arange(-45.0, 50, 5), np.arange(-175.0, 180, 5), indexing="ij")
    targets = np.stack([latitude.ravel(), longitude.ravel()], axis=1)
    names = tuple(f"{lat},{lon}" for lat, lon in targets)
    table = EntityTable(
        "grid", names, targets, ("latitude", "longitude"), ("degree", "degree"), np.zeros(len(names), bool)
    )
    blocked = with_block_split(table, cell_degrees=10, buffer_km=500)
    assert 0 < len(blocked) < len(table)
    assert blocked.texts == tuple(f"{lat},{lon}" for lat, lon in blocked.targets)
    train, test = blocked.targets[~blocked.is_test], blocked.targets[blocked.is_test]
    assert nearest_km(*train.T, *test.T).min() >= 500
    blocks = blocked.groups["block"]
    assert not set(blocks[blocked.is_test]) & set(blocks[~blocked.is_test])
    left_out = len(table) - len(blocked)
    assert f"{left_out:,} left out within 500 km of a test row" in blocked.notes[-1]
    with pytest.raises(InputError, match="no latitude and longitude"):
        with_block_split(replace(table, target_names=("x", "y")), cell_degrees=1)


@pytest.mark.data
@pytest.mark.parametrize(("name", "share"), [("world_place", 0.55), ("us_place", 0.84)])
def test_the_papers_random_split_leaks_and_a_block_split_does_not(name, share):
    """Known: 55 % of World test places, and 84 % of US ones, have a training place within 10 km."""
    table = load_table(name, data_dir=DATA)
    train, test = table.targets[~table.is_test], table.targets[table.is_test]
    assert (nearest_km(*test.T, *train.T) <= 10).mean() == pytest.approx(share, abs=0.005)
    blocked = with_block_split(table, cell_degrees=2, buffer_km=10)
    train, test = blocked.targets[~blocked.is_test], blocked.targets[blocked.is_test]
    assert nearest_km(*test.T, *train.T).min() >= 10
    assert len(test) / len(table) == pytest.approx(0.2, abs=0.01)
