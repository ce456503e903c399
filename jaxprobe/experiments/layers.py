"""At which layers can the targets be read? Scores of several runs by depth, and by the size of the model.

Runs of several sizes of one suite (Pythia 70m to 12b) give the paper's scaling figure. States need not be stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import each_run, one_number, short_name
from jaxprobe.experiments.tables import same_rows, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress
from jaxprobe.probes.class_metrics import accuracy_difference, score_classes
from jaxprobe.probes.metrics import Interval, paired_difference, score
from jaxprobe.results.results import Run
from jaxprobe.sites import Site


@dataclass(frozen=True)
class Options:
    """There is nothing to choose."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """Scores by layer of several runs on one scale, and what lies between layers, prompts and models.

    Returns:
      A tidy table. The rows of each run's scores have ``compared_with`` "" and ``resampled`` "rows"; the others are
      those of `compare_states`, and of `compare_headlines` where an earlier run has the same test rows. ``depth`` is 0
      at the embedding and 1 after the last block, ``parameters`` the model's size without its head (NaN where the run
      does not say),
      ``headline`` whether the layer is the one that the run chose on its training rows.

    Raises:
      InputError: a run that is not finished; runs on class labels beside runs on numbers.
    """
    frames, opened = [], list(each_run(runs, "open", reporter))
    kinds = {bool(each.label): each.path for each in opened}
    if len(kinds) > 1:
        raise InputError(
            f"{kinds[True]} is a run on class labels and {kinds[False]} one on numbers; accuracy and R2 have no scale "
            "in common. Compare each kind with its own."
        )
    predicted = [read_predicted(each) for each in opened]
    for each, ours in zip(opened, predicted, strict=True):
        parts = [each.scores.assign(compared_with="", resampled="rows"), compare_states(ours)]
        first = next(other for other in predicted if same_rows(other.table, ours.table))
        if first is not ours:
            parts.append(compare_headlines(ours, first))
        frame = pd.concat(parts, ignore_index=True)
        sites = {name: Site.parse(name) for name in frame["layer"].unique()}
        blocks = each.result.get("blocks", max(site.depth for site in sites.values() if site.kind != "final_norm"))
        depth = {name: min(site.depth / max(blocks, 1), 1.0) for name, site in sites.items()}
        frames.append(
            frame.assign(
                depth=frame["layer"].map(depth),
                parameters=float(each.result.get("parameters", np.nan)),
                headline=frame["layer"] == each.headline_layer,
                run=str(each.path),
            )
        )
    return pd.concat(frames, ignore_index=True)


class Predicted(NamedTuple):
    """What one run predicts.

    Attributes:
      table: the test rows only.
      predictions: state -> [N, C] in target units; of labels 1 at the class that is named.
      headline: the state that the training rows chose.
      model, prompt: what results call them.
    """

    table: EntityTable
    predictions: Mapping[str, np.ndarray]
    headline: str
    model: str
    prompt: str


def compare_states(run: Predicted, seed: int = 0) -> pd.DataFrame:
    """R2 (of labels the accuracy) of every state with whole groups resampled, and less that of the ``embed`` state.

    Returns:
      A tidy table: metric r2 or accuracy with ``resampled`` the group column; ``r2_difference`` or
      ``accuracy_difference`` (paired) with ``compared_with`` "embed", where the run has that state, and ``resampled``
      "rows" or the group column. 95 % intervals by a bootstrap over test rows, or over whole groups, with the probes
      fixed.
    """
    states = list(run.predictions)
    predicted = np.stack([run.predictions[state] for state in states])
    frames = []
    for resampled, groups in _resamplings(run.table).items():
        names = dict(model=run.model, prompt=run.prompt, resampled=resampled)
        if groups is not None:  # over rows, the run's own scores have it
            found = _score(run.table, predicted, groups, seed)
            frames.append(tidy_scores(run.table, found, states, compared_with="", **names))
        if "embed" in states:
            found = _difference(run.table, predicted, run.predictions["embed"][None], groups, seed)
            frames.append(tidy_scores(run.table, found, states, compared_with="embed", **names))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def compare_headlines(run: Predicted, other: Predicted, seed: int = 0) -> pd.DataFrame:
    """R2 (of labels the accuracy) of a run's headline layer less that of another run with the same test rows, paired.

    Returns:
      A tidy table like that of `compare_states`; ``compared_with`` names the other run's model, prompt and layer.

    Raises:
      InputError: other rows.
    """
    if not same_rows(run.table, other.table):
        raise InputError(f"{run.table.name} and {other.table.name} are other test rows; only the same are paired.")
    y_pred, y_base = (each.predictions[each.headline][None] for each in (run, other))
    frames = []
    for resampled, groups in _resamplings(run.table).items():
        names = dict(model=run.model, prompt=run.prompt, resampled=resampled)
        base = f"{other.model}, {other.prompt}, {other.headline}"
        found = _difference(run.table, y_pred, y_base, groups, seed)
        frames.append(tidy_scores(run.table, found, [run.headline], compared_with=base, **names))
    return pd.concat(frames, ignore_index=True)


def _score(table: EntityTable, predicted: np.ndarray, groups: Sequence | None, seed: int) -> dict[str, Interval]:
    """R2, or of labels the accuracy, of L states' predictions [L, N, C]."""
    if table.label:
        return score_classes(table.targets.argmax(axis=1), predicted, groups=groups, seed=seed, metrics=("accuracy",))
    return score(table.targets, predicted, groups=groups, seed=seed, metrics=("r2",))


