"""A world that we own: walks over real cities, told by names and compass words, with no coordinate in them.

The observation x(t) is a city, the action a(t) a heading and a distance, x(t+1) the city nearest to the point where the
great circle ends. With ``wind_km`` the end is blown off to one of four sides, which nobody observes: that is z(t).

Three things are held out: (city, action) pairs that no walk for training has; most departures of a few cities
("sparse"); and cities that no probe is fitted on (``is_test``).

Letters: N city, A action, W wind.
"""

import functools
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from jaxprobe.data.catalog import read_cities
from jaxprobe.data.sphere import EARTH_RADIUS_KM, unit_vectors
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError

COMPASS = tuple(["N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW"])
LABELS = 16  # values of the fact about each city that has nothing to do with its place
START, ASK = "<s>", "?"
SEPARATOR = " / "  # between the words of a text; no city's name has it
SPARSE_HELD_OUT = 0.8  # of the departures of a sparse city
ALL_CITIES = 10**6  # more than GeoNames lists
SIDES = 4  # that the wind blows to


@dataclass(frozen=True)
class WorldSettings:
    """What a world follows from; equal settings give the equal world.

    Attributes:
      cities: how many, the largest first.
      spacing_km: no two cities are nearer to each other.
      headings: of the compass, 4, 8 or 16.
      distances_km: of the actions.
      reach: an action exists where the city of arrival is within this share of the distance from the target point.
      held_out: share of the (city, action) pairs that are never trained on.
      sparse: share of the cities most of whose departures are never trained on.
      test: share of the cities that no probe is fitted on.
      wind_km: how far the wind blows; 0 is none.
      seed: of everything drawn.
    """

    cities: int = 1000
    spacing_km: float = 150.0
    headings: int = 16
    distances_km: tuple[float, ...] = (500.0, 1000.0, 2000.0, 4000.0)
    reach: float = 0.4
    held_out: float = 0.2
    sparse: float = 0.1
    test: float = 0.2
    wind_km: float = 0.0
    seed: int = 0


TINY = WorldSettings(cities=100, spacing_km=700.0, headings=8, distances_km=(1500.0, 3000.0, 6000.0))


