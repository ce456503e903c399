"""Does a probe of one prompt read another one's states? Trained on each prompt, tested on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import each_run, matrix, one_number
from jaxprobe.experiments.probe import fit_probe
from jaxprobe.experiments.tables import require_states, same_rows, score_beside, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress
from jaxprobe.results.results import Run


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    state: str | None = None
    """The state to look at; default: the headline layer of the first run."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure` over runs of one table and model under different prompts.

    Raises:
      InputError: a run without states, runs that differ in more than the prompt, and as `measure`.
    """
    opened = list(each_run(runs, "open", reporter))
    first = opened[0]
    problems = [
        f"{run.path} and {first.path} differ in {', '.join(differing)}. Take runs that differ in the prompt only."
        for run in opened[1:]
        if (differing := _differing(run, first))
    ]
    named = [run.prompt for run in opened]
    problems += [
        f"{named.count(name)} runs have prompt {name!r}. Take one of them."
        for name in dict.fromkeys(named)
        if named.count(name) > 1
    ]
    if problems:
        raise InputError(*problems)
    activations = {run.prompt: run.activations for run in opened}
    frame = measure(
        activations, first.table, options.state or first.headline_layer, model=first.model, seed=first.settings.seed
    )
    return frame.assign(run=frame["prompt"].map({run.prompt: str(run.path) for run in opened}))


def _differing(run: Run, other: Run) -> list[str]:
    """What two runs differ in that is not the prompt, with the values where they are short."""
    found = [("model", run.model, other.model), ("table", run.table.name, other.table.name)]
    found += [(name, getattr(run.settings, name), getattr(other.settings, name)) for name in ("dtype", "unit_vectors")]
    words = [f"{name} ({here}, {there})" for name, here, there in found if here != there]
    weights = [each.config.get("inputs", {}).get("weights_sha256") for each in (run, other)]
    if not words and None not in weights and weights[0] != weights[1]:
        words.append("the model's weights")
    if not words and not same_rows(run.table, other.table):
        words.append(f"rows ({len(run.table):,}, {len(other.table):,}), their targets or their split")
    return words


def figures(frame: pd.DataFrame) -> list:
    """For each model and table the matrix of training and testing prompts, raw and with the mean shift removed."""
    from jaxprobe.report.matrix_figure import draw_matrices
    from jaxprobe.report.phrases import layer_title

    names, drawn = {"raw": "States as they are", "recentred": "Mean shift removed"}, []
    for (model, dataset), part in one_number(frame, "r2").groupby(["model", "dataset"], sort=False):
        panels = {
            names[centring]: matrix(each, "train_prompt", "prompt")
            for centring, each in part.groupby("centring", sort=False)
        }
        subtitle = f"{model} · {dataset} · {layer_title(part['layer'].iloc[0])}"
        drawn.append(draw_matrices(panels, "One prompt's probe on another's states", subtitle, "prompt"))
    return drawn


def measure(
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
