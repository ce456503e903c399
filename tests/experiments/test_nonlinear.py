"""A network beside ridge, in worlds where it is known what either can read."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from jaxprobe.errors import InputError
from jaxprobe.experiments import nonlinear
from tests.experiments.worlds import make_table, planted, select


@pytest.fixture(scope="module")
def bent():
    """A state of which a target is a product, so that no linear probe reads it; and the table."""
    rng = np.random.default_rng(0)
    state = rng.normal(size=(600, 6))
    targets = (state[:, 0] * state[:, 1] + 0.1 * rng.normal(size=600))[:, None]
    table = make_table(targets)
    return state.astype(np.float32), table, nonlinear.measure({"2": state.astype(np.float32)}, table, "2", 3)


def cell(frame, probe, targets="true", split="test"):
    return select(frame, probe=probe, targets=targets, split=split, metric="r2", target="mean")


@pytest.mark.slow
def test_a_network_reads_what_bends(bent):
    state, table, frame = bent
    test = table.is_test
    ridge, network, apart = (cell(frame, probe) for probe in ("ridge", "mlp", "difference"))
    theirs = Ridge(ridge["alpha"]).fit(state[~test].astype(np.float64), table.targets[~test])
    assert ridge["value"] == pytest.approx(r2_score(table.targets[test], theirs.predict(state[test])), abs=1e-4)
    assert ridge["value"] < 0.1 < 0.5 < network["value"]
    assert apart["value"] == pytest.approx(network["value"] - ridge["value"]) and apart["ci_low"] > 0.3
    assert network["weight_decay"] in (0.01, 0.03, 0.1, 0.3) and np.isnan(network["alpha"])
    assert set(frame.loc[frame["targets"] == "true", "resampled"]) == {"rows", ""}


@pytest.mark.slow
def test_what_is_learned_by_heart_is_taken_off(bent):
    _, _, frame = bent
    for split in ("test", "train"):
        left = {}
        for probe in ("ridge", "mlp"):
            true, permuted, less = (cell(frame, probe, of, split) for of in ("true", "permuted", "less_permuted"))
            # Failing at noise is no merit: what lies below 0 there adds nothing.
            most = true["value"] - max(permuted["value"], 0)
            assert most - max(permuted["ci_high"], 0) <= less["value"] <= most + 1e-12
            assert permuted["ci_low"] <= permuted["value"] <= permuted["ci_high"] and permuted["value"] < 0.05
            left[probe] = less["value"]
        apart = cell(frame, "difference", "less_permuted", split)
        assert apart["value"] == pytest.approx(left["mlp"] - left["ridge"])


@pytest.mark.slow
def test_a_network_that_learns_by_heart_looks_no_better():
    """States of more dimensions than training rows, and targets that mean nothing."""
    rng = np.random.default_rng(3)
    table = make_table(rng.normal(size=(160, 1)))
    frame = nonlinear.measure({"0": rng.normal(size=(160, 200)).astype(np.float32)}, table, "0", 2)
    assert cell(frame, "mlp", split="train")["value"] > 0.2  # of what means nothing
    assert cell(frame, "difference", "less_permuted")["value"] < 0.05
    taken_off = cell(frame, "mlp", split="train")["value"] - cell(frame, "mlp", "less_permuted", "train")["value"]
    assert taken_off > 0.1 and cell(frame, "mlp", "permuted", "train")["value"] > 0.1


@pytest.mark.slow
def test_where_the_map_is_linear_a_network_looks_no_better():
    state, table = planted(np.random.default_rng(1), rows=400)
    frame = nonlinear.measure({"0": state}, table, "0", 2)
    assert cell(frame, "ridge")["value"] > 0.9 and cell(frame, "difference")["value"] < 0.01
    assert set(frame["target"]) == {"target0", "target1", "mean"}


def test_the_figure_shows_both_probes_on_both_targets(bent):
    _, _, frame = bent
    (figure,) = nonlinear.figures(frame.assign(run="r", model="m", prompt="p"))
    test_rows, training_rows = figure.axes
    assert [label.get_text() for label in test_rows.get_yticklabels()] == [
        "true targets", "permuted targets", "the first less the second"
    ]  # fmt: skip
    for axes, split in ((test_rows, "test"), (training_rows, "train")):
        drawn = [line.get_xdata() for line in axes.lines if line.get_marker() in ("o", "D")]
        for values, probe in zip(drawn, ("ridge", "mlp"), strict=True):
            expected = [cell(frame, probe, of, split)["value"] for of in ("true", "permuted", "less_permuted")]
            np.testing.assert_allclose(values, expected)


def test_no_permutation_is_refused():
    state, table = planted(np.random.default_rng(2), rows=40)
    with pytest.raises(InputError, match="0 permutations of the targets; the comparison needs at least 1"):
        nonlinear.measure({"0": state}, table, "0", 0)
