"""Where is it, or when? A finished run's probe on names of one's own."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxprobe.data.sphere import places_of
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import extract_states
from jaxprobe.host.paths import AnyPath
from jaxprobe.models.load import fit_mesh, open_model, read_weights
from jaxprobe.models.placement import place
from jaxprobe.probes.metrics import great_circle_km
from jaxprobe.probes.ridge import RidgeFit, predict_layer
from jaxprobe.results.folder import RunDirectory
from jaxprobe.settings import RunConfig, read_config

LEVEL = 0.9


def predict(run: AnyPath, texts: Sequence[str]) -> pd.DataFrame:
    """Predictions of a run's headline probe for names, under the run's own prompt, with 90 % intervals.

    The interval is split-conformal (Vovk, Gammerman & Shafer 2005; Lei et al. 2018): as wide as the error that 90 % of
    the run's test rows stay within. Neither the probe nor the choice of its layer has seen these rows, so a new name
    drawn as they were lies in its interval with a probability of at least 90 %; a name of another kind need not.

    Args:
      run: the folder of a finished run; names: as the table spells them, without a prompt.

    Returns:
      One row a text: ``text``, and for places ``latitude``, ``longitude`` and ``radius_km`` of the circle around them;
      else each target with ``<target>_low`` and ``<target>_high``. Infinite where there are fewer than 9 test rows.

    Raises:
      InputError: no finished run, no text, or whatever stands in the way of running the model.
    """
    directory = RunDirectory(run)
    directory.read_result()  # raises where the run is not finished
    config = read_config(directory.config_path)
    if not texts or not all(text.strip() for text in texts):
        raise InputError('No text to predict for, or an empty one. Name some: --text "Reykjavik" "Lima".')
    arrays, metadata = directory.read_probes()
    state, targets = metadata["headline_layer"], tuple(metadata["targets"])
    x = _read_state(config, directory.read_scores()["dataset"].iloc[0], texts, state)
    layer = metadata["states"].index(state)
    nothing = np.empty(0)
    fit = RidgeFit(arrays["weights"], arrays["intercept"], arrays["x_mean"], nothing, nothing, nothing, nothing)
    predicted = predict_layer(fit, layer, x)
    if metadata.get("fitted") == "unit_vectors":
        predicted = places_of(predicted)
    frame = pd.DataFrame({"text": list(texts)} | dict(zip(targets, predicted.T, strict=True)))
    found, truth = _test_rows(directory, state, targets)
    if targets == ("latitude", "longitude"):
        return frame.assign(radius_km=conformal_width(great_circle_km(found, truth)))
    widths = conformal_width(np.abs(found - truth))
    for target, width in zip(targets, widths, strict=True):
        frame[f"{target}_low"], frame[f"{target}_high"] = frame[target] - width, frame[target] + width
    return frame


def conformal_width(errors: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The error [...] that a new one stays within with probability ``level``, from errors [N, ...] like it.

    The ceil((N + 1) level)-th smallest; infinite where N is too small to promise as much.
    """
    rank = int(np.ceil((len(errors) + 1) * level - 1e-9))  # (9 + 1) * 0.9 is a little more than 9 in binary
    if rank > len(errors):
        return np.full(errors.shape[1:], np.inf)
    return np.sort(errors, axis=0)[rank - 1]


def _read_state(config: RunConfig, dataset: str, texts: Sequence[str], state: str) -> np.ndarray:
    """[N, D] the state of each text, as the run would have made it."""
    layer = int(state) if state.isdecimal() else None
    final_norm = state == "final_norm"
    files = open_model(
        config.model,
        revision=config.revision,
        tokenizer=config.tokenizer,
        last_layer=None if final_norm else layer or 0,
    )
    mesh, _ = place(files.config, None, config.dtype)  # this machine's, not the run's
    model = read_weights(fit_mesh(files, mesh, config.replicate_kv), mesh, config.dtype)
    unknown, none = np.zeros((len(texts), 1)), np.zeros(len(texts), bool)
    table = EntityTable(dataset, tuple(texts), unknown, ("unknown",), ("",), none)
    kept = () if layer is None else (layer,)
    return extract_states(model, table, config.prompt, layers=kept, final_norm=final_norm, seed=config.seed)[state]


def _test_rows(directory: RunDirectory, state: str, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and true targets [N_test, C] of the run's test rows."""
    predictions = directory.read_predictions()
    predictions = predictions[predictions["layer"] == state]
    entities = directory.read_entities().set_index("row").loc[predictions["row"]]
    found = predictions[[f"predicted_{target}" for target in targets]].to_numpy(np.float64)
    return found, entities[[f"true_{target}" for target in targets]].to_numpy(np.float64)
