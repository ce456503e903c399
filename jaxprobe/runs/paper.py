"""The paper's experiments for one model, on the tables at hand, beside the paper's own numbers.

Source: Gurnee & Tegmark (2023), "Language Models Represent Space and Time", arXiv 2310.02207, table of test R2.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data.catalog import list_datasets
from jaxprobe.data.prompt import list_prompts
from jaxprobe.errors import InputError
from jaxprobe.experiments import blocks, controls, entity_types, layers, registry
from jaxprobe.experiments import prompts as prompt_transfer
from jaxprobe.experiments.base import write_rows, write_table
from jaxprobe.host.paths import AnyPath, as_path
from jaxprobe.host.progress import Reporter, default_reporter
from jaxprobe.results.results import Run
from jaxprobe.runs.several import run_all
from jaxprobe.settings import RunSettings


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
    "What differs from the paper's numbers: the model; the rows, where they are a sample (there all of a table); here "
    "the layer is the one with the least leave-one-out error on the training rows (there 20, 24 or 48), the penalty's "
    "grid extends itself (there 12 fixed ones), and states are not cut to 8 bits. cells: R2 without the training rows "
    "near each test place."
)


def run_paper(
    model: str,
    out: AnyPath,
    data_dir: Path | None,
    prompts: Sequence[str],
    limit: int | None,
    random_weights: bool = False,
    reporter: Reporter | None = None,
) -> pd.DataFrame:
    """Runs every table at hand under its prompts, then experiments 1 to 5, and returns our numbers beside the paper's.

    Everything is checked, and the time of the forward passes said, before the first run starts. What is finished in
    ``out`` is not done again.

    Args:
      prompts: named prompts; () takes the bare name and each table's question.
      limit: rows of each table, seeded; None for all.
      random_weights: also run the architecture with random weights, on each table's first prompt.

    Returns:
      One row for each table and prompt. Written to ``out``/experiments as well, with a table for each experiment.

    Raises:
      InputError: no table at hand, no such prompt, or whatever a run refuses.
    """
    configs = plan_runs(model, out, data_dir, prompts, limit)
    reporter = reporter or default_reporter()
    runs = [directory.path for directory in run_all(configs, reporter)]
    tables = run_experiments(runs, reporter, random_weights)
    for name, frame in tables.items():
        reporter.say(f"{name}: {write_table(registry.load(name), frame, out)}")
    beside = pd.DataFrame([compare(Run(path), tables) for path in runs])
    reporter.say(f"paper: {write_rows('paper', beside, out)}")
    reporter.say(DIFFERENCES)
    return beside


def run_experiments(runs: Sequence[AnyPath], reporter: Reporter, random_weights: bool) -> dict[str, pd.DataFrame]:
    """Experiments 1 to 5 on finished runs: experiment -> its table, where some run suits it."""
    by_table: dict[str, list[AnyPath]] = {}
    for path in runs:
        by_table.setdefault(Run(path).dataset, []).append(path)
    # Hold-outs fit some tens of probes, so they look at each table's first prompt only.
    first = [several[0] for several in by_table.values()]
    typed = [path for path in first if "entity_type" in Run(path).groups]
    several = [paths for paths in by_table.values() if len(paths) > 1]
    found = {
        "layers": [layers.run(runs, layers.Options(), reporter)],
        "prompts": [prompt_transfer.run(paths, prompt_transfer.Options(), reporter) for paths in several],
        "blocks": [blocks.run(first, blocks.Options(), reporter)],
        "entity_types": [entity_types.run(typed, entity_types.Options(), reporter)] if typed else [],
        "controls": [
            controls.run([path], controls.Options(random_weights=True), reporter)
            if random_weights and path in first
            else Run(path).controls.assign(run=str(path))
            for path in runs
        ],
    }
    return {name: pd.concat(frames, ignore_index=True) for name, frames in found.items() if frames}


def plan_runs(
    model: str, out: AnyPath, data_dir: Path | None, prompts: Sequence[str], limit: int | None
) -> list[RunSettings]:
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
        configs += [RunSettings(model, table, as_path(out) / table / name, prompt=name, **options) for name in wanted]
    if unknown:
        raise InputError(f"Prompt {', '.join(sorted(unknown))} is of none of the tables {', '.join(tables)}.")
    return configs


def compare(run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, object]:
    """One run's test R2 with its interval and its controls, and the paper's R2 for the same table.

    ``cells`` is R2 with whole cells of the map held out.

    Args:
      tables: those of the experiments "controls" and "blocks", with this run among others.
    """
    found = {}
    for name in ("controls", "blocks"):
        frame = tables[name]
        same = (frame["dataset"] == run.dataset) & (frame["prompt"] == run.prompt)
        found[name] = frame[same & (frame["metric"] == "r2") & (frame["target"] == "mean")]
    controls, blocks = found["controls"], found["blocks"]
    by = controls[controls["resampled"].isin(["rows", "permutations"])].set_index("control")
    ours, beside = by.loc["none"], ("embed", "ngrams", "random_weights", "permuted")
    others = {name: by.loc[name, "value"] for name in beside if name in by.index}
    cells = blocks[blocks["fit"] == "held_out"]
    return {
        "model": ours["model"],
        "dataset": ours["dataset"],
        "prompt": ours["prompt"],
        "rows": len(run.entities),
        "layer": ours["layer"],
        "r2": ours["value"],
        "ci_low": ours["ci_low"],
        "ci_high": ours["ci_high"],
        **others,
        "cells": cells["value"].item() if len(cells) else np.nan,
        **PUBLISHED[ours["dataset"]]._asdict(),
    }
