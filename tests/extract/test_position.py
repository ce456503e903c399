"""Which of a name's tokens is read: held to transformers in float64, one text at a time."""

import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import extract_states, fill_store, open_store, plan_extraction
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.load import load_model
from tests.tiny_llama import assert_same_states, save_tokenizer
from tests.tiny_models import Variant, save, true_states

# Some begin alike, one is the beginning of others, and some are one token.
NAMES = ("New York", "New", "New York City", "Oslo", "Oslo", "San José", "São Paulo", "A")
TRAINED = ("New York", "Where is", "Paulo", "San")
SIZES = {"vocab_size": 384}
GROUPED = {"num_key_value_heads": 4}
WITH_BOS = [
    Variant("llama", "grouped", GROUPED, SIZES),
    Variant("gemma3_text", "window", {**GROUPED, "head_dim": 8, "sliding_window": 40}, SIZES),
]
WITHOUT_BOS = [
    Variant("gpt_neox", "parallel", {}, SIZES | {"hidden_size": 64}),
    Variant("qwen2", "grouped", GROUPED, SIZES),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that gives a variant's folder, its tokenizer with BOS or without, written once."""
    made = {}

    def folder(variant):
        if variant.id not in made:
            made[variant.id] = folder = tmp_path_factory.mktemp("model")
            save(variant, folder)
            save_tokenizer(folder, TRAINED)
            if variant in WITHOUT_BOS:
                path = folder / "tokenizer_config.json"
                fields = json.loads(path.read_text())
                path.write_text(json.dumps({name: value for name, value in fields.items() if name != "bos_token"}))
        return made[variant.id]

    return folder


def token_sequences(tokenizer, before):
    """For each name, the ids up to each of its tokens, found by the tokens of the prompt alone."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
    found = []
    for name in NAMES:
        whole, count = encode(before + name), len(encode(before.rstrip()))
        # A space before the name is a token of its own or the beginning of the name's first.
        count += whole[count] == encode("x ")[-1]
        found.append([[*bos, *whole[:stop]] for stop in range(count + 1, len(whole) + 1)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "Where is "])
@pytest.mark.parametrize("variant", WITH_BOS + WITHOUT_BOS, ids=lambda variant: variant.model_type)
def test_positions_are_transformers_own(folders, variant, before):
    folder = folders(variant)
    model = load_model(str(folder), mesh=make_mesh({"data": 1}), dtype="float32")
    states = lambda position: extract_states(model, NAMES, before + "{}", final_norm=True, position=position)
    sequences = token_sequences(model.files.tokenizer, before)
    spans = list(map(len, sequences))
    assert min(spans) == 1 and max(spans) > 3
    truth = true_states(folder, [sequence for of_name in sequences for sequence in of_name])
    every = states("all")
    assert every.entities.tolist() == np.repeat(range(len(NAMES)), spans).tolist()
    assert_same_states(dict(every), truth)
    begin = np.cumsum([0, *spans])
    first, mean, last = states("first"), states("mean"), states("last")
    for state, values in truth.items():
        for i, (a, b) in enumerate(itertools.pairwise(begin)):
            np.testing.assert_allclose(mean[state][i], values[a:b].mean(0), rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(mean[state][i], every[state][a:b].mean(0), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(first[state][i], values[a], rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(last[state][i], values[b - 1], rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_devices_and_a_store_that_goes_on(folders, tmp_path, dtype):
    folder = folders(WITH_BOS[0])
    model = load_model(str(folder), mesh=make_mesh(parse_mesh("data=2,fsdp=2,model=2")), dtype=dtype)
    every = extract_states(model, NAMES, position="all", store=tmp_path / "all")
    mean = extract_states(model, NAMES, position="mean", store=tmp_path / "mean")
    assert open_activations(tmp_path / "all").shape[0] == len(every.entities) == len(every.tokens)
    assert every.tokens[:2] == ("New", "ĠYork")
    for state in mean:
        assert mean[state].dtype == every[state].dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
        for i in range(len(NAMES)):
            rows = every[state][every.entities == i].astype(np.float32)
            expected = rows.astype(np.float64).mean(0)
            rounded = 2.0**-8 if dtype == "bfloat16" else 0  # one rounding, to eight bits
            np.testing.assert_allclose(mean[state][i].astype(np.float64), expected, rtol=1e-6 + rounded, atol=1e-6)
    # The same place by another number is another store; the same one is complete.
    extract_states(model, NAMES, position="mean", store=tmp_path / "mean")
    for position in ("last", "first", "all"):
        with pytest.raises(InputError, match="settings|rows"):
            extract_states(model, NAMES, position=position, store=tmp_path / "mean")


def test_an_interrupted_store_of_means_goes_on(folders, tmp_path):
    folder = folders(WITH_BOS[0])
    model = load_model(str(folder), mesh=make_mesh({"data": 1}), dtype="float32")
    names = tuple(f"{name} {number}" for number in range(600) for name in NAMES)
    table = EntityTable("towns", names, np.zeros((len(names), 1)), ("year",), ("year",), np.arange(len(names)) < 2)
    extraction = plan_extraction(model.files, table, mesh=model.mesh, layers=(0,), position="mean")
    assert len(extraction.plan.shards) == 2
    whole = extract_states(model, table, layers=(0,), position="mean")
    for last in (False, True):
        with open_store(tmp_path / "store", model.files, extraction, "float32") as store:
            assert store.missing == ((1,) if last else (0, 1))
            if last:
                fill_store(store, model, extraction)
            else:
                rows = extraction.plan.shards[0].rows
                store.write(0, {state: whole[state][rows] for state in store.manifest.states})
    np.testing.assert_array_equal(open_activations(tmp_path / "store")["0"], whole["0"])
