"""Experiments on finished runs: opens their folders, calls one experiment, and writes its table beside the results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data.prompts import find_prompt
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments import blocks, comparison, controls, dateline, entity_types, prompts
from jaxprobe.extract.extraction import extract_states
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.host.paths import AnyPath, as_path, replacing
from jaxprobe.host.progress import Progress, default_progress
from jaxprobe.models.load import DTYPES, LanguageModel, fit_mesh, open_model
from jaxprobe.models.placement import place
from jaxprobe.models.transformer import random_llama
from jaxprobe.report.experiment_figures import write_experiment_figures
from jaxprobe.results.folder import RunDirectory
from jaxprobe.settings import RunConfig, read_config


class OpenRun(NamedTuple):
    """A finished run with its states, as an experiment wants it."""

    directory: RunDirectory
    config: RunConfig
    table: EntityTable
    activations: Mapping[str, np.ndarray]
    headline: str
    model: str
    prompt: str


def open_run(path: AnyPath) -> OpenRun:
    """The run in a folder, with the table as it was read then: the file that it came from is not looked at.

    Raises:
      InputError: no run, one that is not finished or keeps no states, or states of other rows.
    """
    directory = RunDirectory(path)
    result = directory.read_result()
    config = read_config(directory.config_path)
    if not directory.activations_path.is_dir():
        again = f"jaxprobe run --config {directory.config_path} --store --out NEW_FOLDER"
        raise InputError(f"{path} has no stored states. Make them with: {again}")
    table = replace(read_table(directory), unit_vectors=config.unit_vectors)
    prompt = find_prompt(table.name, config.prompt).name
    activations = open_activations(directory.activations_path)
    return OpenRun(directory, config, table, activations, result["headline_layer"], result["model"], prompt)


def read_table(directory: RunDirectory) -> EntityTable:
    """The entities of a finished run as they were read. Raises InputError where it is not finished."""
    result, entities = directory.read_result(), directory.read_entities()
    targets = [name.removeprefix("true_") for name in entities if name.startswith("true_")]
    groups = [name.removeprefix("group_") for name in entities if name.startswith("group_")]
    return EntityTable(
        name=directory.read_scores()["dataset"].iloc[0],
        texts=tuple(entities["text"]),
        targets=entities[[f"true_{name}" for name in targets]].to_numpy(np.float64),
        target_names=tuple(targets),
        units=tuple(result.get("units", {}).get(name, "") for name in targets),
        is_test=entities["split"].eq("test").to_numpy(),
        groups={name: entities[f"group_{name}"].to_numpy(object) for name in groups},
        attribution=result.get("attribution", ""),
    )


def _open_each(runs: Sequence[AnyPath], task: str, progress: Progress | None) -> Iterator[OpenRun]:
    """Opens one run after the other; what is done with it counts towards the task."""
    unit = "run" if len(runs) == 1 else "runs"
    with (progress or default_progress()).task(task, len(runs), unit) as advance:
        for path in runs:
            yield open_run(path)
            advance(1)


def layers(runs: Sequence[AnyPath], progress: Progress | None = None) -> pd.DataFrame:
    """Scores by layer of several runs on one scale, and what lies between layers, prompts and models.

    ``depth`` is 0 at the embedding and 1 after the last block. The rows of each run's scores have ``compared_with`` ""
    and ``resampled`` "rows"; the others are those of experiments/comparison.py, where a run stands beside the first one
    with the same test rows. States need not be stored.
    """
    frames, predicted = [], [read_predicted(RunDirectory(path)) for path in runs]
    for path, run in zip(runs, predicted, strict=True):
        scores = RunDirectory(path).read_scores().assign(compared_with="", resampled="rows")
        parts = [scores, comparison.compare_states(run)]
        first = next(other for other in predicted if comparison.same_rows(other.table, run.table))
        if first is not run:
            parts.append(comparison.compare_headlines(run, first))
        frame = pd.concat(parts, ignore_index=True)
        number = pd.to_numeric(frame["layer"], errors="coerce") + 1
        last = RunDirectory(path).read_result().get("blocks", number.max())  # runs of older versions do not say
        depth = (number / last).mask(frame["layer"] == "embed", 0.0).mask(frame["layer"] == "final_norm", 1.0)
        frames.append(frame.assign(depth=depth, run=str(path)))
    return pd.concat(frames, ignore_index=True)


def read_predicted(directory: RunDirectory) -> comparison.Predicted:
    """The test predictions of every state of a finished run. Raises InputError where it is not finished."""
    result, scores, long = directory.read_result(), directory.read_scores(), directory.read_predictions()
    by_state = {state: part.set_index("row") for state, part in long.groupby("layer", sort=False)}
    rows = next(iter(by_state.values())).index
    table = read_table(directory).take(rows.to_numpy())
    columns = [f"predicted_{target}" for target in table.target_names]
    predictions = {state: part.loc[rows, columns].to_numpy(np.float64) for state, part in by_state.items()}
    return comparison.Predicted(
        table, predictions, result["headline_layer"], scores["model"].iloc[0], scores["prompt"].iloc[0]
    )


def transfer(runs: Sequence[AnyPath], state: str | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """experiments/prompts.py over runs of one table and model under different prompts."""
    opened = list(_open_each(runs, "open", progress))
    first = opened[0]
    problems = [
        f"{run.directory.path} is of {run.model}, {run.table.name} ({len(run.table):,} rows); {first.directory.path} "
        f"of {first.model}, {first.table.name} ({len(first.table):,} rows). Take runs that differ in the prompt only."
        for run in opened[1:]
        if run.model != first.model or not comparison.same_rows(run.table, first.table)
    ]
    named = [run.prompt for run in opened]
    problems += [
        f"{named.count(name)} runs have prompt {name!r}. Take one of them."
        for name in set(named)
        if named.count(name) > 1
    ]
    if problems:
        raise InputError(*problems)
    activations = {run.prompt: run.activations for run in opened}
    return prompts.run(activations, first.table, state or first.headline, **_names(first, "model", "seed"))


def hold_out(
    runs: Sequence[AnyPath],
    group: Sequence[str] = (),
    held: Sequence[str] = (),
    state: str | None = None,
    cell_degrees: float = 5.0,
    buffer_km: float = 100.0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """experiments/blocks.py: for every group column, or those named, and for cells of the map where there is one."""
    frames = []
    for run in map(open_run, runs):
        at = run.activations, run.table, state or run.headline
        columns = tuple(group) or usable_groups(run.table)
        if held and not group:
            columns = _columns_with(run.table, columns, held)
        if not columns and not run.table.is_place:
            raise InputError(f"{run.directory.path} has no group to hold out. Run it with --group COLUMN.")
        names = _names(run) | {"progress": progress}
        frames += [blocks.run(*at, column, held=held, **names) for column in columns]
        if run.table.is_place and not group:
            frames.append(blocks.run_spatial(*at, cell_degrees=cell_degrees, buffer_km=buffer_km, **names))
    return pd.concat(frames, ignore_index=True)


def types(
    runs: Sequence[AnyPath], group: str = "entity_type", state: str | None = None, progress: Progress | None = None
) -> pd.DataFrame:
    """experiments/entity_types.py for each run."""
    frames = []
    for run in _open_each(runs, "entity types", progress):
        frames.append(entity_types.run(run.activations, run.table, state or run.headline, group, **_names(run)))
    return pd.concat(frames, ignore_index=True)


def control(
    runs: Sequence[AnyPath],
    state: str | None = None,
    random_weights: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """experiments/controls.py for each run; with random weights the architecture is run once more."""
    frames = []
    for run in list(_open_each(runs, "open", progress)):  # reading states with random weights shows its own tasks
        wanted = state or run.headline
        random = random_states(run.config, run.table, wanted, progress) if random_weights else None
        frames.append(controls.run(run.activations, run.table, wanted, random_weights=random, **_names(run)))
    return pd.concat(frames, ignore_index=True)


def unit_vectors(runs: Sequence[AnyPath], state: str | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """experiments/dateline.py for each run."""
    frames = []
    for run in _open_each(runs, "dateline", progress):
        frames.append(dateline.run(run.activations, run.table, state or run.headline, **_names(run)))
    return pd.concat(frames, ignore_index=True)


def random_states(
    config: RunConfig, table: EntityTable, state: str, progress: Progress | None = None
) -> Mapping[str, np.ndarray]:
    """The state of every entity by a run's architecture with random weights, seeded, in memory.

    ``config`` is that of a finished run, which has the dtype that was chosen for it.
    """
    layer = int(state) if state.isdecimal() else None
    last = None if state == "final_norm" else layer or 0
    files = open_model(config.model, revision=config.revision, tokenizer=config.tokenizer, last_layer=last)
    mesh, _ = place(files.config, None, config.dtype)  # this machine's, not the run's
    files = fit_mesh(files, mesh, config.replicate_kv)
    weights = random_llama(files.config, mesh, DTYPES[config.dtype], config.seed)
    model = LanguageModel(files, weights, mesh, config.dtype)
    kept = () if layer is None else (layer,)
    options = {"layers": kept, "final_norm": state == "final_norm", "seed": config.seed, "progress": progress}
    return extract_states(model, table, config.prompt, **options)


def write_table(name: str, frame: pd.DataFrame, run: AnyPath) -> AnyPath:
    """Writes experiments/NAME.parquet, .csv and figures in the run's folder; returns the path of the CSV."""
    folder = as_path(run) / "experiments"
    with replacing(folder / f"{name}.parquet") as temporary:
        frame.to_parquet(temporary, index=False)
    with replacing(folder / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False)
    write_experiment_figures(name, frame, folder)
    return folder / f"{name}.csv"


