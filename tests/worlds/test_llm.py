"""A language model of a tiny world: the map appears in it, its parts are the forward's own, and training goes on."""

import os
import signal
import time

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh
from jaxprobe.probes.metrics import r2
from jaxprobe.probes.ridge import predict
from jaxprobe.worlds.definition import WorldModel, predict_arrivals, roll_out
from jaxprobe.worlds.earth import TINY, make_world
from jaxprobe.worlds.llm import LanguageSettings, objective
from jaxprobe.worlds.steering import fit_handle, polynomials, steer_model
from jaxprobe.worlds.world_questions import ask, fit_points
from jaxprobe.worlds.world_runs import peak_step, train_world_model
from tests import started

SMALL = LanguageSettings(width=32, layers=2)


@pytest.fixture(scope="module")
def trained():
    return train_world_model(make_world(TINY, seed=5), "language", settings=SMALL, steps=100)


def best_r2(model):
    world, states = model.world, model.states()
    fits = {state: fit_points(world, x) for state, x in states.items()}
    best = min(states, key=lambda state: np.nanmin(fits[state].loo_mse.mean(-1)))
    return r2(world.points[world.is_test], predict(fits[best], states[best][None, world.is_test])[0]).mean()


@pytest.mark.slow
def test_a_map_appears_that_random_weights_lack(trained):
    assert best_r2(trained.model()) > 0.5
    assert best_r2(trained.model(0)) < 0.1
    losses = trained.history.losses
    assert losses.shape == (100, 2) and losses[-1, 0] < 0.6 * losses[0, 0]


@pytest.mark.slow
def test_going_on_from_any_block_is_the_forward(trained):
    model, world = trained.model(), trained.world
    city, action = (rows[:30] for rows in np.nonzero(world.valid))
    words = world.prompt(city, action)
    states, whole = model.states_of(words), model.scores(words)
    assert whole.shape == (30, len(world.words))
    for first, state in enumerate(("embed", "0", "1")):
        assert np.abs(model.scores_from(states[state], words, first) - whole).max() <= 1e-5
    chances = model.chances(whole)
    for handle in model.handles():
        x = model.held_states(handle, city, action)
        assert np.allclose(model.chances_with(handle, x, city, action), chances, atol=1e-6)
        other = model.chances_with(handle, np.roll(x, 1, axis=0), city, action)
        used = handle != "city 1"  # handles end where nothing reads the city's word any more
        assert (np.abs(other - chances).max() > 1e-3) == used


@pytest.mark.slow
def test_the_loss_is_the_log_odds_of_what_comes_next(trained):
    model, world = trained.model(), trained.world
    target = objective(world, SMALL, 0, make_mesh({"data": 1}))
    words = target.batches(np.random.default_rng(0), 12)
    loss, numbers = target.loss(trained.history.weights[100], words, jax.random.key(0))
    errors, right = [], []
    for slot in (3, 6, 9, 11):
        scores = model.scores(words[:, : slot + 1])
        errors.append(logsumexp(scores, axis=1) - scores[np.arange(12), words[:, slot + 1]])
        right.append(scores.argmax(1) == words[:, slot + 1])
    assert np.isclose(loss, np.mean(errors), rtol=1e-5)
    assert np.isclose(numbers[1], np.mean(right[:3]))


@pytest.mark.slow
def test_only_matrices_decay():
    decayed = objective(make_world(TINY), SMALL, 0, make_mesh({"data": 1})).decayed
    assert decayed["embedding"] and decayed["head"] and decayed["blocks"]["query"]
    assert not decayed["final_norm"] and not decayed["blocks"]["mlp_norm"]


@pytest.mark.slow
def test_it_is_a_world_model(trained):
    model, world = trained.model(), trained.world
    assert isinstance(model, WorldModel)
    city, action = (rows[:200] for rows in np.nonzero(world.valid))
    s = model.predict(model.encode(city), None, None, action)
    assert s.shape == (200, 4) and (s[:, :3] == world.prompt(city, action)[:, 1:]).all()
    assert (model.sample(s) == model.chances(model.scores(world.prompt(city, action))).argmax(1)).all()
    # What is observed takes the guess's place; without it the guess itself is walked on from.
    seen = model.predict(model.encode(city[::-1]), s, None, action)
    assert (seen[:, 3] == city[::-1]).all() and (model.predict(None, s, None, action)[:, 3] == s[:, 3]).all()
    # z picks from the distribution: as often as its chances say.
    chances = model.chances(model.scores(world.prompt(city[:1], action[:1])))[0]
    row = np.zeros(4000, int)
    z = model.draw(np.random.default_rng(0), 4000)
    drawn = model.sample(model.predict(model.encode(city[row]), None, z, action[row]))
    assert np.abs(np.bincount(drawn, minlength=len(world)) / 4000 - chances).max() < 0.03
    # A window never grows beyond the walks of the training.
    cities, actions = world.walks(np.random.default_rng(0), 5, 6, world.valid)
    assert roll_out(model, cities[:, 0], actions).shape == (5, 6)
    assert (predict_arrivals(model, city, action) == model.sample(s)).all()


