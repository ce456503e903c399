"""Is more encoded than a linear probe reads? The paper's network with one hidden layer beside ridge, on the same rows.

A network can learn more by heart, so both are fitted on permuted targets as well: what each makes of targets that mean
nothing is taken off what it makes of the true ones before they are compared. Where that is less than nothing (a network
is often worse than the mean there) nothing is taken off, so that neither looks better for failing at noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import by_run, columns_of, dots, each_run
from jaxprobe.experiments.probe import fit_probe, fitted_targets, in_target_units
from jaxprobe.experiments.tables import require_states, score_metrics, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress, Reporter
from jaxprobe.probes.metrics import Interval, paired_difference, r2, score
from jaxprobe.probes.mlp import fit_mlp, predict_mlp

PROBES = ("ridge", "mlp")


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    state: str | None = None
    """The state to look at; default: each run's headline layer."""
    permutations: int = 5
    """Of the targets; each trains the network once more."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure` for each run. Raises InputError where a run keeps no states, and as `measure`."""
    frames = []
    for each in list(each_run(runs, "open", reporter)):
        at = each.activations, each.table, options.state or each.headline_layer, options.permutations
        frames.append(measure(*at, seed=each.settings.seed, reporter=reporter, **columns_of(each)))
    return pd.concat(frames, ignore_index=True)


def measure(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    permutations: int = 5,
    *,
    model: str = "",
    prompt: str = "",
    run: str = "",
    seed: int = 0,
    reporter: Progress | None = None,
) -> pd.DataFrame:
    """Ridge and a network of 256 hidden units, fitted on the same training rows, on true and on permuted targets.

    The network chooses weight decay and number of epochs on a tenth of the training rows, ridge its penalty by exact
    leave-one-out on all of them; no test row takes part in either.

    Args:
      activations: state -> [N, D], in the table's row order.
      state: the state whose probes are looked at.
      permutations: of the targets over all rows; the same for both probes.

    Returns:
      A tidy table: ``probe`` is "ridge", "mlp" or "difference" (the second less the first); ``targets`` is "true",
      "permuted" or "less_permuted" (the first less what the second has above 0); ``split`` "train" or "test". Metrics
      are r2 and, for places, error_km_median. ``resampled``, what the interval is over: "rows" (95 %, a bootstrap over
      test rows, probes fixed), "permutations" (the least and the most of them), or "" where there is none.

    Raises:
      InputError: a state that is not there, rows that don't match, or no permutation.
    """
    require_states(activations, table, [state])
    if permutations < 1:
        raise InputError(f"{permutations} permutations of the targets; the comparison needs at least 1.")
    rng, test = np.random.default_rng(seed), table.is_test
    tables = [table, *(replace(table, targets=rng.permutation(table.targets)) for _ in range(permutations))]
    x = np.asarray(activations[state], np.float32)
    fitted: dict[str, list[np.ndarray]] = {name: [] for name in PROBES}
    with (reporter or Reporter()).task("fit both probes", len(tables), "targets") as advance:
        for each in tables:
            ridge, alpha = _ridge(x, each, state)
            network, decay = _network(x, each, seed)
            fitted["ridge"].append(ridge)
            fitted["mlp"].append(network)
            if each is table:
                chosen = {"ridge": {"alpha": alpha}, "mlp": {"weight_decay": decay}}
            advance(1)
    columns = dict(model=model, prompt=prompt, run=run)
    frames = []
    options = dict(places=table.is_place, seed=seed, metrics=score_metrics(table))
    truth, (ridge, network) = table.targets[test], (fitted[name][0][test][None] for name in PROBES)
    for name, found in {
        "ridge": score(truth, ridge, **options),
        "mlp": score(truth, network, **options),
        "difference": paired_difference(truth, network, ridge, **options),
    }.items():
        own = columns | chosen.get(name, {})
        frames.append(_rows(table, found, state, "test", name, "true", "rows", own))
    for split, rows in {"test": test, "train": ~test}.items():
        # [probes, 1 + permutations, C + 1]: R2 of each target, and the mean over these.
        values = np.stack(
            [
                [r2(each.targets[rows], predicted[rows]) for each, predicted in zip(tables, fitted[name], strict=True)]
                for name in PROBES
            ]
        )
        values = np.concatenate([values, values.mean(-1, keepdims=True)], axis=-1)
        true, permuted = values[:, 0], values[:, 1:]
        less = true[:, None] - np.maximum(permuted, 0)
        for targets, each in {"true": true[:, None], "permuted": permuted, "less_permuted": less}.items():
            if targets == "true" and split == "test":
                continue  # scored above, with an interval over rows
            each = np.concatenate([each, each[1:] - each[:1]])
            for name, found in zip((*PROBES, "difference"), each, strict=True):
                ends = (np.full_like(found[0], np.nan),) * 2 if targets == "true" else (found.min(0), found.max(0))
                scored = {"r2": Interval(found.mean(0), *ends)}
                over = "" if targets == "true" else "permutations"
                frames.append(_rows(table, scored, state, split, name, targets, over, columns))
    return pd.concat(frames, ignore_index=True)


def _ridge(x: np.ndarray, table: EntityTable, state: str) -> tuple[np.ndarray, float]:
    """Predictions [N, C] of all rows by ridge fitted on the training rows, and its penalty."""
    probe = fit_probe(x, table, ~table.is_test, state)
    return probe.predict(x), probe.alpha


def _network(x: np.ndarray, table: EntityTable, seed: int) -> tuple[np.ndarray, float]:
    """Predictions [N, C] of all rows by a network fitted on the training rows, and its weight decay."""
    fit = fit_mlp(x[None, ~table.is_test], fitted_targets(table)[~table.is_test], seed=seed)
    return in_target_units(table, predict_mlp(fit, x[None])[0]), float(fit.weight_decay[0])


def _rows(table, found, state, split, probe, targets, resampled, columns) -> pd.DataFrame:
    own = {"alpha": np.nan, "weight_decay": np.nan} | columns
    alpha = own.pop("alpha")
    own |= {"split": split, "probe": probe, "targets": targets, "resampled": resampled}
    return tidy_scores(table, found, [state], alpha, **own)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """One number for all targets, of both splits."""
    return frame[frame["target"].isin(("mean", "place"))]


def figures(frame: pd.DataFrame) -> list:
    """For each run: both probes on true and on permuted targets, on test and on training rows."""
    frame = printed(frame)[lambda rows: (rows["probe"] != "difference") & (rows["metric"] == "r2")]
    sections = {"test": "Test rows", "train": "Training rows"}
    rows = {"true": "true targets", "permuted": "permuted targets", "less_permuted": "the first less the second"}
    frame = frame.assign(section=frame["split"].map(sections), row=frame["targets"].map(rows), kind=frame["probe"])
    frame = frame.assign(order=frame["targets"].map({name: i for i, name in enumerate(rows)}))
    frame = frame.sort_values(["section", "order"], kind="stable")
    kinds = {"ridge": "ridge", "mlp": "network with 256 hidden units"}
    return [dots("A linear probe and a network", called, part, kinds) for called, part in by_run(frame)]
