"""The files of a run, in one place: what they are called, what they hold, and how they are written.

A run directory holds
  config.json                 settings, versions, fingerprint, inputs (digests of weights and tokens), paths (where what
                              the settings name lay) and, once the run has ended, its result and its files' digests
  activations/                the hidden states (an Orbax store; written by jaxprobe.extract)
  probes.safetensors          the fitted probes
  scores.parquet, scores.csv  one row for each model, dataset, prompt, layer, target, split and metric
  controls.parquet            the headline layer beside its controls: the columns of scores, control and resampled
  entities.parquet            the table as it was read: row, text, split, group_<name>, true_<target>
  predictions.parquet         test rows at every layer: layer, row, predicted_<target>, and error_km for places; of
                              class labels the likeliest, its probability and that of the true one
  figures/, report.html       what people look at
  world/                      where the run's model was made for it (`jaxprobe world`): its world and its weights

Every file is written under another name and then moved to its place, or in a bucket uploaded whole, so a reader (or an
interrupted run) finds the old file or the new one, never half of one.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_integer_dtype, is_string_dtype
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, absolute, as_path, differences, file_size, is_local, local_copy, replacing
from jaxprobe.html import html_table, scores_in_words
from jaxprobe.settings import mend_command

SCORE_KEYS = ("model", "dataset", "prompt", "layer", "target", "split", "metric")
SCORE_VALUES = ("value", "ci_low", "ci_high", "alpha")
CONTROL_KEYS = (*SCORE_KEYS, "control", "resampled")
SPLITS = ("train", "test")
# What nothing but the run itself may write; `jaxprobe report` writes report.html and figures as well.
_DATA_FILES = ("probes.safetensors", "scores.parquet", "entities.parquet", "predictions.parquet", "controls.parquet")
_OWN = {*_DATA_FILES, "config.json", "scores.csv", "activations", "figures"}


@dataclass(frozen=True)
class RunDirectory:
    """A run's folder, or its address in a bucket. Making the object touches no file; writing makes the folder.

    Raises:
      InputError: an address that can't be used.
    """

    path: AnyPath

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_path(self.path))

    @property
    def config_path(self) -> AnyPath:
        """Settings, versions, fingerprint, and the result of a run that has ended."""
        return self.path / "config.json"

    @property
    def activations_path(self) -> AnyPath:
        """The folder of the activation store."""
        return self.path / "activations"

    @property
    def probes_path(self) -> AnyPath:
        """The fitted probes."""
        return self.path / "probes.safetensors"

    @property
    def scores_path(self) -> AnyPath:
        """The tidy score table; `scores.csv` beside it holds the same."""
        return self.path / "scores.parquet"

    @property
    def scores_csv_path(self) -> AnyPath:
        """The score table for a spreadsheet."""
        return self.path / "scores.csv"

    @property
    def controls_path(self) -> AnyPath:
        """The headline layer beside its controls."""
        return self.path / "controls.parquet"

    @property
    def entities_path(self) -> AnyPath:
        """The entity table with its true targets."""
        return self.path / "entities.parquet"

    @property
    def predictions_path(self) -> AnyPath:
        """Predictions for the test rows at every layer."""
        return self.path / "predictions.parquet"

    @property
    def figures_path(self) -> AnyPath:
        """The folder of PNG and SVG figures."""
        return self.path / "figures"

    @property
    def report_path(self) -> AnyPath:
        """The page to open in a browser."""
        return self.path / "report.html"

    @property
    def is_fitted(self) -> bool:
        """Whether the run ended and everything but its report is there, as it was written, to the last shard."""
        return self.config_path.is_file() and "result" in self.read_config() and not self.damage()

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do: the run ended, its files are as it wrote them, and the report is there."""
        return self.is_fitted and self.report_path.is_file()

    def damage(self) -> list[str]:
        """What is missing of a run that has ended, or is not as it was written: one problem a file."""
        config = self.read_config()
        stored = config.get("settings", {}).get("store", True)
        problems: list[str] = []
        for name in _DATA_FILES:
            if name != "controls.parquet" or stored:  # controls are made from stored states
                try:
                    self._require_intact(self.path / name, config)
                except InputError as error:
                    problems += error.problems
        if not self.scores_csv_path.is_file():
            problems.append(f"{self.scores_csv_path} is missing.")
        if stored and self.activations_path.is_dir():  # without it the run is done: its owner wanted the space
            from jaxprobe.extract.store.reader import open_activations  # imports JAX

            try:
                open_activations(self.activations_path)
            except InputError as error:
                problems += error.problems
        return problems

    def mend_command(self, *options: str) -> str:
        """The command that writes anew what is missing or damaged, from any folder."""
        return mend_command(self.path, *options)

    def digests(self) -> dict[str, dict[str, Any]]:
        """File -> its size in bytes and SHA-256, of those that hold results."""
        files = (self.path / name for name in _DATA_FILES)
        return {file.name: {"bytes": file_size(file), "sha256": _sha256(file)} for file in files if file.is_file()}

    def _require_intact(self, path: AnyPath, config: Mapping[str, Any] | None = None) -> None:
        """Raises InputError where a file is missing or not as it was written, with the command that mends it."""
        remedy = f"Write it anew with: {self.mend_command()}"
        if not path.is_file():
            raise InputError(f"{path} is missing. {remedy}" if self._has_result(config) else _not_a_run(path))
        if config is None:
            config = self.read_config() if self.config_path.is_file() else {}
        files = config.get("files")
        kept = files.get(path.name) if isinstance(files, dict) else None
        if not isinstance(kept, dict):  # a run of an older version, or one that is being written
            return
        same = file_size(path) == kept.get("bytes") and (not is_local(path) or _sha256(path) == kept.get("sha256"))
        if not same:
            raise InputError(f"{path} is not as the run wrote it: damaged, or changed since. {remedy}")

    def _has_result(self, config: Mapping[str, Any] | None) -> bool:
        if config is None and self.config_path.is_file():
            config = self.read_config()
        return bool(config) and "result" in config

    def _repr_html_(self) -> str:
        """For notebooks: the figures and the test scores of a finished run."""
        if not self.is_complete:
            return html_table(["run", ""], [(self.path, "not finished")])
        heads, rows, marked = scores_in_words(self.read_scores(), self.read_config()["result"]["headline_layer"])
        pictures = "".join(
            f'<img alt="" style="max-width:100%" src="data:image/png;base64,{b64encode(file.read_bytes()).decode()}">'
            for file in sorted(self.figures_path.glob("*.png"))
        )
        return pictures + html_table(heads, rows, f"Test scores. Report: {self.report_path}", marked)

    def check_owner(self, config: Mapping[str, Any], *, repair: bool = False) -> None:
        """Refuse a folder that belongs to something else; an empty, absent or own folder passes.

        Args:
          config: what this run would write, with "fingerprint" and "settings".
          repair: take a folder whose config.json can't be read for this run's own; its states are still compared.
        Raises:
          InputError: the folder holds a run with another fingerprint (each differing setting is shown, found against
            wanted), or files but no config.json.
        """
        if not self.config_path.is_file():
            found = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
            found = [name for name in found if not name.startswith(".") and name != "world"]
            if found:
                raise InputError(
                    f"{self.path} holds files but no config.json, so it is not a run of jaxprobe (found "
                    f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}). Name an empty or a new folder."
                )
            return
        try:
            existing = self.read_config()
        except InputError:
            if repair:
                return
            raise
        if existing.get("fingerprint") == config["fingerprint"]:
            return
        settings = existing.get("settings")
        lines = list(differences(settings if isinstance(settings, dict) else {}, config.get("settings", {})))
        lines = lines or [
            f"  fingerprint: {existing.get('fingerprint')} there, {config['fingerprint']} wanted (settings are equal; "
            "the weights, the table or the version of jaxprobe changed)"
        ]
        raise InputError(
            f"{self.path} belongs to another run. Name another folder, or remove this one. What differs:\n"
            + "\n".join(lines)
        )

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether config.json is there, can be read, and has this run's fingerprint."""
        try:
            return self.read_config().get("fingerprint") == config["fingerprint"]
        except InputError:
            return False

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json: "settings", "versions", "fingerprint" and, when the run has ended, "result"."""
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with replacing(self.config_path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """Read config.json. Raises InputError where it is absent or is not a JSON object."""
        if not self.config_path.is_file():
            raise InputError(_not_a_run(self.config_path))
        remedy = "Give the run's own command again with --repair, which writes it anew."
        try:
            config = json.loads(self.config_path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.config_path} is not valid JSON ({error}). {remedy}") from None
        if not isinstance(config, dict):
            raise InputError(f"{self.config_path} holds a {type(config).__name__}, not a JSON object. {remedy}")
        odd = [name for name in ("settings", "result", "files") if not isinstance(config.get(name, {}), dict)]
        if odd:
            raise InputError(f"{self.config_path}: {', '.join(odd)} should be an object. {remedy}")
        return config

    def read_result(self) -> dict[str, Any]:
        """What config.json holds of a run that has ended. Raises InputError where it has not."""
        config = self.read_config()
        if "result" not in config:
            raise InputError(f"{self.path} is not finished. Go on with: {self.mend_command()}")
        return config["result"]

    def write_scores(self, scores: pd.DataFrame) -> None:
        """Write scores.parquet and scores.csv: columns SCORE_KEYS (strings) and SCORE_VALUES (floats).

        A value without an interval or a penalty has NaN in ci_low, ci_high or alpha.
        """
        _check_scores("scores", scores, SCORE_KEYS)
        _write_parquet(scores, self.scores_path)
        with replacing(self.scores_csv_path) as temporary:
            scores.to_csv(temporary, index=False)

    def read_scores(self) -> pd.DataFrame:
        """Read and check scores.parquet."""
        scores = self._read_parquet(self.scores_path)
        _check_scores("scores", scores, SCORE_KEYS)
        return scores

    def write_controls(self, controls: pd.DataFrame) -> None:
        """Write controls.parquet: the columns of scores with two more strings, ``control`` and ``resampled``."""
        _check_scores("controls", controls, CONTROL_KEYS)
        _write_parquet(controls, self.controls_path)

    def read_controls(self) -> pd.DataFrame:
        """Read and check controls.parquet."""
        controls = self._read_parquet(self.controls_path)
        _check_scores("controls", controls, CONTROL_KEYS)
        return controls

    def write_entities(self, entities: pd.DataFrame) -> None:
        """Write entities.parquet: row (unique integer), text, split, group_<name> strings, true_<target> floats."""
        _check_entities(entities)
        _write_parquet(entities, self.entities_path)

    def read_entities(self) -> pd.DataFrame:
        """Read and check entities.parquet."""
        entities = self._read_parquet(self.entities_path)
        _check_entities(entities)
        return entities

    def write_predictions(self, predictions: pd.DataFrame) -> None:
        """Write predictions.parquet: layer, row, predicted_<target> floats and, for places, error_km."""
        _check_predictions(predictions)
        _write_parquet(predictions, self.predictions_path)

    def read_predictions(self) -> pd.DataFrame:
        """Read and check predictions.parquet."""
        predictions = self._read_parquet(self.predictions_path)
        _check_predictions(predictions)
        return predictions

    def write_probes(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str | Sequence[str]]) -> None:
        """Write probes.safetensors; metadata holds strings, among them "headline_layer", and lists of strings."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        texts = {name: value if isinstance(value, str) else json.dumps(list(value)) for name, value in metadata.items()}
        with replacing(self.probes_path) as temporary:
            # Not save_file: it makes a file that only its owner can read.
            temporary.write_bytes(save(contiguous, metadata=texts))

    def read_probes(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Read the arrays of probes.safetensors and its metadata; states, targets and units are lists of strings."""
        self._require_intact(self.probes_path)
        try:
            return read_probes_file(self.probes_path)
        except InputError as error:
            raise InputError(f"{error} Write it anew with: {self.mend_command()}") from None

    def _read_parquet(self, path: AnyPath) -> pd.DataFrame:
        self._require_intact(path)
        try:
            with local_copy(path) as copy:
                return pd.read_parquet(copy)
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
            remedy = f"Write it anew with: {self.mend_command()}"
            raise InputError(f"{path} cannot be read as Parquet ({error}). {remedy}") from None


def read_probes_file(path: AnyPath) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a probes.safetensors and its metadata; states, targets, units and classes are lists of strings.

    Raises:
      InputError: it can't be read.
    """
    try:
        with local_copy(path) as copy, safe_open(copy, framework="numpy") as file:
            arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        lists = ("states", "targets", "units", "classes")
        return arrays, metadata | {name: _read_names(metadata[name]) for name in lists if name in metadata}
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as probes ({error}).") from None


def refuse_own_file(out: AnyPath) -> None:
    """Raises InputError where ``out`` is, or lies in, a file or folder that only a run itself writes."""
    place = absolute(out)
    place = place.resolve() if is_local(place) else place
    for folder in place.parents:
        config = folder / "config.json"
        if place.relative_to(folder).parts[0] in _OWN and config.is_file() and b'"fingerprint"' in config.read_bytes():
            raise InputError(f"{out} is a file of the run in {folder}. Name another with --out.")


def _write_parquet(frame: pd.DataFrame, path: AnyPath) -> None:
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _not_a_run(path: AnyPath) -> str:
    return f"{path} is missing, so {path.parent} is not a run, or the run has not got that far."


def _sha256(path: AnyPath) -> str:
    with local_copy(path) as copy, copy.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_names(text: str) -> list[str]:
    """A list of the probes' metadata: JSON, or in runs of version 0.1 joined by commas."""
    return json.loads(text) if text.startswith("[") else text.split(",")


def _check_scores(table: str, scores: pd.DataFrame, keys: tuple[str, ...]) -> None:
    columns = dict.fromkeys(keys, "string") | dict.fromkeys(SCORE_VALUES, "float")
    problems = _column_problems(table, scores, columns)
    problems += [f"{table}: unknown column {name!r}. Remove it." for name in scores.columns if name not in columns]
    problems = problems or _split_problems(table, scores)
    if not problems and (repeated := int(scores.duplicated(list(keys)).sum())):
        problems.append(f"{table}: {repeated} rows repeat another row's {', '.join(keys)}. Keep one of each.")
    _raise(problems)


def _check_entities(entities: pd.DataFrame) -> None:
    columns = {"row": "integer", "text": "string", "split": "string"}
    columns |= {name: "string" for name in entities.columns if str(name).startswith("group_")}
    columns |= _target_columns(entities, "true_")
    problems = _column_problems("entities", entities, columns)
    if not _target_columns(entities, "true_"):
        problems.append("entities: no column true_<target>, found " + ", ".join(map(str, entities.columns)) + ".")
    problems = problems or _split_problems("entities", entities)
    if not problems and (repeated := int(entities["row"].duplicated().sum())):
        problems.append(f"entities: {repeated} values of row occur twice. Each entity has its own row number.")
    _raise(problems)


def _check_predictions(predictions: pd.DataFrame) -> None:
    columns = {"layer": "string", "row": "integer"}
    columns |= _target_columns(predictions, "predicted_")
    measures = ("error_km", "probability", "true_probability")
    columns |= {name: "float" for name in measures if name in predictions.columns}
    problems = _column_problems("predictions", predictions, columns)
    if not any(name.startswith("predicted_") for name in columns):
        found = ", ".join(map(str, predictions.columns))
        problems.append(f"predictions: no column predicted_<target>, found {found}.")
    if not problems and (repeated := int(predictions.duplicated(["layer", "row"]).sum())):
        problems.append(f"predictions: {repeated} pairs of layer and row occur twice. Keep one of each.")
    _raise(problems)


def _target_columns(frame: pd.DataFrame, prefix: str) -> dict[str, str]:
    """The targets' columns and their kind: numbers, or of a class label strings."""
    names = [name for name in frame.columns if str(name).startswith(prefix)]
    return {name: "string" if len(names) == 1 and is_string_dtype(frame[name]) else "float" for name in names}


def _column_problems(table: str, frame: pd.DataFrame, columns: Mapping[str, str]) -> list[str]:
    """What is wrong with the columns: missing, of another kind, or (strings and integers) with missing values."""
    kinds = {"string": is_string_dtype, "float": is_float_dtype, "integer": is_integer_dtype}
    missing = [name for name in columns if name not in frame.columns]
    problems = []
    if missing:
        found = ", ".join(map(str, frame.columns)) or "none"
        problems.append(f"{table}: missing column {', '.join(missing)} (found {found}).")
    for name, kind in columns.items():
        if name in missing:
            continue
        if not kinds[kind](frame[name]):
            problems.append(f"{table}: column {name!r} holds {frame[name].dtype}, wanted {kind}.")
        elif kind != "float" and (empty := int(frame[name].isna().sum())):
            problems.append(f"{table}: column {name!r} has {empty} missing values; it needs one in every row.")
    return problems


def _split_problems(table: str, frame: pd.DataFrame) -> list[str]:
    unknown = sorted(set(frame["split"]) - set(SPLITS))
    return [f"{table}: split holds {', '.join(map(repr, unknown))}, wanted 'train' or 'test'."] if unknown else []


def _raise(problems: list[str]) -> None:
    if problems:
        raise InputError(*problems)
