"""One run from settings to report: check, extract, fit, score, write. Every check comes before the model's weights."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxprobe.cost.counts import forward_operations, forward_seconds
from jaxprobe.cost.memory import Memory, check_memory, memory_needed
from jaxprobe.data.catalog import load_table
from jaxprobe.data.table import EntityTable
from jaxprobe.data.tokens import show_tokens, token_notes
from jaxprobe.errors import InputError
from jaxprobe.experiments import controls
from jaxprobe.experiments.layers import LayerProbes, entity_frame, fit_probes, prediction_frame
from jaxprobe.experiments.streaming import make_folds, stream_probes
from jaxprobe.extract.extraction import (
    Extraction,
    extraction_settings,
    fill_store,
    open_store,
    plan_extraction,
    split_extraction,
)
from jaxprobe.extract.store.layout import size_on_disk
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.extract.store.writer import check_space
from jaxprobe.host.paths import as_path
from jaxprobe.host.processes import agreed, check_alike, exchange, is_main
from jaxprobe.host.progress import Progress, default_progress, in_words, peak_memory
from jaxprobe.mesh import mesh_text
from jaxprobe.models.files.source import DEMO_DESCRIPTION, DEMO_MODEL
from jaxprobe.models.load import LanguageModel, ModelFiles, choose_dtype, fit_mesh, open_model, read_weights
from jaxprobe.models.placement import place
from jaxprobe.report.page import write_report
from jaxprobe.results.folder import RunDirectory
from jaxprobe.settings import RunConfig, absolute_paths, default_folder, fingerprint, to_json, versions

Say = Callable[[str], None]


class Prepared(NamedTuple):
    """Everything that is known before the weights are read."""

    config: RunConfig
    table: EntityTable
    files: ModelFiles
    mesh: Mesh
    mesh_reason: str
    dtype: str
    extraction: Extraction
    passes: tuple[Extraction, ...]  # what is run: all rows, or (--no-store) the training rows and then the test rows
    folds: dict[str, np.ndarray]  # of the training rows; empty where states are stored
    memory: Memory
    directory: RunDirectory
    document: dict[str, Any]  # what config.json will hold


def run(config: RunConfig, say: Say = lambda line: None, progress: Progress | None = None) -> RunDirectory:
    """Runs ``config`` from where its folder stands, and returns the folder.

    A finished run does nothing; one that was interrupted goes on at its first missing shard.

    Args:
      config: the settings.
      say: told each fact that the user should know, a line at a time.
      progress: shows the long parts.

    Raises:
      InputError: whatever can't be used, before the model is compiled and with nothing half-written.
    """
    progress = progress or default_progress()
    started = time.perf_counter()
    with agreed():
        prepared = prepare(config, say)
    return finish(prepared, say, progress, started)


def finish(
    prepared: Prepared,
    say: Say,
    progress: Progress,
    started: float,
    model: Callable[[], LanguageModel] | None = None,
) -> RunDirectory:
    """Does what is left of a run after its checks, and returns its folder.

    Args:
      started: when it began (``time.perf_counter``), for its total.
      model: what gives the run's model, called where it is needed, for several runs of one; default: it is read.
    """
    config, directory = prepared.config, prepared.directory
    # The fingerprint is of what changes a number; of the rest it is the mesh that processes must agree on.
    alike = f"{prepared.document['fingerprint']} on {mesh_text(prepared.mesh.shape)}"
    facts = exchange([alike, directory.is_fitted and not config.repair])
    check_alike([fingerprint for fingerprint, _ in facts])
    if facts[0][1]:
        if is_main() and not directory.report_path.is_file():
            write_report(directory)
        say(f"{directory.path} is finished: nothing to do. Report: {directory.report_path}")
        return directory
    before = dict(progress.seconds)  # of an earlier run
    probe = _probe_stored if config.store else _probe_streamed
    probes, controlled = probe(prepared, say, progress, model)
    seconds = {name: round(value - before.get(name, 0), 2) for name, value in progress.seconds.items()}
    seconds["total"] = round(time.perf_counter() - started, 2)
    if is_main():
        write_results(prepared, probes, controlled, seconds)
    say(f"Report: {directory.report_path}")
    return directory


def load_run_table(config: RunConfig) -> EntityTable:
    """The table that a run's settings name. Raises InputError as `load_table`."""
    names = ("text", "target", "split", "group", "data_dir", "limit", "seed")
    names += ("cell_degrees", "buffer_km", "unit_vectors", "labels")
    return load_table(config.dataset, **{name: getattr(config, name) for name in names})


