"""A finished run, read from its folder: the one reader, for reports, predictions, experiments and notebooks."""

import shlex
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data.prompt import Prompt, find_prompt
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath
from jaxprobe.results.folder import RunDirectory
from jaxprobe.settings import RunSettings, parse_settings
from jaxprobe.sites import Site, last_block

if TYPE_CHECKING:
    from jaxprobe.extract.store.reader import Activations
    from jaxprobe.models.load import ModelFiles

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


class Run:
    """A finished run. Its files are read when they are asked for, and compared with the digests that the run kept.

    Attributes:
      directory: its folder.
      config: config.json as it was read.
      result: its section "result".

    Raises:
      InputError: there is no run, or it is not finished. Of every property: a file is missing, damaged or malformed;
        each problem names the command that writes it anew.
    """

    def __init__(self, run: AnyPath | RunDirectory):
        self.directory = run if isinstance(run, RunDirectory) else RunDirectory(run)
        self.config: dict[str, Any] = self.directory.read_config()
        self.result: dict[str, Any] = self.directory.read_result()

    def __repr__(self) -> str:
        return f"Run({self.path}: {self.model}, {self.dataset}, prompt {self.prompt}; headline {self.headline_layer})"

    def _repr_html_(self) -> str:
        """For notebooks: the figures and the test scores."""
        return self.directory._repr_html_()

    @property
    def path(self) -> AnyPath:
        """The run's folder, by which runs are told apart."""
        return self.directory.path

    @cached_property
    def settings(self) -> RunSettings:
        """What the run was asked for; what it names is where it lay then, from whatever folder this is called."""
        return parse_settings(self.config, self.directory.config_path)

    # ---- Tables ----------------------------------------------------------------------------------------------------

    @cached_property
    def scores(self) -> pd.DataFrame:
        """scores.parquet."""
        return self.directory.read_scores()

    @cached_property
    def entities(self) -> pd.DataFrame:
        """entities.parquet."""
        return self.directory.read_entities()

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """predictions.parquet."""
        return self.directory.read_predictions()

    @cached_property
    def controls(self) -> pd.DataFrame | None:
        """controls.parquet, or None where the run has none: without stored states it makes none."""
        made = self.config.get("settings", {}).get("store", True) or "controls.parquet" in self.config.get("files", {})
        return self.directory.read_controls() if made and self.directory.controls_path.is_file() else None

    @cached_property
    def table(self) -> EntityTable:
        """The entity table as the run read it, whatever its file holds by now."""
        entities, targets = self.entities, self.targets
        if self.label:
            codes = pd.Categorical(entities[f"true_{self.label}"], self.classes).codes
            names, values, units = self.classes, np.eye(len(self.classes))[codes], ("",) * len(self.classes)
        else:
            names, units = targets, tuple(self.unit(name) for name in targets)
            values = entities[[f"true_{name}" for name in targets]].to_numpy(np.float64)
        groups = {f"group_{name}": name for name in self.groups}
        return EntityTable(
            self.dataset,
            tuple(entities["text"]),
            values,
            names,
            units,
            (entities["split"] == "test").to_numpy(),
            {name: entities[column].to_numpy(object) for column, name in groups.items()},
            unit_vectors=bool(self.config.get("settings", {}).get("unit_vectors", False)),
            label=self.label,
            attribution=str(self.result.get("attribution", "")),
            notes=tuple(self.notes),
        )

    @cached_property
    def test_entities(self) -> pd.DataFrame:
        """The entity table's test rows."""
        return self.entities[self.entities["split"] == "test"]

    def test_predictions(self, layer: str) -> pd.DataFrame:
        """Test rows at one layer, in the order of the entity table: the entity's columns and the predictions."""
        rows = self.predictions[self.predictions["layer"] == layer].drop(columns="layer")
        return self.entities.merge(rows, on="row", how="inner", validate="one_to_one")

    def predicted(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and true targets [N_test, C] of the test rows at one layer."""
        rows = self.test_predictions(layer)
        columns = ([f"{kind}_{name}" for name in self.targets] for kind in ("predicted", "true"))
        found, truth = (rows[names].to_numpy(np.float64) for names in columns)
        return found, truth

    # ---- Names -----------------------------------------------------------------------------------------------------

    @cached_property
    def headline_layer(self) -> str:
        """The layer chosen on the training rows."""
        return str(self.result.get("headline_layer") or self.probes[1].get("headline_layer", ""))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Every state that has test scores, in the order of the forward pass."""
        scores = self.scores
        shown = scores[(scores["split"] == "test") & (scores["metric"] == self.metric) & (scores["target"] == "mean")]
        return tuple(shown["layer"].unique())  # as they were fitted

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Names of the C targets."""
        return _names(self.entities, "true_")

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the group columns, without the prefix."""
        return _names(self.entities, "group_")

    @property
    def label(self) -> str:
        """The column whose class labels are the target; "" where the targets are numbers."""
        return str(self.result.get("label", ""))

    @property
    def classes(self) -> tuple[str, ...]:
        """The K classes of a label, in the order of the probes' columns."""
        return tuple(self.result.get("classes", ()))

    @property
    def states_from(self) -> str | None:
        """The file of the states where they were made elsewhere; None of a run that has a model."""
        return self.result.get("states_from")

    @property
    def metric(self) -> str:
        """What tells how well a probe reads: "r2", or of class labels "accuracy"."""
        return "accuracy" if self.label else "r2"

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
    def dataset(self) -> str:
        """The entity table's name."""
        return str(self.scores["dataset"].iloc[0])

    @property
    def prompt(self) -> str:
        """The prompt's name, as tables of scores have it."""
        return str(self.scores["prompt"].iloc[0])

    @property
    def wording(self) -> str:
        """What the model read, for people: the prompt's template, and what was done to the name or put before it."""
        return str(self.result.get("prompt", self.prompt))

    @property
    def full_prompt(self) -> Prompt:
        """The prompt with all that was put around it: of a chat as it was then, as templates may write the date."""
        prompt = find_prompt(self.dataset, self.settings.prompt)
        if not self.settings.chat:
            return prompt
        return prompt._replace(template=str(self.config["inputs"]["prompt"]), said=prompt.template)

    @property
    def read_at(self) -> str:
        """Where in a name the states were read, for people."""
        position = self.config.get("settings", {}).get("position", "last")
        return "averaged over each name's tokens" if position == "mean" else f"at each name's {position} token"

    @property
    def chosen_by(self) -> str:
        """What chose the headline layer and the penalties, on the training rows."""
        return str(self.result.get("chosen_by", "leave-one-out"))

    @property
    def notes(self) -> list[str]:
        """What was noticed on reading the table and the names, one sentence each."""
        return list(map(str, self.result.get("notes", ())))

    @property
    def attribution(self) -> str:
        """Who made the table and, for places, the coastlines."""
        table = str(self.result.get("attribution", "")).rstrip(". ")
        return " · ".join(part for part in (table, "Coastlines: Natural Earth" if self.is_place else "") if part)

    def unit(self, target: str) -> str:
        """The target's unit ("degree", "year"), or "" where it has none or none was written."""
        return str(self.result.get("units", {}).get(target, ""))

    # ---- Scores ----------------------------------------------------------------------------------------------------

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

    def check_together(self) -> None:
        """Checks that the run's tables belong together.

        Raises:
          InputError: a file is missing or malformed; scores of several models, data sets or prompts; no headline layer;
            a prediction for a row that is not a test row; targets that differ between the files.
        """
        scores, entities, predictions = self.scores, self.entities, self.predictions
        problems = [
            f"{self.directory.scores_path} holds {scores[name].nunique()} values of {name}, wanted one in a run."
            for name in ("model", "dataset", "prompt")
            if scores[name].nunique() != 1
        ]
        for name, found in (("scores", self.layers), ("predictions", tuple(predictions["layer"].unique()))):
            if self.headline_layer not in found:
                problems.append(
                    f"{self.path}: the headline layer {self.headline_layer!r} has no test {name} (layers with them: "
                    f"{', '.join(found) or 'none'}). config.json says it as result.headline_layer."
                )
        predicted = _names(predictions, "predicted_")
        if self.targets != predicted:
            problems.append(
                f"{self.path}: entities have targets {', '.join(self.targets)}, predictions {', '.join(predicted)}."
            )
        test_rows = entities.loc[entities["split"] == "test", "row"]
        if strangers := int((~predictions["row"].isin(test_rows)).sum()):
            path = self.directory.predictions_path
            problems.append(f"{path}: {strangers} predictions are for rows that are no test entities.")
        if problems:
            raise InputError(*problems, f"Write the run's files anew with: {self.directory.mend_command()}")

    # ---- Probes, states, model -------------------------------------------------------------------------------------

    @cached_property
    def probes(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of probes.safetensors and its metadata, in which states, targets and units are lists."""
        return self.directory.read_probes()

    @cached_property
    def activations(self) -> "Activations":
        """State -> [N, D], the stored states in the table's row order.

        Raises:
          InputError: the run keeps none, they are not complete, or they are another run's.
        """
        from jaxprobe.extract.store.plain import PlainStates
        from jaxprobe.extract.store.reader import open_activations  # imports JAX

        if self.states_from is not None:
            return PlainStates(self.states_from)
        path = self.directory.activations_path
        if not path.is_dir():
            again = f"jaxprobe run --config {shlex.quote(str(self.path))} --store --out NEW_FOLDER"
            raise InputError(f"{self.path} has no stored states. Make them with: {again}")
        opened = open_activations(path)
        inputs = self.config.get("inputs")
        if isinstance(inputs, dict) and dict(opened.manifest.settings) != inputs:
            raise InputError(
                f"{path} holds states of other weights, tokens or another prompt than {self.directory.config_path} "
                f"says. Put the run's own back, or remove that folder and run: {self.directory.mend_command()}"
            )
        return opened

    def check_last_token(self) -> None:
        """Raises InputError where the states are not those of the names' last tokens, at which alone edits are made."""
        position = self.settings.position
        if position != "last":
            again = f"jaxprobe run --config {shlex.quote(str(self.path))} --position last --out NEW_FOLDER"
            raise InputError(
                f"{self.path} was read at position {position} of each name, and what is changed here is the state of "
                f"its last token. Make a run of that: {again}"
            )

    def open_model(self, state: str | None = None, *, head: bool = False) -> "ModelFiles":
        """The run's model as it lies there now, its weights not read yet.

        Args:
          state: what is to be computed; later blocks are not wanted. Default: all of them.
          head: whether the output head is wanted as well.

        Raises:
          InputError: as `models.load.open_model`, or its weights are not those that the run was made from.
        """
        from jaxprobe.models.files.digest import weights_digest
        from jaxprobe.models.load import open_model

        if self.states_from is not None:
            raise InputError(
                f"{self.path} was made from states of your own ({self.states_from}), so there is no model to read. "
                "Apply its probes to states with jaxprobe.load_probes."
            )
        settings = self.settings
        files = open_model(
            settings.model,
            revision=settings.revision,
            tokenizer=settings.tokenizer,
            last_layer=None if state is None else last_block([Site.parse(state)]),
            prepend=settings.prepend,
            head=head,
        )
        inputs = self.config.get("inputs")
        kept = inputs.get("weights_sha256") if isinstance(inputs, dict) else None
        if kept is not None and kept != (found := weights_digest(files.checkpoint)):
            again = f"jaxprobe run --config {shlex.quote(str(self.path))} --out NEW_FOLDER"
            raise InputError(
                f"{files.source.path} has other weights than those that {self.path} was made from (digest "
                f"{found[:12]}, the run's {str(kept)[:12]}). Put the run's weights back, or make a new run: {again}"
            )
        return files


def _names(frame: pd.DataFrame, prefix: str) -> tuple[str, ...]:
    return tuple(str(name).removeprefix(prefix) for name in frame.columns if str(name).startswith(prefix))
