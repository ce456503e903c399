"""A joint-embedding model of a tiny world: it finds the map with its term against collapse, and nothing without."""

import jax
import numpy as np
import pytest

from jaxprobe.errors import InputError
from jaxprobe.probes.metrics import r2
from jaxprobe.probes.ridge import predict
from jaxprobe.worlds.definition import WorldModel, predict_arrivals, roll_out, sample_arrivals
from jaxprobe.worlds.earth import TINY, make_world
from jaxprobe.worlds.jepa import JointEmbedding, JointEmbeddingSettings, initial_weights, objective
from jaxprobe.worlds.steering import steer_model
from jaxprobe.worlds.world_questions import ask, ask_controls, fit_points
from jaxprobe.worlds.world_runs import train_world_model

STEPS = 450


pytestmark = pytest.mark.compiled_fully  # they are trained for longer than that takes


@pytest.fixture(scope="module")
def trained():
    return train_world_model(make_world(TINY, seed=11), "joint-embedding", steps=STEPS)


def map_r2(model):
    world, x = model.world, model.states()["embed"]
    return r2(world.points[world.is_test], predict(fit_points(world, x), x[None, world.is_test])[0]).mean()


@pytest.mark.slow
def test_it_grows_a_map_that_random_weights_lack(trained):
    assert map_r2(trained.model()) > 0.5
    assert map_r2(trained.model(0)) < 0.1


@pytest.mark.slow
def test_without_a_term_the_codes_collapse(trained):
    settings = JointEmbeddingSettings(regulariser="none")
    alone = train_world_model(trained.world, "joint-embedding", settings=settings, steps=STEPS)
    # Neither the probe nor the nearest code has a scale: on so few cities both still find something in what is left.
    deviation = [model.states()["embed"].std(0).mean() for model in (alone.model(), trained.model())]
    assert deviation[0] < 0.01 < 0.4 < deviation[1]
    assert alone.history.losses[-1, 0] < 1e-3 * trained.history.losses[-1, 0]  # nothing is easier to predict


@pytest.mark.slow
def test_same_seed_same_numbers(trained):
    world = make_world(TINY, seed=11)
    first, again = (train_world_model(world, "joint-embedding", steps=50).history for _ in range(2))
    assert (first.losses == again.losses).all()
    other = train_world_model(world, "joint-embedding", steps=50, seed=12).history
    assert (first.losses != other.losses).any()


@pytest.mark.slow
def test_it_is_a_world_model(trained):
    model, world = trained.model(), trained.world
    assert isinstance(model, WorldModel)
    city, action = (rows[:20] for rows in np.nonzero(world.valid))
    h = model.encode(city)
    s = model.predict(h, None, None, action)
    assert h.shape == s.shape == (20, 32)
    assert (model.sample(h) == city).all()  # a code stands for its own city
    # What is observed takes the state's place; without it the state goes on by itself.
    assert (model.predict(h, s, None, action) == s).all()
    assert not np.allclose(model.predict(None, s, None, action), s)
    assert (predict_arrivals(model, city, action) == roll_out(model, city, action[:, None])[:, 0]).all()
    assert model.draw(np.random.default_rng(0), 3) is None  # no wind, no z


@pytest.mark.slow
def test_the_loss_is_the_error_of_an_open_loop(trained):
    world = trained.world
    target = objective(world, JointEmbeddingSettings(regulariser="none"), seed=0)
    weights = trained.history.weights[STEPS]
    cities, actions = target.batches(np.random.default_rng(0), 16)
    model = JointEmbedding(world, weights)
    s, errors = model.encode(cities[:, 0]), []
    for step in range(3):
        s = model.predict(None, s, None, actions[:, step])
        errors.append(((s - model.encode(cities[:, step + 1])) ** 2).mean())
    loss, numbers = target.loss(weights, (cities, actions), jax.random.key(0))
    assert np.isclose(loss, np.mean(errors), rtol=1e-4) and numbers[1] == 0


