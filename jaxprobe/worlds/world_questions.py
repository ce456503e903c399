"""What is asked of a world model, each question beside its controls. The same of both kinds.

Every answer is a row of a tidy table: ``question``, ``of`` (a state, a set of pairs or a control), ``metric``,
``value``, ``ci_low``, ``ci_high`` (95 %, by a bootstrap over cities of departure, the model fixed; NaN where none).

    question    of                            metric
    city        a state; best                 r2, km: the map, in cities that the probe's fit never saw; loo_mse
    target      a state; control: ...         r2 of the point where the walk's great circle ends, never named;
                                              r2_moved of its displacement; beta: 0 the city of arrival, 1 that point
    next_city   held, seen; control: ...      exact, km to the true one
    open_loop   1 to 8                        exact, km after so many steps without an observation
    codes       a state                       deviation, effective_rank
    label       all                           exact: the fact that has nothing to do with place
    wind        held                          spread_km, true_spread_km, distance (total variation), possible

``best`` is the state whose probe has the least leave-one-out error on its training rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.probes.metrics import resample_counts
from jaxprobe.probes.ridge import RidgeFit, fit_ridge, predict
from jaxprobe.worlds.collapse import spread
from jaxprobe.worlds.definition import WorldModel, predict_arrivals, roll_out, sample_arrivals
from jaxprobe.worlds.earth import World, arc_km
from jaxprobe.worlds.llm import WorldLanguageModel

MOST_PAIRS = 4000
MOST_TARGETS = 1000  # rows that the target is tested on
LOOP = 8  # steps
WALKS = 1000
DRAWS = 100  # of each arrival under wind
REPLICATES = 200


class Answer(NamedTuple):
    """One row of the table."""

    question: str
    of: str
    metric: str
    value: float
    ci_low: float = np.nan
    ci_high: float = np.nan


def ask(model: WorldModel, *, intervals: bool = True) -> pd.DataFrame:
    """Every question that the model's kind and its world allow.

    Args:
      intervals: with 95 % intervals; without, for one checkpoint of many, in less time.
    """
    world = model.world
    answers = [*ask_city(model, intervals), *ask_codes(model)]
    if world.settings.wind_km:
        answers += ask_wind(model)
    else:
        answers += [*ask_target(model, intervals), *ask_next_city(model, intervals), *ask_open_loop(model)]
    if isinstance(model, WorldLanguageModel):
        answers += ask_label(model)
    return pd.DataFrame(answers)


def ask_controls(world: World) -> pd.DataFrame:
    """What needs no model: counting baselines of the next city, and what can be added up of the target."""
    if world.settings.wind_km:
        return pd.DataFrame(columns=Answer._fields)
    return pd.DataFrame([*_counting(world), *_additive(world)])


# ---- City ---------------------------------------------------------------------------------------------------------


def ask_city(model: WorldModel, intervals: bool) -> Iterator[Answer]:
    """The map in each state."""
    world = model.world
    states, test = dict(model.states()), world.is_test
    losses = {}
    for state, x in states.items():
        fit = fit_points(world, x)
        losses[state] = np.nanmin(fit.loo_mse.mean(-1))
        answers = list(_reading("city", state, world.points[test], predict(fit, x[None, test])[0], None, intervals))
        # In variances, so that it says how good a map is wherever it is.
        answers.append(Answer("city", state, "loo_mse", losses[state] / world.points[~test].var(0).mean()))
        yield from answers
        if losses[state] <= min(losses.values()):
            best = answers
    yield from (answer._replace(of="best") for answer in best)


def ask_codes(model: WorldModel) -> Iterator[Answer]:
    """How much room the states take."""
    for state, x in model.states().items():
        found = spread(x)
        for metric, value in found._asdict().items():
            yield Answer("codes", state, metric, value)


# ---- Target -------------------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Departures and actions [M]."""

    city: np.ndarray
    action: np.ndarray


def choose(world: World, mask: np.ndarray, count: int, seed: int) -> Pairs:
    """At most ``count`` pairs of a mask [N, A], drawn without replacement."""
    city, action = np.nonzero(mask)
    rows = np.sort(np.random.default_rng([world.settings.seed, seed]).permutation(len(city))[:count])
    return Pairs(city[rows], action[rows])


def target_pairs(world: World) -> tuple[Pairs, Pairs]:
    """Pairs to fit on, whose two cities are both training cities of the probe, and to test on, both test cities."""
    ends = world.is_test[world.arrival[..., 0]]
    fit = world.valid & ~ends & ~world.is_test[:, None]
    test = world.valid & ends & world.is_test[:, None]
    return choose(world, fit, MOST_PAIRS, 1), choose(world, test, MOST_TARGETS, 2)