def prepare(config: RunConfig, say: Say, files: ModelFiles | None = None) -> Prepared:
    """Checks all that can be checked without reading the weights, says what will be done, and claims the folder.

    ``files`` are those of the settings' model where it is open already, for several runs of one.
    """
    config = replace(config, out=as_path(config.out or default_folder(config)))
    table = load_run_table(config)
    dtype = choose_dtype(config.dtype)
    config = replace(config, dtype=dtype)  # the default is another one on other machines
    last = None if config.final_norm or not config.layers else max(config.layers)
    if files is None:
        files = open_model(config.model, revision=config.revision, tokenizer=config.tokenizer, last_layer=last)
    mesh, mesh_reason = place(files.config, config.mesh, dtype)
    files = fit_mesh(files, mesh, config.replicate_kv)
    extraction = plan_extraction(
        files,
        table,
        config.prompt,
        mesh=mesh,
        layers=config.layers or None,
        final_norm=config.final_norm,
        seed=config.seed,
    )
    passes, folds = (extraction,), {}
    if not config.store:
        if config.unit_vectors:
            raise InputError("--unit-vectors needs stored states: training scores from sums are of what is fitted.")
        folds = make_folds(table, config.fold_group, config.seed)
        parts = np.flatnonzero(~table.is_test), np.flatnonzero(table.is_test)
        passes = tuple(split_extraction(extraction, parts, mesh))
    elif config.fold_group:
        raise InputError(
            "--fold-group goes with --no-store; with stored states the penalty is chosen by leave-one-out."
        )
    made_from = json.loads(json.dumps(extraction_settings(files, extraction)))  # as it will be read back
    inputs = {
        "dtype": dtype,
        "targets": [table.target_names, table.targets.tolist(), table.is_test.tolist()],
        "groups": {name: np.asarray(labels).astype(str).tolist() for name, labels in table.groups.items()},
    }
    settings = to_json(config)
    document = {
        "settings": settings,
        "versions": versions(),
        "fingerprint": fingerprint(settings, [table.name, made_from, inputs]),
        "paths": absolute_paths(config),
        "inputs": made_from,
    }
    directory = RunDirectory(config.out)
    if is_main():
        directory.check_owner(document, repair=config.repair)
    scored = len(table) if config.store else int(table.is_test.sum())
    sizes = {"scored_rows": scored, "targets": len(table.target_names), "folds": len(folds)}
    memory = memory_needed(passes, files.config, mesh, dtype, **sizes)
    prepared = Prepared(
        config, table, files, mesh, mesh_reason, dtype, extraction, passes, folds, memory, directory, document
    )
    for line in describe(prepared) if is_main() else ():
        say(line)
    _check_room(prepared)
    if is_main() and (config.repair or not directory.config_path.exists()):
        directory.write_config(document)
    return prepared


def _check_room(prepared: Prepared) -> None:
    """Refuses what memory or disk can't hold. States that are stored already need neither; the store sees to those."""
    directory = prepared.directory
    if directory.is_complete or (prepared.config.store and directory.activations_path.exists()):
        return
    check_memory(prepared.memory, prepared.mesh)
    if prepared.config.store and is_main():
        check_space(directory.path, disk_bytes(prepared))


