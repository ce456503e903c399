"""The paper's experiments for one model, on the tables at hand, beside the paper's own numbers.

Source: Gurnee & Tegmark (2023), "Language Models Represent Space and Time", arXiv 2310.02207, table of test R2.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd

from jaxprobe import experiment
from jaxprobe.config import RunConfig
from jaxprobe.data.catalog import list_datasets
from jaxprobe.data.prompts import list_prompts
from jaxprobe.errors import InputError
from jaxprobe.progress import Progress
from jaxprobe.run import Prepared, prepare, run
from jaxprobe.rundir import RunDirectory

Say = Callable[[str], None]


class Published(NamedTuple):
    """Test R2 of ridge probes on Llama-2 at layers 20 (7b), 24 (13b) and 48 (70b)."""

    llama2_7b: float
    llama2_13b: float
    llama2_70b: float


PUBLISHED = {
    "world_place": Published(0.881, 0.896, 0.911),
    "us_place": Published(0.799, 0.825, 0.864),
    "nyc_place": Published(0.219, 0.237, 0.359),
    "historical_figure": Published(0.785, 0.804, 0.835),
    "art": Published(0.788, 0.806, 0.885),
    "headline": Published(0.564, 0.645, 0.746),
}
DIFFERENCES = (
    "What differs from the paper's numbers: the model; here the layer is the one with the least leave-one-out error on "
    "the training rows (there 20, 24 or 48), the penalty's grid extends itself (there 12 fixed ones), and states are "
    "not cut to 8 bits."
)


def run_paper(
    model: str,
    out: Path,
    data_dir: Path | None,
    prompts: Sequence[str],
    limit: int | None,
    say: Say,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Runs every table at hand under its prompts, then experiments 1 to 5, and returns our numbers beside the paper's.

    Everything is checked, and the time of the forward passes said, before the first run starts. What is finished in
    ``out`` is not done again.

    Args:
      prompts: named prompts; () takes the bare name and each table's question.
      limit: rows of each table, seeded; None for all.

    Returns:
      One row for each table and prompt. Written to ``out``/experiments as well, with a table for each experiment.

    Raises:
      InputError: no table at hand, no such prompt, or whatever a run refuses.
    """
    configs = plan_runs(model, out, data_dir, prompts, limit)
    say(forward_time([prepare(config, lambda line: None) for config in configs]))
    runs = [run(config, say, progress).path for config in configs]
    by_table: dict[str, list[Path]] = {}
    for config, path in zip(configs, runs, strict=True):
        by_table.setdefault(config.dataset, []).append(path)
    _write("layers", [experiment.layers(runs)], out, say)
    _write("prompts", [experiment.transfer(several) for several in by_table.values() if len(several) > 1], out, say)
    # Hold-outs fit some tens of probes, so they look at each table's first prompt only.
    first = [several[0] for several in by_table.values()]
    _write("blocks", [experiment.hold_out(first)], out, say)
    typed = [path for path in first if "group_entity_type" in RunDirectory(path).read_entities()]
    _write("entity_types", [experiment.types(typed)] if typed else [], out, say)
    _write("controls", [RunDirectory(path).read_controls() for path in runs], out, say)
    frame = pd.DataFrame([compare(RunDirectory(path)) for path in runs])
    _write("paper", [frame], out, say)
    say(DIFFERENCES)
    return frame


def plan_runs(
    model: str, out: Path, data_dir: Path | None, prompts: Sequence[str], limit: int | None
) -> list[RunConfig]:
    """The settings of each run: every table of the paper that is at hand, under each of its prompts."""
    tables = [listing.name for listing in list_datasets(data_dir) if listing.location and listing.name in PUBLISHED]
    if not tables:
        raise InputError(
            f"None of the paper's tables ({', '.join(PUBLISHED)}) is at hand. Name their folder with --data-dir or "
            "JAXPROBE_DATA; `jaxprobe data fetch NAME` brings one."
        )
    configs, unknown = [], set(prompts)
    for table in tables:
        named = [prompt.name for prompt in list_prompts(table)]
        questions = [prompt.name for prompt in list_prompts(table) if prompt.template != "{}"]
        wanted = [name for name in prompts if name in named] if prompts else [named[0], questions[0]]
        unknown -= set(wanted)
        options = dict(data_dir=data_dir, limit=limit)
        configs += [RunConfig(model, table, Path(out) / table / name, prompt=name, **options) for name in wanted]
    if unknown:
        raise InputError(f"Prompt {', '.join(sorted(unknown))} is of none of the tables {', '.join(tables)}.")
    return configs


def forward_time(prepared: Sequence[Prepared]) -> str:
    """How long the forward passes of runs will take, from their slots and a matrix product timed here."""
    todo = [each for each in prepared if not each.directory.is_complete]
    operations = sum(2.0 * each.files.config.parameter_count() * each.extraction.plan.slots for each in todo)
    matrix = jnp.ones((2048, 2048), todo[0].dtype if todo else "float32")
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    started = time.perf_counter()
    for _ in range(4):
        product(matrix, matrix).block_until_ready()
    rate = 4 * 2 * 2048**3 / (time.perf_counter() - started) * len(jax.devices())
    # A forward pass reaches about three quarters of the rate of a large product.
    minutes = operations / (0.75 * rate) / 60
    return (
        f"{len(todo)} of {len(prepared)} runs to do: forward passes of about {minutes:,.1f} minutes at the rate that a "
        "matrix product has here; reading, probes, controls and hold-outs come on top."
    )


def compare(directory: RunDirectory) -> dict[str, object]:
    """One run's test R2 with its interval and its controls, and the paper's R2 for the same table."""
    entities, controls = directory.read_entities(), directory.read_controls()
    rows = controls[(controls["target"] == "mean") & (controls["metric"] == "r2")]
    by = rows[rows["resampled"].isin(["rows", "permutations"])].set_index("control")
    ours = by.loc["none"]
    others = {name: by.loc[name, "value"] for name in ("embed", "ngrams", "permuted") if name in by.index}
    return {
        "model": ours["model"],
        "dataset": ours["dataset"],
        "prompt": ours["prompt"],
        "rows": len(entities),
        "layer": ours["layer"],
        "r2": ours["value"],
        "ci_low": ours["ci_low"],
        "ci_high": ours["ci_high"],
        **others,
        **PUBLISHED[ours["dataset"]]._asdict(),
    }


def _write(name: str, frames: Sequence[pd.DataFrame], out: Path, say: Say) -> None:
    if frames:
        say(f"{name}: {experiment.write_table(name, pd.concat(frames, ignore_index=True), out)}")
