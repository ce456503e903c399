"""One run from its checks to its report: extract, fit, score, write."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from jaxprobe.cost.memory import check_memory
from jaxprobe.data.table import EntityTable
from jaxprobe.data.tokens import token_notes
from jaxprobe.errors import InputError
from jaxprobe.experiments import controls
from jaxprobe.extract.extraction import fill_store, open_store
from jaxprobe.extract.store.reader import Activations, open_activations
from jaxprobe.host.processes import agreed, check_alike, exchange, is_main
from jaxprobe.host.progress import Reporter, Stopwatch, default_reporter, peak_memory
from jaxprobe.mesh import mesh_text
from jaxprobe.models.files.source import DEMO_DESCRIPTION, DEMO_MODEL
from jaxprobe.models.load import LanguageModel, read_weights
from jaxprobe.report.page import write_report
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.fit import LayerProbes, entity_frame, fit_probes, stream_probes
from jaxprobe.runs.fit_classes import ClassProbes
from jaxprobe.runs.inputs import Inputs, read_inputs
from jaxprobe.runs.prepare import Prepared, prepare
from jaxprobe.settings import RunSettings

Load = Callable[[], LanguageModel]


def run(settings: RunSettings, reporter: Reporter | None = None, inputs: Inputs | None = None) -> RunDirectory:
    """Runs ``settings`` from where their folder stands, and returns the folder.

    A finished run does nothing; one that was interrupted goes on at its first missing shard.

    Args:
      settings: what to run.
      reporter: told each fact that the user should know, and shows the long parts.
      inputs: what `read_inputs` makes of the settings, where that is at hand.

    Raises:
      InputError: whatever can't be used, before the model is compiled and with nothing half-written.
    """
    reporter = reporter or default_reporter()
    watch = Stopwatch(reporter)
    with agreed():
        prepared = prepare(inputs or read_inputs(settings), reporter)
    return execute(prepared, reporter, watch)


def is_done(prepared: Prepared) -> bool:
    """Whether nothing is left but perhaps the report; of several processes the first one's word counts.

    Raises:
      AgreedError: processes with other settings, another table, model or mesh.
    """
    # The fingerprint is of what changes a number; of the rest it is the mesh that processes must agree on.
    alike = f"{prepared.document['fingerprint']} on {mesh_text(prepared.mesh.shape)}"
    facts = exchange([alike, prepared.is_fitted])
    check_alike([fingerprint for fingerprint, _ in facts])
    return facts[0][1]


def execute(
    prepared: Prepared,
    reporter: Reporter,
    watch: Stopwatch,
    model: Load | None = None,
    activations: Activations | None = None,
) -> RunDirectory:
    """Does what is left of a run after its checks, and returns its folder.

    Args:
      watch: has run since it began, for the seconds of its tasks.
      model: what gives the run's model, called where it is needed, for several runs of one; default: it is read.
      activations: from `read_states`, where that was called already.
    """
    directory = prepared.directory
    if is_done(prepared):
        if is_main() and not directory.report_path.is_file():  # all but the last step was done
            write_report(directory)
        reporter.say(f"{directory.path} is finished: nothing to do. Report: {directory.report_path}")
        return directory
    load_model = model or (lambda: load(prepared, reporter))
    if prepared.settings.store:
        states = activations or read_states(prepared, reporter, load_model)
        probes, controlled = _probe_stored(prepared, reporter, states)
    else:
        probes, controlled = _probe_streamed(prepared, reporter, load_model)
    seconds = {name: round(value, 2) for name, value in watch.seconds().items()}
    if is_main():
        for note in probes.notes:
            reporter.say(note)
        about = _about(prepared, probes, seconds)
        write_results(directory, prepared.document, prepared.table, probes, controlled, about)
    reporter.say(f"Report: {directory.report_path}")
    return directory


def _claim(prepared: Prepared) -> None:
    """Writes config.json, by which the folder is this run's; after the weights, which may be refused as well."""
    if is_main() and not prepared.is_claimed:
        prepared.directory.write_config(prepared.document)


def _probe_stored(
    prepared: Prepared, reporter: Reporter, activations: Activations
) -> tuple[LayerProbes, pd.DataFrame | None]:
    """Probes from the stored states, and (of several processes only the first) the headline layer's controls."""
    options = {"seed": prepared.settings.seed} | _names(prepared)
    classifier = prepared.settings.classifier
    probes = fit_probes(activations, prepared.table, progress=reporter, classifier=classifier, **options)
    if not is_main():
        return probes, None
    with reporter.task("controls", 1, "layer") as advance:
        at = activations, prepared.table, probes.headline
        controlled = controls.measure(*at, classifier=classifier, **options)
        advance(1)
    return probes, controlled


