import numpy as np
import pytest
from scipy.stats import binom, spearmanr, t
from sklearn.metrics import mean_absolute_error, r2_score

from jaxprobe.errors import InputError
from jaxprobe.probes.metrics import great_circle_km, mae, paired_difference, r2, resample_counts, score, spearman

EXACT = 1e-12  # the same float64 sums in another order


def predictions(n=300, layers=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.stack([rng.uniform(-80, 80, n), rng.uniform(-180, 180, n)], axis=1)
    noise = np.array([10, 40, 90])[:layers, None, None] * rng.normal(size=(layers, n, 2))
    return y, 0.8 * y + noise


def test_scores_equal_scikit_learn_and_scipy_with_ties():
    y, p = predictions()
    y, p = y.round(-1), p.round(-1)  # ties on both sides
    for layer in range(3):
        np.testing.assert_allclose(r2(y, p)[layer], r2_score(y, p[layer], multioutput="raw_values"), rtol=EXACT)
        expected = mean_absolute_error(y, p[layer], multioutput="raw_values")
        np.testing.assert_allclose(mae(y, p[layer]), expected, rtol=EXACT)
        expected = [spearmanr(y[:, c], p[layer, :, c]).statistic for c in range(2)]
        np.testing.assert_allclose(spearman(y, p)[layer], expected, rtol=EXACT)
    scores = score(y, p, replicates=0)
    np.testing.assert_allclose(scores["r2"].value, np.c_[r2(y, p), r2(y, p).mean(1)], rtol=EXACT)
    assert scores["mae"].value.shape == (3, 3) and np.isnan(scores["mae"].ci_low).all()


def test_great_circle_knows_latitude_from_longitude():
    paris, london, sydney, sao_paulo = (48.8566, 2.3522), (51.5074, -0.1278), (-33.8688, 151.2093), (-23.5505, -46.6333)
    # Great-circle distances on the mean sphere as tables give them, to the kilometre.
    assert great_circle_km(paris, london) == pytest.approx(343.6, abs=1)
    assert great_circle_km(sydney, sao_paulo) == pytest.approx(13357, abs=15)
    assert great_circle_km((0, 179.5), (0, -179.5)) == pytest.approx(np.pi * 6371.0088 / 180, rel=EXACT)
    assert great_circle_km((90, 0), (90, 120)) == pytest.approx(0, abs=1e-9)
    assert great_circle_km((60, 0), (60, 180)) == pytest.approx(np.pi * 6371.0088 / 3, rel=EXACT)  # over the pole
    assert great_circle_km((0, 0), (0, 180)) == pytest.approx(np.pi * 6371.0088, rel=EXACT)
    # The vector form of the angle, an independent formula, on random places.
    a, b = (np.random.default_rng(i).uniform((-90, -180), (90, 180), (1000, 2)) for i in (1, 2))
    unit = lambda p: np.stack(
        [np.cos(p[:, 0]) * np.cos(p[:, 1]), np.cos(p[:, 0]) * np.sin(p[:, 1]), np.sin(p[:, 0])], axis=1
    )
    u, v = unit(np.radians(a)), unit(np.radians(b))
    angle = np.arctan2(np.linalg.norm(np.cross(u, v), axis=1), (u * v).sum(1))
    np.testing.assert_allclose(great_circle_km(a, b), 6371.0088 * angle, rtol=1e-9)


@pytest.mark.parametrize("groups", [None, np.arange(300) % 37])
def test_replicates_equal_scores_of_resampled_rows(groups):
    y, p = predictions()
    y, p = y.round(-1), p.round(-1)
    counts = np.concatenate(list(resample_counts(300, groups, 200, seed=3)))
    if groups is None:
        assert (counts.sum(1) == 300).all()
    else:  # whole groups
        assert all(np.ptp(counts[:, groups == g], axis=1).max() == 0 for g in range(37))
    rows = [np.repeat(np.arange(300), c.astype(int)) for c in counts]
    expected = {
        "r2": [r2_score(y[i], p[1, i], multioutput="raw_values").mean() for i in rows],
        "spearman": [spearmanr(y[i, 0], p[1, i, 0]).statistic for i in rows],
        "mae": [mean_absolute_error(y[i, 1:], p[1, i, 1:]) for i in rows],
        "error_km_median": [np.median(great_circle_km(p[1, i], y[i])) for i in rows],
        "error_km_mean": [np.mean(great_circle_km(p[1, i], y[i])) for i in rows],
    }
    where = {"r2": (1, 2), "spearman": (1, 0), "mae": (1, 1), "error_km_median": 1, "error_km_mean": 1}
    scores = score(y, p, places=True, groups=groups, replicates=200, seed=3)
    for metric, values in expected.items():
        found = scores[metric]
        low, high = np.quantile(values, [0.025, 0.975])
        if groups is not None:
            half = t.ppf(0.975, 36) * np.std(values) * np.sqrt(37 / 36)
            low, high = found.value[where[metric]] - half, found.value[where[metric]] + half
        np.testing.assert_allclose([found.ci_low[where[metric]], found.ci_high[where[metric]]], [low, high], rtol=1e-9)


def test_intervals_cover_and_shrink_and_repeat():
    y, p = predictions(2000, 1)
    narrow = score(y, p, places=True)
    wide = score(y[:200], p[:, :200], places=True)
    for metric, interval in narrow.items():
        assert (interval.ci_low < interval.value).all() and (interval.value < interval.ci_high).all(), metric
        assert ((wide[metric].ci_high - wide[metric].ci_low) > 2 * (interval.ci_high - interval.ci_low)).all(), metric
    again, other = score(y, p, places=True), score(y, p, places=True, seed=1)
    np.testing.assert_array_equal(again["r2"].ci_low, narrow["r2"].ci_low)
    assert (other["r2"].ci_low != narrow["r2"].ci_low).all()
    # The mean error's interval by the normal approximation, which holds for 2,000 rows.
    error = great_circle_km(p[0], y)
    half = 1.96 * error.std() / np.sqrt(2000)
    expected = [error.mean() - half, error.mean() + half]
    found = [narrow["error_km_mean"].ci_low[0], narrow["error_km_mean"].ci_high[0]]
    np.testing.assert_allclose(found, expected, atol=0.15 * half)  # 1,000 replicates place a limit to a tenth of it


def test_paired_difference_is_narrower_than_the_scores():
    y, p = predictions(1000, 1)
    better = p + 0.1 * (y - p)
    difference, alone = paired_difference(y, better, p, places=True), score(y, p, places=True)
    np.testing.assert_allclose(difference["r2"].value, score(y, better)["r2"].value - alone["r2"].value, rtol=1e-9)
    for metric in ("r2", "mae", "error_km_mean", "error_km_median"):
        width = lambda interval: interval.ci_high - interval.ci_low
        assert (width(difference[metric]) < 0.5 * width(alone[metric])).all(), metric
    assert (difference["r2"].ci_low > 0).all() and (difference["mae"].ci_high < 0).all()
    same = paired_difference(y, p, p)
    assert (same["spearman"].ci_low == 0).all() and (same["spearman"].ci_high == 0).all()


def test_what_has_no_score_is_nan_and_what_does_not_fit_is_refused():
    y, p = predictions(50)
    y[:, 1] = 3.0
    assert np.isnan(r2(y, p)[:, 1]).all() and np.isfinite(r2(y, p)[:, 0]).all()
    assert np.isnan(spearman(y, p)[:, 1]).all() and np.isfinite(mae(y, p)).all()
    with pytest.raises(InputError, match="wanted \\[N, C\\]"):
        score(y, p[:, :40])
    with pytest.raises(InputError, match="latitude"):
        score(y[:, :1], p[:, :, :1], places=True)


@pytest.mark.slow
def test_resamples_without_a_score_do_not_spoil_the_interval():
    """Of one value alone R2 has no denominator: by rounding it would be -1e15, and a single NaN would end it all."""
    rng = np.random.default_rng(0)
    y = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 1 / 3, 0.7, 1.9, 0.37, 0.1])[:, None]
    p = y[None] + rng.normal(size=(1, 10, 1)) / 4
    counts = np.concatenate(list(resample_counts(10, None, 20_000, seed=0))).astype(int)
    rows = [np.repeat(np.arange(10), each) for each in counts]
    varied = [i for i in rows if np.ptp(y[i]) > 0]
    assert 0 < len(rows) - len(varied) < 200  # 0.6 to the 10th of them are of one value
    expected = np.quantile([r2_score(y[i], p[0, i]) for i in varied], [0.025, 0.975])
    found = score(y, p, replicates=20_000, metrics=("r2",))["r2"]
    np.testing.assert_allclose([found.ci_low[0, 0], found.ci_high[0, 0]], expected, rtol=1e-9)
    # Where many are of one value, what is left no longer stands for all of them.
    one = np.where(np.arange(10) == 0, 1.0, 0.1)[:, None]
    found = score(one, p, metrics=("r2",))["r2"]
    assert np.isfinite(found.value).all() and np.isnan(found.ci_low).all() and np.isnan(found.ci_high).all()


