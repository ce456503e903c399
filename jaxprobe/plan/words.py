"""A plan in words and a table, and as JSON values."""

import math
from collections import Counter
from typing import Any

from jaxprobe.cost.chips import GPU_POOL, LINKS, MOST_OF_A_GPU
from jaxprobe.cost.counts import WHITENED, Program
from jaxprobe.extract.forward import STEPS_IN_FLIGHT
from jaxprobe.host.progress import in_words
from jaxprobe.mesh import mesh_text
from jaxprobe.plan.planning import COLUMN_SECONDS, READINGS, STORE_BYTES, UTILISATION, RunPlan
from jaxprobe.probes.search import RELATIVE_ALPHAS


def describe(plan: RunPlan) -> list[str]:
    """What is planned, before the table of programs."""
    chip, step, config = plan.machine.chip, plan.step, plan.config
    compiled = (
        "Compiled for it here; nothing was run."
        if plan.compiled
        else 'Counted from shapes alone; pip install "jaxprobe[plan-gpu]" and they are compiled (no GPU is needed).'
    )
    return [
        f"Model {plan.model}: {config.layers} layers, width {config.width}, {config.parameter_count() / 1e9:.2f} G "
        f"parameters, {plan.dtype}.",
        f"Machine {plan.machine.topology}: {plan.machine.count} x {chip.name}, {chip.memory} GB each"
        + (f", of which JAX takes {chip.usable_memory:.0f}" if chip.usable_memory < chip.memory else "")
        + f". {compiled}",
        f"Mesh {mesh_text(plan.mesh)}: {plan.mesh_reason}.",
        f"Table {plan.table}, prompt {plan.prompt}: {plan.entities:,} entities, {plan.distinct_prefixes:,} distinct "
        f"prefixes; {plan.steps:,.0f} step{'' if plan.steps == 1 else 's'} of {step.bins} bins x {step.slots} slots.",
        f"Tokens were counted with the tokenizer of {plan.tokenizer}.",
    ]


def program_rows(plan: RunPlan) -> list[tuple[str, ...]]:
    """A head row, then what each program takes of each chip."""
    programs = [plan.forward, plan.moments, *plan.ridge]
    row = lambda name, show: (name, *("does not fit" if one.refused else show(one) for one in programs))
    rows = [
        ("for each chip", *(one.name for one in programs)),
        row("arguments, GB", lambda one: f"{one.arguments / 1e9:.2f}"),
        row("results, GB", lambda one: f"{one.outputs / 1e9:.2f}"),
        row("activations and other temporary, GB", lambda one: f"{one.temporary / 1e9:.2f}"),
        row("peak, GB", lambda one: f"{one.peak / 1e9:.2f}"),
        row("operations, 10^12", lambda one: f"{one.operations / 1e12:,.2f}"),
        row("memory traffic, GB", lambda one: f"{one.traffic / 1e9:,.1f}" if one.traffic else ""),
    ]
    kinds = sorted({each.kind for one in programs for each in one.collectives})
    return rows + [row(f"{kind}, GB", lambda one, kind=kind: _moved(one, kind)) for kind in kinds]


def conclusions(plan: RunPlan) -> list[str]:
    """Memory and time of the whole run, and what they rest on."""
    lines = [f"Parameters: {plan.parameters / 1e9:.2f} GB on each chip."]
    for stored, peak, seconds in ((True, plan.peak_stored, plan.stored), (False, plan.peak_streamed, plan.streamed)):
        fits = plan.fits(stored)
        name = "States stored" if stored else "States not stored (--no-store)"
        if not fits and plan.refused:
            lines.append(f"{name}: does NOT fit. Name a larger --topology.")
            continue
        parts = ", ".join(f"{part} {in_words(value)}" for part, value in seconds.items() if part != "total")
        lines.append(
            f"{name}: peak {peak / 1e9:.2f} of {plan.memory / 1e9:.0f} GB, "
            f"{'fits' if fits else _remedy(plan, peak)}; {in_words(seconds['total'])} ({parts})."
        )
    lines.append(
        f"A run's peak has the results of {STEPS_IN_FLIGHT + 1} steps at once; with --no-store also the sums, and "
        f"{plan.fit_streamed / 1e9:.2f} GB of each process's memory, not the chip's, where a fit needs float64."
    )
    lines += [f"The compiler: {text}" for text in plan.refused]
    return [*lines, "Assumed, not measured on this machine:", *(f"- {line}" for line in assumptions(plan))]


def _remedy(plan: RunPlan, peak: int) -> str:
    on_gpu, needed = plan.machine.chip.platform == "gpu", math.ceil(100 * peak / (plan.machine.chip.memory * 1e9)) / 100
    if on_gpu and needed <= MOST_OF_A_GPU:
        return f"does NOT fit (it does with the variable XLA_CLIENT_MEM_FRACTION={needed:.2f})"
    return "does NOT fit (name a larger --topology)"


def assumptions(plan: RunPlan) -> list[str]:
    """What the times rest on."""
    chip = plan.machine.chip
    peak = chip.float32 if plan.dtype == "float32" else chip.bfloat16
    return [
        f"Products run at {UTILISATION:.0%} of the published peak ({peak:,.0f} x 10^12 operations a second in "
        f"{plan.dtype}, {chip.float32:.0f} in float32) or at the speed of memory ({chip.memory_bandwidth:,} GB/s), "
        f"whichever is slower ({chip.source}).",
        f"Collectives come on top, at {chip.link_bandwidth} GB/s: {LINKS}. Nothing overlaps.",
        f"States are written behind the forward, and read {READINGS} times (to fit, to score), at "
        f"{STORE_BYTES / 1e9:.0f} GB/s a host ({plan.machine.hosts} here).",
        f"Factorisations on chips go column by column, {COLUMN_SECONDS:.0e} s each (a guess), for all states "
        f"or folds of a batch; {WHITENED} of {len(RELATIVE_ALPHAS)} penalties are whitened.",
        "Penalties that float32 does not suffice for are solved again in float64 on the hosts (with --no-store and "
        "widths above 2,048 only such as may be the best): that comes on top.",
        *(
            [f"JAX takes {GPU_POOL:.0%} of a GPU's memory; the variable XLA_CLIENT_MEM_FRACTION names another part."]
            if chip.platform == "gpu"
            else []
        ),
        "Loading the weights and compiling are left out.",
    ]


def to_json(plan: RunPlan) -> dict[str, Any]:
    """The plan as JSON values, for a result file."""
    program = lambda one: one._asdict() | {"collectives": [each._asdict() for each in one.collectives]}
    kept = {name: value for name, value in plan._asdict().items() if name not in ("config", "machine")}
    return kept | {
        "topology": plan.machine.topology,
        "chips": plan.machine.count,
        "chip_memory": plan.machine.chip.memory * 1e9,
        "usable_memory": plan.memory,
        "step": plan.step._asdict(),
        "forward": program(plan.forward),
        "moments": program(plan.moments),
        "ridge": [program(one) for one in plan.ridge],
        "fits_stored": plan.fits(True),
        "fits_streamed": plan.fits(False),
        "assumptions": assumptions(plan),
    }


def _moved(program: Program, kind: str) -> str:
    """Total of one kind, and how many times it runs."""
    sizes: Counter[str] = Counter()
    for one in program.collectives:
        if one.kind == kind:
            sizes["bytes"] += one.times * one.size
            sizes["times"] += one.times
    return f"{sizes['bytes'] / 1e9:,.2f} in {sizes['times']}" if sizes else ""
