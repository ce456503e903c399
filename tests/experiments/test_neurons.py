import numpy as np
from scipy.stats import spearmanr

from jaxprobe.experiments import neurons
from tests.experiments.worlds import make_table


def test_a_planted_neuron_is_found_and_a_group_neuron_is_not():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, 300)
    places = 30 * rng.standard_normal((12, 2))[groups] + 3 * rng.standard_normal((300, 2))
    table = make_table(places, {"country": [f"c{g}" for g in groups]}, np.ones(300, bool), places=True)
    noise = lambda: np.maximum(rng.standard_normal((300, 40)), 0)  # ties at 0
    activations = {"mlp.0": noise(), "mlp.1": noise()}
    activations["mlp.1"][:, 7] = places[:, 1] ** 3 + 10 * rng.standard_normal(300)
    activations["mlp.0"][:, 3] = rng.standard_normal(12)[groups]
    cosines = {"mlp.1": np.full((40, 2), 0.5)}
    frame = neurons.measure(activations, table, cosines, group="country", most=5)
    by = frame.set_index(["target", "layer", "neuron"])
    best = by.loc[("longitude", "mlp.1", 7)]
    assert best["p_permuted"] == best["p_groups"] == 0.01 and best["rho_within"] > 0.5 and best["cosine"] == 0.5
    for (target, layer, neuron), row in by.iterrows():
        column = table.target_names.index(target)
        assert np.isclose(row["rho"], spearmanr(activations[layer][:, neuron], places[:, column]).statistic)
    assert (frame["null_groups"] > frame["null_permuted"]).all()
    of_group = by[by.index.get_level_values("neuron") == 3]
    assert (of_group["p_groups"] > 0.05).all() and (of_group["rho_within"].abs() < 0.2).all()
    none = neurons.measure(activations, table, {}, group=None, most=2)
    assert none["cosine"].isna().all() and "null_groups" not in none
    [figure] = neurons.figures(frame.assign(run="r", model="m", dataset="d"))
    assert len(figure.axes[0].lines) == 4
