"""A plan: what a table and a prompt would take of a model on a machine, and how long it would last."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from jaxprobe.cost.chips import Machine, parse_topology
from jaxprobe.cost.counts import Fit, Program, Step, count_fit, count_fit_of_sums, count_step, count_sums, forward_steps
from jaxprobe.cost.memory import device_fit_memory, fit_memory, peak_of_stored, peak_of_streamed
from jaxprobe.data.chat import put_prompt
from jaxprobe.data.table import EntityTable
from jaxprobe.data.tokens import tokenize
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import plan_tokens
from jaxprobe.extract.forward import BINS_PER_DEVICE
from jaxprobe.extract.shares import share_count, steps, waves
from jaxprobe.extract.sums import pieces, wave_size
from jaxprobe.extract.trie import Plan
from jaxprobe.host.paths import as_path
from jaxprobe.mesh import MESH_AXES, make_mesh, mesh_text, parse_mesh
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.divide import fit_config
from jaxprobe.models.families.known import read_config as read_model_config
from jaxprobe.models.files.checkpoint import read_json
from jaxprobe.models.files.gguf import GGUFCheckpoint
from jaxprobe.models.files.safetensors import folder_config
from jaxprobe.models.files.source import DEMO_MODEL, ModelSource, find_model
from jaxprobe.models.load import DTYPES, choose_dtype
from jaxprobe.models.placement import choose_mesh, parameter_bytes
from jaxprobe.models.published import find_published
from jaxprobe.models.tokenizer import load_tokenizer
from jaxprobe.plan.programs import forward_program, moments_program, ridge_programs
from jaxprobe.plan.topologies import topology_devices
from jaxprobe.probes.devices import accelerator_batch
from jaxprobe.probes.search import RELATIVE_ALPHAS
from jaxprobe.runs.fit import FOLDS, make_folds
from jaxprobe.runs.inputs import load_run_table
from jaxprobe.settings import RunSettings, check_settings
from jaxprobe.sites import choose_sites, last_block

# Assumed, and said with every plan; none of it was measured on these chips.
UTILISATION = 0.5  # of the chip's published peak
STORE_BYTES = 1e9  # a second and host, to shared storage or a disk
READINGS = 2  # of each stored state: to fit its probe, and to score it
# A factorisation goes column by column, each of which waits for the one before; states and folds of a batch share it.
COLUMN_SECONDS = 2e-6
_NOT_ITS_OWN = "the demo model (this model's own is not at hand; --tokenizer can name it)"


class RunPlan(NamedTuple):
    """What a run would take. Sizes in bytes and of each chip, times in seconds."""

    model: str
    config: ModelConfig
    machine: Machine
    mesh: dict[str, int]
    mesh_reason: str
    dtype: str
    tokenizer: str
    table: str
    prompt: str
    entities: int
    distinct_prefixes: int
    step: Step
    steps: float  # of the forward, each as large as ``step``
    compiled: bool  # or counted from shapes
    parameters: int
    forward: Program
    moments: Program
    ridge: tuple[Program, ...]  # empty where it runs on the host, or was not compiled
    peak_stored: int
    peak_streamed: int
    fit_streamed: int  # of each process's own memory: the fit of one state from sums
    stored: dict[str, float]  # part of a run -> seconds; "total"
    streamed: dict[str, float]

    @property
    def memory(self) -> float:
        """What programs can have of each chip."""
        return self.machine.chip.usable_memory * 1e9

    @property
    def refused(self) -> list[str]:
        """What the compiler said of programs that do not fit."""
        return [f"{one.name}: {one.refused}" for one in (self.forward, self.moments, *self.ridge) if one.refused]

    def fits(self, stored: bool) -> bool:
        """Whether a run that stores its states (or does not) has the memory that it needs."""
        needed = (self.forward, *self.ridge) if stored else (self.forward, self.moments)
        peak = self.peak_stored if stored else self.peak_streamed
        return peak <= self.memory and not any(program.refused for program in needed)


def plan(settings: RunSettings, topology: str, say: Callable[[str], None] = lambda line: None) -> RunPlan:
    """Compiles the programs of a run for a machine that is not here, or counts what they do; reads no weights.

    Args:
      settings: of the run; ``model`` may also be a name of ``published_models``. Of a hub model only the small files
        are fetched. The default dtype is bfloat16, the default tokenizer the model's own, or the demo model's where
        that is not at hand.
      topology: a TPU slice such as ``v5e:8x8``, or GPUs such as ``h100:8``.
      say: told which program is being compiled, which takes from seconds to a minute each.

    Raises:
      InputError: whatever can't be used.
    """
    check_settings(settings)
    dtype = choose_dtype(settings.dtype or "bfloat16")
    machine = parse_topology(topology)
    name, config, source, checkpoint = _find_shape(settings.model)
    chosen = choose_mesh(config, machine.count, int(machine.chip.usable_memory * 1e9), dtype)
    sizes, reason = (parse_mesh(settings.mesh), "as asked for") if settings.mesh else chosen
    sizes = {axis: sizes.get(axis, 1) for axis in MESH_AXES}
    if math.prod(sizes.values()) != machine.count:
        raise InputError(
            f"Mesh {mesh_text(sizes)} has {math.prod(sizes.values())} devices, and {topology} has {machine.count}. "
            "Use a mesh of all of them, or leave --mesh out."
        )
    sites = choose_sites(
        config.layers, layers=settings.layers or None, final_norm=settings.final_norm, sites=settings.sites
    )
    if neurons := [str(site) for site in sites if site.letter != "D"]:
        raise InputError(
            f"{', '.join(neurons)}: neurons are not planned for, only states of the model's width. Leave them out; a "
            "site of neurons takes about as much as several blocks."
        )
    if (last := last_block(sites)) is not None:  # later blocks are not run
        config = replace(config, layers=last + 1)
    config = fit_config(config, sizes, settings.replicate_kv)
    words, own = _tokenizer(source, settings.tokenizer, checkpoint)
    table = load_run_table(settings)
    found_prompt = put_prompt(words, table.name, settings.prompt, table.texts, chat=settings.chat)
    tokens = tokenize(
        words,
        table.texts,
        found_prompt,
        max_length=config.longest_prompt,
        seed=settings.seed,
        position=settings.position,
    )
    devices = topology_devices(machine)
    # A process a GPU: each device along the bin axis is a share of its own.
    shares = share_count(make_mesh(sizes, devices)) if devices else sizes["data"] * sizes["fsdp"]
    each = sizes["data"] * sizes["fsdp"] // shares
    bins = BINS_PER_DEVICE[machine.chip.platform] * each
    layout = plan_tokens(tokens, bins=bins, multiple=each, even=True)
    step, steps_wanted = _steps(layout, config, sizes, shares)
    job = _Job(machine, sizes, config, tuple(map(str, sites)), dtype, table, layout, step)
    forward, moments, ridge = _compile(job, devices, say) if devices else _count(job)
    parameters = parameter_bytes(config, sizes, dtype)
    forward_s = steps_wanted * _seconds(forward, machine, dtype)
    return RunPlan(
        name, config, machine, sizes, reason, dtype, own, table.name, found_prompt.name, len(table),
        layout.distinct_prefixes, step, steps_wanted, bool(devices), parameters, forward, moments, ridge,
        peak_stored=max(peak_of_stored(forward), *(program.peak for program in ridge), 0),
        peak_streamed=_streamed_peak(job, parameters, forward, moments, shares),
        fit_streamed=fit_memory(FOLDS, config.width, job.targets),
        stored=_stored_seconds(job, forward_s),
        streamed=_streamed_seconds(job, forward_s, moments),
    )  # fmt: skip


class _Job(NamedTuple):
    """All that is known before programs are compiled or counted."""

    machine: Machine
    mesh: dict[str, int]
    config: ModelConfig
    states: tuple[str, ...]
    dtype: str
    table: EntityTable
    layout: Plan
    step: Step

    @property
    def itemsize(self) -> int:
        return np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def targets(self) -> int:
        return len(self.table.target_names)

    @property
    def parts(self) -> list[np.ndarray]:
        """The rows as they are added to the sums."""
        return [part for shard in self.layout.shards for part in pieces(shard.rows, self.config.width)]

    @property
    def training_rows(self) -> int:
        return int((~self.table.is_test).sum())


def _find_shape(model: str) -> tuple[str, ModelConfig, ModelSource | None, GGUFCheckpoint | None]:
    """(name, configuration, where a tokenizer may be, and the file that was parsed for it)."""
    published = find_published(model)
    if published:
        return *published, None, None
    path = as_path(model).expanduser()
    if path.suffix == ".json" and path.is_file():
        return path.stem, read_model_config(read_json(path)), None, None
    source = find_model(model, weights=False)
    if source.is_gguf:
        checkpoint = GGUFCheckpoint(source.path)
        return source.name, checkpoint.config(), source, checkpoint
    return source.name, folder_config(source.path), source, None


def _tokenizer(
    source: ModelSource | None, tokenizer: str | None, checkpoint: GGUFCheckpoint | None
) -> tuple[PreTrainedTokenizerFast, str]:
    """(tokenizer, whose it is)."""
    if tokenizer or source:
        return load_tokenizer(source, tokenizer, checkpoint), tokenizer or source.name
    return load_tokenizer(find_model(DEMO_MODEL)), _NOT_ITS_OWN


def _steps(layout: Plan, config: ModelConfig, mesh: dict[str, int], shares: int) -> tuple[Step, float]:
    """The largest step of all shares, and how many of its size the table takes."""
    step = max(forward_steps(layout, config.layers + 1, mesh, shares), key=lambda one: one.bins * one.slots)
    slots = sum(
        shares * next(one for one in row if one is not None).tokens.size
        for wave in waves(range(len(layout.shards)), shares)
        for row in steps([layout.shards[shard] for shard in wave], shares)
    )
    return step, slots / (step.bins * step.slots)


_Programs = tuple[Program, Program, tuple[Program, ...]]


def _compile(job: _Job, devices: list[jax.Device], say: Callable[[str], None]) -> _Programs:
    """The forward step, the moments step and the ridge's programs."""
    width, states = job.config.width, len(job.states)
    say("Compiling the forward step.")
    forward = forward_program(job.config, job.states, job.step, make_mesh(job.mesh, devices), job.dtype)
    say("Compiling the sums of --no-store.")
    moments = moments_program(
        states, width, job.parts, list(make_folds(job.table).values()), job.targets, devices, job.dtype
    )
    say("Compiling the ridge.")
    ridge = ridge_programs(states, job.training_rows, width, job.targets, devices, job.dtype)
    return forward, moments, tuple(ridge or ())


