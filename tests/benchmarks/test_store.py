"""The store's benchmark on a tiny model: streaming and stored states agree, and its table follows from its file."""

import json

import pandas as pd
import pytest

from benchmarks import store, tables
from jaxprobe.data.catalog import load_table
from tests import compiling
from tests.tiny_llama import save_llama, save_tokenizer

pytestmark = pytest.mark.slow

# Streamed moments are float32 sums with their rounding errors carried along; R2 is a ratio of sums over many rows.
R2 = 1e-4
ROWS = 400
FILES = 30_000  # bytes of Orbax's own files and the manifest


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    cities = load_table("cities", limit=ROWS)
    save_llama(folder, vocabulary=save_tokenizer(folder, cities.texts))
    places = pd.DataFrame(cities.targets, columns=cities.target_names).assign(name=cities.texts)
    places.to_csv(folder / "places.csv", index=False)
    settings = store.Settings(
        model=str(folder),
        dataset=str(folder / "places.csv"),
        prompt="Where is {}",
        sizes=(),
        entities=100,
        rounds=1,
        out=folder / "results" / "store.json",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", compiling.FLAGS)  # one device, as on the machines that are measured
        found = store.main(settings)
    assert json.loads(settings.out.read_text()) == json.loads(json.dumps(found))
    return found


def test_streaming_gives_the_scores_of_stored_states(result):
    assert result["agreement"]["states"] == ["embed", "0", "1", "2"]
    assert result["agreement"]["largest_difference"] < R2
    assert len(set(result["agreement"]["r2_stored"])) == 4


def test_the_sizes_are_those_of_the_states(result):
    disk, values = result["disk_bytes"], ROWS * 4 * 64
    assert 4 * values <= disk["float32"] <= 4 * values + FILES
    assert 2 * values <= disk["bfloat16"] <= 2 * values + FILES


def test_its_table_follows_from_its_file(result):
    lines = tables.store_table(result).splitlines()
    assert lines[0] == "| rows streamed (`--no-store`) | 400 |"
    assert "400 names × 4 states take 0.00 GB" in lines[-1]
