"""A run's table and names, checked before anything that takes seconds to import: what is wrong here is said at once."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from jaxprobe.data.catalog import load_table
from jaxprobe.data.prompt import find_prompt
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError, tell_once
from jaxprobe.host.paths import as_path, check_out, is_address
from jaxprobe.models.files.source import DEMO_MODEL, find_model
from jaxprobe.settings import RunSettings, check_settings, run_folder
from jaxprobe.sites import parse_sites


class Inputs(NamedTuple):
    """Settings and the table that they name."""

    settings: RunSettings
    table: EntityTable


def read_several(several: Sequence[RunSettings]) -> list[Inputs]:
    """`read_inputs` of each; what is one table is read once.

    Raises:
      InputError: every problem of each of them.
    """
    read = functools.cache(load_run_table)
    load = lambda settings: read(replace(settings, model="", prompt="", out=None))
    inputs: list[Inputs] = []
    problems: dict[str, list[str]] = {}
    for settings in several:
        found: list[str] = []
        problems[str(run_folder(settings))] = found
        try:
            inputs.append(read_inputs(settings, load))
        except InputError as error:
            found += error.problems
    if any(problems.values()):
        raise InputError(*tell_once(problems, "Run"))
    return inputs


def read_inputs(settings: RunSettings, load: Callable[[RunSettings], EntityTable] | None = None) -> Inputs:
    """Reads the table, and checks all that can be checked of settings without opening the model. Writes nothing.

    Args:
      load: what reads the table, where it may have been read already; default: `load_run_table`.

    Raises:
      InputError: every problem found, of the settings, their folder, the table, the prompt and the model's name.
    """
    check_settings(settings)
    problems: list[str] = []
    table = None
    try:
        table = (load or load_run_table)(settings)
        find_prompt(table.name, settings.prompt)
    except InputError as error:
        problems += error.problems
    for check in (_check_combination, _check_folder, _check_model):
        try:
            check(settings)
        except InputError as error:
            problems += error.problems
    if problems or table is None:
        raise InputError(*problems)
    if table.label and not settings.store:
        raise InputError(f"Labels ({table.label}) need stored states, for their probabilities. Leave --no-store out.")
    return Inputs(settings, table)


def load_run_table(settings: RunSettings) -> EntityTable:
    """The table that a run's settings name. Raises InputError as `load_table`."""
    names = ("text", "target", "split", "group", "data_dir", "limit", "seed")
    names += ("cell_degrees", "buffer_km", "unit_vectors", "labels")
    return load_table(settings.dataset, **{name: getattr(settings, name) for name in names})


def _check_combination(settings: RunSettings) -> None:
    if settings.unit_vectors and not settings.store:
        raise InputError("--unit-vectors needs stored states: training scores from sums are of what is fitted.")
    if settings.fold_group and settings.store:
        raise InputError(
            "--fold-group goes with --no-store; with stored states the penalty is chosen by leave-one-out."
        )

    if settings.chat and settings.prepend is not None:
        raise InputError("--prepend and --chat both say what a text starts with. Leave one out.")
    if settings.layers and settings.sites:
        raise InputError("--layers and --sites both say what is read. Give all as sites: --sites embed 12 mlp.12")
    neurons = [site for site in parse_sites(settings.sites) if site.letter != "D"]
    if neurons and not settings.store:
        raise InputError(f"Neurons ({neurons[0]}) need stored states: leave out --no-store, or the neurons.")


def _check_folder(settings: RunSettings) -> None:
    check_out(run_folder(settings))


def _check_model(settings: RunSettings) -> None:
    """A name that can be nothing but a path, of something that is not there; hub names wait for the network."""
    name = settings.model
    if name != DEMO_MODEL and not is_address(name):
        is_hub_name = name.count("/") == 1 and not name.startswith((".", "~", "/")) and not as_path(name).exists()
        if not is_hub_name:
            find_model(name, settings.revision)