def ask_target(model: WorldModel, intervals: bool) -> Iterator[Answer]:
    """The point where the walk leads, in each state after an action."""
    fit, test = target_pairs(model.world)
    states = dict(model.arrival_states(*fit)), dict(model.arrival_states(*test))
    for state, x in states[0].items():
        yield from _target(model.world, state, x, states[1][state], fit, test, intervals)


def _target(world: World, of: str, x, x_test, fit: Pairs, test: Pairs, intervals: bool) -> Iterator[Answer]:
    to, to_test = world.target[fit], world.target[test]
    # One fit for both: the displacement is the target less the departure.
    both = np.concatenate([to, to - world.points[fit.city]], 1)
    found = predict(fit_ridge(np.asarray(x)[None], both, alpha_per_target=True), np.asarray(x_test)[None])[0]
    yield from _reading("target", of, to_test, found[:, :3], test.city, intervals)
    moved = to_test - world.points[test.city]
    yield Answer("target", of, "r2_moved", *_interval(lambda w: _r2(moved, found[:, 3:], w), test.city, intervals))
    arrival = world.points[world.arrival[test][:, 0]]
    offset, read = to_test - arrival, found[:, :3] - arrival
    beta = lambda w: (w @ (offset * read).sum(1)) / (w @ (offset * offset).sum(1))
    yield Answer("target", of, "beta", *_interval(beta, test.city, intervals))


def _additive(world: World) -> Iterator[Answer]:
    """What a sum of departure and action tells, without turning one into the other's frame."""
    fit, test = target_pairs(world)
    one_hot = np.eye(len(world.heading))
    headings, distances = np.eye(world.settings.headings), np.eye(len(world.settings.distances_km))
    parts = {
        "position + heading + distance": lambda a: [headings[world.heading[a]], distances[world.distance[a]]],
        "position + action": lambda a: [one_hot[a]],
    }
    for name, part in parts.items():
        x, x_test = (np.concatenate([world.points[rows.city], *part(rows.action)], 1) for rows in (fit, test))
        yield from _target(world, f"control: {name}", x, x_test, fit, test, True)
    ends = [world.points[world.arrival[rows][:, 0]] for rows in (fit, test)]
    yield from _target(world, "control: the city of arrival", *ends, fit, test, True)


# ---- Next city ----------------------------------------------------------------------------------------------------


def ask_next_city(model: WorldModel, intervals: bool) -> Iterator[Answer]:
    """Where the likeliest outcome is, on pairs never trained on and on those that were."""
    for of, mask in (("held", model.world.held), ("seen", model.world.seen)):
        pairs = choose(model.world, mask, MOST_PAIRS, 3)
        yield from _hits(model.world, of, predict_arrivals(model, *pairs), pairs, intervals)


def _hits(world: World, of: str, found: np.ndarray, pairs: Pairs, intervals: bool) -> Iterator[Answer]:
    true = world.arrival[pairs][:, 0]
    exact, km = (found == true).astype(float), arc_km(world.points[found], world.points[true])
    yield Answer("next_city", of, "exact", *_interval(lambda w: w @ exact / w.sum(-1), pairs.city, intervals))
    yield Answer("next_city", of, "km", float(np.median(km)))


def _counting(world: World) -> Iterator[Answer]:
    """What the table of seen pairs tells of the held ones, without any idea of a place."""
    pairs, graph = choose(world, world.held, MOST_PAIRS, 3), _neighbours(world)
    rules = {
        "same action from neighbours": lambda city, action: _by_neighbours(world, graph, city, action),
        "same heading, nearest distance": lambda city, action: _alike(
            world, city, action, world.heading, world.distance
        ),
        "same distance, nearest heading": lambda city, action: _alike(
            world, city, action, world.distance, world.heading
        ),
    }
    for name, rule in rules.items():
        found = np.array([rule(city, action) for city, action in zip(*pairs, strict=True)])
        yield from _hits(world, f"control: {name}", found, pairs, True)
    chance = np.random.default_rng(world.settings.seed).integers(len(world), size=len(pairs.city))
    yield from _hits(world, "control: chance", chance, pairs, True)


def _alike(world: World, city: int, action: int, same: np.ndarray, near: np.ndarray) -> int:
    """Where the seen action from this city leads that shares one of heading and distance, with the other nearest."""
    seen = np.flatnonzero(world.seen[city])
    pool = seen[same[seen] == same[action]]
    pool = pool if len(pool) else seen
    away = np.abs(near[pool] - near[action])
    if near is world.heading:  # headings go round
        away = np.minimum(away, world.settings.headings - away)
    return world.arrival[city, pool[away.argmin()], 0]


def _neighbours(world: World) -> list[np.ndarray]:
    """For each city those at one shortest step, either way, in what was seen."""
    short = world.seen & (world.distance == 0)
    city, action = np.nonzero(short)
    ends = world.arrival[city, action, 0]
    return [np.unique(np.concatenate([ends[city == one], city[ends == one]])) for one in range(len(world))]