def _probe_streamed(prepared: Prepared, reporter: Reporter, model: Load) -> tuple[LayerProbes, None]:
    """Probes from sums over rows; no controls, which need rows."""
    read = model()
    _claim(prepared)
    options = {"seed": prepared.settings.seed, "progress": reporter} | _names(prepared)
    return stream_probes(read, *prepared.passes, prepared.table, prepared.folds, **options), None


def _names(prepared: Prepared) -> dict[str, Any]:
    name, position = prepared.extraction.prompt.name, prepared.settings.position
    prompt = name if position == "last" else f"{name}, {position}"
    return {"model": prepared.files.source.name, "prompt": prompt}


def load(prepared: Prepared, reporter: Reporter) -> LanguageModel:
    """Reads the weights of a run's model.

    Raises:
      InputError: there is no room for them and what goes with them, or one of them is not finite.
    """
    check_memory(prepared.memory, prepared.mesh)
    model = read_weights(prepared.files, prepared.mesh, prepared.dtype, reporter)
    leaves = jax.tree_util.tree_leaves_with_path(_not_finite(model.weights))
    bad = [jax.tree_util.keystr(path) for path, is_bad in leaves if is_bad]
    if bad:
        raise InputError(
            f"{prepared.files.source.path} has weights that are not finite (NaN or infinite) in {', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''}. Take a sound copy of the model."
        )
    return model


@jax.jit
def _not_finite(weights: Any) -> Any:
    """Which of the arrays hold a value that is NaN or infinite: a tree of booleans."""
    return jax.tree.map(lambda leaf: ~jnp.isfinite(leaf).all(), weights)


def read_states(prepared: Prepared, reporter: Reporter, model: Load) -> Activations:
    """The stored states; computes what is missing of them. The weights are released before probes are fitted."""
    path = prepared.directory.activations_path
    read = None if path.exists() else model()
    _claim(prepared)
    store = open_store(path, prepared.files, prepared.extraction, prepared.dtype, repair=prepared.settings.repair)
    with store:
        if store.dropped:
            reporter.say(f"Damaged shards, computed anew: {', '.join(map(str, store.dropped))}.")
        if store.complete:
            reporter.say(f"All states are stored already in {path}.")
        else:
            total = len(prepared.extraction.plan.shards)
            if len(store.missing) < total:
                reporter.say(f"Going on: {total - len(store.missing)} of {total} shards are stored already in {path}.")
            fill_store(store, read or model(), prepared.extraction, reporter)
    return open_activations(path)


def _about(prepared: Prepared, probes: LayerProbes | ClassProbes, seconds: dict[str, float]) -> dict[str, Any]:
    """What config.json says of a run that has ended, beside what its probes and its table say."""
    return {
        "chosen_by": prepared.chosen_by,
        "blocks": prepared.files.checkpoint.config().layers,  # of the model; files.config counts those that were run
        "parameters": prepared.files.checkpoint.config().parameter_count(),
        "model": prepared.files.source.name,
        "model_description": DEMO_DESCRIPTION if prepared.settings.model == DEMO_MODEL else "",
        "prompt": prepared.extraction.prompt.wording,
        "dtype": prepared.dtype,
        "devices": f"{prepared.mesh.size} x {jax.devices()[0].device_kind}",
        "notes": list(prepared.table.notes)
        + token_notes(prepared.files.tokenizer, prepared.extraction.tokens, prepared.extraction.prompt)
        + list(probes.notes),
        "distinct_prefixes": sum(part.plan.distinct_prefixes for part in prepared.passes),
        "slots": sum(part.plan.slots for part in prepared.passes),
        "tokens": len(prepared.extraction.tokens.ids),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
    }


def write_results(
    directory: RunDirectory,
    document: Mapping[str, Any],
    table: EntityTable,
    probes: LayerProbes | ClassProbes,
    controlled: pd.DataFrame | None,
    about: Mapping[str, Any],
) -> None:
    """Writes every file of a run's folder; config.json gets its result last, which marks the run as finished.

    Args:
      document: what config.json holds from the start.
      about: what its result holds beside what the table and the probes say.
    """
    of_probes = {"states": probes.states, "headline_layer": probes.headline}
    directory.write_probes(probes.arrays, of_probes | probes.metadata(table))
    directory.write_scores(probes.scores)
    if controlled is not None:
        directory.write_controls(controlled)
    directory.write_entities(entity_frame(table))
    directory.write_predictions(probes.prediction_frame(table))
    result = {
        "headline_layer": probes.headline,
        **about,
        "units": {} if table.label else dict(zip(table.target_names, table.units, strict=True)),
        "label": table.label,
        "classes": table.target_names if table.label else (),
        "attribution": table.attribution,
    }
    directory.write_config({**document, "result": result, "files": directory.digests()})
    write_report(directory)


def demo_settings(out, limit: int | None = None) -> RunSettings:
    """The demo: 10,000 cities, and the model of the installed package."""
    return RunSettings(model=DEMO_MODEL, dataset="cities", out=out, limit=limit)
