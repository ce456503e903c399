"""Runs `jaxprobe paper` as a user would and keeps what the README says of it.

    JAXPROBE_DATA=FOLDER python benchmarks/paper_tables.py

runs the demo model on 10,000 rows of each of the paper's tables at hand and writes benchmarks/results/paper-demo.json:
every probe beside its controls, and what is left of it without its neighbours. With a folder that an earlier call left,
only the result file is made anew, without a time.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder

from benchmarks.machine import describe
from benchmarks.output import write_result

RESULTS = Path(__file__).parent / "results"
FITS = ("nominal", "held_out", "difference")


def main(
    model: str = "demo",
    limit: int = 10_000,
    full: bool = False,
    random_weights: bool = False,
    out: Path = Path("paper-runs"),
    name: str = "demo",
) -> None:
    """Run the paper's tables and write benchmarks/results/paper-NAME.json.

    Args:
        model: As `jaxprobe paper` takes it.
        limit: Rows of each table, a seeded sample.
        full: Use every row.
        random_weights: As that of `jaxprobe paper`.
        out: Folder for the runs.
        name: Of the result file.
    """
    options = ["--full"] if full else ["--limit", str(limit)]
    options += ["--random-weights"] * random_weights
    fresh, machine = not out.exists(), describe()
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jaxprobe", "paper", "--model", model, "--out", out, *options], check=True)
    seconds = time.perf_counter() - started
    result = {
        "command": f"python benchmarks/paper_tables.py --model {model} {' '.join(options)} --name {name}",
        "machine": machine,
        "seconds": round(seconds, 1) if fresh else None,
        **summarise({path.stem: pd.read_parquet(path) for path in (out / "experiments").glob("*.parquet")}),
    }
    write_result(result, RESULTS / f"paper-{name}.json")


def summarise(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the tables of `jaxprobe paper` say of each run, in lists of [value, low, high]; means over targets.

    Args:
      tables: experiment -> its tidy table, and "paper", as they lie in the folder's ``experiments``.
    """
    runs = []
    for row in tables["paper"].to_dict("records"):
        keys = {"dataset": row["dataset"], "prompt": row["prompt"]}
        controls = _mean_of(tables["controls"], **keys)
        # A group's own rows are resampled by whole groups only.
        controls = controls[~controls["control"].eq("none") | controls["resampled"].eq("rows")]
        found: dict[str, dict] = {}
        for control in controls[controls["metric"].isin(["r2", "selectivity", "p_value"])].itertuples():
            found.setdefault(control.control, {})[control.metric] = _numbers(control)
        published = {name: row[name] for name in ("llama2_7b", "llama2_13b", "llama2_70b")}
        same = {"model": row["model"], "rows": int(row["rows"]), "layer": row["layer"]}
        runs.append(keys | same | {"controls": found, "paper": published})
    blocks = _mean_of(tables["blocks"])
    held_out = [_held_out(part) for _, part in blocks.groupby(["dataset", "prompt", "group"], sort=False)]
    return {"runs": runs, "held_out": held_out, "prompts": _transfers(tables.get("prompts"))}


def _held_out(blocks: pd.DataFrame) -> dict[str, Any]:
    """One column of groups: scores of the cells of the map, or for groups how many get worse and medians over them."""
    first = blocks.iloc[0]
    found: dict[str, Any] = {name: first[name] for name in ("dataset", "prompt", "group")}
    if "r2" in set(blocks["metric"]):  # cells: one score for all of them
        r2 = blocks[blocks["metric"] == "r2"].set_index("fit")
        return found | {"r2": {fit: _numbers(r2.loc[fit]) for fit in FITS}}
    differences = blocks[(blocks["fit"] == "difference") & (blocks["metric"] == "r2_block_mean")]
    medians = blocks[blocks["fit"] != "difference"].groupby(["metric", "fit"])["value"].median()
    for metric, fit in medians.index:
        found.setdefault("medians", {}).setdefault(metric, {})[fit] = round(float(medians[metric, fit]), 4)
    worse, better = int((differences["ci_high"] < 0).sum()), int((differences["ci_low"] > 0).sum())
    return found | {"groups": len(differences), "worse": worse, "better": better}


def _transfers(prompts: pd.DataFrame | None) -> list[dict[str, Any]]:
    """R2 of each pair of prompts."""
    if prompts is None:
        return []
    rows = _mean_of(prompts, metric="r2")
    keys = ["dataset", "train_prompt", "prompt", "centring"]
    return [{key: getattr(row, key) for key in keys} | {"r2": _numbers(row)} for row in rows.itertuples()]


def _mean_of(frame: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    kept = frame["target"].isin(["mean", "place"]) & (frame["split"] == "test")
    for column, cell in wanted.items():
        kept &= frame[column] == cell
    return frame[kept]


def _numbers(row: Any) -> list[float | None]:
    """[value, low, high] with four decimals; None for what is not there."""
    return [round(float(each), 4) if pd.notna(each) else None for each in (row.value, row.ci_low, row.ci_high)]


if __name__ == "__main__":
    tyro.cli(main)