def _by_neighbours(world: World, graph: list[np.ndarray], city: int, action: int) -> int:
    """Where most of the neighbours get with the same action."""
    near = graph[city][world.seen[graph[city], action]] if len(graph[city]) else graph[city]
    if not len(near):
        return world.arrival[city, np.flatnonzero(world.seen[city])[0], 0]
    ends, votes = np.unique(world.arrival[near, action, 0], return_counts=True)
    return ends[votes.argmax()]


# ---- Open loop, label, wind ---------------------------------------------------------------------------------------


def ask_open_loop(model: WorldModel) -> Iterator[Answer]:
    """Eight steps of which only the first city is observed; walks over all pairs that exist."""
    world = model.world
    cities, actions = world.walks(np.random.default_rng([world.settings.seed, 4]), WALKS, LOOP, world.valid)
    found = roll_out(model, cities[:, 0], actions)
    for step in range(LOOP):
        true = cities[:, step + 1]
        yield Answer("open_loop", str(step + 1), "exact", float((found[:, step] == true).mean()))
        km = arc_km(world.points[found[:, step]], world.points[true])
        yield Answer("open_loop", str(step + 1), "km", float(np.median(km)))


def ask_label(model: WorldLanguageModel) -> Iterator[Answer]:
    """Whether the city's label comes after its question."""
    world = model.world
    scores = model.scores(world.question(np.arange(len(world))))
    yield Answer(
        "label", "all", "exact", float((scores[:, world.ask + 1 : world.start].argmax(1) == world.label).mean())
    )


def ask_wind(model: WorldModel) -> Iterator[Answer]:
    """Whether the outcomes that z picks are spread as the wind spreads them, on pairs never trained on.

    spread_km: root mean square distance of sampled arrivals from their mean place, beside that of the possible ones;
    distance: total variation between the two distributions over cities; possible: share of samples that can happen.
    """
    world = model.world
    pairs = choose(world, world.held, 1000, 3)
    rng = np.random.default_rng([world.settings.seed, 5])
    sampled, true = sample_arrivals(model, *pairs, DRAWS, rng).T, world.arrival[pairs]
    ours, theirs = _distribution(sampled, len(world)), _distribution(true, len(world))
    yield Answer("wind", "held", "spread_km", _spread_km(world.points[sampled]))
    yield Answer("wind", "held", "true_spread_km", _spread_km(world.points[true]))
    yield Answer("wind", "held", "distance", float(np.abs(ours - theirs).sum(1).mean() / 2))
    yield Answer("wind", "held", "possible", float((theirs[np.arange(len(true))[:, None], sampled] > 0).mean()))


def _distribution(cities: np.ndarray, count: int) -> np.ndarray:
    """[M, N] shares of cities [M, draws]."""
    rows = np.repeat(np.arange(len(cities)), cities.shape[1])
    counts = np.bincount(rows * count + cities.ravel(), minlength=len(cities) * count)
    return counts.reshape(-1, count) / cities.shape[1]


def _spread_km(points: np.ndarray) -> float:
    """Of [M, draws, 3]."""
    middle = points.mean(1, keepdims=True)
    return float(np.sqrt((arc_km(points, np.broadcast_to(middle, points.shape)) ** 2).mean()))


# ---- Scores -------------------------------------------------------------------------------------------------------


def fit_points(world: World, x: np.ndarray) -> RidgeFit:
    """The probe of a state of the cities, fitted on its training cities; of one layer."""
    return fit_ridge(np.asarray(x)[None, ~world.is_test], world.points[~world.is_test])


def _reading(question: str, of: str, true, found, groups, intervals: bool) -> Iterator[Answer]:
    groups = np.arange(len(true)) if groups is None else groups
    yield Answer(question, of, "r2", *_interval(lambda w: _r2(true, found, w), groups, intervals))
    yield Answer(question, of, "km", float(np.median(arc_km(found, true))))


def _r2(true: np.ndarray, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean R2 over targets for weights of the rows [..., N]; with all 1 that of metrics.r2."""
    squares = weights @ true**2 - (weights @ true) ** 2 / weights.sum(-1, keepdims=True)
    return (1 - weights @ (true - found) ** 2 / squares).mean(-1)


def _interval(score, groups: np.ndarray, intervals: bool) -> tuple[float, float, float]:
    """The score of all rows, and the middle 95 % of it over resamples of whole groups."""
    value = float(score(np.ones(len(groups))))
    if not intervals:
        return value, np.nan, np.nan
    counts = np.concatenate(list(resample_counts(len(groups), groups, REPLICATES, 0)))
    return value, *np.quantile(score(counts), [0.025, 0.975]).tolist()
