"""Probes of states of several widths, as neurons beside the stream, are those of each state alone."""

import numpy as np
import pytest

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.probes.ridge import fit_ridge, predict_layer
from jaxprobe.runs.fit import fit_probes


@pytest.mark.slow
def test_each_state_is_fitted_as_if_alone():
    rng = np.random.default_rng(0)
    wide = {"embed": 8, "mlp.0": 20, "0": 8, "mlp.1": 20, "final_norm": 8}
    states = {state: rng.standard_normal((200, width)).astype(np.float32) for state, width in wide.items()}
    y = states["mlp.0"][:, :1] * 3 + states["0"][:, :1]
    table = EntityTable("t", tuple(map(str, range(200))), y, ("year",), ("year",), np.arange(200) % 4 == 0)
    probes = fit_probes(states, table)
    assert probes.states == tuple(wide) and probes.fit.weights.shape == (5, 20, 1)
    for i, (state, x) in enumerate(states.items()):
        alone = fit_ridge(x[~table.is_test][None], y[~table.is_test])
        np.testing.assert_allclose(probes.fit.weights[i, : wide[state]], alone.weights[0], rtol=1e-5, atol=1e-7)
        assert not probes.fit.weights[i, wide[state] :].any()
        expected = predict_layer(alone, 0, x[table.is_test])
        np.testing.assert_allclose(probes.test_predictions[i], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="dimensions"):
        predict_layer(probes.fit, 1, states["0"])
