"""Places as points on the sphere: a target in degrees breaks at the dateline, where -180 and 180 are one place."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.probe import fit_probe
from jaxprobe.experiments.tables import require_states, tidy_scores
from jaxprobe.probes.metrics import Interval, paired_difference, score

METRICS = ("r2", "error_km_median", "error_km_mean")


def run(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    *,
    model: str = "",
    prompt: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """A probe of the three coordinates of a place on the unit sphere beside one of its two degrees.

    Args:
      activations: state -> [N, D], in the table's row order.
      state: the state whose probes are looked at.

    Returns:
      A tidy table: ``target_form`` is "degrees", "unit_vector" (its predictions turned back into degrees), or
      "difference" (the second less the first, paired). Metrics are r2 of the degrees, which counts an error across the
      dateline as almost 360, and error_km_median and error_km_mean, which don't. 95 % intervals by a bootstrap over
      test rows, probes fixed.

    Raises:
      InputError: a table without coordinates, a state that is not there, or rows that don't match.
    """
    if not table.is_place:
        raise InputError(f"Table {table.name} has no latitude and longitude as targets; unit vectors need both.")
    require_states(activations, table, [state])
    x, test = activations[state], table.is_test
    probes = {
        form: fit_probe(x, replace(table, unit_vectors=form == "unit_vector"), ~test, state)
        for form in ("degrees", "unit_vector")
    }
    predictions = {form: probe.predict(x[test])[None] for form, probe in probes.items()}
    truth, options = table.targets[test], dict(places=True, seed=seed, metrics=METRICS)
    found: dict[str, Mapping[str, Interval]] = {
        form: score(truth, predicted, **options) for form, predicted in predictions.items()
    }
    found["difference"] = paired_difference(truth, predictions["unit_vector"], predictions["degrees"], **options)
    frames = []
    for form, scores in found.items():
        alpha = probes[form].alpha if form in probes else np.nan
        frames.append(tidy_scores(table, scores, [state], alpha, model=model, prompt=prompt, target_form=form))
    return pd.concat(frames, ignore_index=True)
