"""Extractions of one model: what they share, and what a store is known by."""

import json
import shutil

import numpy as np
import pytest

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import extract_states, extraction_settings, open_store, plan_extraction
from jaxprobe.extract.forward import _compiled_root, compiled_step
from jaxprobe.mesh import make_mesh
from jaxprobe.models.files.digest import weights_digest
from jaxprobe.models.load import load_model, open_model
from tests.tiny_llama import save_llama, save_model, save_tokenizer

NAMES = ("Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def table():
    return EntityTable("towns", NAMES, np.zeros((10, 1)), ("year",), ("year",), np.arange(10) < 2)


def test_prompts_share_a_compiled_program(folder, table):
    model = load_model(str(folder), mesh=make_mesh({"data": 1}))
    for compiled in (compiled_step, _compiled_root):
        compiled.cache_clear()  # of what other tests compiled
    states = [extract_states(model, table, prompt)["2"] for prompt in ("empty", "In {}", "To {}")]
    assert not np.allclose(states[1], states[2])  # each prompt was run
    step = compiled_step(model.config, ("embed", "0", "1", "2"), model.mesh, model.dtype)
    assert step._cache_size() == 1
    assert _compiled_root(model.config, model.mesh)._cache_size() == 1


def test_a_state_that_is_not_finite_names_the_entity(folder, table):
    model = load_model(str(folder), mesh=make_mesh({"data": 1}))
    (token,) = {model.files.tokenizer.encode("Rome", add_special_tokens=False)[0]}
    embedding = model.weights.embedding
    embedding[...] = embedding[...].at[token].set(np.nan)
    with pytest.raises(InputError, match=r"State 'embed' of table row 3 \('Rome'\) is not finite"):
        extract_states(model, table)


def test_a_store_goes_on_when_the_model_has_moved(folder, table, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for name in (folder, moved):
        files = open_model(str(name))
        extraction = plan_extraction(files, table, mesh=make_mesh({"data": 1}))
        with open_store(tmp_path / "store", files, extraction, "float32") as store:
            assert store.missing == (0,)
    # As it was begun.
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["source"]["model"] == folder.name


def test_other_constants_are_another_model(folder, table, tmp_path):
    """Two models of the same weights that turn their queries differently have different states."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = (other / "config.json").read_text()
    assert "10000.0" in config
    (other / "config.json").write_text(config.replace("10000.0", "20000.0"))
    for name in (folder, other):
        files = open_model(str(name))
        extraction = plan_extraction(files, table, mesh=make_mesh({"data": 1}))
        if name == other:
            with pytest.raises(InputError, match="settings.model"):
                open_store(tmp_path / "store", files, extraction, "float32")
        else:
            open_store(tmp_path / "store", files, extraction, "float32").close()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_where_they_occur(table, tmp_path):
    """Only then: tokenizers with a few more that no text has are common. Random ones are drawn from the model's."""
    size = save_tokenizer(tmp_path, NAMES)
    save_llama(tmp_path, vocabulary=96)
    files, mesh = open_model(str(tmp_path)), make_mesh({"data": 1})
    assert size > 96
    with pytest.raises(InputError, match=rf"Token \d+ of the tokenizer \(it has {size}\) is not one of the model's 96"):
        plan_extraction(files, table, mesh=mesh)
    letters = EntityTable("letters", tuple("ABCDEFGHIJ"), table.targets, ("year",), ("year",), table.is_test)
    tokens = plan_extraction(files, letters, "random_per_row", mesh=mesh).tokens
    assert len(np.unique(tokens.ids)) > 40 and tokens.ids.max() < 96


def test_the_weights_are_digested_once_for_all_runs_of_a_model(folder, table, monkeypatch):
    files = open_model(str(folder))
    digest = weights_digest(files.checkpoint)
    monkeypatch.setattr("jaxprobe.models.files.digest.WHOLE_CHECKPOINT", None)  # a second digest would fail
    for prompt in ("empty", "In {}"):
        extraction = plan_extraction(files, table, prompt, mesh=make_mesh({"data": 1}))
        assert extraction_settings(files, extraction)["weights_sha256"] == digest
