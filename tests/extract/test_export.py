"""Exported files hold the stored states, as NumPy and safetensors themselves read them."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxprobe.errors import InputError
from jaxprobe.extract.store.export import export_activations


def test_npy_files(tmp_path, stored_in_each_dtype):
    path = stored_in_each_dtype.fill(tmp_path / "store")
    files = export_activations(path, tmp_path / "out")
    assert [file.name for file in files] == ["embed.npy", "0.npy", "1.npy"]
    for file in files:
        # float32 holds every bfloat16 value exactly.
        expected = stored_in_each_dtype.truth[file.stem].astype(np.float32)
        np.testing.assert_array_equal(np.load(file, allow_pickle=False), expected, strict=True)


def test_safetensors_file(tmp_path, stored_in_each_dtype):
    path = stored_in_each_dtype.fill(tmp_path / "store")
    [file] = export_activations(path, tmp_path / "states.safetensors")
    found = load_file(file)
    assert set(found) == set(stored_in_each_dtype.truth)
    for state, expected in stored_in_each_dtype.truth.items():
        np.testing.assert_array_equal(found[state], expected, strict=True)
    with safe_open(file, framework="numpy") as opened:
        manifest = json.loads(opened.metadata()["manifest"])
    assert manifest["settings"] == stored_in_each_dtype.arguments["settings"]


def test_chosen_states(tmp_path, stored):
    path = stored.fill(tmp_path / "store")
    export_activations(path, tmp_path / "out", ["1"])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["1.npy"]
    export_activations(path, tmp_path / "one.safetensors", ["1", "embed"])
    assert set(load_file(tmp_path / "one.safetensors")) == {"1", "embed"}


def test_refusals(tmp_path, stored):
    path = stored.fill(tmp_path / "store")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="has no state 7; it holds embed, 0, 1"):
        export_activations(path, tmp_path / "out", ["1", "7"])
    with pytest.raises(InputError, match="is a file"):
        export_activations(path, tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_a_damaged_store_exports_nothing_in_part(tmp_path, make_stored):
    stored = make_stored(width=96)
    path = stored.fill(tmp_path / "store")
    data = max((path / "2").rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="shard 2"):
        export_activations(path, tmp_path / "out.safetensors")
    assert {entry.name for entry in tmp_path.iterdir()} == {"store"}


def test_states_of_other_widths(tmp_path, make_stored):
    stored = make_stored(states=("mlp.0", "0", "mlp.1"), widths={"mlp.0": 32, "mlp.1": 32})
    path = stored.fill(tmp_path / "store")
    for file in export_activations(path, tmp_path / "out"):
        np.testing.assert_array_equal(np.load(file), stored.truth[file.name.removesuffix(".npy")])
    export_activations(path, tmp_path / "states.safetensors")
    for state, found in load_file(tmp_path / "states.safetensors").items():
        np.testing.assert_array_equal(found, stored.truth[state], strict=True)
