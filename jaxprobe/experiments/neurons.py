"""Are there neurons of place or time? True activations of MLP neurons against the targets, and against two nulls.

The activations are those of sites mlp.L at the names' tokens that the run reads, for which the test rows are run once
more. For each neuron Spearman's rank correlation with each target on test rows stands beside the cosine of its output
weights with the direction of the probe. The nulls are the largest over all neurons: of permuted targets, and of targets
whose groups (countries, say) have exchanged places, which keeps that a group lies together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import columns_of, each_run
from jaxprobe.experiments.baselines import exchange_groups
from jaxprobe.extract.extraction import extract_states
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Reporter
from jaxprobe.models.load import fit_mesh, read_weights
from jaxprobe.models.placement import place
from jaxprobe.results.results import Run
from jaxprobe.sites import Site

PERMUTATIONS = 99


@dataclass(frozen=True)
class Options:
    """What is looked at, and how much is shown."""

    rows: int = 1000
    """At most so many test rows, a seeded sample."""
    most: int = 20
    """Neurons in the table, for each target the ones of the largest rank correlation."""
    group: str | None = None
    """The group column whose groups exchange places; default: the first one."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Reporter) -> pd.DataFrame:
    """`measure` for each run. Raises InputError where the model is not the run's any more, and as `measure`."""
    frames = []
    for each in list(each_run(runs, "open", reporter)):
        rng, table = np.random.default_rng(each.settings.seed), each.table
        rows = np.sort(rng.permutation(np.flatnonzero(table.is_test))[: options.rows])
        if options.group is not None and options.group not in table.groups:
            found = ", ".join(table.groups) or "none"
            raise InputError(f"--group {options.group} is no group of {each.path}; it has {found}.")
        group = options.group or next(iter(table.groups), None)
        activations, cosines = _read(each, rows, reporter)
        frames.append(
            measure(
                activations,
                table.take(rows),
                cosines,
                group=group,
                most=options.most,
                seed=each.settings.seed,
            ).assign(**columns_of(each), dataset=each.dataset)
        )
    return pd.concat(frames, ignore_index=True)


def _read(run: Run, rows: np.ndarray, reporter: Reporter) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """mlp.L -> [n, F] activations of some rows; mlp.L -> [F, C] cosines of output weights with the probe of block L."""
    settings, files = run.settings, run.open_model()
    mesh, _ = place(files.config, None, settings.dtype)  # this machine's, not the run's
    model = read_weights(fit_mesh(files, mesh, settings.replicate_kv), mesh, settings.dtype, reporter)
    sites = tuple(str(Site("mlp", layer)) for layer in range(model.config.layers))
    texts = [run.table.texts[row] for row in rows]
    options = {"seed": settings.seed, "position": settings.position, "progress": reporter}
    activations = extract_states(model, texts, run.full_prompt, sites=sites, **options)
    arrays, metadata = run.probes
    down, cosines = model.weights.blocks.down[...], {}
    for i, state in enumerate(metadata["states"]):
        site = Site.parse(state)
        if site.kind == "block":
            out, probe = np.asarray(down[site.layer], np.float32), arrays["weights"][i][: model.config.width]
            cosines[str(Site("mlp", site.layer))] = _unit(out, 1) @ _unit(np.asarray(probe, np.float32), 0)
    return dict(activations), cosines


