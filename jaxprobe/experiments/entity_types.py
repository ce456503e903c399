"""Does a probe of some types of entity read another? Trained on each type, on all others and on all; tested on each."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.experiments.probe import Probe, fit_probe
from jaxprobe.experiments.tables import choose_labels, require_group, require_states, score_beside, tidy_scores

LARGEST = 10


def run(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    group: str,
    *,
    types: Sequence[str] = (),
    model: str = "",
    prompt: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """The full matrix of training and testing types, on the test rows of each.

    Args:
      activations: state -> [N, D], in the table's row order.
      state: the state whose probes are looked at.
      group: the column of types.
      types: the types to look at; () takes the ten with the most training rows.

    Returns:
      A tidy table: ``train_on`` is a type, "others" (every row but those of the tested type) or "all"; ``test_on`` a
      type. Metrics are r2 (about the mean of the tested rows), error_km_median for places, and ``r2_difference``, R2
      less that of the probe of all types (paired). 95 % intervals by a bootstrap over test rows, probes fixed.

    Raises:
      InputError: a state or a column that is not there, a type without enough rows, or rows that don't match.
    """
    require_states(activations, table, [state])
    labels = require_group(table, group)
    types = choose_labels(table, group, labels, types, largest=LARGEST)
    x, test = activations[state], table.is_test

    def fit(rows: np.ndarray) -> Probe:
        return fit_probe(x, table, rows & ~test, state)

    single = {name: fit(labels == name) for name in types}
    everything = fit(np.ones(len(table), bool))
    frames = []
    for tested in types:
        rows = test & (labels == tested)
        others = {"others": fit(labels != tested)}
        base = everything.predict(x[rows])
        for trained, probe in (single | others | {"all": everything}).items():
            against = None if trained == "all" else base
            found = score_beside(table, table.targets[rows], probe.predict(x[rows]), against, seed)
            names = dict(model=model, prompt=prompt, train_on=trained, test_on=tested, rows_test=int(rows.sum()))
            frames.append(tidy_scores(table, found, [state], probe.alpha, **names))
    return pd.concat(frames, ignore_index=True)
