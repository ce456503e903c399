"""Runs on disk, for the tests of figures and pages."""

import pytest

from jaxprobe.results.folder import RunDirectory
from tests.invented import QUALITY, city_entities, work_entities, write_run


@pytest.fixture
def place_run(tmp_path) -> RunDirectory:
    return write_run(tmp_path / "places", city_entities(600), QUALITY, "cities")


@pytest.fixture
def time_run(tmp_path) -> RunDirectory:
    return write_run(tmp_path / "works", work_entities(400), QUALITY, "art")
