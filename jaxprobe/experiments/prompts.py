"""Does a probe of one prompt read another one's states? Trained on each prompt, tested on each."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from jaxprobe.data.entities import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.tables import require_states, score_metrics, tidy_scores
from jaxprobe.probes.metrics import paired_difference, score
from jaxprobe.probes.ridge import fit_ridge, predict_layer


def run(
    prompts: Mapping[str, Mapping[str, np.ndarray]],
    table: EntityTable,
    state: str,
    *,
    model: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """The full matrix of training and testing prompts, on the same test rows.

    Args:
      prompts: prompt -> (state -> [N, D]), each in the table's row order.
      state: the state whose probes are looked at.

    Returns:
      A tidy table: ``prompt`` is the one tested on, ``train_prompt`` the one trained on; ``centring`` is "raw", or
      "recentred" where the tested states were moved by the difference of the two prompts' means over the training rows.
      Metrics are r2, error_km_median for places, and ``r2_difference``, R2 less that of the tested prompt's own probe
      (paired). 95 % intervals by a bootstrap over test rows, probes fixed.

    Raises:
      InputError: fewer than two prompts, a state that is not there, or rows or widths that don't match.
    """
    if len(prompts) < 2:
        raise InputError(f"Transfer needs two prompts or more; found {', '.join(prompts) or 'none'}. Run another one.")
    for activations in prompts.values():
        require_states(activations, table, [state])
    test, truth = table.is_test, table.targets[table.is_test]
    states = {prompt: activations[state] for prompt, activations in prompts.items()}
    fits = {name: fit_ridge(x[None, ~test], table.targets[~test], names=[state]) for name, x in states.items()}
    own = {name: predict_layer(fits[name], 0, x[test]) for name, x in states.items()}
    frames = []
    for trained, fit in fits.items():
        for tested, x in states.items():
            # Both means are those of training rows, so that the test rows take no part in the move.
            moved = x[test] + (fit.x_mean[0] - x[~test].mean(0, dtype=np.float64))[None]
            for centring, rows in {"raw": x[test], "recentred": moved}.items():
                predicted = predict_layer(fit, 0, rows)[None]
                options = dict(places=table.is_place, seed=seed)
                found = score(truth, predicted, metrics=score_metrics(table), **options)
                if trained != tested:
                    less = paired_difference(truth, predicted, own[tested][None], metrics=("r2",), **options)
                    found["r2_difference"] = less["r2"]
                names = dict(model=model, prompt=tested, train_prompt=trained, centring=centring)
                frames.append(tidy_scores(table, found, [state], fit.alpha, **names))
    return pd.concat(frames, ignore_index=True)
