"""Probes from sums against probes from stored rows, on a tiny model: same folds, same penalties, same scores."""

import numpy as np
import pytest

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import extract_states, plan_extraction, split_extraction, stream_moments
from jaxprobe.extract.forward import compiled_step, run_plan
from jaxprobe.mesh import make_mesh
from jaxprobe.models.load import load_model
from jaxprobe.probes.metrics import r2
from jaxprobe.probes.moments import Moments
from jaxprobe.probes.ridge import fit_states, predict_layer
from jaxprobe.runs.fit import make_folds, stream_probes
from tests.tiny_llama import save_model

NAMES = ("Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo")
ROWS = 400
# What the issue asks for; float32 products leave about 1e-6.
R2_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, NAMES)
    return str(folder)


@pytest.fixture(scope="module")
def table():
    """Names whose last token tells the longitude, so that there is something to read."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(10, size=(2, ROWS))
    texts = tuple(f"{k % 7} {NAMES[i]} {NAMES[j]}" for k, (i, j) in enumerate(zip(first, second, strict=True)))
    targets = np.stack([12.0 * first - 60, 30.0 * second - 150], axis=1) + 8 * rng.normal(size=(ROWS, 2))
    continents = np.array([NAMES[i % 3] for i in first], object)
    names, units = ("latitude", "longitude"), ("degree", "degree")
    return EntityTable("tiny", texts, targets, names, units, np.arange(ROWS) % 4 == 0, {"continent": continents})


def parts_of(model, table):
    extraction = plan_extraction(model.files, table, "Where is {}", mesh=model.mesh)
    return split_extraction(extraction, [np.flatnonzero(~table.is_test), np.flatnonzero(table.is_test)], model.mesh)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("group", [None, "continent"])
def test_streamed_probes_equal_stored_ones(folder, table, group, devices):
    model = load_model(folder, mesh=make_mesh({"data": devices}))
    folds = make_folds(table, group)
    streamed = stream_probes(model, *parts_of(model, table), table, folds, model="m")

    stored = extract_states(model, table, "Where is {}")
    labels = np.full(ROWS, -1)
    for i, rows in enumerate(folds.values()):
        labels[rows] = i
    train = ~table.is_test
    assert (labels[train] >= 0).all() and (labels[~train] == -1).all()
    fit = fit_states(stored, train, table.targets[train], criterion="k_fold", groups=labels[train])
    assert streamed.states == tuple(stored)
    np.testing.assert_allclose(streamed.fit.alpha, fit.alpha, rtol=1e-5)  # a grid in float32 sums' own scale
    scores = streamed.scores[streamed.scores["metric"] == "r2"].set_index(["split", "layer", "target"])["value"]
    for layer, state in enumerate(stored):
        for split, rows in (("train", train), ("test", ~train)):
            expected = r2(table.targets[rows], predict_layer(fit, layer, stored[state][rows]))
            for target, value in zip((*table.target_names, "mean"), (*expected, expected.mean()), strict=True):
                assert abs(scores[split, state, target] - value) < R2_TOLERANCE
    assert scores["test", "embed", "longitude"] > 0.9  # planted: the last token names it


@pytest.mark.slow
def test_moments_come_from_the_stream_as_they_are(folder, table):
    """The stream's dictionary is the solver's Moments; its sums are those of the rows."""
    model = load_model(folder, mesh=make_mesh({"data": 1}))
    folds = make_folds(table)
    train, _ = parts_of(model, table)
    stream = stream_moments(model, train, folds, table.targets)
    stored = extract_states(model, table, "Where is {}")
    for state in stored:
        moments = Moments(**stream.moments(state))
        for i, rows in enumerate(folds.values()):
            x = stored[state][rows].astype(np.float64) - moments.x_shift[i]
            assert moments.count[i] == len(rows)
            np.testing.assert_allclose(moments.xx[i], x.T @ x, rtol=1e-4, atol=1e-5 * (x**2).sum(0).max())


def test_both_passes_share_a_compiled_program(folder, table):
    model = load_model(folder, mesh=make_mesh({"data": 1}))
    train, test = parts_of(model, table)
    compiled_step.cache_clear()  # of what other tests compiled
    step = compiled_step(model.config, train.states, model.mesh, model.dtype)
    for part in (train, test):
        assert sum(len(shard.rows) for shard in run_plan(model, part.plan, part.states)) > 0
    assert step._cache_size() == 1


def test_parts_hold_the_rows_that_were_asked_for(folder, table):
    model = load_model(folder, mesh=make_mesh({"data": 1}))
    whole = extract_states(model, table, "Where is {}")
    for part, rows in zip(parts_of(model, table), (~table.is_test, table.is_test), strict=True):
        found = np.concatenate([shard.rows for shard in part.plan.shards])
        np.testing.assert_array_equal(np.sort(found), np.flatnonzero(rows))
        for shard in run_plan(model, part.plan, part.states):
            for state, values in shard.states.items():
                np.testing.assert_allclose(
                    values, whole[state][shard.rows], rtol=1e-4, atol=1e-4
                )  # float32, other bins


def test_folds():
    labels = np.array([f"g{i % 60}" for i in range(200)], object)
    targets = np.zeros((200, 1))
    table = EntityTable("t", ("x",) * 200, targets, ("year",), ("year",), np.arange(200) % 5 == 0, {"country": labels})
    folds = make_folds(table, seed=3)
    assert list(folds) == [f"fold {i}" for i in range(5)]
    assert [len(rows) for rows in folds.values()] == [32] * 5
    np.testing.assert_array_equal(np.sort(np.concatenate(list(folds.values()))), np.flatnonzero(~table.is_test))
    assert all((folds[name] == rows).all() for name, rows in make_folds(table, seed=3).items())
    assert not all((folds[name] == rows).all() for name, rows in make_folds(table, seed=4).items())
    with pytest.raises(InputError, match="is no group of table t .it has country.. Add --group state"):
        make_folds(table, "state")
    with pytest.raises(InputError, match="has 48 values in the training rows; wanted 2 to 32"):
        make_folds(table, "country")
