"""The numbers that report.html carries for its script: one JSON object, long arrays as base64 of little-endian bytes.

Predictions are stored as 16-bit steps between the least and the greatest value of their target, which is finer than
what a screen shows (600 m on the world's map, metres on a city's), and a quarter of the size of decimal text.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxprobe.report.maps import colour_by_group, colour_values, extent_of, read_coastlines
from jaxprobe.report.phrases import layer_title, run_in_words, site_kind
from jaxprobe.results.results import Run
from jaxprobe.sites import axis_positions

# With two targets and an error, a prediction takes 8 bytes of page; so these are at most 5.6 MB.
MOST_PREDICTIONS = 700_000
MOST_TEXT_BYTES = 3_000_000
MISSING = 65535


def encode_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the page's script draws, for one run or several.

    Runs on the same entities share one table. Test rows are sampled (seed 0) where rows x layers of all runs would be
    more than MOST_PREDICTIONS, entities where their names would be more than MOST_TEXT_BYTES; the object says so in
    runs[].map.sampled_from and tables[].sampled_from, null where nothing was left out.
    """
    frames: list[pd.DataFrame] = []
    table_of_run = []
    for run in runs:
        known = next((i for i, frame in enumerate(frames) if frame.equals(run.entities)), None)
        if known is None:
            frames.append(run.entities)
            known = len(frames) - 1
        table_of_run.append(known)
    kept = [_within_text_budget(frame, MOST_TEXT_BYTES // len(frames)) for frame in frames]
    tables = [_table(frame, whole) for frame, whole in zip(kept, frames, strict=True)]
    shares = MOST_PREDICTIONS // len(runs)
    positions = axis_positions(list(dict.fromkeys(layer for run in runs for layer in run.layers)))
    return {
        "sites": {
            layer: {"x": x, "kind": site_kind(layer), "words": layer_title(layer)} for layer, x in positions.items()
        },
        "coast": _coast() if any(run.is_place for run in runs) else None,
        "tables": tables,
        "runs": [
            _run(run, kept[table], shares) | {"table": table} for run, table in zip(runs, table_of_run, strict=True)
        ],
    }


def _within_text_budget(frame: pd.DataFrame, most_bytes: int) -> pd.DataFrame:
    """The rows whose names fit, test rows first, in the table's order."""
    sizes = frame["text"].str.encode("utf-8").str.len()
    first = frame.index[np.argsort(frame["split"].to_numpy() != "test", kind="stable")]
    fits = sizes.loc[first].cumsum() <= most_bytes
    return frame.loc[frame.index.isin(first[fits.to_numpy()])].reset_index(drop=True)


def _table(frame: pd.DataFrame, whole: pd.DataFrame) -> dict[str, Any]:
    """Names, truth, split and groups of the entities shown, out of the whole table."""
    truth = frame.filter(regex="^true_").to_numpy(np.float64)
    test = whole[whole["split"] == "test"]
    groups = {}
    for name in frame.filter(regex="^group_"):
        codes, labels = pd.factorize(frame[name])
        groups[name.removeprefix("group_")] = {
            "labels": [str(label) for label in labels],
            "codes": _base64(codes, "<u4" if len(labels) > MISSING else "<u2"),
            "wide": len(labels) > MISSING,
            "colours": colour_values(name, frame[name], test[name]).colours,
        }
    return {
        "text": frame["text"].tolist(),
        "is_test": _base64(frame["split"] == "test", "u1"),
        "truth": [_base64(column, "<f8") for column in truth.T],
        "groups": groups,
        "sampled_from": len(whole) if len(frame) < len(whole) else None,
    }


def _run(run: Run, table: pd.DataFrame, most_predictions: int) -> dict[str, Any]:
    """One run's scores by layer, its headline predictions for the table, and its predictions by layer for the map."""
    predicted = set(run.predictions["layer"])
    layers = [layer for layer in run.layers if layer in predicted]
    test = table.index[table["split"] == "test"].to_numpy()
    most_rows = max(1, most_predictions // len(layers))
    shown = test
    if len(test) > most_rows:
        shown = np.sort(np.random.default_rng(0).choice(test, most_rows, replace=False))
    headline = _predictions(run, run.headline_layer, table["row"].to_numpy())
    by_layer = np.stack([_predictions(run, layer, table["row"].to_numpy()[shown]) for layer in layers])
    metrics = [
        ("r2", "mean"),
        *(("r2", target) for target in run.targets),
        *(("mae", target) for target in run.targets),
    ]
    metrics.append(("error_km_median", "place"))
    return {
        "name": run_in_words(run),
        "is_place": run.is_place,
        "targets": list(run.targets),
        "units": [run.unit(target) for target in run.targets],
        "headline": run.headline_layer,
        "layers": list(run.layers),
        "scores": {f"{target} {metric}": _scores(run, metric, target) for metric, target in metrics},
        "headline_predictions": [_base64(column, "<f8") for column in headline.T],
        "colour": _default_colour(run),
        "extent": _extent(run),
        "map": {
            "layers": layers,
            "rows": _base64(shown, "<u4"),
            "sampled_from": len(test) if len(shown) < len(test) else None,
            "values": [_quantise(by_layer[:, :, column]) for column in range(by_layer.shape[2])],
        },
    }


def _predictions(run: Run, layer: str, rows: np.ndarray) -> np.ndarray:
    """[N, C] predictions of the given rows, with error_km as a last column for places; NaN for training rows."""
    frame = run.predictions[run.predictions["layer"] == layer].set_index("row")
    columns = [f"predicted_{target}" for target in run.targets] + (["error_km"] if run.is_place else [])
    return frame[columns].reindex(rows).to_numpy(np.float64)


def _scores(run: Run, metric: str, target: str) -> list[list[float | None]] | None:
    """[value, ci_low, ci_high] for each layer; None for what is not known."""
    if run.score(run.headline_layer, metric, target) is None:
        return None
    values = run.by_layer(metric, target).to_numpy()
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]


def _default_colour(run: Run) -> str | None:
    """The group that colours the map at first: the one that tells most of the place, for dates the first with few."""
    if run.is_place:
        colouring = colour_by_group(run.test_entities, run.groups, run.test_entities)
        return colouring.group if colouring else None
    few = (group for group in run.groups if run.test_entities[f"group_{group}"].nunique() <= 6)
    return next(few, None)


def _extent(run: Run) -> dict[str, float] | None:
    if not run.is_place:
        return None
    extent = extent_of(*(run.test_entities[f"true_{name}"].to_numpy() for name in run.targets))
    return extent._asdict() | {"aspect": extent.aspect, "shows_coast": extent.shows_coast}


def _coast() -> str:
    """Longitude and latitude in hundredths of a degree, interleaved; -32768 twice between two outlines."""
    hundredths = np.nan_to_num(read_coastlines() * 100, nan=-32768.0)
    return _base64(np.rint(hundredths).ravel(), "<i2")


def _quantise(values: np.ndarray) -> dict[str, Any]:
    """[L, M] numbers as 16-bit codes: value = low + step * code; MISSING where there is none."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    step = (high - low) / (MISSING - 1) or 1.0
    codes = np.where(np.isfinite(values), np.rint((values - low) / step), MISSING)
    return {"low": low, "step": step, "codes": _base64(codes, "<u2")}


def _base64(array: Any, dtype: str) -> str:
    return b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode("ascii")