def _difference(
    table: EntityTable, predicted: np.ndarray, base: np.ndarray, groups: Sequence | None, seed: int
) -> dict[str, Interval]:
    """That of predictions [L, N, C] less that of base [1, N, C], from the same resamples."""
    if table.label:
        code = table.targets.argmax(axis=1)
        return {"accuracy_difference": accuracy_difference(code, predicted, base, groups=groups, seed=seed)}
    less = paired_difference(table.targets, predicted, base, groups=groups, seed=seed, metrics=("r2",))
    return {"r2_difference": less["r2"]}


def read_predicted(run: Run) -> Predicted:
    """The test predictions of every state of a finished run."""
    by_state = {state: part.set_index("row") for state, part in run.predictions.groupby("layer", sort=False)}
    rows = next(iter(by_state.values())).index
    tested = run.entities["row"].isin(rows)
    rows = run.entities.loc[tested, "row"]
    if run.label:
        named = {state: part.loc[rows, f"predicted_{run.label}"].to_numpy() for state, part in by_state.items()}
        classes = np.array(run.classes)
        predictions = {state: (labels[:, None] == classes).astype(np.float64) for state, labels in named.items()}
    else:
        columns = [f"predicted_{target}" for target in run.targets]
        predictions = {state: part.loc[rows, columns].to_numpy(np.float64) for state, part in by_state.items()}
    return Predicted(run.table.take(tested.to_numpy()), predictions, run.headline_layer, run.model, run.prompt)


def _resamplings(table: EntityTable) -> dict[str, np.ndarray | None]:
    """What is resampled: the rows, and the groups of each column that has two or more."""
    labels = {name: np.asarray(values).astype(str) for name, values in table.groups.items()}
    return {"rows": None} | {name: values for name, values in labels.items() if len(np.unique(values)) > 1}


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """R2 (of labels accuracy) and its differences with rows resampled; hundreds of rows otherwise."""
    shown = one_number(frame, "r2", "r2_difference", "accuracy", "accuracy_difference")
    return shown[shown["resampled"] == "rows"].drop(columns="headline")


def figures(frame: pd.DataFrame) -> list:
    """Scores against relative depth, a line for each run; where models differ in size, the first score against it."""
    from jaxprobe.report.line_figure import CLASS_METRICS, NUMBER_METRICS, draw_depths

    metrics = NUMBER_METRICS if (frame["metric"] == "r2").any() else CLASS_METRICS
    frame = one_number(frame[(frame["compared_with"] == "") & (frame["resampled"] == "rows")], *metrics)
    stream = [Site.parse(name).kind in ("embed", "block") for name in frame["layer"]]
    frame = frame[stream]  # final_norm stands at the depth of the last block, and neurons are no stream
    varied = [column for column in ("model", "prompt") if frame[column].nunique() > 1] or ["model"]
    frame = frame.assign(line=frame["run"].map(_line_names(frame, varied)))
    fixed = [str(frame[column].iloc[0]) for column in ("model", "prompt") if column not in varied]
    return [draw_depths(frame, metrics, fixed)]


def _line_names(frame: pd.DataFrame, varied: Sequence[str]) -> dict[str, str]:
    """Folder of a run -> what its line is called: the same on every table, and another for each run of one table."""
    first = frame.drop_duplicates("run").set_index("run")
    words = first[list(varied)].agg(", ".join, axis=1)
    same = pd.DataFrame({"dataset": first["dataset"], "words": words}).duplicated(keep=False)
    return {run: f"{name}, {short_name(run, list(first.index))}" if same[run] else name for run, name in words.items()}