def usable_groups(table: EntityTable) -> tuple[str, ...]:
    """The group columns of which some group can be held out and another is left."""
    return tuple(group for group, labels in table.groups.items() if _two_labels(table, np.asarray(labels).astype(str)))


def _columns_with(table: EntityTable, columns: Sequence[str], held: Sequence[str]) -> tuple[str, ...]:
    """The columns that have all of these labels. Raises InputError where none has."""
    found = tuple(name for name in columns if set(held) <= set(np.asarray(table.groups[name]).astype(str)))
    if not found:
        named, among = ", ".join(map(repr, held)), ", ".join(columns) or "none"
        raise InputError(
            f"No group of table {table.name} has {named} (its groups: {among}). Take values of one column."
        )
    return found


def _two_labels(table: EntityTable, labels: np.ndarray) -> bool:
    names, counts = np.unique(labels[~table.is_test], return_counts=True)
    tested = np.unique(labels[table.is_test], return_counts=True)
    usable = set(names[counts > 1]) & {name for name, count in zip(*tested, strict=True) if count > 1}
    return len(names) > 1 and bool(usable)


def _names(run: OpenRun, *wanted: str) -> dict[str, object]:
    names = {"model": run.model, "prompt": run.prompt, "seed": run.config.seed}
    return {name: names[name] for name in wanted or names}


EXPERIMENTS: dict[str, Callable[..., pd.DataFrame]] = {
    "layers": layers,
    "prompts": transfer,
    "blocks": hold_out,
    "entity_types": types,
    "controls": control,
    "dateline": unit_vectors,
}