def disk_bytes(prepared: Prepared) -> int:
    """Bytes that the states of a run take on disk."""
    extraction = prepared.extraction
    shards = len(extraction.plan.shards)
    return size_on_disk(len(prepared.table), [extraction.width] * len(extraction.states), prepared.dtype, shards)


def describe(prepared: Prepared) -> list[str]:
    """What will be run, how big it is, and what was noticed on the way."""
    table, extraction, model = prepared.table, prepared.extraction, prepared.files
    config = model.config
    lines = [
        f"Table {table.name}: {len(table):,} entities ({int(table.is_test.sum()):,} for testing); "
        f"target {', '.join(table.target_names)}; groups {', '.join(table.groups) or 'none'}.",
        *table.notes,
        f"Model {model.source.name}: {config.layers} layers, width {config.width}, "
        f"{config.parameter_count() / 1e6:,.0f} M parameters, {prepared.dtype}.",
    ]
    if prepared.mesh.size > 1:
        lines.append(f"Mesh {mesh_text(prepared.mesh.shape)}: {prepared.mesh_reason}.")
    if prepared.config.model == DEMO_MODEL:
        lines.append(f"The demo model is {DEMO_DESCRIPTION}.")
    lines += [
        f"Prompt {extraction.prompt.name}: {extraction.prompt.wording!r}.",
        *token_notes(model.tokenizer, extraction.tokens),
    ]
    if prepared.config.show_tokens:
        lines += show_tokens(model.tokenizer, extraction.tokens)
    plans = [part.plan for part in prepared.passes]
    slots, prefixes = sum(plan.slots for plan in plans), sum(plan.distinct_prefixes for plan in plans)
    lines += [
        f"Forward: {slots:,} slots for {prefixes:,} distinct prefixes of {len(extraction.tokens.ids):,} tokens; "
        f"{_effort(prepared)}.",
        f"States: {len(extraction.states)} of {len(table):,} x {config.width}, "
        + (
            f"{disk_bytes(prepared) / 1e9:.2f} GB on disk."
            if prepared.config.store
            else f"not stored: penalties are chosen by {chosen_by(prepared)}, from sums. Training scores other than "
            "R2, and controls, need stored states."
        ),
        f"Memory: {prepared.memory.host / 1e9:.2f} GB"
        + (f", and {prepared.memory.device / 1e9:.2f} GB on each device." if prepared.memory.device else "."),
        f"Folder: {prepared.directory.path}",
    ]
    return lines


def _effort(prepared: Prepared) -> str:
    """Operations of the forward passes, and how long they take where that is known before they start."""
    operations = sum(forward_operations(part.plan, prepared.files.config) for part in prepared.passes)
    size = f"{operations / 1e12:,.1f} TFLOP"
    seconds = None if prepared.directory.is_complete else forward_seconds(operations, prepared.mesh)
    if seconds is None:
        return size
    return f"{size}, about {in_words(seconds)} at this machine's rate; probes and report come on top"


def chosen_by(prepared: Prepared) -> str:
    """What chose the penalties and the headline layer, in words."""
    if prepared.config.store:
        return "leave-one-out"
    if prepared.config.fold_group:
        return f"leaving out each of {len(prepared.folds)} values of {prepared.config.fold_group}"
    return f"{len(prepared.folds)}-fold cross-validation"


def _probe_stored(
    prepared: Prepared, say: Say, progress: Progress, model: Callable[[], LanguageModel] | None
) -> tuple[LayerProbes, pd.DataFrame | None]:
    """Probes from the stored states, and (of several processes only the first) the headline layer's controls."""
    activations = _activations(prepared, say, progress, model)
    options = {"seed": prepared.config.seed} | _names(prepared)
    probes = fit_probes(activations, prepared.table, progress=progress, **options)
    if not is_main():
        return probes, None
    with progress.task("controls", 1, "layer") as advance:
        controlled = controls.run(activations, prepared.table, probes.headline, **options)
        advance(1)
    return probes, controlled


