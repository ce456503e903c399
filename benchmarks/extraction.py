"""Extraction throughput: jaxprobe beside PyTorch, in one run on one machine.

    python benchmarks/extraction.py --model smollm2 --dataset world_place --prompt coords empty

Every framework and dtype is a process of its own. Rounds alternate over the engines, each timing a seeded sample of the
engine's own batches (ours: whole shards) spread over the whole table; then ours runs the whole table; then each
engine's states of some entities are compared with Hugging Face's, one sequence at a time. Loading, warm-up and
compiling are timed apart.
"""

import contextlib
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder

from benchmarks import machine, models
from benchmarks.agreement import compare_states, require_same
from benchmarks.engines import ENGINES, NOT_COMPARED, not_installed
from benchmarks.output import say, write_result
from benchmarks.processes import Process
from benchmarks.rates import block_flops, matmul_shapes
from benchmarks.summary import summarise
from jaxprobe.data.catalog import load_table
from jaxprobe.data.prompt import find_prompt
from jaxprobe.data.tokens import tokenize
from jaxprobe.extract.trie import plan_bins
from jaxprobe.models.load import ModelFiles, open_model

# Tokens of a step for which matmul rates are measured, and the cube's edge, by device.
STEP = {"cpu": (1024, 2048), "accelerator": (16_384, 4096)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compare the speed of reading every layer's state at each name's last token."""

    model: str = "smollm2"
    """smollm2, tiny, llama2-7b-random (and 13b, 70b), or what jaxprobe takes: a folder, a .gguf file, a hub name."""
    dataset: tuple[str, ...] = ("world_place",)
    """Named tables; the paper's are read from the folder in JAXPROBE_DATA, cities is always there."""
    prompt: tuple[str, ...] = ("coords", "empty")
    """Prompts of each table."""
    entities: int | None = None
    """Use a seeded sample of this many entities instead of the whole table."""
    dtype: tuple[str, ...] = ("float32", "bfloat16")
    """Of weights and states."""
    engine: tuple[str, ...] = tuple(ENGINES)
    """Which to compare; jaxprobe is always one."""
    rounds: int = 3
    """How often each engine times its sample."""
    seconds: float = 4.0
    """About how long one sample takes (never less than three batches of a baseline, or one shard of ours)."""
    check: int = 64
    """Entities whose states are compared with Hugging Face's."""
    seed: int = 0
    """Of the samples."""
    out: Path = Path("benchmarks/results/extraction.json")
    """The JSON file to write."""


def main(settings: Settings) -> dict[str, Any]:
    """Runs the benchmark and writes its JSON file. Raises RuntimeError where an engine's states are not the model's."""
    say(f"model {settings.model}")
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/extraction.py", *sys.argv[1:]]),
        "settings": dataclasses.asdict(settings) | {"out": str(settings.out)},
        "machine": machine.describe(),
    }
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        name = models.find(settings.model, scratch)
        files = open_model(name)
        result["model"] = {
            "name": files.source.name,
            "parameters": files.config.parameter_count(),
            "flops_per_token": block_flops(files.config),
            **{letter: size for letter, size in files.config.sizes().items()},
        }
        processes = {}
        for framework in ("torch", "jax"):
            for dtype in settings.dtype:
                process = processes[framework, dtype] = Process(framework, dtype, name)
                stack.callback(process.close)
                process.load()
                say(f"{process.name} loaded in {process.loaded['load_s']:.1f} s")
        result["workers"] = {process.name: process.loaded for process in processes.values()}
        engines = [key for key in ENGINES if key in settings.engine or key == "jaxprobe"]
        missing = {key: why for key in engines if (why := not_installed(key))}
        contenders = [(key, dtype) for key in engines if key not in missing for dtype in settings.dtype]
        result["not_compared"] = NOT_COMPARED | missing
        result["tables"] = [
            measure_table(settings, files, dataset, prompt, contenders, processes, scratch)
            for dataset in settings.dataset
            for prompt in settings.prompt
        ]
    write_result(result, settings.out)  # with the errors of an engine that is refused
    say(f"wrote {settings.out}")
    for table in result["tables"]:
        require_same(table["engines"])
    return result


