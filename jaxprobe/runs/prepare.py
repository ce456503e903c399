"""Everything about a run that can be checked before its weights are read; and what will be done, in words."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxprobe.cost.counts import forward_operations, forward_seconds
from jaxprobe.cost.memory import Memory, check_memory, memory_needed
from jaxprobe.data.table import EntityTable
from jaxprobe.data.tokens import show_tokens, token_notes
from jaxprobe.extract.extraction import Extraction, extraction_settings, plan_extraction, split_extraction
from jaxprobe.extract.store.layout import size_on_disk
from jaxprobe.extract.store.writer import check_space
from jaxprobe.host.processes import is_main
from jaxprobe.host.progress import Reporter, in_words
from jaxprobe.mesh import mesh_text
from jaxprobe.models.files.source import DEMO_DESCRIPTION, DEMO_MODEL
from jaxprobe.models.load import ModelFiles, choose_dtype, fit_mesh, open_model
from jaxprobe.models.placement import place
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.fit import make_folds
from jaxprobe.runs.fit_classes import CRITERIA
from jaxprobe.runs.inputs import Inputs
from jaxprobe.settings import RunSettings, absolute_paths, fingerprint, run_folder, to_json, versions
from jaxprobe.sites import Site, last_block


class Prepared(NamedTuple):
    """Everything that is known before the weights are read."""

    settings: RunSettings
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
    is_fitted: bool  # whether the folder has all but its report already

    @property
    def is_claimed(self) -> bool:
        """Whether the folder says already whose it is."""
        return self.directory.is_of(self.document)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the states take on disk."""
        extraction = self.extraction
        widths = [extraction.widths.get(state, extraction.width) for state in extraction.states]
        return size_on_disk(len(self.table), widths, self.dtype, len(extraction.plan.shards))

    @property
    def chosen_by(self) -> str:
        """What chooses the penalties and the headline layer, in words."""
        if self.table.label and CRITERIA[self.settings.classifier] == "validation":
            return "the log-loss of a quarter of them"
        if self.settings.store:
            return "leave-one-out"
        if self.settings.fold_group:
            return f"leaving out each of {len(self.folds)} values of {self.settings.fold_group}"
        return f"{len(self.folds)}-fold cross-validation"


def prepare(inputs: Inputs, reporter: Reporter, files: ModelFiles | None = None) -> Prepared:
    """Checks all that can be checked without reading the weights, and says what will be done. Writes nothing.

    Args:
      files: the settings' model where it is open already, for several runs of one.

    Raises:
      InputError: whatever can't be used: the model, its layers, the mesh, a folder of another run, too little memory
        or disk.
    """
    settings, table = inputs
    # The default dtype is another one on other machines.
    settings = replace(settings, out=run_folder(settings), dtype=choose_dtype(settings.dtype))
    if files is None:
        files = open_run_model(settings)
    mesh, mesh_reason = place(files.config, settings.mesh, settings.dtype)
    files = fit_mesh(files, mesh, settings.replicate_kv)
    extraction = plan_extraction(
        files,
        table,
        settings.prompt,
        mesh=mesh,
        layers=settings.layers or None,
        final_norm=settings.final_norm,
        sites=settings.sites,
        seed=settings.seed,
        position=settings.position,
        chat=settings.chat,
    )
    passes, folds = _plan_passes(settings, table, extraction, mesh)
    document = _document(settings, table, files, extraction)
    directory = RunDirectory(settings.out)
    if is_main():
        directory.check_owner(document, repair=settings.repair)
    scored = len(table) if settings.store else int(table.is_test.sum())
    sizes = {"scored_rows": scored, "targets": len(table.target_names), "folds": len(folds)}
    prepared = Prepared(
        settings,
        table,
        files,
        mesh,
        mesh_reason,
        settings.dtype,
        extraction,
        passes,
        folds,
        memory_needed(passes, files.config, mesh, settings.dtype, **sizes),
        directory,
        document,
        is_fitted=not settings.repair and directory.is_fitted,
    )
    for line in describe(prepared) if is_main() else ():
        reporter.say(line)
    _check_room(prepared)
    return prepared


def open_run_model(settings: RunSettings) -> ModelFiles:
    """The model of a run, as far as its layers and sites ask for it. Raises InputError as `open_model`."""
    sites = [*map(Site.parse, settings.sites), *(Site("block", layer) for layer in settings.layers)]
    return open_model(
        settings.model,
        revision=settings.revision,
        tokenizer=settings.tokenizer,
        last_layer=None if settings.final_norm or not sites else last_block(sites),
        prepend=settings.prepend,
    )


