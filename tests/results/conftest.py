"""A run whose numbers are known."""

import pytest

from tests.invented import QUALITY, city_entities, write_run


@pytest.fixture
def place_run(tmp_path):
    return write_run(tmp_path / "run", city_entities(200), QUALITY, "cities")
