import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from jaxprobe.errors import InputError
from jaxprobe.probes.class_metrics import BINS, CLASS_METRICS, score_classes
from jaxprobe.probes.labels import log_softmax


def answers(n=500, k=4, layers=2, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.integers(k, size=n)
    scores = rng.normal(size=(layers, n, k)) + 1.2 * np.eye(k)[code]
    scores = np.round(scores, 1)  # ties
    return code, log_softmax(scores)


@pytest.mark.parametrize("k", [2, 4])
def test_scores_equal_scikit_learns(k):
    code, log_p = answers(k=k)
    found = score_classes(code, log_p, replicates=0)
    for layer, p in enumerate(np.exp(log_p)):
        top = p.argmax(1)
        odds = log_p[layer, :, 1] - log_p[layer, :, 0]  # rounding ties and unties values of p
        auroc = roc_auc_score(code, odds) if k == 2 else roc_auc_score(code, p, multi_class="ovr")
        expected = {
            "accuracy": accuracy_score(code, top),
            "balanced_accuracy": balanced_accuracy_score(code, top),
            "macro_f1": f1_score(code, top, average="macro"),
            "auroc": auroc,
            "log_loss": log_loss(code, p),
        }
        for name, value in expected.items():
            assert found[name].value[layer] == pytest.approx(value, abs=1e-12), name
            assert np.isnan(found[name].ci_low[layer])


def test_calibration_error_by_hand():
    code, log_p = answers(layers=1)
    p = np.exp(log_p[0])
    sure, right = p.max(1), p.argmax(1) == code
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (sure >= low) & (sure < low + 1 / BINS)
        if inside.any():
            expected += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert score_classes(code, log_p, replicates=0)["calibration_error"].value[0] == pytest.approx(expected)


def test_a_resample_scores_as_its_rows_do():
    """Weights are counts: the score of a resample is the score of its rows, written out."""
    code, log_p = answers(n=60, k=3)
    drawn = np.random.default_rng(1).integers(60, size=60)
    counts = np.bincount(drawn, minlength=60).astype(float)[None]
    for name, make in CLASS_METRICS.items():
        written_out = make(code[drawn], log_p[:, drawn])(np.ones((1, 60)))
        np.testing.assert_allclose(make(code, log_p)(counts), written_out, atol=1e-12, err_msg=name)


def test_intervals_cover_the_truth():
    """Of 200 worlds whose accuracy is 0.7 in truth about 190 intervals hold it; 4 deviations of that are 12."""
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(200):
        right = rng.random(150) < 0.7
        log_p = np.log(np.where(right[:, None], [0.4, 0.6], [0.6, 0.4]))[None]
        found = score_classes(np.ones(150, int), log_p, replicates=400, seed=seed, metrics=["accuracy"])["accuracy"]
        held += found.ci_low[0] <= 0.7 <= found.ci_high[0]
    assert held >= 178


def test_rare_and_many_classes():
    code = np.zeros(300, int)
    code[:3] = 1
    _, log_p = answers(n=300, k=2)
    found = score_classes(code, log_p, replicates=100)
    assert all(np.isfinite(interval.value).all() for interval in found.values())
    code, log_p = answers(n=600, k=300, layers=1)
    found = score_classes(code, log_p, replicates=50)
    assert all(np.isfinite(interval.value).all() for interval in found.values())
    assert np.isnan(found["auroc"].ci_low).all() and np.isfinite(found["accuracy"].ci_low).all()


def test_shapes_that_do_not_fit():
    code, log_p = answers()
    with pytest.raises(InputError, match="Labels have shape"):
        score_classes(code[:-1], log_p)
