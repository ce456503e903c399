"""Where is it, or when? A finished run's probe on names of one's own."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxprobe.data.sphere import places_of
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import TokenStates, extract_states
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Reporter, default_reporter
from jaxprobe.models.load import fit_mesh, read_weights
from jaxprobe.models.placement import place
from jaxprobe.probes.labels import ClassFit, class_scores
from jaxprobe.probes.metrics import great_circle_km
from jaxprobe.probes.ridge import RidgeFit, predict_layer
from jaxprobe.results.results import Run
from jaxprobe.settings import Position, is_utf8

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
    _check_texts(texts)
    state, reporter = run.headline_layer, reporter or default_reporter()
    found, truth = (np.empty(0), np.empty(0)) if run.label else run.predicted(state)
    x = _read_states(run, texts, (state,), run.settings.position, reporter)[state]
    frame = pd.DataFrame({"text": list(texts)} | _read_out(run, state, x))
    if run.label:
        return frame
    if run.is_place:
        return frame.assign(radius_km=conformal_width(great_circle_km(found, truth)))
    widths = conformal_width(np.abs(found - truth))
    for target, width in zip(run.targets, widths, strict=True):
        frame[f"{target}_low"], frame[f"{target}_high"] = frame[target] - width, frame[target] + width
    return frame


def predict_tokens(run: AnyPath | Run, texts: Sequence[str], reporter: Reporter | None = None) -> pd.DataFrame:
    """What a run's probes read at every token of texts, under the run's own prompt.

    The probes are fitted on one token of a name (or the mean of its tokens): what they say of others is what these
    have in common with it. There are no intervals, as the run has no test errors of such tokens.

    Args:
      run: a finished run, or its folder.
      texts: of any length that the model takes.
      reporter: shows the long parts.

    Returns:
      One row a text, token and state that the run has a probe of: ``row`` (the text's number), ``text``, ``at`` (the
      token's number in it), ``token`` as the vocabulary spells it, ``layer``, and the targets, or of class labels the
      likeliest and its ``probability``.

    Raises:
      InputError: as `predict`.
    """
    run = run if isinstance(run, Run) else Run(run)
    _check_texts(texts)
    names = tuple(run.probes[1]["states"])
    states = _read_states(run, texts, names, "all", reporter or default_reporter())
    assert isinstance(states, TokenStates)
    rows = {
        "row": states.entities,
        "text": [texts[entity] for entity in states.entities],
        "at": np.arange(len(states.entities)) - np.searchsorted(states.entities, states.entities),
        "token": states.tokens,
    }
    layers = [
        pd.DataFrame(rows | {"layer": name} | _read_out(run, name, states[name])).assign(order=order)
        for order, name in enumerate(names)
    ]
    return pd.concat(layers).sort_values(["row", "at", "order"], ignore_index=True).drop(columns="order")


def _check_texts(texts: Sequence[str]) -> None:
    if not texts or not all(text.strip() and is_utf8(text) for text in texts):
        raise InputError('No text to predict for, or one that is empty or not UTF-8. Name some: --text "Lima" "Oslo".')


def _read_out(run: Run, state: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the probe of a state says of states [N, D]: each target, or of labels the likeliest and its probability."""
    arrays, metadata = run.probes
    at, nothing = metadata["states"].index(state), np.empty(0)
    if run.label:
        log_p = class_scores(ClassFit(run.classes, arrays["weights"], arrays["intercept"], nothing, nothing), at, x)
        likeliest = np.array(run.classes, object)[log_p.argmax(axis=1)]
        return {run.label: likeliest, "probability": np.exp(log_p.max(axis=1))}
    fit = RidgeFit(arrays["weights"], arrays["intercept"], arrays["x_mean"], nothing, nothing, nothing, nothing)
    predicted = predict_layer(fit, at, x)
    if metadata.get("fitted") == "unit_vectors":
        predicted = places_of(predicted)
    return dict(zip(run.targets, predicted.T, strict=True))


def conformal_width(errors: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The error [...] that a new one stays within with probability ``level``, from errors [N, ...] like it.

    The ceil((N + 1) level)-th smallest; infinite where N is too small to promise as much.
    """
    rank = int(np.ceil((len(errors) + 1) * level - 1e-9))  # (9 + 1) * 0.9 is a little more than 9 in binary
    if rank > len(errors):
        return np.full(errors.shape[1:], np.inf)
    return np.sort(errors, axis=0)[rank - 1]


def _read_states(
    run: Run, texts: Sequence[str], states: tuple[str, ...], position: Position, reporter: Reporter
) -> Mapping[str, np.ndarray]:
    """States of each text, as the run would have made them."""
    settings, files = run.settings, run.open_model(states[0] if len(states) == 1 else None)
    mesh, _ = place(files.config, None, settings.dtype)  # this machine's, not the run's
    model = read_weights(fit_mesh(files, mesh, settings.replicate_kv), mesh, settings.dtype, reporter)
    options = {"seed": settings.seed, "position": position, "progress": reporter}
    return extract_states(model, texts, run.full_prompt, sites=states, **options)