def measure_table(
    settings: Settings,
    files: ModelFiles,
    dataset: str,
    prompt: str,
    contenders: list[tuple[str, str]],
    processes: dict[tuple[str, str], Process],
    scratch: Path,
) -> dict[str, Any]:
    """One table and prompt: alternating rounds, ours over the whole table, then whether the states are the model's."""
    texts = load_table(dataset, limit=settings.entities, seed=settings.seed).texts
    began = time.perf_counter()
    tokens = tokenize(files.tokenizer, texts, find_prompt(dataset, prompt), max_length=files.config.context)
    tokenise_s = time.perf_counter() - began
    path = scratch / "tokens.npz"
    np.savez(path, ids=tokens.ids, starts=tokens.starts)
    of = lambda engine, dtype: processes[ENGINES[engine][0], dtype]
    say(f"{dataset}, {prompt}: {len(texts):,} entities")

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for engine, dtype in contenders:
        found[engine, dtype] = of(engine, dtype).ask(
            "prepare", engine=engine, tokens=str(path), seconds=settings.seconds, seed=settings.seed
        )
        say(f"  {engine} {dtype}: warm-up {found[engine, dtype]['warm_up_s']:.1f} s")
    runs: dict[tuple[str, str], list[dict[str, float]]] = {contender: [] for contender in contenders}
    rates: dict[str, list[dict[str, Any]]] = {process.name: [] for process in processes.values()}
    for turn in range(settings.rounds):
        # Each round begins with another engine.
        for engine, dtype in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
            process, parts = of(engine, dtype), found[engine, dtype]["sample"]["parts"]
            # Just before the first of its engines: shared machines drift by more than what is compared.
            if len(rates[process.name]) == turn:
                rates[process.name].append(process.ask("rates", **step_shapes(files, process)))
            runs[engine, dtype].append(process.ask("run", engine=engine, parts=parts))
        say(f"  round {turn + 1} of {settings.rounds}")
    table = {
        "dataset": dataset,
        "prompt": prompt,
        "entities": len(texts),
        "tokens": len(tokens.ids),
        "distinct_prefixes": plan_bins(tokens.ids, tokens.starts, bins=1).distinct_prefixes,
        "tokenise_s": tokenise_s,
        "rates": rates,
        "engines": [],
    }
    for engine, dtype in contenders:
        entry = {"engine": engine, "dtype": dtype, **found[engine, dtype]}
        entry |= {"seconds": [run["seconds"] for run in runs[engine, dtype]]}
        entry |= {"peak_bytes": max(run["peak_bytes"] for run in runs[engine, dtype])}
        if engine == "jaxprobe":
            whole = of(engine, dtype).ask("run", engine=engine, parts=None)
            entry["whole"] = whole | {"entities_per_s": len(texts) / (whole["seconds"] + entry["plan_s"])}
        table["engines"].append(entry)
    rows = np.sort(np.random.default_rng(settings.seed).permutation(len(texts))[: settings.check])
    errors = compare_states(tokens.ids, tokens.starts, rows, contenders, processes, scratch)
    for entry in table["engines"]:
        entry["agreement"] = errors[entry["engine"], entry["dtype"]]
    summarise(table, block_flops(files.config))
    return table


def step_shapes(files: ModelFiles, process: Process) -> dict[str, Any]:
    """The products whose rates are measured: of the model's own shapes for one step's tokens, and a cube."""
    rows, cube = STEP["cpu" if process.loaded["device"] == "cpu" else "accelerator"]
    return {"shapes": matmul_shapes(files.config, rows, cube), "rows": rows}


if __name__ == "__main__":
    main(tyro.cli(Settings))
