"""Unit vectors against brute force, and a world that lies across the dateline."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jaxprobe.data.sphere import places_of, unit_vectors
from jaxprobe.errors import InputError
from jaxprobe.experiments import dateline
from jaxprobe.probes.metrics import great_circle_km
from tests.experiments.worlds import make_table, planted, select


def test_vectors_and_places_are_each_others_inverse():
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-90, 90, 100), rng.uniform(-180, 180, 100)], axis=1)
    vectors = unit_vectors(*places.T)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(places_of(7 * vectors), places, atol=1e-9)
    np.testing.assert_allclose(places_of([[0, 0, 2], [-1, 0, 0], [0, -1, 0]]), [[90, 0], [0, 180], [0, -90]])


def test_a_world_across_the_dateline_needs_unit_vectors():
    rng = np.random.default_rng(1)
    east = rng.uniform(150, 210, 400)
    places = np.stack([rng.uniform(-30, 30, 400), (east + 180) % 360 - 180], axis=1)
    table = make_table(places, places=True)
    state = unit_vectors(*places.T) @ rng.normal(size=(3, 8)) + rng.normal(size=(400, 8)) / 20
    state = state.astype(np.float32)
    frame = dateline.measure({"0": state}, table, "0", model="m", prompt="p")
    cell = lambda form: select(frame, target_form=form, metric="error_km_median")
    assert cell("unit_vector")["value"] < 500 < 2000 < cell("degrees")["value"]
    assert cell("difference")["ci_high"] < -1500
    test = table.is_test
    probe = Ridge(cell("unit_vector")["alpha"]).fit(state[~test].astype(np.float64), unit_vectors(*places[~test].T))
    x, y, z = probe.predict(state[test]).T
    predicted = np.degrees([np.arcsin(z / np.sqrt(x * x + y * y + z * z)), np.arctan2(y, x)]).T
    expected = np.median(great_circle_km(predicted, places[test]))
    assert cell("unit_vector")["value"] == pytest.approx(expected, rel=1e-3)


def test_other_targets_are_refused():
    state, table = planted(np.random.default_rng(2), rows=40)
    with pytest.raises(InputError, match="no latitude and longitude"):
        dateline.measure({"0": state}, table, "0")
