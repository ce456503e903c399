"""Whether every engine gives the model's own states: those of Hugging Face in float64, one sequence at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import ENGINES
from benchmarks.processes import Process

# The tests' own bounds for float32 (tests/extract/test_forward.py): of a state's norm, and of each dimension's spread.
ROW_NORM = 1e-5
PER_DIMENSION = 1e-3
# PyTorch's own rounding in batches leaves up to 1.2e-5 of the norm on the demo model; a wrong token, position or mask
# leaves hundreds of times this.
OF_A_BASELINE = 10


def compare_states(
    ids: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    contenders: list[tuple[str, str]],
    processes: dict[tuple[str, str], Process],
    scratch: Path,
) -> dict[tuple[str, str], dict[str, float]]:
    """The largest errors of each engine on some rows of the table."""
    tokens, reference = scratch / "check.npz", scratch / "reference.npz"
    sequences = [ids[starts[row] : starts[row + 1]] for row in rows]
    np.savez(tokens, ids=np.concatenate(sequences), starts=np.cumsum([0, *map(len, sequences)]))
    exact = processes.get(("torch", "float32")) or next(iter(processes.values()))
    exact.ask("states", engine="reference", tokens=str(tokens), out=str(reference))
    truth = dict(np.load(reference))
    errors = {}
    for engine, dtype in contenders:
        out = scratch / "states.npz"
        processes[ENGINES[engine][0], dtype].ask("states", engine=engine, tokens=str(tokens), out=str(out))
        errors[engine, dtype] = largest_errors(dict(np.load(out)), truth)
    return errors


def largest_errors(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """Over all states: the largest error of a row, relative to its norm, and of a dimension, to its spread."""
    row_norm = per_dimension = 0.0
    for state, values in found.items():
        difference = values - truth[state]
        norms = np.linalg.norm(difference, axis=1) / np.linalg.norm(truth[state], axis=1)
        spread = truth[state].std(0)
        moving = spread > 0
        # NaN, where an engine left a row out, goes through max as NaN and fails every comparison.
        row_norm = np.maximum(row_norm, norms.max())
        per_dimension = np.maximum(per_dimension, (np.abs(difference).max(0)[moving] / spread[moving]).max())
    return {"states": len(found), "row_norm": float(row_norm), "per_dimension": float(per_dimension)}


def require_same(engines: list[dict[str, Any]]) -> None:
    """Raises RuntimeError where a float32 engine is outside of its bounds: its speed then says nothing."""

    def same(entry: dict[str, Any]) -> bool:
        errors, times = entry["agreement"], 1 if entry["engine"] == "jaxprobe" else OF_A_BASELINE
        return errors["row_norm"] <= times * ROW_NORM and errors["per_dimension"] <= times * PER_DIMENSION

    outside = [
        f"{entry['engine']}: {entry['agreement']}"
        for entry in engines
        if entry["dtype"] == "float32" and not same(entry)
    ]
    if outside:
        bounds = f"bounds: row_norm {ROW_NORM}, per_dimension {PER_DIMENSION}; a baseline's {OF_A_BASELINE} times these"
        raise RuntimeError("\n".join([f"States differ from Hugging Face's ({bounds}).", *outside]))