def _plan_passes(
    settings: RunSettings, table: EntityTable, extraction: Extraction, mesh: Mesh
) -> tuple[tuple[Extraction, ...], dict[str, np.ndarray]]:
    """What is run, and the folds of the training rows that choose the penalties where no states are kept."""
    if settings.store:
        return (extraction,), {}
    folds = make_folds(table, settings.fold_group, settings.seed)
    parts = np.flatnonzero(~table.is_test), np.flatnonzero(table.is_test)
    return tuple(split_extraction(extraction, parts, mesh)), folds


def _document(settings: RunSettings, table: EntityTable, files: ModelFiles, extraction: Extraction) -> dict[str, Any]:
    """What config.json holds from the start: the settings, and digests of all that they led to."""
    inputs = json.loads(json.dumps(extraction_settings(files, extraction)))  # as it will be read back
    rows = {
        "dtype": settings.dtype,
        "targets": [table.target_names, table.targets.tolist(), table.is_test.tolist()],
        "groups": {name: np.asarray(labels).astype(str).tolist() for name, labels in table.groups.items()},
    }
    values = to_json(settings)
    return {
        "settings": values,
        "versions": versions(),
        "fingerprint": fingerprint(values, [table.name, inputs, rows]),
        "inputs": inputs,
        "paths": absolute_paths(settings),
    }


def _check_room(prepared: Prepared) -> None:
    """Refuses what memory or disk can't hold. States that are stored already need neither; the store sees to those."""
    directory = prepared.directory
    if prepared.is_fitted or (prepared.settings.store and directory.activations_path.exists()):
        return
    check_memory(prepared.memory, prepared.mesh)
    if prepared.settings.store and is_main():
        check_space(directory.path, prepared.disk_bytes)


def describe(prepared: Prepared) -> list[str]:
    """What will be run, how big it is, and what was noticed on the way."""
    table, extraction, model = prepared.table, prepared.extraction, prepared.files
    config = model.config
    lines = [
        f"Table {table.name}: {len(table):,} entities ({int(table.is_test.sum()):,} for testing); "
        f"target {table.target_words}; groups {', '.join(table.groups) or 'none'}.",
        *table.notes,
        f"Model {model.source.name}: {config.layers} layers, width {config.width}, "
        f"{config.parameter_count() / 1e6:,.0f} M parameters, {prepared.dtype}.",
    ]
    if prepared.mesh.size > 1:
        lines.append(f"Mesh {mesh_text(prepared.mesh.shape)}: {prepared.mesh_reason}.")
    if prepared.settings.model == DEMO_MODEL:
        lines.append(f"The demo model is {DEMO_DESCRIPTION}.")
    lines += [
        f"Prompt {extraction.prompt.name}: {extraction.prompt.wording!r}.",
        *token_notes(model.tokenizer, extraction.tokens, extraction.prompt),
    ]
    if prepared.settings.show_tokens:
        lines += show_tokens(model.tokenizer, extraction.tokens)
    plans = [part.plan for part in prepared.passes]
    slots, prefixes = sum(plan.slots for plan in plans), sum(plan.distinct_prefixes for plan in plans)
    lines += [
        f"Forward: {slots:,} slots for {prefixes:,} distinct prefixes of {len(extraction.tokens.ids):,} tokens; "
        f"{effort([prepared])}.",
        f"States: {len(extraction.states)} of {len(table):,} x "
        f"{' and '.join(map(str, sorted({config.width, *extraction.widths.values()})))}, "
        + (
            f"{prepared.disk_bytes / 1e9:.2f} GB on disk."
            if prepared.settings.store
            else f"not stored: penalties are chosen by {prepared.chosen_by}, from sums. Training scores other than "
            "R2, and controls, need stored states."
        ),
        f"Memory: {prepared.memory.host / 1e9:.2f} GB"
        + (f", and {prepared.memory.device / 1e9:.2f} GB on each device." if prepared.memory.device else "."),
        f"Folder: {prepared.directory.path}",
    ]
    return lines


def effort(several: Sequence[Prepared]) -> str:
    """Operations of the forward passes, and how long they take where that is known before they start."""
    operations = sum(forward_operations(part.plan, each.files.config) for each in several for part in each.passes)
    size = f"{operations / 1e12:,.1f} TFLOP"
    seconds = None if all(each.is_fitted for each in several) else forward_seconds(operations, several[0].mesh)
    if seconds is None:
        return size
    return f"{size}, about {in_words(seconds)} at this machine's rate; probes and report come on top"
