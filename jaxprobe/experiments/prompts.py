"""Does a probe of one prompt read another one's states? Trained on each prompt, tested on each."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.probe import fit_probe
from jaxprobe.experiments.tables import require_states, score_beside, tidy_scores


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
    probes = {name: fit_probe(x, table, ~test, state) for name, x in states.items()}
    own = {name: probes[name].predict(x[test]) for name, x in states.items()}
    frames = []
    for trained, probe in probes.items():
        for tested, x in states.items():
            # Both means are those of training rows, so that the test rows take no part in the move.
            moved = x[test] + (probe.fit.x_mean[0] - x[~test].mean(0, dtype=np.float64))[None]
            for centring, rows in {"raw": x[test], "recentred": moved}.items():
                base = None if trained == tested else own[tested]
                found = score_beside(table, truth, probe.predict(rows), base, seed)
                names = dict(model=model, prompt=tested, train_prompt=trained, centring=centring)
                frames.append(tidy_scores(table, found, [state], probe.alpha, **names))
    return pd.concat(frames, ignore_index=True)
