"""Where is it, or when? A finished run's probe on names of one's own."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxprobe.data.prompt import find_prompt
from jaxprobe.data.sphere import places_of
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import extract_states
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Reporter, default_reporter
from jaxprobe.models.load import fit_mesh, read_weights
from jaxprobe.models.placement import place
from jaxprobe.probes.labels import ClassFit, class_scores
from jaxprobe.probes.metrics import great_circle_km
from jaxprobe.probes.ridge import RidgeFit, predict_layer
from jaxprobe.results.results import Run
from jaxprobe.settings import is_utf8

LEVEL = 0.9


def predict(run: AnyPath | Run, texts: Sequence[str], reporter: Reporter | None = None) -> pd.DataFrame:
    """Predictions of a run's headline probe for names, under the run's own prompt, with 90 % intervals.

    The interval is split-conformal (Vovk, Gammerman & Shafer 2005; Lei et al. 2018): as wide as the error that 90 % of
    the run's test rows stay within. Neither the probe nor the choice of its layer has seen these rows, so a new name
    drawn as they were lies in its interval with a probability of at least 90 %; a name of another kind need not.

    Args:
      run: a finished run, or its folder.
      texts: names as the table spells them, without a prompt.
      reporter: shows the long parts.

    Returns:
      One row a text: ``text``, and for places ``latitude``, ``longitude`` and ``radius_km`` of the circle around them;
      of class labels the likeliest and its ``probability``; else each target with ``<target>_low`` and
      ``<target>_high``. Infinite where there are fewer than 9 test rows.

    Raises:
      InputError: no finished run, no text, another model's weights where the run's were, or whatever stands in the way
        of running the model.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not texts or not all(text.strip() and is_utf8(text) for text in texts):
        raise InputError('No text to predict for, or one that is empty or not UTF-8. Name some: --text "Lima" "Oslo".')
    arrays, metadata = run.probes
    state, targets = run.headline_layer, run.targets
    if run.label:
        return _predict_labels(run, texts, state, reporter or default_reporter())
    found, truth = run.predicted(state)
    x = _read_state(run, texts, state, reporter or default_reporter())
    nothing = np.empty(0)
    fit = RidgeFit(arrays["weights"], arrays["intercept"], arrays["x_mean"], nothing, nothing, nothing, nothing)
    predicted = predict_layer(fit, metadata["states"].index(state), x)
    if metadata.get("fitted") == "unit_vectors":
        predicted = places_of(predicted)
    frame = pd.DataFrame({"text": list(texts)} | dict(zip(targets, predicted.T, strict=True)))
    if run.is_place:
        return frame.assign(radius_km=conformal_width(great_circle_km(found, truth)))
    widths = conformal_width(np.abs(found - truth))
    for target, width in zip(targets, widths, strict=True):
        frame[f"{target}_low"], frame[f"{target}_high"] = frame[target] - width, frame[target] + width
    return frame


def _predict_labels(run: Run, texts: Sequence[str], state: str, reporter: Reporter) -> pd.DataFrame:
    arrays, metadata = run.probes
    x = _read_state(run, texts, state, reporter)
    nothing = np.empty(0)
    fit = ClassFit(run.classes, arrays["weights"], arrays["intercept"], nothing, nothing)
    log_p = class_scores(fit, metadata["states"].index(state), x)
    labels = np.array(run.classes, object)[log_p.argmax(axis=1)]
    return pd.DataFrame({"text": list(texts), run.label: labels, "probability": np.exp(log_p.max(axis=1))})


def conformal_width(errors: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The error [...] that a new one stays within with probability ``level``, from errors [N, ...] like it.

    The ceil((N + 1) level)-th smallest; infinite where N is too small to promise as much.
    """
    rank = int(np.ceil((len(errors) + 1) * level - 1e-9))  # (9 + 1) * 0.9 is a little more than 9 in binary
    if rank > len(errors):
        return np.full(errors.shape[1:], np.inf)
    return np.sort(errors, axis=0)[rank - 1]


def _read_state(run: Run, texts: Sequence[str], state: str, reporter: Reporter) -> np.ndarray:
    """[N, D] the state of each text, as the run would have made it."""
    settings, files = run.settings, run.open_model(state)
    mesh, _ = place(files.config, None, settings.dtype)  # this machine's, not the run's
    model = read_weights(fit_mesh(files, mesh, settings.replicate_kv), mesh, settings.dtype, reporter)
    prompt = find_prompt(run.dataset, settings.prompt)
    options = {"seed": settings.seed, "position": settings.position, "progress": reporter}
    return extract_states(model, texts, prompt, sites=(state,), **options)[state]
