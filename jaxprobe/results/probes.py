"""A run's probes without the run: read from a folder, a file or a hub, and applied to anyone's states."""

import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from jaxprobe.data.sphere import places_of
from jaxprobe.errors import InputError, first_line
from jaxprobe.host.paths import as_path
from jaxprobe.results.folder import RunDirectory, read_probes_file

FILE = "probes.safetensors"


class Probes:
    """The fitted probes of every state, as NumPy arrays.

    Attributes:
      states: L names of states; headline: the one that was chosen on the training rows.
      targets: C names, with their ``units``; of class labels one name and ``classes``, K labels.
      arrays: weights [L, D, C], intercept [L, C], and what else probes.safetensors holds.
    """

    def __init__(self, arrays: dict[str, np.ndarray], metadata: dict[str, Any]):
        self.arrays = arrays
        self.states = tuple(metadata["states"])
        self.headline = str(metadata["headline_layer"])
        self.targets, self.units = tuple(metadata["targets"]), tuple(metadata["units"])
        self.classes = tuple(metadata.get("classes", ()))
        self._on_sphere = metadata.get("fitted") == "unit_vectors"

    def __repr__(self) -> str:
        return f"Probes({len(self.states)} states; {', '.join(self.targets)}; headline {self.headline})"

    def predict(self, x: np.ndarray, state: str | None = None) -> np.ndarray:
        """Predictions [N, C] in target units for states x [N, D]; of class labels the likeliest of each row, [N].

        Args:
          state: which state x is; default: the headline's.
        Raises:
          InputError: a state that has no probe, or x of another width.
        """
        scores = self._scores(x, state)
        if self.classes:
            return np.array(self.classes, object)[scores.argmax(axis=1)]
        return places_of(scores) if self._on_sphere else scores

    def probabilities(self, x: np.ndarray, state: str | None = None) -> np.ndarray:
        """Probabilities [N, K] of the classes for states x [N, D]. Raises InputError as `predict`."""
        if not self.classes:
            raise InputError(f"These probes read {', '.join(self.targets)}, which are numbers: they have no classes.")
        scores = self._scores(x, state)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def _scores(self, x: np.ndarray, state: str | None) -> np.ndarray:
        state = self.headline if state is None else state
        if state not in self.states:
            raise InputError(f"There is no probe of state {state!r}; there are those of {', '.join(self.states)}.")
        layer, x = self.states.index(state), np.asarray(x, np.float64)
        weights = self.arrays["weights"][layer].astype(np.float64)
        if x.ndim != 2 or x.shape[1] != len(weights):
            raise InputError(f"x has shape {list(x.shape)}; wanted [row, {len(weights)}], states of the probes' model.")
        return x @ weights + self.arrays["intercept"][layer]


def load_probes(source: str | PathLike, revision: str | None = None) -> Probes:
    """The probes of a run: its folder, a probes.safetensors, or the hub name that `jaxprobe push` gave them.

    Raises:
      InputError: nothing is there, it can't be read, or it holds no probes of jaxprobe.
    """
    path = as_path(source)
    if path.is_dir():
        return _checked(*RunDirectory(path).read_probes(), source)
    if path.is_file():
        return _checked(*read_probes_file(path), source)
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"There is no {source}. Name a run's folder, a probes.safetensors, or a hub name ORG/NAME.")
    return _checked(*read_probes_file(Path(_fetch(name, revision))), source)


def _fetch(name: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return hf_hub_download(name, FILE, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{name} is no folder here, and its {FILE} can't be fetched from the hub: {first_line(error)}. Mend the "
            "name."
        ) from error


def _checked(arrays: dict[str, np.ndarray], metadata: dict[str, Any], source: str | PathLike) -> Probes:
    needed = {"states", "targets", "units", "headline_layer"} - set(metadata) | {"weights", "intercept"} - set(arrays)
    if needed:
        raise InputError(f"{source} holds no probes of jaxprobe: {', '.join(sorted(needed))} is missing.")
    return Probes(arrays, metadata)
