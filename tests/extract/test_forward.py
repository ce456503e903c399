"""Hidden states against Hugging Face PyTorch in float64, on tiny Llamas that transformers itself saves."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from jaxprobe.errors import InputError
from jaxprobe.extract import forward
from jaxprobe.extract.forward import run_plan
from jaxprobe.extract.trie import plan_bins
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models import transformer
from jaxprobe.models.arithmetic import accelerator_arithmetic
from jaxprobe.models.families import llama
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.source import find_model
from jaxprobe.models.load import ModelFiles, fit_mesh, read_weights
from jaxprobe.models.weights import check_tensors
from jaxprobe.sites import choose_sites
from tests.tiny_llama import assert_same_states, reference, save_llama
from tests.tiny_models import states_of, true_states

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def load(folder, mesh=None, dtype="float32", last_layer=None):
    """The model without a tokenizer: these tests feed tokens."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config()
    layers = config.layers if last_layer is None else last_layer + 1
    check_tensors(checkpoint, config, layers)
    part = dataclasses.replace(config, layers=layers)
    files = ModelFiles(find_model(str(folder)), checkpoint, part, None, layers == config.layers)
    mesh = mesh or make_mesh({"data": 1})
    return read_weights(fit_mesh(files, mesh), mesh, dtype)


def random_sequences(count=40, vocabulary=96, seed=0):
    rng = np.random.default_rng(seed)
    return [[1, 5, 9, *rng.integers(2, vocabulary, rng.integers(1, 12))] for _ in range(count)] + [[1, 5, 9, 4]] * 2


def ours(model, sequences, bins=4, slots=16, shard_entities=16):
    ids = np.concatenate(sequences).astype(np.int32)
    starts = np.cumsum([0, *map(len, sequences)])
    plan = plan_bins(ids, starts, bins=bins, slots=slots, shard_entities=shard_entities)
    complete = model.files.complete
    states = tuple(map(str, choose_sites(model.config.layers, complete, final_norm=complete)))
    found = {state: np.full((len(sequences), model.config.width), np.nan, np.float32) for state in states}
    for shard in run_plan(model, plan, states):
        for state in states:
            found[state][shard.rows] = shard.states[state].astype(np.float32)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "kv_heads", "tied", "rope"),
    [(8, 8, False, "default"), (8, 4, True, "linear"), (8, 1, False, "llama3"), (4, 2, True, "llama3")],
    ids=["full", "grouped", "multi-query", "wide heads"],
)
def test_states_equal_hugging_face_in_float64(tmp_path, heads, kv_heads, tied, rope):
    save_llama(tmp_path, heads=heads, kv_heads=kv_heads, tied=tied, rope=ROPES[rope])
    sequences = random_sequences()
    assert_same_states(ours(load(tmp_path), sequences), true_states(tmp_path, sequences))


