"""Differences between layers, prompts and models against scikit-learn and resampling by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import r2_score

from jaxprobe.errors import InputError
from jaxprobe.experiments.layers import Predicted, compare_headlines, compare_states
from tests.experiments.worlds import letters, make_table, select


def predicted_world(seed, noise, groups=18, rows=90):
    """A run whose states predict two targets with noise of these deviations."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(rows, 2))
    labels = {"kind": letters(np.arange(rows) % groups), "same": np.full(rows, "x", object)}
    table = make_table(targets, labels, is_test=np.ones(rows, bool))
    predictions = {state: targets + size * rng.normal(size=targets.shape) for state, size in noise.items()}
    return Predicted(table, predictions, list(noise)[-1], "m", "p")


@pytest.mark.slow
def test_states_less_embed_are_those_of_scikit_learn_and_of_resampling_by_hand():
    run = predicted_world(0, {"embed": 1.0, "0": 0.5, "1": 0.3})
    frame, truth = compare_states(run), run.table.targets
    assert set(frame["resampled"]) == {"rows", "kind"}  # all rows are of one "same"
    for state in ("embed", "0", "1"):
        expected = r2_score(truth, run.predictions[state])
        over_groups = select(frame, layer=state, metric="r2", target="mean", resampled="kind")
        assert over_groups["value"] == pytest.approx(expected, rel=1e-9)
        less = select(frame, layer=state, metric="r2_difference", target="mean", resampled="rows")
        assert less["value"] == pytest.approx(expected - r2_score(truth, run.predictions["embed"]), abs=1e-9)
    rng, kind = np.random.default_rng(1), run.table.groups["kind"]
    score = lambda rows, state: r2_score(truth[rows], run.predictions[state][rows])
    draws = {
        "rows": lambda: rng.integers(90, size=90),
        "kind": lambda: np.concatenate([np.flatnonzero(kind == name) for name in rng.choice(np.unique(kind), 18)]),
    }
    for resampled, draw in draws.items():
        drawn = [score(rows, "1") - score(rows, "embed") for rows in (draw() for _ in range(2000))]
        row = select(frame, layer="1", metric="r2_difference", target="mean", resampled=resampled)
        # Two independent sets of resamples: their 2.5 % points differ by some hundredths of the interval's width.
        width = row["ci_high"] - row["ci_low"]
        found = [row["ci_low"], row["ci_high"]]
        np.testing.assert_allclose(found, np.quantile(drawn, [0.025, 0.975]), atol=width / 8)


def test_headlines_are_compared_on_the_same_rows_only():
    first = predicted_world(2, {"embed": 1.0, "3": 0.4})
    second = first._replace(predictions={"5": first.predictions["embed"]}, headline="5", prompt="q")
    frame = compare_headlines(second, first)
    assert set(frame["layer"]) == {"5"} and set(frame["compared_with"]) == {"m, p, 3"}
    row = select(frame, metric="r2_difference", target="mean", resampled="rows")
    truth = first.table.targets
    expected = r2_score(truth, first.predictions["embed"]) - r2_score(truth, first.predictions["3"])
    assert row["value"] == pytest.approx(expected, abs=1e-9) and row["ci_high"] < 0 and row["prompt"] == "q"
    moved = first._replace(table=replace(first.table, targets=truth + 1))
    with pytest.raises(InputError, match="other test rows"):
        compare_headlines(moved, first)


@pytest.mark.slow
def test_two_equal_prompts_differ_no_more_often_than_the_interval_says():
    """Both prompts read the same targets with noise of one size: their true difference is 0."""
    apart, tried = 0, 200
    for seed in range(tried):
        run = predicted_world(4000 + seed, {"a": 0.7, "b": 0.7}, rows=200)
        frame = compare_headlines(run._replace(headline="a"), run._replace(headline="b"), seed)
        row = select(frame, metric="r2_difference", target="mean", resampled="rows")
        apart += row["ci_low"] > 0 or row["ci_high"] < 0
    low, high = binom.ppf([0.0005, 0.9995], tried, 0.05)
    assert low <= apart <= high, apart