@pytest.mark.slow
def test_z_of_least_energy_learns_the_wind():
    """Pred with a set of z spreads its outcomes as the wind does; its loss is below that of the same model without."""
    windy = make_world(TINY, seed=3, wind_km=1500.0)
    model = train_world_model(windy, "joint-embedding", steps=300).model()
    city, action = (rows[:200] for rows in np.nonzero(windy.valid))
    draws = sample_arrivals(model, city, action, 40, np.random.default_rng(0))
    answers = ask(model, intervals=False).set_index("metric")["value"]
    assert len(np.unique(model.draw(np.random.default_rng(0), 100))) == 4
    assert (np.array([len(set(ends)) for ends in draws.T]) > 1).mean() > 0.5
    assert answers["spread_km"] > 0.4 * answers["true_spread_km"]
    assert not {"exact"} & set(answers.index)  # no one city is right


@pytest.mark.slow
def test_features_are_encoded_without_noise_but_trained_with():
    world = make_world(TINY)
    settings = JointEmbeddingSettings(encoder="features", regulariser="sigreg")
    target = objective(world, settings, 0)
    batch, weights = target.batches(np.random.default_rng(0), 8), initial_weights(world, settings, 0)
    noisy = [target.loss(weights, batch, jax.random.key(key))[0] for key in (0, 1)]
    assert noisy[0] != noisy[1]
    model = JointEmbedding(world, weights)
    assert (model.encode(batch[0][:, 0]) == model.encode(batch[0][:, 0])).all()
    with pytest.raises(InputError, match="no regulariser 'l2'. Take one of vicreg, sigreg, none"):
        JointEmbeddingSettings(regulariser="l2")


@pytest.mark.slow
def test_answers_beside_their_controls(trained):
    answers = ask(trained.model()).set_index(["question", "of", "metric"])["value"].to_dict()
    assert answers["city", "best", "r2"] == answers["city", "embed", "r2"]
    assert np.isclose(answers["city", "embed", "r2"], map_r2(trained.model()))
    assert answers["next_city", "seen", "exact"] > answers["next_city", "held", "exact"] - 0.05
    assert answers["open_loop", "1", "exact"] > answers["open_loop", "8", "exact"]
    controls = ask_controls(trained.world).set_index(["question", "of", "metric"])["value"].to_dict()
    assert controls["next_city", "control: chance", "exact"] < 0.1
    # The true city of arrival is a map of its own, which lies at 0 of the way to the target.
    assert controls["target", "control: the city of arrival", "r2"] > 0.9
    assert abs(controls["target", "control: the city of arrival", "beta"]) < 0.2


@pytest.mark.slow
def test_pushing_h_along_the_surface_moves_the_prediction(trained):
    shifts, cuts = steer_model(trained.model())
    mean = shifts[shifts["asked_km"] == 2000].groupby("how")[["slope", "cosine"]].mean()
    assert mean.loc["surface", "slope"] > 0.3 + mean.loc["random", "slope"]
    assert abs(mean.loc["nothing", "slope"]) < 1e-6
    exact = cuts.groupby("how")["exact"].mean()
    assert exact["place, degree 1"] < exact["nothing"]
    shares = cuts.set_index(["pairs", "how"])["share"]
    assert np.isclose(shares["seen", "place, degree 1"], shares["seen", "random, as degree 1"], atol=0.02)


def test_what_can_not_be_trained_leaves_nothing_behind(tmp_path):
    world = make_world(TINY)
    for options, problem in (({"steps": 30}, "not a multiple of 25. Ask for 25"), ({"steps": 0}, "Ask for 25")):
        with pytest.raises(InputError, match=problem):
            train_world_model(world, "joint-embedding", out=tmp_path / "run", **options)
    with pytest.raises(InputError, match="no kind 'diffusion'"):
        train_world_model(world, "diffusion", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
