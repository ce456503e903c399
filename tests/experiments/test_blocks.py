"""Hold-outs against refits by scikit-learn and brute force, and worlds with a planted group shift."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from jaxprobe.data.sphere import nearest_km
from jaxprobe.data.splits import spatial_blocks
from jaxprobe.errors import InputError
from jaxprobe.experiments import blocks, entity_types
from jaxprobe.experiments.probe import fit_probe
from jaxprobe.experiments.proximity import proximity_error
from jaxprobe.probes.metrics import great_circle_km
from jaxprobe.probes.ridge import fit_ridge
from tests.experiments.worlds import letters, make_table, planted, select


@pytest.mark.slow
def test_held_out_scores_are_those_of_a_refit():
    state, table = planted(np.random.default_rng(0), rows=200, noise=1.0)
    frame = blocks.measure_groups({"1": state}, table, "1", "kind", model="m", prompt="p")
    test, y, labels = table.is_test, table.targets, table.groups["kind"]
    assert set(frame["held_out"]) == set(labels)
    for name in ("a", "d"):
        train, inside = ~test & (labels != name), test & (labels == name)
        predicted = {}
        for fit, rows in (("nominal", ~test), ("held_out", train)):
            cell = lambda metric, fit=fit: select(frame, held_out=name, fit=fit, metric=metric, target="mean")  # noqa: B023
            alpha = cell("r2_block_mean")["alpha"]
            predicted[fit] = Ridge(alpha).fit(state[rows].astype(np.float64), y[rows]).predict(state)
            p = predicted[fit]
            assert cell("r2_block_mean")["value"] == pytest.approx(r2_score(y[inside], p[inside]), abs=1e-4)
            about = ((y[inside] - y[train].mean(0)) ** 2).sum(0)
            expected = np.mean(1 - ((y[inside] - p[inside]) ** 2).sum(0) / about)
            row = cell("r2_train_mean")
            assert row["value"] == pytest.approx(expected, abs=1e-4)
            assert row["ci_low"] < row["value"] < row["ci_high"] and row["rows_test"] == inside.sum()
        difference = select(frame, held_out=name, fit="difference", metric="r2_block_mean", target="mean")["value"]
        both = [r2_score(y[inside], predicted[fit][inside]) for fit in ("held_out", "nominal")]
        assert difference == pytest.approx(both[0] - both[1], abs=1e-4)


def test_groups_are_dealt_whole_and_evenly():
    labels = letters(np.random.default_rng(1).integers(9, size=200))
    fold = blocks.deal_groups(labels, 3, seed=0)
    assert all(len(set(fold[labels == name])) == 1 for name in set(labels))
    assert np.ptp(np.bincount(fold, minlength=3)) <= max(np.unique(labels, return_counts=True)[1])
    assert (fold == blocks.deal_groups(labels, 3, seed=0)).all()
    equal = np.arange(60) % 10
    assert (blocks.deal_groups(equal, 3, seed=0) != blocks.deal_groups(equal, 3, seed=1)).any()


@pytest.mark.slow
def test_a_planted_group_shift_is_found():
    """Group b lies elsewhere, and its states say so by a direction that no other group uses."""
    rng = np.random.default_rng(2)
    state, table = planted(rng)
    inside = table.groups["kind"] == "b"
    targets = table.targets + np.where(inside, 10.0, 0.0)[:, None]
    state = state + np.where(inside, 30.0, 0.0)[:, None] * rng.normal(size=(1, state.shape[1]))
    shifted = make_table(targets, table.groups)
    frame = blocks.measure_groups({"0": state.astype(np.float32)}, shifted, "0", "kind", held=["a", "b"])
    cell = lambda name, fit, metric: select(frame, held_out=name, fit=fit, metric=metric, target="mean")
    assert cell("b", "nominal", "r2_block_mean")["value"] > 0.8
    assert cell("b", "difference", "r2_block_mean")["ci_high"] < -1
    assert abs(cell("a", "difference", "r2_block_mean")["value"]) < 0.05
    assert cell("b", "held_out", "proximity_error")["value"] > 2 * cell("b", "nominal", "proximity_error")["value"]


def test_proximity_error_by_brute_force():
    rng = np.random.default_rng(3)
    truth = np.stack([rng.uniform(-90, 90, 60), rng.uniform(-180, 180, 60)], axis=1)
    predicted = truth + rng.normal(size=(60, 2)) * 30
    expected = []
    for i in range(60):
        own = great_circle_km(predicted[i], truth[i])
        nearer = sum(great_circle_km(predicted[j], truth[i]) < own for j in range(60) if j != i)
        expected.append(nearer / 59)
    np.testing.assert_allclose(proximity_error(predicted, truth, places=True), expected, rtol=1e-12)
    some = np.arange(60) % 7 == 0
    np.testing.assert_allclose(proximity_error(predicted, truth, some, places=True), np.array(expected)[some])
    years = rng.normal(size=(40, 1)), rng.normal(size=(40, 1))
    expected = [np.mean([abs(years[0][j] - t) < abs(p - t) for j in range(40)]) for p, t in zip(*years, strict=True)]
    np.testing.assert_allclose(proximity_error(*years), np.array(expected).ravel() * 40 / 39, rtol=1e-12)


def test_proximity_error_needs_no_square_matrix(monkeypatch):
    rng = np.random.default_rng(4)
    predicted, truth = rng.normal(size=(2, 500, 1))
    whole = proximity_error(predicted, truth)
    monkeypatch.setattr("jaxprobe.experiments.proximity._CELLS", 1200)  # two rows at a time
    np.testing.assert_array_equal(proximity_error(predicted, truth), whole)


def spatial_world(rng, rows=400):
    """Places whose state is the map, or only tells which cell of ten degrees they are in."""
    targets = np.stack([rng.uniform(-50, 50, rows), rng.uniform(-50, 50, rows)], axis=1)
    table = make_table(targets, places=True)
    cells = np.unique(spatial_blocks(*targets.T, 10.0).astype(str), return_inverse=True)[1]
    code = rng.normal(size=(cells.max() + 1, 60))
    straight = targets / 50 @ rng.normal(size=(2, 60)) + rng.normal(size=(rows, 60)) / 3
    return table, {"map": straight.astype(np.float32), "cell": code[cells].astype(np.float32)}


@pytest.mark.slow
def test_spatial_blocks_tell_a_map_from_a_list_of_cells():
    table, states = spatial_world(np.random.default_rng(5))
    cell = lambda frame, fit: select(frame, fit=fit, metric="r2", target="mean")
    options = dict(cell_degrees=10.0, buffer_km=50.0)
    straight = blocks.measure_cells(states, table, "map", **options)
    assert cell(straight, "held_out")["value"] > 0.9 and cell(straight, "nominal")["value"] > 0.9
    listed = blocks.measure_cells(states, table, "cell", **options)
    assert cell(listed, "nominal")["value"] > 0.3 and cell(listed, "held_out")["value"] < 0.05
    assert cell(listed, "difference")["ci_high"] < 0


@pytest.mark.slow
def test_spatial_predictions_are_those_of_refits_outside_of_cells_and_buffer():
    table, states = spatial_world(np.random.default_rng(6), 250)
    x, y, test = states["map"].astype(np.float64), table.targets, table.is_test
    cells = spatial_blocks(*y.T, 10.0).astype(str)
    fold = blocks.deal_groups(cells, 3, seed=0)
    predicted = np.empty((250, 2))
    for number in range(3):
        out = test & (fold == number)
        near = np.array([great_circle_km(place, y[out]).min() < 300 for place in y])
        rows = ~test & (fold != number) & ~near
        assert (nearest_km(*y[rows].T, *y[out].T) >= 300).all()
        fit = fit_ridge(x[None, rows].astype(np.float32), y[rows])
        predicted[out] = Ridge(fit.alpha[0]).fit(x[rows], y[rows]).predict(x[out])
    frame = blocks.measure_cells(states, table, "map", cell_degrees=10.0, buffer_km=300.0, folds=3)
    found = select(frame, fit="held_out", metric="r2", target="mean")["value"]
    assert found == pytest.approx(r2_score(y[test], predicted[test]), abs=1e-4)


@pytest.mark.slow
def test_types_are_scored_as_by_scikit_learn():
    rng = np.random.default_rng(7)
    state, table = planted(rng, rows=240, groups=3)
    frame = entity_types.measure({"0": state}, table, "0", "kind")
    labels, test, y = table.groups["kind"], table.is_test, table.targets
    chosen = {"a": labels == "a", "others": labels != "b", "all": np.ones(240, bool)}
    for trained, rows in chosen.items():
        row = select(frame, train_on=trained, test_on="b", metric="r2", target="mean")
        x, z = state[rows & ~test].astype(np.float64), (y - y[rows & ~test].mean(0)) / y[rows & ~test].std(0)
        theirs = RidgeCV(alphas=row["alpha"] * 10.0 ** np.arange(-1, 2)).fit(x, z[rows & ~test])
        assert theirs.alpha_ == pytest.approx(row["alpha"])  # no other decade does better by leave-one-out
        inside = test & (labels == "b")
        assert row["value"] == pytest.approx(r2_score(z[inside], theirs.predict(state[inside])), abs=1e-4)
    assert len(frame[frame["metric"] == "r2_difference"]) == 3 * 4 * 3  # 3 tested, 4 trained on, 2 targets and mean


@pytest.mark.slow
def test_a_type_with_a_map_of_its_own_is_found():
    rng = np.random.default_rng(8)
    state, table = planted(rng, groups=3)
    turned = np.where((table.groups["kind"] == "c")[:, None], -state, state)
    frame = entity_types.measure({"0": turned}, table, "0", "kind")
    cell = lambda train, test: select(frame, train_on=train, test_on=test, metric="r2", target="mean")["value"]
    assert cell("a", "b") > 0.9 and cell("c", "c") > 0.9 and cell("others", "c") < -1


@pytest.mark.slow
def test_the_interval_of_the_difference_covers_that_of_the_population():
    """Of both fitted probes the score in an endless population is known: these worlds' states are y and noise."""
    covered, tried, told = 0, 200, 0.4
    for seed in range(tried):
        rng = np.random.default_rng(3000 + seed)
        # One split into two groups of one size for all worlds, so that one program serves them all.
        labels, is_test = letters(np.arange(400) % 2), np.arange(400) % 4 < 2
        y = rng.normal(size=(400, 1))
        table = make_table(y, {"kind": labels}, is_test)
        state = (told * y * [[1, 0, 0]] + rng.normal(size=(400, 3))).astype(np.float32)
        frame = blocks.measure_groups({"0": state}, table, "0", "kind", held=["a"], seed=seed)
        row = select(frame, fit="difference", metric="r2_block_mean", target="mean")
        r2 = []
        for rows in (~is_test & (labels != "a"), ~is_test):
            fit = fit_probe(state, table, rows, "0").fit
            weights, at_zero = fit.weights[0, :, 0].astype(np.float64), float(fit.intercept[0, 0])
            r2.append(1 - ((1 - told * weights[0]) ** 2 + at_zero**2 + weights @ weights))
        covered += row["ci_low"] <= r2[0] - r2[1] <= row["ci_high"]
    low, high = binom.ppf([0.0005, 0.9995], tried, 0.95)
    assert low <= covered <= high, covered