@pytest.mark.slow
def test_a_shift_changes_the_reading_by_exactly_what_was_asked(trained):
    from jaxprobe.worlds.steering import _changes

    model, world = trained.model(), trained.world
    fitted = fit_handle(model, "city embed")
    city, action = (rows[:50] for rows in np.nonzero(world.valid))
    x = model.held_states("city embed", city, action).astype(np.float64)
    at, to = world.points[city], np.roll(world.points[city], 7, axis=0)
    changes = _changes(np.random.default_rng(0), fitted, x, at, to)
    for how in ("probe, minimum norm", "probe, covariance"):
        assert np.allclose(changes[how] @ fitted.probe.weights[0], to - at, atol=1e-6)
    sizes = np.linalg.norm(changes["surface"], axis=1)
    assert np.allclose(np.linalg.norm(changes["random"], axis=1), sizes)
    assert np.allclose(np.sort(np.linalg.norm(changes["another row's"], axis=1)), np.sort(sizes))
    least = np.linalg.norm(changes["probe, minimum norm"], axis=1)
    assert (least <= np.linalg.norm(changes["probe, covariance"], axis=1) + 1e-9).all()


def test_polynomials_span_the_harmonics():
    points = make_world(TINY).points
    assert [polynomials(points, degree).shape[1] for degree in (1, 2, 3)] == [3, 8, 15]
    z = polynomials(points, 3)
    assert np.allclose(z.T @ z / len(points), np.eye(15), atol=1e-9) and np.abs(z.mean(0)).max() < 1e-9


@pytest.mark.slow
def test_pushing_along_the_surface_moves_the_prediction_and_random_does_not(trained):
    assert peak_step(trained) in (25, 50, 100)
    shifts, _ = steer_model(trained.model())
    slopes = shifts[shifts["asked_km"] == 2000].groupby(["handle", "how"])["slope"].mean().unstack()
    assert slopes["surface"].max() > 0.4
    assert slopes.loc[slopes["surface"].idxmax(), "surface"] > 3 * abs(slopes["random"]).max()
    with pytest.raises(InputError, match="has wind"):
        windy = make_world(TINY, wind_km=500.0)
        steer_model(train_world_model(windy, "language", settings=SMALL, steps=25).model())


@pytest.mark.slow
def test_a_label_is_asked_for_and_wind_is_compared(trained):
    answers = ask(trained.model(), intervals=False).set_index(["question", "of", "metric"])["value"].to_dict()
    assert 0 <= answers["label", "all", "exact"] <= 1
    assert answers["target", "distance 1", "r2"] > 0.3
    assert {("target", "distance 0", "beta"), ("target", "distance 0", "r2_moved")} <= set(answers)


@pytest.mark.slow
def test_training_on_eight_devices_is_training_on_one():
    world = make_world(TINY)
    one, eight = (
        train_world_model(world, "language", settings=SMALL, steps=25, mesh=make_mesh({"data": count})).history
        for count in (1, 8)
    )
    assert np.abs(one.losses[:, 0] - eight.losses[:, 0]).max() <= 1e-5
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.weights[25], eight.weights[25])
    assert max(jax.tree.leaves(gaps)) <= 1e-4  # AdamW divides by gradients that are next to nothing, and by rounding
    with pytest.raises(InputError, match="320 rows a step do not divide over 7 devices"):
        train_world_model(world, "language", steps=25, mesh=make_mesh({"data": 7}))


KILLED = """
import sys
from jaxprobe.worlds.earth import TINY, make_world
from jaxprobe.worlds.jepa import JointEmbeddingSettings
from jaxprobe.worlds.world_runs import train_world_model
train_world_model(make_world(TINY), "joint-embedding", out=sys.argv[1], steps=100_000)
"""


@pytest.mark.slow
@pytest.mark.compiled_fully
def test_a_training_that_was_killed_goes_on_to_the_same_numbers(tmp_path):
    checkpoints = tmp_path / "run" / "world" / "checkpoints"
    process = started.Process([tmp_path / "run"], program=KILLED)
    try:
        deadline = time.monotonic() + 120
        while not (checkpoints / "50").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # A plan of 100,000 steps is too long to finish here, so the rest is compared over as many steps as were kept.
    from jaxprobe.worlds import jepa
    from jaxprobe.worlds.training import load_history, train

    world, mesh = make_world(TINY), make_mesh({"data": 1})
    target = jepa.objective(world, jepa.JointEmbeddingSettings(), 0)
    kept = load_history(target, checkpoints)
    assert max(kept.weights) >= 50
    with pytest.raises(InputError, match=r"belongs to another world model(.|\n)*seed: 0 there, 1 wanted"):
        train_world_model(world, "joint-embedding", out=tmp_path / "run", seed=1)
    # Half of a training, and the whole one: the same.
    from jaxprobe.host.progress import Reporter
    from jaxprobe.worlds import training

    whole = train(target, 75, 0, mesh, tmp_path / "whole", Reporter())
    (tmp_path / "half").mkdir()
    for step in (25, 50):
        os.rename(tmp_path / "whole" / str(step), tmp_path / "half" / str(step))
    (tmp_path / "half" / "75.orbax-checkpoint-tmp").mkdir()  # as a death while writing leaves it
    rest = train(target, 75, 0, mesh, tmp_path / "half", Reporter())
    assert training.saved_steps(tmp_path / "half") == [25, 50, 75]
    assert (rest.losses == whole.losses).all()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), rest.weights[75], whole.weights[75])
    assert all(jax.tree.leaves(same))