@pytest.mark.slow
def test_sharded_bfloat16_files_give_the_same_states(tmp_path):
    save_llama(tmp_path, dtype=torch.bfloat16, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sequences = random_sequences()
    assert_same_states(ours(load(tmp_path), sequences), true_states(tmp_path, sequences))


@pytest.mark.slow
def test_float16_files_give_the_same_states(tmp_path):
    save_llama(tmp_path, dtype=torch.float16)
    sequences = random_sequences(10)
    assert_same_states(ours(load(tmp_path), sequences), true_states(tmp_path, sequences))


@pytest.mark.slow
def test_bfloat16_is_no_worse_than_hugging_face_in_bfloat16(tmp_path):
    save_llama(tmp_path, dtype=torch.bfloat16)
    sequences = random_sequences()
    exact = true_states(tmp_path, sequences)
    rounded = {"ours": ours(load(tmp_path, dtype="bfloat16"), sequences)}
    rounded["theirs"] = states_of(reference(tmp_path, torch.bfloat16), sequences)
    for state in exact:
        error = {who: np.linalg.norm(states[state] - exact[state]) for who, states in rounded.items()}
        assert error["ours"] <= error["theirs"], (state, error)


@pytest.mark.slow
def test_the_accelerators_bfloat16_is_no_worse_than_hugging_face_in_bfloat16(tmp_path, monkeypatch):
    """Its products between weights give bfloat16; here a CPU runs it."""
    save_llama(tmp_path, dtype=torch.bfloat16)
    sequences = random_sequences()
    plain = ours(load(tmp_path, dtype="bfloat16"), sequences)
    monkeypatch.setattr(transformer, "choose_arithmetic", lambda mesh, dtype: accelerator_arithmetic(dtype))
    for compiled in (forward.compiled_step, forward._compiled_root):
        compiled.cache_clear()
    found, exact = ours(load(tmp_path, dtype="bfloat16"), sequences), true_states(tmp_path, sequences)
    for compiled in (forward.compiled_step, forward._compiled_root):
        compiled.cache_clear()
    theirs = states_of(reference(tmp_path, torch.bfloat16), sequences)
    for state in exact:
        error = {
            who: np.linalg.norm(states[state] - exact[state]) for who, states in (("ours", found), ("theirs", theirs))
        }
        assert error["ours"] <= error["theirs"], (state, error)
    assert any((found[state] != plain[state]).any() for state in exact)


def test_packed_equals_one_at_a_time(tmp_path):
    save_llama(tmp_path)
    model, sequences = load(tmp_path), random_sequences(12)
    alone = [ours(model, [sequence]) for sequence in sequences]
    assert_same_states(ours(model, sequences), {s: np.concatenate([one[s] for one in alone]) for s in alone[0]})


def test_a_mesh_that_does_not_divide_is_refused_with_one_that_does(tmp_path):
    save_llama(tmp_path, kv_heads=4)
    with pytest.raises(InputError, match=r"K=4 .* 'model' of size 8. Use --mesh data=2,model=4, or --replicate-kv"):
        load(tmp_path, make_mesh(parse_mesh("model=8")))


@pytest.mark.slow
def test_fewer_layers_run_fewer_blocks(tmp_path):
    save_llama(tmp_path)
    sequences = random_sequences(5)
    whole, part = ours(load(tmp_path), sequences), load(tmp_path, last_layer=1)
    assert part.weights.blocks.key[...].shape[0] == 2
    np.testing.assert_allclose(ours(part, sequences)["1"], whole["1"], rtol=1e-5, atol=1e-6)


def test_a_state_that_is_not_finite_is_named(tmp_path):
    truth = save_llama(tmp_path)
    with torch.no_grad():
        truth.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    truth.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="State '1' of table row"):
        ours(load(tmp_path), random_sequences(3))


def test_shards_can_be_run_alone_to_the_same_bits(tmp_path):
    save_llama(tmp_path)
    model, sequences = load(tmp_path), random_sequences()
    ids = np.concatenate(sequences).astype(np.int32)
    plan = plan_bins(ids, np.cumsum([0, *map(len, sequences)]), bins=4, slots=16, shard_entities=16)
    every = list(run_plan(model, plan, ("embed", "2")))
    (last,) = run_plan(model, plan, ("embed", "2"), shards=[2])
    assert last.index == 2 and len(every) == 3
    np.testing.assert_array_equal(last.states["2"], every[2].states["2"])
    assert sorted(itertools.chain(*(shard.rows for shard in every))) == list(range(len(sequences)))


@pytest.mark.parametrize("two", [("attention_norm", "mlp_norm"), ("gate", "up"), ("key", "value")])
def test_two_parameters_that_are_exchanged_are_seen(tmp_path, monkeypatch, two):
    """The tiny models can tell: every parameter of theirs is noise."""
    save_llama(tmp_path)
    first, second = (llama.BLOCK[name] for name in two)
    monkeypatch.setattr(llama, "BLOCK", llama.BLOCK | dict(zip(two, (second, first), strict=True)))
    sequences = random_sequences(5)
    with pytest.raises(AssertionError):
        assert_same_states(ours(load(tmp_path), sequences), true_states(tmp_path, sequences))
