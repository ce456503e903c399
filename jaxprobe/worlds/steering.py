"""Is the map that a probe reads the one that the model uses? Here the truth is known, so the test can be tested.

A state is pushed so that the place it holds moves by so many km, and the predicted city of arrival is looked at: with
``slope`` 1 it moves as far as was asked, with 0 not at all. A slope can be tuned, so ``km_to_goal`` stands beside it.
Or the place is cut out of the state, and accuracy is looked at beside a random cut of equal size.

All edits are those of probes/erase.py. Rows are departures that neither probe nor surface was fitted on.
"""

from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.errors import InputError
from jaxprobe.probes.erase import (
    Covariance,
    Edit,
    Surface,
    apply_edit,
    covariance,
    fit_surface,
    leace,
    random_shifts,
    random_subspace,
    removed_variance,
    steer,
    surface_at,
)
from jaxprobe.probes.ridge import RidgeFit, fit_ridge
from jaxprobe.worlds.definition import WorldModel
from jaxprobe.worlds.earth import World, arc_km, move
from jaxprobe.worlds.world_questions import Pairs, choose, target_pairs

ROWS = 1000
ASKED_KM = (500.0, 2000.0)
SURFACE_ROWS = 1000  # at most, that a surface is fitted on
RANDOM_CUTS = 4  # averaged
DEGREES = (1, 3)  # of the polynomials of the place that are erased


class Shift(NamedTuple):
    """One row of the table of shifts: the mean over rows."""

    pairs: str  # "seen" or "held"
    handle: str
    how: str
    asked_km: float
    slope: float  # <moved, asked> / <asked, asked>, of the mean place of the prediction
    cosine: float
    km_to_goal: float  # median, of the likeliest city from the place asked for
    size: float  # mean length of the change, in deviations of the state


class Cut(NamedTuple):
    """One row of the table of erasures."""

    pairs: str
    handle: str
    how: str
    rank: int
    share: float  # of the state's variance that is removed
    exact: float
    km: float  # median


class Fitted(NamedTuple):
    """What is known of a handle from rows without test cities.

    Attributes:
      x: [M, D] states.
      places: [M, 3] that they hold: the city of departure, or the target.
      of_departure: which of the two.
      probe, cov, surface: fitted on these rows.
    """

    x: np.ndarray
    places: np.ndarray
    of_departure: bool
    probe: RidgeFit
    cov: Covariance
    surface: Surface


