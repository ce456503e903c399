"""The world's geometry, what is held out of its walks, and its words."""

import numpy as np
import pytest

from jaxprobe.errors import InputError
from jaxprobe.probes.metrics import great_circle_km
from jaxprobe.worlds.earth import TINY, arc_km, make_world, move


@pytest.fixture(scope="module")
def world():
    return make_world(TINY)


def places(points):
    x, y, z = points.T
    return np.degrees(np.stack([np.arcsin(z), np.arctan2(y, x)], 1))


def test_moves_are_as_long_as_asked_and_come_back(world):
    rng = np.random.default_rng(0)
    start, heading, km = world.points, rng.uniform(0, 2 * np.pi, 100), rng.uniform(100, 9000, 100)
    end = move(start, heading, km)
    assert np.allclose(great_circle_km(places(start), places(end)), km, atol=1e-6)
    assert np.allclose(arc_km(start, end), km, atol=1e-6)
    # The way back is the circle that goes on from the end, turned round.
    beyond = move(start, heading, km + 1)
    north, east = move(end, np.zeros(100), np.ones(100)), move(end, np.full(100, np.pi / 2), np.ones(100))
    back = np.arctan2(*(((beyond - end) * (way - end)).sum(1) for way in (east, north))) + np.pi
    assert np.allclose(move(end, back, km), start, atol=1e-6)


def test_headings_are_clockwise_from_north():
    start = np.array([[1.0, 0.0, 0.0]])  # 0 N, 0 E
    ends = {heading: places(move(start, np.radians([heading]), np.array([1000.0])))[0] for heading in (0, 90, 180, 270)}
    degrees = np.degrees(1000 / 6371.0088)
    for heading, place in {0: (degrees, 0), 90: (0, degrees), 180: (-degrees, 0), 270: (0, -degrees)}.items():
        assert np.allclose(ends[heading], place, atol=1e-9)


def test_a_walk_arrives_at_the_nearest_city(world):
    every = arc_km(world.target[:, :, None], world.points)  # [N, A, N], by brute force
    assert (world.arrival[..., 0] == every.argmin(-1)).all()
    km = np.asarray(world.settings.distances_km)[world.distance]
    off, stays = every.min(-1), world.arrival[..., 0] == np.arange(len(world))[:, None]
    assert (world.valid == ((off <= world.settings.reach * km) & ~stays)).all()


def test_no_two_cities_are_nearer_than_the_spacing(world):
    apart = arc_km(world.points[:, None], world.points[None]) + np.diag(np.full(len(world), np.inf))
    assert apart.min() >= world.settings.spacing_km


def test_no_held_out_pair_in_100000_steps(world):
    cities, actions = world.walks(np.random.default_rng(1), 20_000, 5)
    assert world.seen[cities[:, :-1], actions].all() and not world.held[cities[:, :-1], actions].any()
    assert (world.arrival[cities[:, :-1], actions, 0] == cities[:, 1:]).all()
    # ... while every pair that may be walked from a city is.
    assert (world.seen.sum(1) > 0).all() and len(np.unique(cities[:, 0])) == len(world)


def test_sparse_cities_are_hardly_ever_left():
    world = make_world(TINY, cities=60, sparse=0.3, held_out=0.1)
    share = world.seen.sum(1) / world.valid.sum(1)
    assert share[world.sparse].mean() < 0.4 < 0.8 < share[~world.sparse].mean()


def test_the_label_tells_nothing_of_the_place():
    world = make_world(cities=300, spacing_km=200.0)
    by_label = [world.points[world.label == label].mean(0) for label in range(16)]
    shuffled = np.random.default_rng(0).permutation(world.label)
    chance = [world.points[shuffled == label].mean(0) for label in range(16)]
    assert np.var(by_label, axis=0).sum() < 2.5 * np.var(chance, axis=0).sum()


def test_wind_blows_to_four_sides_with_equal_chance():
    world = make_world(TINY, wind_km=800.0)
    assert world.arrival.shape == (*world.valid.shape, 4)
    for side in range(4):
        blown = move(world.target, np.full(world.valid.shape, side * np.pi / 2), np.full(world.valid.shape, 800.0))
        assert (arc_km(blown[:, :, None], world.points).argmin(-1) == world.arrival[..., side]).all()
    city, action = np.argwhere(world.seen & (world.arrival.max(-1) != world.arrival.min(-1)))[0]
    ends = [world.arrival[city, action, rng.integers(4)] for rng in map(np.random.default_rng, range(50))]
    assert len(set(ends)) > 1


def test_texts_are_words_of_the_walk_and_end_with_the_label(world):
    cities, actions = world.walks(np.random.default_rng(0), 4, 3)
    start, *text = [world.words[word] for word in world.story(cities, actions)[2]]
    assert start == "<s>"
    assert text[0::3][:4] == [world.names[city] for city in cities[2]]
    headings, distances = world.heading[actions[2]], world.distance[actions[2]]
    assert text[1:10:3] == [("N", "NE", "E", "SE", "S", "SW", "W", "NW")[heading] for heading in headings]
    assert text[2:10:3] == [("1500 km", "3000 km", "6000 km")[distance] for distance in distances]
    assert text[-2:] == ["?", f"label {world.label[cities[2, -1]]}"]
    assert (world.story(cities, actions)[:, :4] == world.prompt(cities[:, 0], actions[:, 0])).all()
    assert len(set(world.words)) == len(world.words)
    assert not any(name in " ".join(world.words[len(world) :]) for name in world.names)  # no coordinate, no name twice


def test_equal_settings_give_the_equal_world_and_another_seed_another(world):
    again, other = make_world(TINY), make_world(TINY, seed=1)
    for name in ("seen", "label", "is_test", "sparse"):
        assert (getattr(world, name) == getattr(again, name)).all()
        assert (getattr(world, name) != getattr(other, name)).any()
    assert world.names == other.names


def test_the_world_is_a_table_of_entities(world):
    table = world.table()
    assert table.is_place and table.unit_vectors and len(table) == 100
    assert table.texts == world.names and set(table.groups) == {"continent", "country"}
    assert (table.is_test == world.is_test).all() and 10 <= world.is_test.sum() <= 35


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no such setting") as problem:
        make_world(places=10)
    assert "cities" in str(problem.value)
    with pytest.raises(InputError) as problem:
        make_world(cities=3, headings=5, distances_km=(0.0,), held_out=1.0, reach=0.0)
    assert len(problem.value.problems) == 5
    with pytest.raises(InputError, match="Only .* cities are 3000 km apart; wanted 500"):
        make_world(cities=500, spacing_km=3000.0)
    with pytest.raises(InputError, match="can be entered but not left"):
        make_world(TINY, distances_km=(60.0, 6000.0), reach=0.02)
