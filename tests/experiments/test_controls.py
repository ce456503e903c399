"""Controls against scikit-learn, brute force, and worlds whose answer is known."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, t
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from jaxprobe.data.sphere import places_of, unit_vectors
from jaxprobe.errors import InputError
from jaxprobe.experiments import controls
from jaxprobe.experiments.baselines import (
    NGRAM_ALPHAS,
    centre_groups,
    exchange_groups,
    predict_from_ngrams,
    predict_group_means,
)
from jaxprobe.probes.metrics import great_circle_km, paired_difference, score
from jaxprobe.probes.ridge import fit_ridge, predict_layer
from tests.experiments.worlds import letters, make_table, planted, select

WORLDS = 200
# Of a rate that is right, 1 test in 1,000 falls outside of these bounds; the seeds are fixed.
BOUNDS = lambda rate: binom.ppf([0.0005, 0.9995], WORLDS, rate)


def test_the_probe_and_embed_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    state, table = planted(rng)
    activations = {"embed": rng.normal(size=state.shape).astype(np.float32) + state / 5, "3": state}
    frame = controls.measure(activations, table, "3", model="m", prompt="p")
    test, values = table.is_test, {}
    for control, layer in (("none", "3"), ("embed", "embed")):
        alphas = fit_ridge(activations[layer][None, ~test], table.targets[~test]).alphas[0]
        y = (table.targets - table.targets[~test].mean(0)) / table.targets[~test].std(0)
        theirs = RidgeCV(alphas=alphas).fit(activations[layer][~test].astype(np.float64), y[~test])
        expected = r2_score(y[test], theirs.predict(activations[layer][test]))
        row = select(frame, control=control, metric="r2", target="mean", resampled="rows")
        assert row["value"] == pytest.approx(expected, abs=1e-5) and row["alpha"] == pytest.approx(theirs.alpha_, 1e-5)
        assert row["layer"] == layer and row["model"] == "m" and row["ci_low"] < row["value"] < row["ci_high"]
        values[control] = row["value"]
    selectivity = select(frame, control="embed", metric="selectivity", target="mean")
    assert selectivity["value"] == pytest.approx(values["none"] - values["embed"], abs=1e-12)


def ngram_counts(text):
    counts = Counter()
    for word in text.lower().split():
        padded = f" {word} "
        for size in range(1, 5):
            counts.update([padded[i : i + size] for i in range(len(padded) - size + 1)])
    return counts


def test_the_spelling_probe_is_ridge_on_tf_idf_by_hand():
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("abcd"), 5)) + " " + "".join(rng.choice(list("ef"), 2)) for _ in range(120)]
    targets = np.array([[text.count("a") + rng.normal() / 4, text.count("e") - text.count("b")] for text in texts])
    is_test = np.arange(120) % 3 == 0
    found = predict_from_ngrams(texts, targets, is_test)
    counts = [ngram_counts(text) for text in texts]
    seen = Counter(gram for count, test in zip(counts, is_test, strict=True) if not test for gram in count)
    vocabulary = sorted(gram for gram, names in seen.items() if names >= 2)
    idf = np.array([np.log((1 + (~is_test).sum()) / (1 + seen[gram])) + 1 for gram in vocabulary])
    tf = np.array([[1 + np.log(count[gram]) if count[gram] else 0 for gram in vocabulary] for count in counts])
    x = tf * idf / np.linalg.norm(tf * idf, axis=1, keepdims=True)
    assert found.alpha in NGRAM_ALPHAS
    expected = Ridge(found.alpha, solver="cholesky").fit(x[~is_test], targets[~is_test]).predict(x[is_test])
    # Conjugate gradients stop at a relative residual of 1e-3.
    np.testing.assert_allclose(found.predictions, expected, atol=5e-3 * targets.std())
    assert r2_score(targets[is_test], found.predictions) > 0.7


@pytest.mark.slow
def test_controls_of_points_on_the_sphere_are_fitted_on_the_sphere():
    """Groups on either side of the dateline: the mean of their degrees is on the other side of the world."""
    rng = np.random.default_rng(40)
    group = rng.integers(4, size=400)
    middle = np.array([[10, 179], [-20, -178], [50, 20], [0, -60]])[group]
    targets = middle + rng.normal(size=(400, 2)) * 4
    targets[:, 1] = (targets[:, 1] + 180) % 360 - 180
    words = np.array(["fiji", "samoa", "polska", "brasil"])[group]
    texts = [f"{word} {'abcdef'[number % 6]}" for number, word in enumerate(words)]
    table = make_table(targets, {"kind": letters(group)}, texts=texts, places=True)
    state = rng.normal(size=(400, 6)).astype(np.float32)
    on_sphere = controls.measure({"0": state}, replace(table, unit_vectors=True), "0")
    test, near, far = table.is_test, unit_vectors(*targets.T), {}
    for control, points in (
        ("group_mean_kind", np.stack([near[~test & (group == g)].mean(0) for g in group[test]])),
        ("ngrams", predict_from_ngrams(texts, near, test).predictions),
    ):
        errors = great_circle_km(places_of(points), targets[test])
        row = select(on_sphere, control=control, metric="error_km_median")
        assert row["value"] == pytest.approx(np.median(errors), rel=1e-9)
        far[control] = row["value"]
    assert far["group_mean_kind"] < 800  # the spread of a group; in degrees two groups are thousands of km off
    degrees = controls.measure({"0": state}, table, "0")
    assert select(degrees, control="group_mean_kind", metric="error_km_median")["value"] > 1.5 * far["group_mean_kind"]


def test_group_means_and_centring_by_brute_force():
    rng = np.random.default_rng(2)
    targets, labels, is_test = rng.normal(size=(50, 2)), letters(rng.integers(5, size=50)), np.arange(50) % 2 == 0
    labels[0] = "only in test"
    means = predict_group_means(labels, targets, is_test)
    for row, mean in zip(np.flatnonzero(is_test), means, strict=True):
        same = ~is_test & (labels == labels[row])
        expected = targets[same].mean(0) if same.any() else targets[~is_test].mean(0)
        np.testing.assert_allclose(mean, expected, rtol=1e-12)
    centred = centre_groups(targets[None], labels)[0]
    for row in range(50):
        expected = targets[row] - targets[labels == labels[row]].mean(0)
        np.testing.assert_allclose(centred[row], expected, atol=1e-12)
    equal = np.array([0.1, 0.1, 0.1, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 5.0])[:, None]  # sums of these are rounded
    assert (centre_groups(equal, letters([0, 0, 0, 1, 1, 1, 1, 2])) == 0).all()


def test_exchanged_groups_have_another_groups_mean_and_their_own_spread():
    rng = np.random.default_rng(3)
    targets, labels = rng.normal(size=(90, 2)), letters(rng.integers(6, size=90))
    exchanged = exchange_groups(targets, labels, rng)
    mean = {label: targets[labels == label].mean(0) for label in set(labels)}
    taken = []
    for label in mean:
        new = exchanged[labels == label]
        taken += [other for other in mean if np.allclose(mean[other], new.mean(0))]
        ours = targets[labels == label] - mean[label]
        order = lambda rows: rows[np.lexsort(rows.T)]
        np.testing.assert_allclose(order(new - new.mean(0)), order(ours), atol=1e-12)
        assert taken[-1] != label
    assert sorted(taken) == sorted(mean)


def test_a_planted_map_passes_its_controls():
    state, table = planted(np.random.default_rng(4))
    frame = controls.measure({"0": state}, table, "0")
    cell = lambda **wanted: select(frame, target="mean", **wanted)["value"]
    assert cell(control="none", metric="r2", resampled="rows") > 0.9
    assert cell(control="ngrams", metric="r2") < 0.05 and cell(control="group_mean_kind", metric="r2") < 0.05
    assert cell(control="permuted", metric="r2") < 0.05 and cell(control="permuted", metric="p_value") == 0.05
    # Groups say nothing here, so inside of them the probe reads as well as over all.
    assert cell(control="within_kind", metric="r2") > 0.9
    assert not (frame["control"] == "embed").any()


@pytest.mark.slow
def test_a_probe_that_only_knows_the_group_is_found_out():
    rng = np.random.default_rng(5)
    code, width = rng.integers(8, size=400), 12
    means, signs = 3 * rng.normal(size=(8, 2)), rng.normal(size=(8, width))
    table = make_table(means[code] + rng.normal(size=(400, 2)) / 2, {"kind": letters(code)})
    state = (signs[code] + rng.normal(size=(400, width)) / 10).astype(np.float32)
    frame = controls.measure({"0": state}, table, "0")
    cell = lambda **wanted: select(frame, target="mean", **wanted)["value"]
    real = cell(control="none", metric="r2", resampled="rows")
    assert real > 0.9 and cell(control="permuted_kind", metric="r2") > 0.9
    assert cell(control="permuted_kind", metric="p_value") > 0.05
    assert cell(control="group_mean_kind", metric="selectivity") < 0
    assert cell(control="within_kind", metric="r2") < 0.05


@pytest.mark.slow
def test_within_group_r2_and_its_interval_by_hand():
    rng = np.random.default_rng(6)
    state, table = planted(rng, rows=400, noise=1.0, groups=20)
    frame = controls.measure({"0": state}, table, "0")
    test, labels = table.is_test, table.groups["kind"][table.is_test]
    probe = fit_ridge(state[None, ~test], table.targets[~test])
    predicted, truth = predict_layer(probe, 0, state[test]), table.targets[test]
    above, below = defaultdict(float), defaultdict(float)
    for label in set(labels):
        y, p = truth[labels == label], predicted[labels == label]
        above[label] = (((y - y.mean(0)) - (p - p.mean(0))) ** 2).sum(0)
        below[label] = ((y - y.mean(0)) ** 2).sum(0)
    row = select(frame, control="within_kind", metric="r2", target="target0")
    assert row["value"] == pytest.approx(1 - sum(above.values())[0] / sum(below.values())[0], rel=1e-9)
    drawn = [rng.choice(list(above), len(above)) for _ in range(4000)]
    replicates = [1 - sum(above[g][0] for g in each) / sum(below[g][0] for g in each) for each in drawn]
    half = t.ppf(0.975, 19) * np.sqrt(20 / 19) * np.std(replicates)
    # Two independent sets of resamples, whose standard deviations differ by some hundredths.
    expected = [row["value"] - half, row["value"] + half]
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], expected, atol=half / 8)


def test_a_row_alone_in_its_group_is_not_one_group_more():
    """25 groups, of which 5 have more than one test row: too few for an interval of what is inside of groups."""
    rng = np.random.default_rng(10)
    state, table = planted(rng, rows=400)
    labels = rng.integers(5, size=400)
    labels[table.is_test] = np.concatenate([np.arange(5, 25), np.arange(80) % 5])
    table = replace(table, groups={"kind": letters(labels)})
    frame = controls.measure({"0": state}, table, "0")
    whole = select(frame, control="none", metric="r2", target="mean", resampled="kind")
    inside = select(frame, control="within_kind", metric="r2", target="mean")
    assert np.isfinite(whole["ci_low"]) and np.isfinite(inside["value"]) and np.isnan(inside["ci_low"])


@pytest.mark.slow
def test_p_values_in_noise_are_as_often_small_as_they_say():
    found = {"permuted": 0, "permuted_kind": 0}
    for seed in range(WORLDS):
        rng = np.random.default_rng(1000 + seed)
        table = make_table(rng.normal(size=(40, 1)), {"kind": letters(rng.permutation(40) % 10)})
        state = rng.normal(size=(40, 3)).astype(np.float32)
        for frame in controls.permutation_test(state, table, "0", seed):
            row = select(frame, metric="p_value", target="mean")
            found[row["control"]] += row["value"] <= 0.05
    low, high = BOUNDS(0.05)
    assert all(low <= count <= high for count in found.values()), found


def test_intervals_cover_the_score_in_the_population():
    """Of a probe that is fixed, on noise: both R2 and the difference of two have a known true value."""
    covered = {"r2": 0, "difference": 0}
    for seed in range(WORLDS):
        rng = np.random.default_rng(2000 + seed)
        weights, intercepts = rng.normal(size=(2, 3)) / 5, rng.normal(size=2) / 5
        x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 1))
        predicted = (x @ weights.T + intercepts).T[..., None]
        truth = 1 - (1 + (weights**2).sum(1) + intercepts**2)
        found = score(y, predicted, seed=seed, metrics=("r2",))["r2"]
        covered["r2"] += found.ci_low[0, 0] <= truth[0] <= found.ci_high[0, 0]
        found = paired_difference(y, predicted[:1], predicted[1:], seed=seed, metrics=("r2",))["r2"]
        covered["difference"] += found.ci_low[0, 0] <= truth[0] - truth[1] <= found.ci_high[0, 0]
    low, high = BOUNDS(0.95)
    assert all(low <= count <= high for count in covered.values()), covered


def test_columns_that_say_nothing_are_left_out_and_wrong_states_refused():
    state, table = planted(np.random.default_rng(7), rows=40)
    one = make_table(table.targets, {"same": np.full(40, "x"), "each": letters(np.arange(40))})
    frame = controls.measure({"0": state}, one, "0")
    assert "group_mean_each" in set(frame["control"]) and "group_mean_same" not in set(frame["control"])
    with pytest.raises(InputError, match="State '9' is not there; found 0"):
        controls.measure({"0": state}, table, "9")
    with pytest.raises(InputError, match="State '0' has 10 rows; the table has 40"):
        controls.measure({"0": state[:10]}, table, "0")


def p_value_of(rng, groups, targets):
    table = make_table(targets, {"kind": letters(np.arange(len(targets)) // 4 % groups)})
    state = rng.normal(size=(len(targets), 3)).astype(np.float32)
    return {frame["control"].iloc[0]: frame for frame in controls.permutation_test(state, table, "0", 0)}


def test_what_has_no_score_has_no_p_value():
    rng = np.random.default_rng(8)
    targets = rng.normal(size=(80, 2))
    targets[::4, 1] = 3.0  # the same in every test row
    frame = p_value_of(rng, 8, targets)["permuted"]
    for target in ("target1", "mean"):
        assert np.isnan(select(frame, metric="p_value", target=target)["value"])
    assert 0.05 <= select(frame, metric="p_value", target="target0")["value"] <= 1


@pytest.mark.parametrize("groups", [2, 4, 5])
def test_a_few_groups_have_too_few_exchanges_for_a_p_value(groups):
    rng = np.random.default_rng(9)
    found = p_value_of(rng, groups, rng.normal(size=(80, 1)))
    # 4 groups go around a ring in 6 ways, 5 in 24; 19 permutations are drawn.
    value = select(found["permuted_kind"], metric="p_value", target="mean")["value"]
    assert np.isnan(value) == (groups < 5)
    assert np.isfinite(select(found["permuted_kind"], metric="r2", target="mean")["value"])
    assert np.isfinite(select(found["permuted"], metric="p_value", target="mean")["value"])
