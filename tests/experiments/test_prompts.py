"""Transfer between prompts against scikit-learn, and worlds with a planted shift."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from jaxprobe.errors import InputError
from jaxprobe.experiments import prompts
from tests.experiments.worlds import planted, select


def shifted_world(seed=0):
    """Two prompts whose states differ by a constant, and a third one with the map turned around."""
    rng = np.random.default_rng(seed)
    state, table = planted(rng)
    other = state + rng.normal(size=state.shape) * 0.3 + 5 * rng.normal(size=state.shape[1])
    turned = -state + rng.normal(size=state.shape) * 0.3
    return {name: {"2": x.astype(np.float32)} for name, x in (("a", state), ("b", other), ("c", turned))}, table


def test_the_matrix_is_that_of_scikit_learn():
    states, table = shifted_world()
    frame = prompts.measure(states, table, "2", model="m")
    assert len(frame) == 3 * 3 * 2 * 3 + 6 * 2 * 3  # r2 of two targets and their mean; differences off the diagonal
    test = table.is_test
    for trained in states:
        x = states[trained]["2"].astype(np.float64)
        for tested in states:
            z = states[tested]["2"].astype(np.float64)
            for centring, move in (("raw", 0), ("recentred", x[~test].mean(0) - z[~test].mean(0))):
                row = select(frame, train_prompt=trained, prompt=tested, centring=centring, metric="r2", target="mean")
                probe = Ridge(row["alpha"]).fit(x[~test], table.targets[~test])
                expected = r2_score(table.targets[test], probe.predict(z[test] + move))
                assert row["value"] == pytest.approx(expected, abs=1e-4 * max(1, abs(expected)))
                if trained != tested:
                    own = select(frame, train_prompt=tested, prompt=tested, centring="raw", metric="r2", target="mean")
                    less = select(
                        frame,
                        train_prompt=trained,
                        prompt=tested,
                        centring=centring,
                        metric="r2_difference",
                        target="mean",
                    )
                    assert less["value"] == pytest.approx(row["value"] - own["value"], abs=1e-12)


def test_a_planted_shift_is_undone_by_centring_and_a_turned_map_is_not():
    states, table = shifted_world()
    frame = prompts.measure(states, table, "2")
    cell = lambda tested, centring: select(
        frame, train_prompt="a", prompt=tested, centring=centring, metric="r2", target="mean"
    )["value"]
    assert cell("a", "raw") > 0.9 and cell("a", "recentred") == pytest.approx(cell("a", "raw"), abs=1e-6)
    assert cell("b", "raw") < 0 and cell("b", "recentred") > 0.85
    assert cell("c", "recentred") < -1


def test_one_prompt_and_missing_states_are_refused():
    states, table = shifted_world()
    with pytest.raises(InputError, match="Transfer needs two prompts or more; found a"):
        prompts.measure({"a": states["a"]}, table, "2")
    with pytest.raises(InputError, match="State '5' is not there; found 2"):
        prompts.measure(states, table, "5")
