import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments import components
from jaxprobe.host.progress import Reporter


def world(seed=0, rows=400, width=16):
    """A target in the third component of one state, and in the small ones of another."""
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((rows, width)) * 2.0 ** -np.arange(width)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    target = 100 * parts[:, 2] + 5 * rng.standard_normal(rows)
    states = {"embed": parts @ turn, "0": np.roll(parts, 9, axis=1) * 2.0 ** -np.arange(width) @ turn}
    is_test = rng.random(rows) < 0.25
    table = EntityTable("t", tuple(map(str, range(rows))), target[:, None], ("year",), ("year",), is_test)
    return {state: x.astype(np.float32) for state, x in states.items()}, table


def test_scores_by_number_of_components_are_those_of_plain_fits():
    states, table = world()
    frame = components.measure(states, table, ["embed", "0"], [1, 2, 3, 8], reporter=Reporter(), model="m")
    shown = frame[(frame["metric"] == "r2") & (frame["target"] == "mean")].set_index(["layer", "components"])
    train = ~table.is_test
    for (state, count), row in shown.iterrows():
        x = states[state].astype(np.float64)
        pca = PCA(count, svd_solver="full").fit(x[train])
        fit = Ridge(row["alpha"]).fit(pca.transform(x[train]), table.targets[train])
        expected = r2_score(table.targets[~train], fit.predict(pca.transform(x[~train])))
        assert row["value"] == pytest.approx(expected, abs=1e-9)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert shown.loc[("embed", 2), "value"] < 0.1 < 0.9 < shown.loc[("embed", 3), "value"]
    assert set(shown.index.get_level_values("components")) == {1, 2, 3, 8, 16}
    [figure] = components.figures(frame.assign(prompt="p", run="r"))
    assert len(figure.axes[0].lines) == 2
    assert len(components.printed(frame.assign(run="r"))) == 4


def test_a_count_below_one_is_refused():
    states, table = world()
    with pytest.raises(InputError, match="1 component or more"):
        components.measure(states, table, ["0"], [0, 3], reporter=Reporter())
