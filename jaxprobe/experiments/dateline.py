"""Does the dateline matter? Places fitted as points on the sphere, which has none, beside places fitted as degrees.

A target in degrees breaks at the dateline, where -180 and 180 are one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import by_run, columns_of, dots, each_run, one_number
from jaxprobe.experiments.probe import fit_probe
from jaxprobe.experiments.tables import require_states, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress
from jaxprobe.probes.metrics import Interval, paired_difference, score

METRICS = ("r2", "error_km_median", "error_km_mean")


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    state: str | None = None
    """The state to look at; default: each run's headline layer."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure` for each run. Raises InputError where a run keeps no states, and as `measure`."""
    frames = [
        measure(
            each.activations,
            each.table,
            options.state or each.headline_layer,
            seed=each.settings.seed,
            **columns_of(each),
        )
        for each in each_run(runs, "dateline", reporter)
    ]
    return pd.concat(frames, ignore_index=True)


def figures(frame: pd.DataFrame) -> list:
    """For each run: probes of degrees and of points on the sphere."""
    frame = one_number(frame)[lambda rows: rows["target_form"] != "difference"]
    kinds = {"degrees": "fitted on degrees", "unit_vector": "fitted on points of the sphere"}
    frame = frame.assign(section="", row=frame["target_form"].map(kinds), kind=frame["target_form"])
    return [dots("Does the dateline matter?", called, part, kinds) for called, part in by_run(frame)]


def measure(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    *,
    model: str = "",
    prompt: str = "",
    run: str = "",
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
        columns = dict(model=model, prompt=prompt, run=run, target_form=form)
        frames.append(tidy_scores(table, scores, [state], alpha, **columns))
    return pd.concat(frames, ignore_index=True)
