"""Probes of states that were made elsewhere: another library's, another modality's, a dictionary's features."""

import hashlib
import time
from collections.abc import Mapping
from os import PathLike

import numpy as np

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments import controls
from jaxprobe.extract.store.plain import PlainStates
from jaxprobe.host.paths import as_path
from jaxprobe.host.progress import Reporter, default_reporter
from jaxprobe.results.folder import RunDirectory
from jaxprobe.results.results import Run
from jaxprobe.runs.execute import write_results
from jaxprobe.runs.fit import fit_probes
from jaxprobe.runs.fit_classes import CRITERIA
from jaxprobe.settings import RunSettings, absolute_paths, fingerprint, to_json, versions
from jaxprobe.sites import Site

IN_MEMORY = "states in memory"


def probe(
    states: Mapping[str, np.ndarray] | str | PathLike,
    table: EntityTable,
    out: str | PathLike,
    *,
    settings: RunSettings | None = None,
    name: str = "own states",
    reporter: Reporter | None = None,
) -> Run:
    """Fits a probe on each state and writes a run's folder: scores, controls that need no model, predictions, report.

    Args:
      states: state name -> [N, D], rows as in the table; or a .npy or .safetensors file or folder, as `PlainStates`
        reads them.
      table: the entities, their targets and their split.
      out: the folder, new or empty, or of the same states and table.
      settings: what the table was read with, for config.json; of them ``seed`` and ``classifier`` count here.
      name: what results call whoever made the states.

    Raises:
      InputError: states that don't fit the table or are not finite; a folder of something else.
    """
    reporter, started = reporter or default_reporter(), time.perf_counter()
    source = IN_MEMORY if isinstance(states, Mapping) else str(as_path(states).absolute())
    found, naming = _numbered(states if isinstance(states, Mapping) else PlainStates(states))
    settings = settings or RunSettings(model=name, dataset=table.name)
    made_from = {"states": {state: _digest(found[state]) for state in found}}
    rows = {"targets": [table.target_names, table.targets.tolist(), table.is_test.tolist()], "texts": table.texts}
    values = to_json(settings)
    document = {
        "settings": values,
        "versions": versions(),
        "fingerprint": fingerprint(values, [table.name, made_from, rows]),
        "inputs": made_from,
        "paths": absolute_paths(settings),
    }
    directory = RunDirectory(as_path(out))
    directory.check_owner(document)
    if directory.is_of(document) and directory.is_fitted:
        reporter.say(f"{directory.path} is finished: nothing to do. Report: {directory.report_path}")
        return Run(directory)
    options = {"model": name, "prompt": "none", "seed": settings.seed}
    for note in (*table.notes, *naming):
        reporter.say(note)
    probes = fit_probes(found, table, progress=reporter, classifier=settings.classifier, **options)
    for note in probes.notes:
        reporter.say(note)
    with reporter.task("controls", 1, "layer") as advance:
        controlled = controls.measure(found, table, probes.headline, classifier=settings.classifier, **options)
        advance(1)
    chosen_by = "leave-one-out"
    if table.label and CRITERIA[settings.classifier] == "validation":
        chosen_by = "the log-loss of a quarter of them"
    result = {
        "chosen_by": chosen_by,
        "model": name,
        "states_from": source,
        "notes": [*table.notes, *naming, *probes.notes],
        "seconds": {"total": round(time.perf_counter() - started, 2)},
    }
    write_results(directory, document, table, probes, controlled, result)
    reporter.say(f"Report: {directory.report_path}")
    return Run(directory)


def _numbered(states: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """The states and what to say of their names: where one is no site of a model, all are numbers from 0, in order."""
    try:
        for name in states:
            Site.parse(name)
        return states, []
    except InputError:
        names = list(states)
        said = ", ".join(f"{number} is {name!r}" for number, name in enumerate(names))
        return {str(number): states[name] for number, name in enumerate(names)}, [f"States by number: {said}."]


def _digest(state: np.ndarray) -> str:
    state = np.ascontiguousarray(state)
    if not np.issubdtype(state.dtype, np.number) and state.dtype.name != "bfloat16":
        raise InputError(f"A state holds {state.dtype}; wanted numbers.")
    return hashlib.sha256(state.view(np.uint8).data).hexdigest()[:32]