@pytest.mark.parametrize("count", [2, 14, 15])
def test_few_groups_give_no_interval(count):
    y, p = predictions()
    found = score(y, p, groups=np.arange(300) % count, metrics=("r2",), replicates=50)["r2"]
    assert np.isfinite(found.value).all() and (np.isfinite(found.ci_low) == (count == 15)).all()
    less = paired_difference(y, p, p[:1], groups=np.arange(300) % count, metrics=("r2",), replicates=50)["r2"]
    assert np.isfinite(less.value).all() and (np.isfinite(less.ci_high) == (count == 15)).all()


@pytest.mark.parametrize("count", [15, 30])
def test_intervals_over_groups_cover_the_score_in_the_population(count):
    """Groups share most of their target, and some of the error of a probe whose R2 is 0.64."""
    rng, worlds, covered = np.random.default_rng(count), 500, 0
    groups = np.repeat(np.arange(count), 5)
    for seed in range(worlds):
        shared, own = rng.normal(size=(count, 2))[groups], rng.normal(size=(len(groups), 2))
        y, error = (np.sqrt([0.7, 0.3]) * shared + np.sqrt([0.3, 0.7]) * own).T[..., None]
        found = score(y, (y - 0.6 * error)[None], groups=groups, seed=seed, metrics=("r2",))["r2"]
        covered += found.ci_low[0, 0] <= 0.64 <= found.ci_high[0, 0]
    # Percentiles of the same replicates would hold it far less often.
    assert binom.ppf(0.0005, worlds, 0.95) <= covered <= binom.ppf(0.9995, worlds, 0.95)


def test_many_rows_draw_the_same_resamples_in_smaller_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(50, 2))
    predictions = truth + rng.normal(size=(3, 50, 2))
    whole = score(truth, predictions, places=True, replicates=450)
    monkeypatch.setattr(
        "jaxprobe.probes.metrics._COUNTS", 50 * 33
    )  # 33 resamples of the rows, which 200 is no multiple of
    for name, interval in score(truth, predictions, places=True, replicates=450).items():
        for found, expected in zip(interval, whole[name], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