def _count(job: _Job) -> _Programs:
    """The same from shapes, without the ridge."""
    rows, states, chips = max(map(len, job.parts)), len(job.states), job.machine.count
    forward = count_step(job.config, job.step, job.mesh, job.dtype, job.machine.chip.platform)
    sums = count_sums(states, rows, FOLDS, job.config.width, job.targets, chips, job.dtype)
    return forward, sums, ()


def _streamed_peak(job: _Job, parameters: int, forward: Program, moments: Program, shares: int) -> int:
    """A step with what waits beside it, or afterwards the fit of a state; the weights stay."""
    sizes = len(job.states), max(map(len, job.parts)), job.config.width, job.itemsize, job.machine.count
    exchanged = wave_size(*sizes, shares) - wave_size(*sizes)
    fit = device_fit_memory(FOLDS, job.config.width, job.machine.chip.platform)
    return max(peak_of_streamed(parameters, forward, moments, exchanged), parameters + moments.outputs + fit)


def _seconds(program: Program, machine: Machine, dtype: str) -> float:
    """One call: products or memory, whichever takes longer, and then the collectives."""
    chip = machine.chip
    peak = chip.float32 if dtype == "float32" else chip.bfloat16
    work = max(program.operations / (UTILISATION * peak * 1e12), program.traffic / (chip.memory_bandwidth * 1e9))
    return work + sum(one.sent for one in program.collectives) / (chip.link_bandwidth * 1e9)