def _probe_streamed(
    prepared: Prepared, say: Say, progress: Progress, model: Callable[[], LanguageModel] | None
) -> tuple[LayerProbes, None]:
    """Probes from sums over rows; no controls, which need rows."""
    read = model() if model else load(prepared, progress)
    options = {"seed": prepared.config.seed, "progress": progress} | _names(prepared)
    return stream_probes(read, *prepared.passes, prepared.table, prepared.folds, **options), None


def _names(prepared: Prepared) -> dict[str, str]:
    return {"model": prepared.files.source.name, "prompt": prepared.extraction.prompt.name}


def load(prepared: Prepared, progress: Progress) -> LanguageModel:
    """Reads the weights of a run's model. Raises InputError where there is no room for them and what goes with them."""
    check_memory(prepared.memory, prepared.mesh)
    return read_weights(prepared.files, prepared.mesh, prepared.dtype, progress)


def _activations(prepared: Prepared, say: Say, progress: Progress, model: Callable[[], LanguageModel] | None):
    """The stored states; computes what is missing of them. The weights are released before probes are fitted."""
    path = prepared.directory.activations_path
    store = open_store(path, prepared.files, prepared.extraction, prepared.dtype, repair=prepared.config.repair)
    with store:
        if store.dropped:
            say(f"Damaged shards, computed anew: {', '.join(map(str, store.dropped))}.")
        if store.complete:
            say(f"All states are stored already in {path}.")
        else:
            total = len(prepared.extraction.plan.shards)
            if len(store.missing) < total:
                say(f"Going on: {total - len(store.missing)} of {total} shards are stored already in {path}.")
            fill_store(store, model() if model else load(prepared, progress), prepared.extraction, progress)
    return open_activations(path)


def write_results(
    prepared: Prepared, probes: LayerProbes, controlled: pd.DataFrame | None, seconds: dict[str, float]
) -> None:
    """Writes every file of the run's folder; config.json gets its result last, which marks the run as finished."""
    directory, table = prepared.directory, prepared.table
    fit = probes.fit
    directory.write_probes(
        {
            "weights": fit.weights,
            "intercept": fit.intercept,
            "x_mean": fit.x_mean,
            "alpha": fit.alpha,
            "alphas": fit.alphas,
            f"{probes.criterion}_mse": fit.loo_mse,
        },
        {
            "states": probes.states,
            "targets": table.target_names,
            "units": table.units,
            "fitted": "unit_vectors" if table.unit_vectors else "targets",
            "headline_layer": probes.headline,
        },
    )
    directory.write_scores(probes.scores)
    if controlled is not None:
        directory.write_controls(controlled)
    directory.write_entities(entity_frame(table))
    directory.write_predictions(prediction_frame(table, probes))
    result = {
        "headline_layer": probes.headline,
        "chosen_by": chosen_by(prepared),
        "blocks": prepared.files.checkpoint.config().layers,  # of the model; files.config counts those that were run
        "model": prepared.files.source.name,
        "model_description": DEMO_DESCRIPTION if prepared.config.model == DEMO_MODEL else "",
        "prompt": prepared.extraction.prompt.wording,
        "dtype": prepared.dtype,
        "devices": f"{prepared.mesh.size} x {jax.devices()[0].device_kind}",
        "units": dict(zip(table.target_names, table.units, strict=True)),
        "attribution": table.attribution,
        "notes": list(table.notes)
        + token_notes(prepared.files.tokenizer, prepared.extraction.tokens)
        + list(probes.fit.notes),
        "distinct_prefixes": sum(part.plan.distinct_prefixes for part in prepared.passes),
        "slots": sum(part.plan.slots for part in prepared.passes),
        "tokens": len(prepared.extraction.tokens.ids),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
    }
    directory.write_config(prepared.document | {"result": result, "files": directory.digests()})
    write_report(directory)


def demo_config(out, limit: int | None = None) -> RunConfig:
    """The demo: 10,000 cities, and the model of the installed package."""
    return RunConfig(model=DEMO_MODEL, dataset="cities", out=out, limit=limit)