def steer_model(model: WorldModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every handle pushed in every way and its place cut out: the columns of `Shift`, and those of `Cut`.

    Raises:
      InputError: a world with wind, where no one city is the true one.
    """
    world = model.world
    if world.settings.wind_km:
        raise InputError("This world has wind, so that an arrival has no one true city. Steer a model of a calm one.")
    fits = {handle: fit_handle(model, handle) for handle in model.handles()}
    shifts: list[Shift] = []
    cuts: list[Cut] = []
    for name, pairs in _rows(world).items():
        first = model.handles()[0]
        clean = model.chances_with(first, model.held_states(first, *pairs), *pairs)
        cuts.append(Cut(name, "", "nothing", 0, 0.0, *_hits(world, clean, pairs)))
        for handle, fitted in fits.items():
            shifts += _shifts(model, name, pairs, handle, fitted)
            cuts += _cuts(model, name, pairs, handle, fitted)
    return pd.DataFrame(shifts), pd.DataFrame(cuts)


def _rows(world: World) -> dict[str, Pairs]:
    """Departures from test cities."""
    test = world.is_test[:, None]
    return {"seen": choose(world, world.seen & test, ROWS, 6), "held": choose(world, world.held & test, ROWS, 7)}


def fit_handle(model: WorldModel, handle: str) -> Fitted:
    """Probe and surface of a handle."""
    world = model.world
    of_departure = handle.startswith("city")
    if of_departure:
        city = np.flatnonzero(~world.is_test & world.valid.any(1))
        pairs = Pairs(city, world.valid[city].argmax(1))  # any action: the state comes before it
        places = world.points[city]
    else:
        pairs = target_pairs(world)[0]
        places = world.target[pairs]
    x = model.held_states(handle, *pairs)
    some = slice(None, None, -(-len(x) // SURFACE_ROWS))
    probe, surface = fit_ridge(x[None], places), fit_surface(places[some], x[some])
    return Fitted(x, places, of_departure, probe, covariance(x, places), surface)


# ---- Shifts -------------------------------------------------------------------------------------------------------


def _shifts(model: WorldModel, name: str, pairs: Pairs, handle: str, fitted: Fitted) -> Iterator[Shift]:
    world, x = model.world, model.held_states(handle, *pairs).astype(np.float64)
    deviation = np.sqrt(fitted.x.astype(np.float64).var(0).sum())
    before = model.chances_with(handle, x, *pairs) @ world.points
    for asked_km in ASKED_KM:
        rng = np.random.default_rng([world.settings.seed, int(asked_km)])
        at = world.points[pairs.city] if fitted.of_departure else world.target[pairs]
        to = move(at, rng.uniform(0, 2 * np.pi, len(at)), np.full(len(at), asked_km))
        goal = _walk(world, to, pairs.action) if fitted.of_departure else to
        asked = goal - world.target[pairs]
        for how, change in _changes(rng, fitted, x, at, to).items():
            chances = model.chances_with(handle, x + change, *pairs)
            moved = chances @ world.points - before
            along = (moved * asked).sum()
            yield Shift(
                name,
                handle,
                how,
                asked_km,
                float(along / (asked**2).sum()),
                float(along / np.sqrt((moved**2).sum() * (asked**2).sum() + 1e-30)),
                float(np.median(arc_km(world.points[chances.argmax(1)], goal))),
                float(np.linalg.norm(change, axis=1).mean() / deviation),
            )


def _walk(world: World, points: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where actions lead from points that need be no cities."""
    settings = world.settings
    km = np.asarray(settings.distances_km)[world.distance[action]]
    return move(points, 2 * np.pi * world.heading[action] / settings.headings, km)


def _changes(
    rng: np.random.Generator, fitted: Fitted, x: np.ndarray, at: np.ndarray, to: np.ndarray
) -> dict[str, np.ndarray]:
    """[B, D] for each way to move what states x hold from places ``at`` to places ``to``."""
    weights, intercept, mean = (part[0] for part in (fitted.probe.weights, fitted.probe.intercept, fitted.probe.x_mean))
    target = x @ weights + intercept + to - at
    along = surface_at(fitted.surface, to) - surface_at(fitted.surface, at)
    change = lambda cov: apply_edit(steer(weights, intercept, mean, target, cov), x) - x
    return {
        "nothing": np.zeros_like(x),
        "probe, minimum norm": change(None),
        "probe, covariance": change(fitted.cov),
        "surface": along,
        "random": random_shifts(rng, fitted.x, np.linalg.norm(along, axis=1)),
        "another row's": along[rng.permutation(len(along))],
    }


# ---- Erasure ------------------------------------------------------------------------------------------------------


def _cuts(model: WorldModel, name: str, pairs: Pairs, handle: str, fitted: Fitted) -> Iterator[Cut]:
    world, x = model.world, model.held_states(handle, *pairs)
    rng = np.random.default_rng([world.settings.seed, 8])

    def cut(how: str, edits: list[Edit], cov: Covariance) -> Cut:
        hits = [_hits(world, model.chances_with(handle, apply_edit(edit, x), *pairs), pairs) for edit in edits]
        share = removed_variance(edits[0], cov) / cov.values.sum()
        return Cut(name, handle, how, edits[0].rank, float(share), *np.mean(hits, axis=0).tolist())

    for degree in DEGREES:
        cov = covariance(fitted.x, polynomials(fitted.places, degree))
        edit = leace(cov)
        yield cut(f"place, degree {degree}", [edit], cov)
        variance = removed_variance(edit, cov)
        draws = [random_subspace(rng, cov, edit.rank, variance) for _ in range(RANDOM_CUTS)]
        yield cut(f"random, as degree {degree}", draws, cov)


def _hits(world: World, chances: np.ndarray, pairs: Pairs) -> tuple[float, float]:
    """Share of right cities, and median km."""
    found, true = chances.argmax(1), world.arrival[pairs][:, 0]
    return float((found == true).mean()), float(np.median(arc_km(world.points[found], world.points[true])))


def polynomials(points: np.ndarray, degree: int) -> np.ndarray:
    """[N, C] products of up to ``degree`` coordinates of points [N, 3], made orthogonal.

    On the sphere they span the spherical harmonics up to that degree, less the constant: 3 columns, 8, 15, ...
    """
    powers = [choice for d in range(1, degree + 1) for choice in combinations_with_replacement(range(3), d)]
    columns = np.stack([np.prod(points[:, list(choice)], axis=1) for choice in powers], 1)
    left, sizes, _ = np.linalg.svd(columns - columns.mean(0), full_matrices=False)
    return left[:, sizes > sizes[0] * 1e-8] * np.sqrt(len(points))