def measure(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    cosines: Mapping[str, np.ndarray],
    *,
    group: str | None,
    most: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Ranks of neurons' activations against the targets' ranks, ties by mid-ranks.

    Args:
      activations: mlp.L -> [N, F], of the table's rows.
      table: test rows only.
      cosines: mlp.L -> [F, C] with the targets' probes; layers without are NaN.
      group: the column whose groups exchange places for the second null; None for none.
      most: neurons of each target in the table.

    Returns:
      A tidy table, for each target its ``most`` neurons of the largest |rho|: layer, neuron, target, rho, rho_within
      (of activation and target less their groups' means), cosine, null_permuted and null_groups (95th percentile of
      the largest |rho| over all neurons), p_permuted and p_groups (family-wise), and ``beyond``, how many of all
      neurons lie beyond null_groups (beyond null_permuted without groups).

    Raises:
      InputError: fewer than 10 rows.
    """
    if len(table) < 10:
        raise InputError(f"{len(table)} test rows are too few for rank correlations; wanted 10 or more.")
    rng, targets = np.random.default_rng(seed), table.targets
    layers = list(activations)
    ranks = {layer: _ranks(np.asarray(x, np.float32)) for layer, x in activations.items()}
    rho_of = lambda y: np.concatenate([rank.T @ _ranks(y) / len(y) for rank in ranks.values()])  # [L F, C]
    rho = rho_of(targets)
    largest = lambda y: np.abs(rho_of(y)).max(0)
    nulls = {"permuted": np.stack([largest(rng.permutation(targets)) for _ in range(PERMUTATIONS)])}
    less_means = None
    if group is not None:
        labels = np.asarray(table.groups[group]).astype(str)
        number = np.unique(labels, return_inverse=True)[1]
        less_means = lambda x: x - (np.bincount(number, x) / np.bincount(number))[number]
        nulls["groups"] = np.stack([largest(exchange_groups(targets, labels, rng)) for _ in range(PERMUTATIONS)])
    sizes = [x.shape[1] for x in activations.values()]
    starts = np.r_[0, np.cumsum(sizes)]
    unknown = {layer: np.full((size, targets.shape[1]), np.nan) for layer, size in zip(layers, sizes, strict=True)}
    cosine = np.concatenate([cosines.get(layer, unknown[layer])[:, : targets.shape[1]] for layer in layers])
    rows = []
    for c, target in enumerate(table.target_names):
        strictest = np.quantile(nulls.get("groups", nulls["permuted"])[:, c], 0.95)
        beyond = int((np.abs(rho[:, c]) > strictest).sum())
        for at in np.argsort(-np.abs(rho[:, c]), kind="stable")[:most]:
            layer = int(np.searchsorted(starts, at, side="right") - 1)
            row = {"layer": layers[layer], "neuron": int(at - starts[layer]), "target": target, "rho": rho[at, c]}
            row |= {"rho_within": np.nan, "cosine": cosine[at, c]}
            if less_means is not None:
                own = np.asarray(activations[row["layer"]][:, row["neuron"]], np.float64)
                row["rho_within"] = _ranks(less_means(own)) @ _ranks(less_means(targets[:, c])) / len(own)
            for name, null in nulls.items():
                row[f"null_{name}"] = np.quantile(null[:, c], 0.95)
                row[f"p_{name}"] = (1 + (null[:, c] >= abs(rho[at, c])).sum()) / (1 + PERMUTATIONS)
            rows.append(row | {"beyond": beyond, "rows": len(table)})
    return pd.DataFrame(rows)


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """Five neurons of each target."""
    return frame.groupby(["run", "target"], sort=False).head(5)


def figures(frame: pd.DataFrame) -> list:
    """For each run: the neurons' rank correlations beside the nulls."""
    from matplotlib.figure import Figure

    from jaxprobe.report.canvas import area, house_style, write_title
    from jaxprobe.report.maps import OKABE_ITO

    drawn = []
    for _, part in frame.groupby("run", sort=False):
        with house_style():
            figure = Figure(figsize=(6.4, 4.2))
            axes = figure.add_subplot(area(figure, left=0.72, right=1.9, bottom=0.6, top=0.95).subgridspec(1, 1)[0])
            for (target, rows), colour in zip(part.groupby("target", sort=False), OKABE_ITO, strict=False):
                axes.plot(range(1, len(rows) + 1), rows["rho"].abs(), "o-", ms=4, lw=1, color=colour, label=target)
                strictest = rows.get("null_groups", rows["null_permuted"]).iloc[0]
                axes.axhline(strictest, color=colour, linestyle=(0, (4, 3)), linewidth=1, label=f"null, {target}")
            axes.set_ylim(0, max(0.1, min(1, axes.get_ylim()[1])))
            axes.set_xlabel("Neuron, by rank")
            axes.set_ylabel("|Spearman| with the target")
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8.5)
            subtitle = f"{part['model'].iloc[0]} · {part['dataset'].iloc[0]} · "
            subtitle += "dashed: the largest of all neurons under the null (95 %)"
            write_title(figure, "Are there neurons for it?", subtitle)
        drawn.append(figure)
    return drawn


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mid-ranks of each column, standardised; zeros for a constant."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(0)
    spread = ranks.std(0)
    return ranks / np.where(spread > 0, spread, 1)


def _unit(values: np.ndarray, axis: int) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=axis, keepdims=True), 1e-30)