@dataclass(frozen=True)
class World:
    """The tables of one world.

    Attributes:
      names: N names, each a word of the texts.
      groups: "country" and "continent" of each city.
      places: [N, 2] latitude and longitude in degrees.
      points: [N, 3] the same on the unit sphere.
      heading, distance: [A] of each action, as numbers.
      target: [N, A, 3] where the great circle ends, on the unit sphere; a place that is never named.
      arrival: [N, A, W] the city nearest to it under each wind, all equally likely; without wind W is 1.
      valid: [N, A] whether the action exists there.
      seen: [N, A] whether walks for training may take it.
      sparse: [N] cities most of whose departures are not seen.
      label: [N] a fact in LABELS values, drawn at random.
      is_test: [N] cities that no probe is fitted on.
    """

    settings: WorldSettings
    names: tuple[str, ...]
    groups: dict[str, np.ndarray]
    places: np.ndarray
    points: np.ndarray
    heading: np.ndarray
    distance: np.ndarray
    target: np.ndarray
    arrival: np.ndarray
    valid: np.ndarray
    seen: np.ndarray
    sparse: np.ndarray
    label: np.ndarray
    is_test: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def held(self) -> np.ndarray:
        """[N, A] pairs that exist and that no walk for training has."""
        return self.valid & ~self.seen

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: cities, headings, distances, the question mark, labels, and what a text begins with."""
        settings = self.settings
        distances = (f"{km:.0f} km" for km in settings.distances_km)
        labels = (f"label {value}" for value in range(LABELS))
        return (*self.names, *COMPASS[:: 16 // settings.headings], *distances, ASK, *labels, START)

    def heading_word(self, action: np.ndarray) -> np.ndarray:
        """Ids of the actions' headings."""
        return len(self) + self.heading[action]

    def distance_word(self, action: np.ndarray) -> np.ndarray:
        """Ids of the actions' distances."""
        return len(self) + self.settings.headings + self.distance[action]

    @property
    def start(self) -> int:
        """Id of the word that every text begins with, as `jaxprobe run` reads names after it."""
        return self.ask + 1 + LABELS

    @property
    def ask(self) -> int:
        """Id of the question mark; after it come the labels."""
        return len(self) + self.settings.headings + len(self.settings.distances_km)

    def walks(
        self, rng: np.random.Generator, count: int, steps: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cities [count, steps + 1] and actions [count, steps], each action drawn among those of the mask.

        Args:
          mask: [N, A] pairs that may be taken; default: those seen in training.
        """
        mask = self.seen if mask is None else mask
        order, number = np.argsort(~mask, axis=1, kind="stable"), mask.sum(1)
        city = rng.choice(np.flatnonzero(number), size=count)
        cities, actions = [city], []
        for _ in range(steps):
            action = order[city, (rng.random(count) * number[city]).astype(int)]
            city = self.arrival[city, action, rng.integers(self.arrival.shape[2], size=count)]
            cities.append(city)
            actions.append(action)
        return np.stack(cities, 1), np.stack(actions, 1)

    def story(self, cities: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Walks as ids [count, 3 steps + 4]: "<s>" city heading distance ... city, and at the end "?" and its label."""
        count, steps = actions.shape
        ids = np.full((count, 3 * steps + 4), self.start, np.int32)
        ids[:, 1:-2:3] = cities
        ids[:, 2:-3:3], ids[:, 3:-3:3] = self.heading_word(actions), self.distance_word(actions)
        ids[:, -2], ids[:, -1] = self.ask, self.ask + 1 + self.label[cities[:, -1]]
        return ids

    def prompt(self, city: np.ndarray, action: np.ndarray) -> np.ndarray:
        """[M, 4] ids of "<s>", city, heading, distance; what comes next is the city of arrival."""
        return self.text(city, self.heading_word(action), self.distance_word(action))

    def question(self, city: np.ndarray) -> np.ndarray:
        """[M, 3] ids of "<s>", city and "?"; what comes next is its label."""
        return self.text(city, np.full(len(city), self.ask))

    def text(self, *words: np.ndarray) -> np.ndarray:
        """[M, 1 + W] ids of texts of these words, each [M] or [M, more], after what every text begins with."""
        return np.column_stack([np.full(len(words[0]), self.start), *words]).astype(np.int32)

    def action_features(self) -> np.ndarray:
        """[A, 6] actions as numbers, for a predictor that is no reader of words: nothing in them tells a place."""
        angle = 2 * np.pi * self.heading / self.settings.headings
        size = np.asarray(self.settings.distances_km)[self.distance] / 2000
        columns = np.cos(angle), np.sin(angle), size, size * np.cos(angle), size * np.sin(angle), np.log(size)
        return np.stack(columns, 1).astype(np.float32)

    def table(self) -> EntityTable:
        """The cities as a table of entities; probes are fitted on points of the sphere."""
        return EntityTable(
            name="earth",
            texts=self.names,
            targets=self.places,
            target_names=("latitude", "longitude"),
            units=("degree", "degree"),
            is_test=self.is_test,
            groups=self.groups,
            unit_vectors=True,
            attribution="GeoNames, CC BY 4.0",
        )


def make_world(settings: WorldSettings | None = None, **changes: Any) -> World:
    """The world of these settings; ``changes`` are single ones, such as ``seed=1``.

    Raises:
      InputError: settings that do not fit, or fewer cities so far apart than wanted.
    """
    settings = settings or WorldSettings()
    try:
        settings = WorldSettings(**{field.name: getattr(settings, field.name) for field in fields(settings)} | changes)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(WorldSettings))
        raise InputError(f"A world has no such setting ({error}). It has {known}.") from None
    _check(settings)
    cities = spaced_cities(settings.cities, settings.spacing_km)
    places = cities[["latitude", "longitude"]].to_numpy(np.float64)
    points = unit_vectors(*places.T)
    heading = np.repeat(np.arange(settings.headings), len(settings.distances_km))
    distance = np.tile(np.arange(len(settings.distances_km)), settings.headings)
    angle, km = 2 * np.pi * heading / settings.headings, np.asarray(settings.distances_km)[distance]
    target = move(points[:, None], angle[None], km[None])
    tree = cKDTree(points)
    chord, calm = tree.query(target)
    reached = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1)) <= settings.reach * km
    valid = reached & (calm != np.arange(len(points))[:, None])
    arrival = calm[..., None]
    if settings.wind_km:
        sides = 2 * np.pi * np.arange(SIDES) / SIDES
        arrival = tree.query(move(target[:, :, None], sides, np.full(SIDES, settings.wind_km)))[1]
    rng = np.random.default_rng(settings.seed)
    sparse = rng.random(len(points)) < settings.sparse
    seen = valid & (rng.random(valid.shape) >= np.where(sparse, SPARSE_HELD_OUT, settings.held_out)[:, None])
    leaves = seen.any(1)
    for city in np.flatnonzero(~leaves & valid.any(1)):  # one departure each, so that no walk ends there
        seen[city, rng.choice(np.flatnonzero(valid[city]))] = True
    if not seen[np.unique(arrival[seen])].any(1).all():
        raise InputError(
            f"Some of {settings.cities} cities can be entered but not left. Use longer distances, or a wider reach."
        )
    label, test = rng.integers(LABELS, size=len(points)), rng.random(len(points)) < settings.test
    groups = {group: cities[group].to_numpy(object) for group in ("continent", "country")}
    return World(
        settings, tuple(cities["name"]), groups, places, points,
        heading, distance, target, arrival, valid, seen, sparse, label, test,
    )  # fmt: skip


