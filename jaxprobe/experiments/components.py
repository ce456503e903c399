"""How many directions does it take? Probes of the first k principal components of every layer's states.

The paper's own way to ask whether a place is read from the main directions of the states or from small ones. The
penalty is chosen for each layer and k by exact leave-one-out; components and penalty come from the training rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import by_run, columns_of, each_run, one_number
from jaxprobe.experiments.probe import fitted_targets, in_target_units
from jaxprobe.experiments.tables import require_states, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress
from jaxprobe.probes.metrics import score
from jaxprobe.probes.pca import COUNTS, fit_components

REPLICATES = 200  # of the bootstrap: there are some hundred intervals a run


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    counts: tuple[int, ...] = ()
    """Numbers of components; default: 1 to 4,000 in growing steps, as far as the states go."""
    states: tuple[str, ...] = ()
    """The states to look at; default: all that are stored."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure` for each run. Raises InputError where a run keeps no states, and as `measure`."""
    frames = [
        measure(
            each.activations,
            each.table,
            options.states or tuple(each.activations),
            options.counts or COUNTS,
            seed=each.settings.seed,
            reporter=reporter,
            **columns_of(each),
        )
        for each in list(each_run(runs, "open", reporter))
    ]
    return pd.concat(frames, ignore_index=True)


def measure(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    states: Sequence[str],
    counts: Sequence[int],
    *,
    reporter: Progress,
    model: str = "",
    prompt: str = "",
    run: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """Test scores of probes of the first k components, for every state and k in one pass over each state.

    Returns:
      A tidy table with the columns of a run's scores, ``components`` (k; the largest is all that there are) and
      ``variance`` (their share of the training rows' variance). 95 % intervals by a bootstrap over test rows.

    Raises:
      InputError: a state that is not there, a k below 1, or rows that don't match.
    """
    require_states(activations, table, states)
    if min(counts) < 1:
        raise InputError(f"--counts {min(counts)}: a probe needs 1 component or more.")
    train, frames = ~table.is_test, []
    with reporter.task("components", len(states), "states") as advance:
        for state in states:
            x = activations[state]
            fit = fit_components(x[train], fitted_targets(table)[train], counts)
            predicted = in_target_units(table, fit.predict(x[table.is_test]))
            found = score(
                table.targets[table.is_test],
                predicted,
                places=table.is_place,
                replicates=REPLICATES,
                seed=seed,
                metrics=("r2", "error_km_median") if table.is_place else ("r2",),
            )
            ks = list(map(str, fit.counts))
            frame = tidy_scores(table, found, ks, fit.alpha, model=model, prompt=prompt, run=run)
            frame["components"] = frame["layer"].astype(int)
            frame["variance"] = frame["layer"].map(dict(zip(ks, fit.variance, strict=True)))
            frames.append(frame.assign(layer=state))
            advance(1)
    return pd.concat(frames, ignore_index=True)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every layer R2 by the first 2, 10, 30, 100 and all components."""
    frame = one_number(frame, "r2")
    last = frame.groupby(["run", "layer"])["components"].transform("max")
    shown = frame[frame["components"].isin((2, 10, 30, 100)) | (frame["components"] == last)]
    return shown[["run", "layer", "components", "variance", "value", "ci_low", "ci_high"]]


def figures(frame: pd.DataFrame) -> list:
    """For each run: R2 by number of components, a line for each of up to eight layers."""
    from matplotlib.figure import Figure

    from jaxprobe.report.canvas import FAINT, area, house_style, write_title
    from jaxprobe.report.maps import OKABE_ITO
    from jaxprobe.report.phrases import layer_title

    drawn = []
    for called, part in by_run(one_number(frame, "r2")):
        layers = list(dict.fromkeys(part["layer"]))
        chosen = [
            layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, min(8, len(layers))).round().astype(int))
        ]
        with house_style():
            figure = Figure(figsize=(6.4, 4.4))
            axes = figure.add_subplot(area(figure, left=0.72, right=1.9, bottom=0.6, top=0.95))
            for layer, colour in zip(chosen, OKABE_ITO, strict=False):
                line = part[part["layer"] == layer].sort_values("components")
                axes.fill_between(line["components"], line["ci_low"], line["ci_high"], alpha=0.15, lw=0, color=colour)
                axes.plot(line["components"], line["value"], color=colour, linewidth=1.6, label=layer_title(layer))
            axes.set_xscale("log")
            low, high = axes.get_ylim()
            axes.set_ylim(max(min(low, 0), -0.2), min(max(high, 0.1), 1))
            axes.set_xlabel("Principal components, the largest first")
            axes.set_ylabel("Test R²")
            axes.grid(True, color=FAINT, linewidth=0.5)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)
            write_title(figure, "How many directions does it take?", f"{called} · 95 % interval over test rows")
        drawn.append(figure)
    return drawn
