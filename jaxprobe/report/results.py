"""What a report shows, read from a run directory: scores, entities and predictions that belong together."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.errors import InputError
from jaxprobe.results.folder import RunDirectory

PLACE_TARGETS = ("latitude", "longitude")


class Score(NamedTuple):
    """One value with its 95 % interval; the interval is NaN where none was computed."""

    value: float
    ci_low: float
    ci_high: float

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are known."""
        return bool(np.isfinite(self.ci_low) and np.isfinite(self.ci_high))


@dataclass(frozen=True)
class RunResults:
    """One run's tables. `load_results` checks that they belong together.

    Attributes:
      config: config.json as it was read.
      scores: scores.parquet.
      entities: entities.parquet.
      predictions: predictions.parquet.
      controls: controls.parquet, or None where the run has none.
      headline_layer: the layer chosen on the training rows.
      layers: every state that has test scores, in the order of the forward pass.
      targets: names of the C targets.
    """

    run: RunDirectory
    config: dict[str, Any]
    scores: pd.DataFrame
    entities: pd.DataFrame
    predictions: pd.DataFrame
    controls: pd.DataFrame | None
    headline_layer: str
    layers: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def result(self) -> dict[str, Any]:
        """The "result" section of config.json."""
        return self.config.get("result", {})

    @property
    def is_place(self) -> bool:
        """Whether the targets are a latitude and a longitude."""
        return self.targets == PLACE_TARGETS

    @property
    def model(self) -> str:
        """The model's name for titles."""
        return str(self.result.get("model") or self.scores["model"].iloc[0])

    @property
    def model_description(self) -> str:
        """What else should be known of the model, e.g. that it is a quantised variant; "" where nothing is."""
        return str(self.result.get("model_description", ""))

    @property
    def chosen_by(self) -> str:
        """What chose the headline layer and the penalties, on the training rows."""
        return str(self.result.get("chosen_by", "leave-one-out"))

    @property
    def dataset(self) -> str:
        """The entity table's name."""
        return str(self.scores["dataset"].iloc[0])

    @property
    def prompt(self) -> str:
        """The prompt's template, or its name where the run wrote no template."""
        return str(self.result.get("prompt", self.scores["prompt"].iloc[0]))

    @property
    def attribution(self) -> str:
        """Who made the table and, for places, the coastlines."""
        table = str(self.result.get("attribution", "")).rstrip(". ")
        return " · ".join(part for part in (table, "Coastlines: Natural Earth" if self.is_place else "") if part)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the group columns, without the prefix."""
        return tuple(name.removeprefix("group_") for name in self.entities.columns if name.startswith("group_"))

    def unit(self, target: str) -> str:
        """The target's unit ("degree", "year"), or "" where it has none or none was written."""
        return str(self.result.get("units", {}).get(target, ""))

    @cached_property
    def _test_scores(self) -> pd.DataFrame:
        rows = self.scores[self.scores["split"] == "test"]
        return rows.set_index(["target", "metric", "layer"]).sort_index()

    def score(self, layer: str, metric: str, target: str = "mean") -> Score | None:
        """One test score, or None where the run has none."""
        key = (target, metric, layer)
        if key not in self._test_scores.index:
            return None
        row = self._test_scores.loc[key]
        return Score(float(row["value"]), float(row["ci_low"]), float(row["ci_high"]))

    def by_layer(self, metric: str, target: str = "mean") -> pd.DataFrame:
        """A test metric for every layer in order: columns value, ci_low, ci_high; index is the layer."""
        rows = self._test_scores.loc[(target, metric)]
        return rows.reindex(list(self.layers))[["value", "ci_low", "ci_high"]]

    def test_predictions(self, layer: str) -> pd.DataFrame:
        """Test rows at one layer, in the order of the entity table: the entity's columns and the predictions."""
        rows = self.predictions[self.predictions["layer"] == layer].drop(columns="layer")
        return self.entities.merge(rows, on="row", how="inner", validate="one_to_one")


def load_results(run: RunDirectory) -> RunResults:
    """Read a run's tables and check that they belong together.

    Raises:
      InputError: a file is missing or malformed; scores of several models, data sets or prompts; no headline layer; a
        prediction for a row that is not a test row; targets that differ between the files.
    """
    config, scores = run.read_config(), run.read_scores()
    entities, predictions = run.read_entities(), run.read_predictions()
    targets = _names(entities, "true_")
    headline = str(config.get("result", {}).get("headline_layer", ""))
    headline = headline or run.read_probes()[1].get("headline_layer", "")
    shown = scores[(scores["split"] == "test") & (scores["metric"] == "r2") & (scores["target"] == "mean")]
    layers = tuple(sorted(shown["layer"].unique(), key=layer_position))

    problems = [
        f"{run.scores_path} holds {scores[name].nunique()} values of {name}, wanted one in a run."
        for name in ("model", "dataset", "prompt")
        if scores[name].nunique() != 1
    ]
    for name, found in (("scores", layers), ("predictions", tuple(predictions["layer"].unique()))):
        if headline not in found:
            problems.append(
                f"{run.path}: the headline layer {headline!r} has no test {name} (layers with them: "
                f"{', '.join(found) or 'none'}). config.json says it as result.headline_layer."
            )
    if targets != _names(predictions, "predicted_"):
        problems.append(
            f"{run.path}: entities have targets {', '.join(targets)}, "
            f"predictions {', '.join(_names(predictions, 'predicted_'))}."
        )
    test_rows = entities.loc[entities["split"] == "test", "row"]
    if strangers := int((~predictions["row"].isin(test_rows)).sum()):
        problems.append(f"{run.predictions_path}: {strangers} predictions are for rows that are no test entities.")
    if problems:
        raise InputError(*problems)
    controls = run.read_controls() if run.controls_path.is_file() else None
    return RunResults(run, config, scores, entities, predictions, controls, headline, layers, targets)


def layer_position(layer: str) -> int:
    """Where a state stands in the forward pass: embed -1, block i at i, final_norm after all.

    Raises:
      InputError: a name that is none of these.
    """
    if layer == "embed":
        return -1
    if layer == "final_norm":
        return 1_000_000
    if not layer.isdecimal():
        raise InputError(f"Unknown layer {layer!r}; wanted 'embed', a block's number, or 'final_norm'.")
    return int(layer)


def _names(frame: pd.DataFrame, prefix: str) -> tuple[str, ...]:
    return tuple(str(name).removeprefix(prefix) for name in frame.columns if str(name).startswith(prefix))
