"""Reading: the rows, states and shardings asked for, in the order of the table."""

import json
import zlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprobe.errors import InputError
from jaxprobe.extract.store.layout import canonical
from jaxprobe.extract.store.reader import open_activations


@pytest.fixture
def view(tmp_path, stored):
    return open_activations(stored.fill(tmp_path))


def test_a_view_is_a_mapping_of_states(view, stored):
    assert view.states == ("embed", "0", "1")
    assert view.shape == (50, 12)
    assert view.dtype == np.float32
    assert view.manifest.settings == stored.arguments["settings"]
    assert {state: values.tolist() for state, values in view.items()} == {
        state: values.tolist() for state, values in stored.truth.items()
    }
    assert "1" in view and "2" not in view
    with pytest.raises(KeyError, match="it holds embed, 0, 1"):
        view["2"]


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(3, 20), slice(None, None, -7), [4], [49, 0, 0, -1], np.arange(50) % 3 == 0, slice(0, 0), []],
    ids=str,
)
def test_rows_are_chosen_as_numpy_does(view, stored, rows):
    expected = stored.truth["0"][rows]
    np.testing.assert_array_equal(view.rows("0", rows), expected, strict=True)


def test_rows_outside_the_table(view):
    with pytest.raises(IndexError, match="50"):
        view.rows("0", [50])


def test_only_the_shards_asked_for_are_read(tmp_path, stored, view):
    """A shard that is gone is missed only where a row of it is wanted."""
    rows = stored.arguments["rows"]
    data = max((tmp_path / "2").rglob("d/*"), key=lambda file: file.stat().st_size)
    data.unlink()
    np.testing.assert_array_equal(view.rows("0", rows[1]), stored.truth["0"][rows[1]])
    with pytest.raises(InputError, match="shard 2"):
        view.rows("0", [rows[1][0], rows[2][0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", [P(), P("row"), P("row", "width"), P(None, "width")])
def test_one_state_as_a_sharded_array(tmp_path, make_stored, dtype, spec):
    stored = make_stored(rows=48, dtype=dtype)
    view = open_activations(stored.fill(tmp_path))
    sharding = NamedSharding(Mesh(np.reshape(jax.devices(), (4, 2)), ("row", "width")), spec)
    found = view.read("1", sharding)
    assert found.sharding == sharding
    assert np.asarray(found).tobytes() == stored.truth["1"].tobytes()


@pytest.mark.parametrize("spec", [P(), P("layer"), P("layer", "row"), P(None, "row", "layer")])
def test_several_states_as_a_sharded_array(tmp_path, make_stored, spec):
    states = ("embed", *map(str, range(7)))
    stored = make_stored(rows=48, states=states)
    view = open_activations(stored.fill(tmp_path))
    sharding = NamedSharding(Mesh(np.reshape(jax.devices(), (4, 2)), ("layer", "row")), spec)
    found = view.read(states, sharding)
    assert found.sharding == sharding
    np.testing.assert_array_equal(found, np.stack([stored.truth[state] for state in states]))


def test_the_default_is_one_device(view, stored):
    found = view.read(["1", "embed"])
    assert found.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(found, np.stack([stored.truth["1"], stored.truth["embed"]]))


def test_states_of_other_widths_stand_beside_the_stream(tmp_path, make_stored):
    stored = make_stored(states=("embed", "0.mid", "mlp.0", "0"), widths={"mlp.0": 32})
    view = open_activations(stored.fill(tmp_path))
    assert {state: view[state].shape for state in view} == {
        "embed": (50, 12),
        "0.mid": (50, 12),
        "mlp.0": (50, 32),
        "0": (50, 12),
    }
    for state, expected in stored.truth.items():
        np.testing.assert_array_equal(view.rows(state, [4, 1]), expected[[4, 1]], strict=True)
    np.testing.assert_array_equal(view.read(["mlp.0"])[0], stored.truth["mlp.0"])
    with pytest.raises(InputError, match="12, 32"):
        view.read(["0", "mlp.0"])


@pytest.mark.parametrize(
    "changes",
    [
        {"states": ["embed", "../../evil", "1"]},
        {"states": ["embed", "/etc/evil", "1"]},
        {"states": ["embed", "embed", "1"]},
        {"rows": 10**30},
        {"rows": "50"},
        {"shards": 10**9},
        {"width": -1},
        {"dtype": "object"},
        {"widths": {"7": 3}},
    ],
    ids=str,
)
def test_a_manifest_may_come_from_anyone(tmp_path, stored, changes):
    """What it says is looked at, though its checksum is right: names become paths, numbers become sizes."""
    path = stored.fill(tmp_path)
    body = json.loads((path / "manifest.json").read_text()) | changes
    del body["crc32"]
    body["crc32"] = zlib.crc32(canonical(body))
    (path / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match="site|damaged|not finished"):
        open_activations(path)
