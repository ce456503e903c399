"""Trains and asks the world models of docs/worlds.md, and keeps what the page says.

    python benchmarks/worlds.py FOLDER [NAME ...]

writes benchmarks/results/worlds.json and six figures, docs/worlds-*.png. FOLDER holds the models, one folder each; one
that is trained there already is not trained again, so that an interrupted benchmark goes on. From nothing it takes
about half an hour on two cores.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from benchmarks import machine
from jaxprobe.host.paths import AnyPath, as_path
from jaxprobe.report.canvas import save
from jaxprobe.worlds import world_figures, world_runs
from jaxprobe.worlds.earth import make_world
from jaxprobe.worlds.jepa import JointEmbeddingSettings
from jaxprobe.worlds.llm import LanguageSettings

RESULTS = Path(__file__).parent / "results"
PAGES = Path(__file__).parents[1] / "docs"
SEEDS = (0, 1, 2)
LANGUAGE, EMBEDDING = "language", "joint-embedding"
SMALLER = ("language-0-32x2", "language-0-16x2")
# name -> kind, seed, settings, steps
MODELS: dict[str, tuple[str, int, Any, int]] = {
    **{f"language-{seed}": (LANGUAGE, seed, LanguageSettings(), 1300) for seed in SEEDS},
    **{f"vicreg-{seed}": (EMBEDDING, seed, JointEmbeddingSettings(), 3000) for seed in SEEDS},
    "none-0": (EMBEDDING, 0, JointEmbeddingSettings(regulariser="none"), 3000),
    "sigreg-0": (EMBEDDING, 0, JointEmbeddingSettings(regulariser="sigreg"), 3000),
    "features-0": (EMBEDDING, 0, JointEmbeddingSettings(encoder="features"), 3000),
    SMALLER[0]: (LANGUAGE, 0, LanguageSettings(32, 2), 800),
    SMALLER[1]: (LANGUAGE, 0, LanguageSettings(16, 2), 800),
}


def main(folder: AnyPath, names: list[str]) -> None:
    """Trains what is not trained, asks, steers, and writes; all models, or those named."""
    trained, answers, shifts, cuts, costs = {}, [], [], [], {}
    for name, (kind, seed, settings, steps) in {name: MODELS[name] for name in names or MODELS}.items():
        out = folder / name
        world = make_world(seed=seed)
        world_runs.train_world_model(world, kind, settings=settings, out=out, steps=steps)
        costs[name] = json.loads((out / "world" / "world.json").read_text())
        trained[name] = world_runs.open_trained(out)
        if not (out / "answers.parquet").is_file():
            world_runs.probe_world(trained[name]).to_parquet(out / "answers.parquet", index=False)
        answers.append(pd.read_parquet(out / "answers.parquet").assign(model=name))
        if name.startswith(("language-", "vicreg-")) and settings in (LanguageSettings(), JointEmbeddingSettings()):
            if not (out / "cuts.parquet").is_file():
                for part, frame in zip(("shifts", "cuts"), world_runs.steer_world(trained[name]), strict=True):
                    frame.to_parquet(out / f"{part}.parquet", index=False)
            shifts.append(pd.read_parquet(out / "shifts.parquet").assign(model=name))
            cuts.append(pd.read_parquet(out / "cuts.parquet").assign(model=name))
        print(name, flush=True)
    every, pushed, erased = (pd.concat(part, ignore_index=True) for part in (answers, shifts, cuts))
    document = {
        "command": " ".join(["python benchmarks/worlds.py FOLDER", *names]),
        "machine": machine.describe(),
        "note": "The machine was shared with other work while this was measured: wall times are too long, CPU seconds "
        "are those of the training alone.",
        "training": {
            name: {key: cost.get(key) for key in ("steps", "seconds", "cpu_seconds")} for name, cost in costs.items()
        },
        "models": {name: summary(part) for name, part in every.groupby("model", sort=False)},
        "over_seeds": {kind: over_seeds(every, f"{kind}-") for kind in ("language", "vicreg")},
        "shifts": over_models(
            pushed[pushed["how"] != "nothing"], ["handle", "how", "asked_km"], ["slope", "cosine", "km_to_goal"]
        ),
        "cuts": over_models(erased, ["handle", "how"], ["share", "exact", "km"]),
    }
    (RESULTS / "worlds.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    named = lambda *wanted: every[every["model"].isin(wanted)].assign(run=lambda part: part["model"])
    needs = {  # figure -> the model that it can't be drawn without, and how it is drawn
        "globe": ("language-0", lambda: world_figures.draw_globe(trained["language-0"])),
        "training": ("language-0", lambda: world_figures.draw_training(named("language-0"))),
        "shifts": ("language-0", lambda: world_figures.draw_shifts(pushed[pushed["model"] == "language-0"])),
        "collapse": ("none-0", lambda: world_figures.draw_collapse(named("vicreg-0", "sigreg-0", "none-0"))),
        "open-loop": ("language-0", lambda: world_figures.draw_open_loop(named("language-0", "vicreg-0"))),
        "sizes": ("language-0-16x2", lambda: world_figures.draw_sizes(named("language-0", *SMALLER))),
    }
    for name, (model, draw) in needs.items():
        if model in trained:
            save(draw(), as_path(PAGES / f"worlds-{name}.png"))


def summary(answers: pd.DataFrame) -> dict[str, Any]:
    """Of one model: the best map and its step, and the last checkpoint's answers and controls with their intervals."""
    best = answers[(answers["question"] == "city") & (answers["of"] == "best") & (answers["step"] > 0)]
    peak = int(best[best["metric"] == "loo_mse"].set_index("step")["value"].idxmin())
    over = lambda question, of, metric: {
        int(row.step): round(row.value, 4)
        for row in answers[
            (answers["question"] == question) & (answers["of"] == of) & (answers["metric"] == metric)
        ].itertuples()
    }
    last = answers[answers["step"].isin([-1, answers["step"].max()])]
    found: dict[str, Any] = {
        "peak_step": peak,
        "r2_at_peak": round(float(best[(best["metric"] == "r2") & (best["step"] == peak)]["value"].iloc[0]), 4),
        "r2_by_step": over("city", "best", "r2"),
        "exact_by_step": over("next_city", "held", "exact"),
        "deviation_by_step": over("codes", "embed", "deviation"),
        "effective_rank_by_step": over("codes", "embed", "effective_rank"),
        "last": {},
    }
    at_peak = answers[(answers["step"] == peak) & (answers["question"] == "target")]
    found["target_at_peak"] = {f"{row.of}, {row.metric}": round(row.value, 4) for row in at_peak.itertuples()}
    for row in last.itertuples():
        interval = [row.value] if np.isnan(row.ci_low) else [row.value, row.ci_low, row.ci_high]
        found["last"][f"{row.question}, {row.of}, {row.metric}"] = [round(float(value), 4) for value in interval]
    return found