def _stored_seconds(job: _Job, forward_s: float) -> dict[str, float]:
    """The forward while states are written behind it; then they are read, and probes fitted and scored."""
    machine, width, rows, states = job.machine, job.config.width, job.training_rows, len(job.states)
    moved = len(job.table) * states * width * job.itemsize / (STORE_BYTES * machine.hosts)
    one = count_fit(rows, width, len(RELATIVE_ALPHAS), machine.chip.platform)
    fit = _fit_seconds(job, one, accelerator_batch((rows, width), job.itemsize, states, machine.count))
    parts = {"forward": forward_s, "writing": moved, "reading": READINGS * moved} | fit
    return parts | {"total": max(forward_s, moved) + parts["reading"] + sum(fit.values())}


def _streamed_seconds(job: _Job, forward_s: float, moments: Program) -> dict[str, float]:
    """The forward, a step of the sums for each part of the rows, and the fits, a chip's states one after the other."""
    machine, sums = job.machine, len(job.parts) * _seconds(moments, job.machine, "float32")
    one = count_fit_of_sums(job.config.width, FOLDS, len(RELATIVE_ALPHAS), machine.chip.platform)
    parts = {"forward": forward_s, "sums": sums} | _fit_seconds(job, one, 1)
    return parts | {"total": sum(parts.values())}


def _fit_seconds(job: _Job, one: Fit, batch: int) -> dict[str, float]:
    """A chip's states, each of which takes ``one``, and ``batch`` of which go through their columns together."""
    each = -(-len(job.states) // job.machine.count)
    products = each * one.operations / (UTILISATION * job.machine.chip.float32 * 1e12)
    return {"ridge": products, "its columns": -(-each // batch) * one.columns * COLUMN_SECONDS}
