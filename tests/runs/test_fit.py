"""Probes by layer against scikit-learn, scipy and a planted answer."""

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.fit import entity_frame, fit_probes


def make_world(rows=240, width=12, seed=0):
    """Three states: noise, a half-hidden linear map of the targets, and a clear one."""
    rng = np.random.default_rng(seed)
    targets = np.stack([rng.uniform(-60, 70, rows), rng.uniform(-180, 180, rows)], axis=1)
    plan = rng.normal(size=(2, width)) / 40
    noise = rng.normal(size=(3, rows, width)).astype(np.float32)
    states = {"embed": noise[0], "0": noise[1] + targets @ plan / 3, "1": noise[2] * 0.3 + targets @ plan}
    table = EntityTable(
        "planted",
        tuple(f"place {i}" for i in range(rows)),
        targets,
        ("latitude", "longitude"),
        ("degree", "degree"),
        np.arange(rows) % 5 == 0,
        {"half": np.where(targets[:, 1] > 0, "east", "west")},
    )
    return {name: state.astype(np.float32) for name, state in states.items()}, table


def value(scores, **wanted):
    for column, cell in wanted.items():
        scores = scores[scores[column] == cell]
    assert len(scores) == 1
    return scores["value"].item()


def test_scores_are_those_of_scikit_learn_and_scipy():
    activations, table = make_world()
    probes = fit_probes(activations, table)
    train = ~table.is_test
    for layer, state in enumerate(activations.values()):
        alphas = probes.fit.alphas[layer]
        scaled = (table.targets - table.targets[train].mean(0)) / table.targets[train].std(0)
        theirs = RidgeCV(alphas=alphas).fit(state[train].astype(np.float64), scaled[train])
        assert theirs.alpha_ == pytest.approx(probes.fit.alpha[layer], rel=1e-5)
        predicted = theirs.predict(state) * table.targets[train].std(0) + table.targets[train].mean(0)
        name = list(activations)[layer]
        for split, rows in (("train", train), ("test", ~train)):
            truth, guess = table.targets[rows], predicted[rows]
            expected = r2_score(truth, guess, multioutput="raw_values")
            assert value(probes.scores, layer=name, split=split, metric="r2", target="longitude") == pytest.approx(
                expected[1], abs=1e-5
            )
            assert value(probes.scores, layer=name, split=split, metric="r2", target="mean") == pytest.approx(
                expected.mean(), abs=1e-5
            )
            rank = scipy.stats.spearmanr(truth[:, 0], guess[:, 0]).statistic
            assert value(probes.scores, layer=name, split=split, metric="spearman", target="latitude") == pytest.approx(
                rank, abs=1e-3
            )


def test_the_clear_state_is_the_headline_and_noise_explains_nothing():
    activations, table = make_world()
    probes = fit_probes(activations, table)
    assert probes.headline == "1"
    assert value(probes.scores, layer="1", split="test", metric="r2", target="mean") > 0.9
    assert value(probes.scores, layer="embed", split="test", metric="r2", target="mean") < 0.1


def test_test_scores_play_no_part_in_the_headline():
    activations, table = make_world()
    spoiled = {name: state.copy() for name, state in activations.items()}
    spoiled["1"][table.is_test] = 0
    assert fit_probes(spoiled, table).headline == "1"


def test_frames_fit_the_run_directory(tmp_path):
    activations, table = make_world(60)
    probes = fit_probes(activations, table, model="m", prompt="empty")
    directory = RunDirectory(tmp_path / "run")
    directory.write_scores(probes.scores)
    directory.write_entities(entity_frame(table))
    directory.write_predictions(probes.prediction_frame(table))
    predictions = directory.read_predictions()
    assert len(predictions) == 3 * table.is_test.sum()
    assert set(directory.read_scores()["metric"]) == {"r2", "spearman", "mae", "error_km_median", "error_km_mean"}


def test_activations_of_another_table_are_refused():
    activations, table = make_world()
    with pytest.raises(InputError, match="The activations have 10 rows; the table has 240"):
        fit_probes({"embed": activations["embed"][:10]}, table)
    with pytest.raises(InputError, match="no states"):
        fit_probes({}, table)


def test_rows_with_huge_states_are_told():
    """As "California" in SmolLM2: one state 36 times as long as the others takes R2 with it."""
    activations, table = make_world()
    assert fit_probes(activations, table).notes == ()
    huge = {state: x.copy() for state, x in activations.items()}
    huge["1"][5] *= 40
    huge["0"][[7, 8]] *= 200
    (note,) = [note for note in fit_probes(huge, table).notes if "as long as" in note]
    assert note.startswith("Warning: rows with a state more than 10 times as long as the median row's: 3 (row ")
    assert "row 7 'place 7', " in note and "at state 0" in note and "in 2 of 3 states, the headline layer among" in note
    lengths = np.linalg.norm(huge["0"].astype(np.float64), axis=1)
    longest = max(7, 8, key=lambda row: lengths[row])
    assert f"(row {longest} 'place {longest}', {lengths[longest] / np.median(lengths):,.0f} times" in note