def move(points: np.ndarray, heading: np.ndarray, km: np.ndarray) -> np.ndarray:
    """[..., 3] where great circles end that leave points [..., 3] of the unit sphere.

    Args:
      heading: [...] radians from north, clockwise.
      km: [...] along the circle.
    """
    east = np.cross([0.0, 0.0, 1.0], points)
    east /= np.linalg.norm(east, axis=-1, keepdims=True)
    north = np.cross(points, east)
    angle, heading = np.asarray(km)[..., None] / EARTH_RADIUS_KM, np.asarray(heading)[..., None]
    return np.cos(angle) * points + np.sin(angle) * (np.cos(heading) * north + np.sin(heading) * east)


def arc_km(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Great-circle km [...] between the directions of a and b [..., 3]."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1))


@functools.cache
def spaced_cities(count: int, spacing_km: float) -> pd.DataFrame:
    """The largest cities of which no two are nearer than ``spacing_km``: greedy, the most populous first.

    Columns as `read_cities`. Raises InputError where there are fewer.
    """
    cities = read_cities(ALL_CITIES)
    points = unit_vectors(cities["latitude"].to_numpy(), cities["longitude"].to_numpy())
    tree, near = cKDTree(points), 2 * np.sin(min(spacing_km / EARTH_RADIUS_KM, np.pi) / 2)
    kept: list[int] = []
    taken = np.zeros(len(cities), bool)
    for row, point in enumerate(points):
        if not taken[row] and len(kept) < count:
            kept.append(row)
            taken[tree.query_ball_point(point, near)] = True
    if len(kept) < count:
        raise InputError(f"Only {len(kept)} cities are {spacing_km:g} km apart; wanted {count}. Ask for fewer.")
    return cities.iloc[kept]


def _check(settings: WorldSettings) -> None:
    problems = []
    if settings.cities < 10:
        problems.append(f"A world of {settings.cities} cities is too small. Wanted 10 or more.")
    if settings.headings not in (4, 8, 16):
        problems.append(f"{settings.headings} headings are not of a compass. Wanted 4, 8 or 16.")
    distances = settings.distances_km
    if (
        not distances
        or min(distances) <= 0
        or max(distances) >= np.pi * EARTH_RADIUS_KM
        or len(set(distances)) < len(distances)
    ):
        problems.append(f"Distances are {distances}. Wanted different ones above 0 and below half of the way round.")
    for name in ("held_out", "sparse", "test"):
        if not 0 <= getattr(settings, name) < 1:
            problems.append(f"{name} is {getattr(settings, name)}; wanted a share, 0 or more and below 1.")
    if settings.spacing_km < 0 or settings.wind_km < 0 or settings.reach <= 0:
        problems.append("A spacing, a wind or a reach is negative, or the reach is 0. Wanted a reach above 0.")
    if problems:
        raise InputError(*problems)
