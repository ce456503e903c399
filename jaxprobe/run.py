"""One run from settings to report: check, extract, fit, score, write. Every check comes before the model's weights."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import pandas as pd
from jax.sharding import Mesh

from jaxprobe.config import RunConfig, fingerprint, to_json, versions
from jaxprobe.data.catalog import load_table
from jaxprobe.data.entities import EntityTable
from jaxprobe.data.tokens import show_tokens, token_notes
from jaxprobe.errors import InputError
from jaxprobe.experiments import controls
from jaxprobe.experiments.layers import LayerProbes, entity_frame, fit_probes, prediction_frame
from jaxprobe.extract.activations import open_activations
from jaxprobe.extract.collect import Extraction, extraction_settings, fill_store, open_store, plan_extraction
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.load import ModelFiles, choose_dtype, open_model, read_weights
from jaxprobe.models.source import DEMO_DESCRIPTION, DEMO_MODEL
from jaxprobe.progress import NoProgress, Progress
from jaxprobe.report.page import write_report
from jaxprobe.rundir import RunDirectory

Say = Callable[[str], None]


class Prepared(NamedTuple):
    """Everything that is known before the weights are read."""

    config: RunConfig
    table: EntityTable
    files: ModelFiles
    mesh: Mesh
    dtype: str
    extraction: Extraction
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
    progress = progress or NoProgress()
    started = time.perf_counter()
    prepared = prepare(config, say)
    directory = prepared.directory
    if directory.is_complete and not config.repair:
        say(f"{directory.path} is finished: nothing to do. Report: {directory.report_path}")
        return directory
    activations = _activations(prepared, say, progress)
    names = {"model": prepared.files.source.name, "prompt": prepared.extraction.prompt.name}
    probes = fit_probes(activations, prepared.table, seed=config.seed, progress=progress, **names)
    with progress.task("controls", 1, "layer") as advance:
        controlled = controls.run(activations, prepared.table, probes.headline, seed=config.seed, **names)
        advance(1)
    seconds = {name: round(value, 2) for name, value in progress.seconds.items()}
    seconds["total"] = round(time.perf_counter() - started, 2)
    write_results(prepared, probes, controlled, seconds)
    say(f"Report: {directory.report_path}")
    return directory


def prepare(config: RunConfig, say: Say) -> Prepared:
    """Checks all that can be checked without reading the weights, says what will be done, and claims the folder."""
    table = load_table(
        config.dataset,
        text=config.text,
        target=config.target,
        split=config.split,
        group=config.group,
        data_dir=config.data_dir,
        limit=config.limit,
        seed=config.seed,
    )
    mesh = make_mesh(parse_mesh(config.mesh) if config.mesh else None)
    dtype = choose_dtype(config.dtype)
    last = None if config.final_norm or not config.layers else max(config.layers)
    files = open_model(config.model, revision=config.revision, tokenizer=config.tokenizer, last_layer=last)
    extraction = plan_extraction(
        files,
        table,
        config.prompt,
        mesh=mesh,
        layers=config.layers or None,
        final_norm=config.final_norm,
        seed=config.seed,
    )
    inputs = extraction_settings(files, extraction) | {
        "dtype": dtype,
        "targets": [table.targets.tolist(), table.is_test.tolist()],
    }
    settings = to_json(config)
    document = {"settings": settings, "versions": versions(), "fingerprint": fingerprint(settings, inputs)}
    directory = RunDirectory(config.out)
    directory.check_owner(document)
    prepared = Prepared(config, table, files, mesh, dtype, extraction, directory, document)
    for line in describe(prepared):
        say(line)
    if not directory.config_path.exists():
        directory.write_config(document)
    return prepared


def describe(prepared: Prepared) -> list[str]:
    """What will be run, how big it is, and what was noticed on the way."""
    table, extraction, model = prepared.table, prepared.extraction, prepared.files
    plan, config = extraction.plan, model.config
    lines = [
        f"Table {table.name}: {len(table):,} entities ({int(table.is_test.sum()):,} for testing); "
        f"target {', '.join(table.target_names)}; groups {', '.join(table.groups) or 'none'}.",
        *table.notes,
        f"Model {model.source.name}: {config.layers} layers, width {config.width}, "
        f"{config.parameter_count() / 1e6:,.0f} M parameters, {prepared.dtype}.",
    ]
    if prepared.config.model == DEMO_MODEL:
        lines.append(f"The demo model is {DEMO_DESCRIPTION}.")
    lines += [
        f"Prompt {extraction.prompt.name}: {extraction.prompt.template!r}.",
        *token_notes(model.tokenizer, extraction.tokens),
    ]
    if prepared.config.show_tokens:
        lines += show_tokens(model.tokenizer, extraction.tokens)
    tokens = len(extraction.tokens.ids)
    item = 4 if prepared.dtype == "float32" else 2
    shard = max(len(shard.rows) for shard in plan.shards) * len(extraction.states) * config.width * item
    lines += [
        f"Forward: {plan.slots:,} slots for {plan.distinct_prefixes:,} distinct prefixes of {tokens:,} tokens.",
        f"States: {len(extraction.states)} of {len(table):,} x {config.width}, "
        f"{extraction.state_bytes(prepared.dtype) / 1e9:.2f} GB on disk; in memory "
        f"{(config.parameter_count() * item + 3 * shard) / 1e9:.2f} GB for weights and three shards.",
    ]
    return lines


def _activations(prepared: Prepared, say: Say, progress: Progress):
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
            with progress.task("load", 1, "model") as advance:
                model = read_weights(prepared.files, prepared.mesh, prepared.dtype)
                advance(1)
            fill_store(store, model, prepared.extraction, progress)
    return open_activations(path)


def write_results(prepared: Prepared, probes: LayerProbes, controlled: pd.DataFrame, seconds: dict[str, float]) -> None:
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
            "leave_one_out_mse": fit.loo_mse,
        },
        {
            "states": ",".join(probes.states),
            "targets": ",".join(table.target_names),
            "units": ",".join(table.units),
            "headline_layer": probes.headline,
        },
    )
    directory.write_scores(probes.scores)
    directory.write_controls(controlled)
    directory.write_entities(entity_frame(table))
    directory.write_predictions(prediction_frame(table, probes))
    result = {
        "headline_layer": probes.headline,
        "model": prepared.files.source.name,
        "model_description": DEMO_DESCRIPTION if prepared.config.model == DEMO_MODEL else "",
        "prompt": prepared.extraction.prompt.template,
        "dtype": prepared.dtype,
        "devices": f"{prepared.mesh.size} x {jax.devices()[0].device_kind}",
        "units": dict(zip(table.target_names, table.units, strict=True)),
        "attribution": table.attribution,
        "notes": list(table.notes) + token_notes(prepared.files.tokenizer, prepared.extraction.tokens),
        "distinct_prefixes": prepared.extraction.plan.distinct_prefixes,
        "slots": prepared.extraction.plan.slots,
        "tokens": len(prepared.extraction.tokens.ids),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
    }
    directory.write_config(prepared.document | {"result": result})
    write_report(directory)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def demo_config(out, limit: int | None = None) -> RunConfig:
    """The demo: 10,000 cities, and the model of the installed package."""
    return RunConfig(model=DEMO_MODEL, dataset="cities", out=out, limit=limit)


__all__ = ["InputError", "demo_config", "run"]