@pytest.mark.slow
def test_a_type_may_be_called_all_or_others():
    rng = np.random.default_rng(15)
    state, table = planted(rng, groups=3)
    plain = entity_types.measure({"0": state}, table, "0", "kind")
    names = {"a": "others", "b": "all", "c": "c"}
    labels = np.array([names[label] for label in table.groups["kind"]], object)
    renamed = entity_types.measure({"0": state}, make_table(table.targets, {"kind": labels}), "0", "kind")
    keys = ["train_kind", "train_on", "test_on", "metric", "target"]
    expected = plain.assign(
        train_on=plain["train_on"].where(plain["train_kind"] != "type", plain["train_on"].map(names)),
        test_on=plain["test_on"].map(names),
    )
    found = renamed.set_index(keys).sort_index()["value"]
    np.testing.assert_array_equal(found, expected.set_index(keys).sort_index()["value"].reindex(found.index))
    (figure,) = entity_types.figures(renamed.assign(run="r", model="m", prompt="p"))
    (rows, *_), columns = figure.axes, [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert sorted(columns) == ["all", "c", "others"]
    assert [label.get_text() for label in rows.get_yticklabels()] == [*columns, "all other types", "all types"]


BAD = {
    "one row": (dict(group="kind", held=["single"]), "kind 'single' has 1 rows to fit on and 0 to test on; wanted 2"),
    "only in test": (dict(group="kind", held=["tested"]), "kind 'tested' has 0 rows to fit on and 3 to test on"),
    "unknown": (dict(group="kind", held=["z"]), "No row has kind 'z'"),
    "no column": (dict(group="country"), "has no group 'country'; it has kind, same"),
    "one group": (dict(group="same"), "All training rows are of one same, 'x'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_groups_that_cannot_be_held_out_are_refused(case):
    options, message = BAD[case]
    state, table = planted(np.random.default_rng(9), rows=80)
    kind = table.groups["kind"].copy()
    kind[1], kind[[0, 4, 8]] = "single", "tested"
    table = make_table(table.targets, {"kind": kind, "same": np.full(80, "x", object)})
    with pytest.raises(InputError, match=message):
        blocks.measure_groups({"0": state}, table, "0", **options)
    # Left to itself it takes those that can be, and only those.
    frame = blocks.measure_groups({"0": state}, table, "0", "kind")
    assert not {"single", "tested"} & set(frame["held_out"])


def test_spatial_blocks_need_places_and_rows_to_fit_on():
    state, table = planted(np.random.default_rng(10), rows=60)
    with pytest.raises(InputError, match="no latitude and longitude"):
        blocks.measure_cells({"0": state}, table, "0")
    world, states = spatial_world(np.random.default_rng(11), 60)
    with pytest.raises(InputError, match="A buffer of 30000 km leaves 0 training rows"):
        blocks.measure_cells(states, world, "map", buffer_km=30000.0)


def test_equal_predictions_know_nothing_of_proximity():
    truth = np.random.default_rng(12).normal(size=(40, 2))
    assert (proximity_error(np.full((40, 2), 0.3), truth) == 0.5).all()
    two = np.array([[0.0], [0.0], [5.0]])  # each of the first two has one of its two others beside it
    np.testing.assert_array_equal(proximity_error(two, two), [0.25, 0.25, 0.0])


def test_a_target_that_is_constant_without_the_group_has_a_proximity_error():
    _, table = planted(np.random.default_rng(13), rows=120)
    inside = table.groups["kind"] == "a"
    targets = np.column_stack([table.targets[:, 0], np.where(inside, table.targets[:, 1], 3.0)])
    fitted = targets[~table.is_test & ~inside]
    truth = targets[table.is_test]
    both = truth[None] + np.random.default_rng(14).normal(size=(2, *truth.shape))
    found = blocks._block_scores(make_table(targets, table.groups), both, inside[table.is_test], fitted, 0)
    assert (found["proximity_error"].value[:2] > 0).all()
