"""Does a probe of some types of entity read another? Trained on each type, on all others and on all; tested on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.experiments.base import by_run, columns_of, each_run, one_number
from jaxprobe.experiments.probe import Probe, fit_probe
from jaxprobe.experiments.tables import choose_labels, require_group, require_states, score_beside, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress

LARGEST = 10


@dataclass(frozen=True)
class Options:
    """What the types are."""

    group: str = "entity_type"
    """Column of the types."""
    state: str | None = None
    """The state to look at; default: each run's headline layer."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure` for each run. Raises InputError where a run keeps no states, and as `measure`."""
    frames = []
    for each in each_run(runs, "entity types", reporter):
        at = each.activations, each.table, options.state or each.headline_layer, options.group
        frames.append(measure(*at, seed=each.settings.seed, **columns_of(each)))
    return pd.concat(frames, ignore_index=True)


def figures(frame: pd.DataFrame) -> list:
    """For each run the matrix of types that a probe was trained and tested on."""
    from jaxprobe.report.matrix_figure import draw_matrices
    from jaxprobe.report.phrases import layer_title

    drawn = []
    for called, part in by_run(one_number(frame, "r2")):
        tested = list(dict.fromkeys(part["test_on"]))
        cells = part.pivot(index=["train_kind", "train_on"], columns="test_on", values="value")[tested]
        rows = [("type", name) for name in tested] + [("others", "others"), ("all", "all")]
        cells = cells.loc[rows].set_axis([*tested, "all other types", "all types"])
        subtitle = f"{called} · {layer_title(part['layer'].iloc[0])} · R² about the tested type's mean"
        drawn.append(draw_matrices({"": cells}, "One type's probe on another", subtitle, "type"))
    return drawn


def measure(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    group: str,
    *,
    types: Sequence[str] = (),
    model: str = "",
    prompt: str = "",
    run: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """The full matrix of training and testing types, on the test rows of each.

    Args:
      activations: state -> [N, D], in the table's row order.
      state: the state whose probes are looked at.
      group: the column of types.
      types: the types to look at; () takes the ten with the most training rows.

    Returns:
      A tidy table: ``train_on`` is a type, "others" (every row but those of the tested type) or "all", and
      ``train_kind`` "type", "others" or "all", as a type may be called so too; ``test_on`` is a type. Metrics are r2
      (about the mean of the tested rows), error_km_median for places, and ``r2_difference``, R2 less that of the probe
      of all types (paired). 95 % intervals by a bootstrap over test rows, probes fixed.

    Raises:
      InputError: a state or a column that is not there, a type without enough rows, or rows that don't match.
    """
    require_states(activations, table, [state])
    labels = require_group(table, group)
    types = choose_labels(table, group, labels, types, largest=LARGEST)
    x, test = activations[state], table.is_test

    def fit(rows: np.ndarray) -> Probe:
        return fit_probe(x, table, rows & ~test, state)

    single = {("type", name): fit(labels == name) for name in types}
    everything = fit(np.ones(len(table), bool))
    frames = []
    for tested in types:
        rows = test & (labels == tested)
        rest = {("others", "others"): fit(labels != tested), ("all", "all"): everything}
        base = everything.predict(x[rows])
        for (kind, trained), probe in (single | rest).items():
            against = None if kind == "all" else base
            found = score_beside(table, table.targets[rows], probe.predict(x[rows]), against, seed)
            names = dict(model=model, prompt=prompt, run=run, train_on=trained, train_kind=kind, test_on=tested)
            frames.append(tidy_scores(table, found, [state], probe.alpha, **names, rows_test=int(rows.sum())))
    return pd.concat(frames, ignore_index=True)