def over_seeds(answers: pd.DataFrame, prefix: str) -> dict[str, list[float]]:
    """Mean of the seeds with Student's 95 % interval: of the last checkpoint, and of the map at its best."""
    names = [name for name in (f"{prefix}{seed}" for seed in SEEDS) if name in set(answers["model"])]
    rows: dict[str, list[float]] = {}
    for name in names:
        own = summary(answers[answers["model"] == name])
        rows.setdefault("r2 at the peak", []).append(own["r2_at_peak"])
        rows.setdefault("step of the peak", []).append(own["peak_step"])
        for what, values in own["last"].items():
            rows.setdefault(what, []).append(values[0])
        for what, value in own["target_at_peak"].items():
            rows.setdefault(f"at the peak: target, {what}", []).append(value)
    return {what: interval(values) for what, values in rows.items()}


def over_models(frame: pd.DataFrame, by: list[str], columns: list[str]) -> dict[str, dict[str, list[float]]]:
    """Held-out pairs, for each kind of model and first or last step looked at: means over seeds with intervals."""
    frame = frame[frame["pairs"] == "held"]
    kind = frame["model"].str.rsplit("-", n=1).str[0]
    last = frame.groupby("model")["step"].transform("max")
    when = np.where(frame["step"] == last, "last", "peak")
    found = {}
    for key, part in frame.assign(kind=kind, when=when).groupby(["kind", "when", *by], sort=False):
        found[", ".join(map(str, key))] = {column: interval(part[column].tolist()) for column in columns}
    return found


def interval(values: list[float]) -> list[float]:
    """Mean, and Student's 95 % interval of it."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [round(mean, 4)]
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [round(float(value), 4) for value in (mean, mean - half, mean + half)]


if __name__ == "__main__":
    main(as_path(sys.argv[1]), sys.argv[2:])
