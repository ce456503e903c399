"""What the model says under edits, against PyTorch forward hooks on transformers in float64."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from jaxprobe.errors import InputError
from jaxprobe.extract.continuations import Continuations, choices, read_continuations
from jaxprobe.extract.extraction import extract_states
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.source import find_model
from jaxprobe.models.load import ModelFiles, fit_mesh, load_model, read_weights
from jaxprobe.probes.erase import Edit, apply_edit
from tests.tiny_llama import save_model
from tests.tiny_models import Variant, float64_throughout, read_back, save

TEXTS = ["New York", "New York City", "Paris", "Oslo", "St. John's", "Ulaanbaatar", "A", "Paris"]
SAID = [" France", " United States", " United Kingdom", " Mongolia", " Norway"]
NAT = 1e-4
LAYERS = (-1, 0, 1, 2)


@pytest.fixture(scope="module", params=["tied", "own head"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    texts = [f"the {text} is in{said}" for text in TEXTS for said in SAID]
    save_model(folder, texts * 3, tied=request.param == "tied")
    return folder


@pytest.fixture(scope="module")
def truth(folder):
    return Truth(transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval())


@pytest.fixture(scope="module")
def read(folder):
    model = load_model(str(folder), head=True)
    return read_continuations(model, TEXTS, "the {} is in", SAID, LAYERS, neutral=" was")


class Truth:
    """One text and one continuation at a time, one hook for each edited block."""

    def __init__(self, model):
        self.model = model

    def logits(self, ids, edits):
        """[tokens, V] under block -> function of its output [tokens, D]."""
        handles = []
        for layer, edit in edits.items():
            module = self.model.model.embed_tokens if layer < 0 else self.model.model.layers[layer]

            def hook(module, inputs, output, edit=edit):
                whole = output[0] if isinstance(output, tuple) else output
                whole = torch.tensor(edit(whole[0].numpy().copy()))[None]
                return (whole, *output[1:]) if isinstance(output, tuple) else whole

            handles.append(module.register_forward_hook(hook))
        with torch.no_grad():
            found = torch.log_softmax(self.model(torch.tensor([list(ids)])).logits[0], -1).numpy()
        for handle in handles:
            handle.remove()
        return found

    def says(self, read, entity, said, edits):
        prompt = [*read.prefixes[entity], *read.paths[entity][0]]
        found = self.logits([*prompt, *said], edits)
        return sum(found[len(prompt) - 1 + i, token] for i, token in enumerate(said))


def replaced(read, entity, row):
    def edit(x):
        x[len(read.prefixes[entity]) - 1] = row
        return x

    return edit


def all_say(truth, read, edits_of):
    """[E, C] of every text and continuation; ``edits_of`` an entity."""
    return np.array(
        [[truth.says(read, e, said, edits_of(e)) for said in read.choices.tokens] for e in range(len(TEXTS))]
    )


@pytest.mark.slow
def test_the_unedited_model(truth, read):
    assert sorted({len(said) for said in read.choices.tokens}) != [1]
    found = read.clean().log_probabilities(read.choices)[:, 0]
    assert np.abs(found - all_say(truth, read, lambda e: {})).max() < NAT
    assert np.abs(read.clean().kl).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_rows_in_the_place_of_the_entity(truth, read, layer):
    rng, own = np.random.default_rng(layer + 1), read.states(layer)
    rows = own[:, None] + np.abs(own).mean() * rng.standard_normal((len(own), 3, own.shape[1])).astype(np.float32)
    said = read.edited(layer, rows)
    found = said.log_probabilities(read.choices)
    for draw in range(2):
        expected = all_say(truth, read, lambda e, draw=draw: {layer: replaced(read, e, rows[e, draw])})
        assert np.abs(found[:, draw] - expected).max() < NAT
    assert np.abs(found - read.clean().log_probabilities(read.choices)).max() > 0.1 or layer == 2
    for point, path in enumerate(read.paths[1]):  # all of V: of the prompt's end, of a name's first tokens, of " was"
        ids = [*read.prefixes[1], *path]
        p, q = (truth.logits(ids, edits)[-1] for edits in ({}, {layer: replaced(read, 1, rows[1, 2])}))
        assert said.kl[1, 2, point] == pytest.approx((np.exp(p) * (p - q)).sum(), abs=NAT)
    few = read.edited(layer, rows, everything=False)
    np.testing.assert_allclose(few.logits, said.logits, atol=1e-4)
    assert few.kl is None


@pytest.mark.parametrize("layer", LAYERS)
def test_zero_edits_change_no_bit(read, layer):
    np.testing.assert_array_equal(read.edited(layer, read.states(layer)[:, None]).logits, read.clean().logits)
    nothing = {max(layer, 0): (np.zeros((64, 2)), np.zeros((64, 2)), np.zeros(64), np.zeros(2))}
    for where in ("entity", "after", "all"):
        np.testing.assert_array_equal(read.edited_on_the_way(nothing, where=where).logits, read.clean().logits)


@pytest.mark.parametrize("where", ["entity", "after", "all"])
@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_an_operator_at_one_or_all_slots_and_layers(truth, read, where, layers):
    rng = np.random.default_rng(0)
    make = lambda layer: Edit(
        rng.standard_normal((64, 2)) / 64,
        rng.standard_normal((64, 2)),
        read.states(layer).mean(0),
        np.array([0.0, 2.0]),
    )
    edits = {layer: make(layer) for layer in layers}
    found = read.edited_on_the_way(edits, where=where).log_probabilities(read.choices)[:, 0]

    def hooks(entity):
        at = len(read.prefixes[entity]) - 1
        slots = {"entity": slice(at, at + 1), "after": slice(at, None), "all": slice(None)}[where]

        def edit(x, layer):
            x[slots] = apply_edit(edits[layer], x[slots])
            return x

        return {layer: lambda x, layer=layer: edit(x, layer) for layer in layers}

    assert np.abs(found - all_say(truth, read, hooks)).max() < NAT


def test_states_are_those_of_the_extraction(read):
    prompt = "the {} is in"
    states = extract_states(read.model, TEXTS, prompt)
    for layer in LAYERS:
        expected = states["embed" if layer < 0 else str(layer)]
        error = np.linalg.norm(read.states(layer) - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < 1e-5


def test_some_points_alone_and_states_on_the_way(truth, read):
    """A draw that looks at one continuation's points says the same of it; later states are the hooks'."""
    rows = read.states(0)[:, None] + np.float32([[[0.3]], [[-0.2]]]).reshape(1, 2, 1)
    mine = [e % len(SAID) for e in range(len(TEXTS))]
    points = read.points_of(mine)
    assert {len(each) for each in points} == {len({p for p, _ in read.choices.steps[i]}) for i in mine} != {read.points}
    every = read.edited(0, rows, everything=False).log_odds(read.choices)
    few = read.edited(0, rows, everything=False, points=points).log_odds(read.choices)
    for entity, said in enumerate(mine):
        np.testing.assert_allclose(few[entity, :, said], every[entity, :, said], atol=1e-5)
    assert np.isnan(few).any()
    later, kept = read.states_after(0, rows, 1), {}
    keep = lambda module, inputs: kept.update(x=inputs[0][0, -1].numpy())
    handle = truth.model.model.layers[2].register_forward_pre_hook(keep)
    for entity, prefix in enumerate(read.prefixes):
        truth.logits(prefix, {0: replaced(read, entity, rows[entity, 1])})
        assert np.linalg.norm(later[entity, 1] - kept["x"]) < 1e-5 * np.linalg.norm(kept["x"])
    handle.remove()


@pytest.mark.slow
def test_work_is_counted_and_near_the_least(folder):
    model = load_model(str(folder), head=True)
    names = [f"{text} {i}" for i in range(8) for text in TEXTS]
    read = read_continuations(model, names, "{},", SAID, [0], between=True)
    rows = np.repeat(read.states(0)[:, None], 40, axis=1)
    read.edited(0, rows, everything=False)
    own = 1 + len(read.choices.paths)  # the entity's slot, and each point's (one token each here)
    assert read.work.floor >= len(names) * 40 * own * 2
    assert read.work.run <= 1.2 * read.work.floor


@pytest.mark.slow
def test_a_mesh_says_the_same(folder, read):
    model = load_model(str(folder), head=True, mesh=make_mesh(parse_mesh("data=2,fsdp=2,model=2")))
    other = read_continuations(model, TEXTS, "the {} is in", SAID, LAYERS, neutral=" was")
    rows = read.states(1)[:, None] + np.float32(0.5)
    pairs = [(each.edited(1, rows).log_probabilities(each.choices), each.clean().logits) for each in (read, other)]
    for found, expected in zip(*pairs, strict=True):
        np.testing.assert_allclose(found, expected, atol=NAT)


def test_odds_are_of_what_may_be_said(read):
    odds = read.clean().log_odds(read.choices)[:, 0]
    np.testing.assert_allclose(np.exp(odds).sum(1), 1, rtol=1e-6)
    one = choices(["a", "b"], [[5], [7]], between=True)
    assert one.paths == ((),) and one.next_tokens == (5, 7)
    shared = choices(["a b", "a c", "d"], [[1, 2], [1, 3], [4, 9]], between=True)
    assert shared.paths == ((), (1,)) and shared.steps[2] == ((0, 4),)
    every = choices(["a b", "a c", "d"], [[1, 2], [1, 3], [4, 9]], between=False)
    assert every.paths == ((), (1,), (4,))


@pytest.mark.parametrize(
    ("tokens", "between", "words"),
    [([[1], [1]], False, "same tokens"), ([[1], []], False, "no tokens"), ([[1], [1, 2]], True, "begins with")],
)
def test_continuations_that_cannot_be_told_apart(tokens, between, words):
    with pytest.raises(InputError, match=words):
        choices(["a", "b"], tokens, between=between)


@pytest.mark.slow
def test_sites_inside_a_block(folder, truth):
    """The stream between attention and MLP, and the neurons, as hooks on the modules see them."""
    model = load_model(str(folder), head=False)
    sites = ("mlp.1", "0.mid", "1", "embed")
    found = extract_states(model, TEXTS, "the {} is in", sites=sites)
    assert list(found) == ["embed", "0.mid", "mlp.1", "1"] and found["mlp.1"].shape == (len(TEXTS), 128)
    layers, kept = truth.model.model.layers, {}
    keep = lambda name: lambda module, inputs: kept.update({name: inputs[0][0, -1].numpy()})
    handles = [
        layers[1].mlp.down_proj.register_forward_pre_hook(keep("mlp.1")),
        layers[0].post_attention_layernorm.register_forward_pre_hook(keep("0.mid")),
    ]
    prefixes = read_continuations(load_model(str(folder), head=True), TEXTS, "the {} is in", SAID, []).prefixes
    for entity, ids in enumerate(prefixes):
        truth.logits(ids, {})
        for site, expected in kept.items():
            assert np.linalg.norm(found[site][entity] - expected) < 1e-5 * np.linalg.norm(expected)
    for handle in handles:
        handle.remove()


FAMILIES = [
    Variant("gpt_neox", "parallel", {"rotary_pct": 0.5}),
    Variant("gemma2", "caps", {"num_key_value_heads": 4, "head_dim": 8, "query_pre_attn_scalar": 8}),
    Variant("gpt2", "positions", {}),
    Variant("qwen2", "biases", {"num_key_value_heads": 4}),
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", FAMILIES, ids=lambda variant: variant.id)
def test_other_families(tmp_path, variant):
    """Tokens, not texts: one and several tokens after the edited one, at one slot and at all of them."""
    save(variant, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = dataclasses.replace(checkpoint.config(), head=True)
    mesh = make_mesh({"data": 1})
    files = fit_mesh(ModelFiles(find_model(str(tmp_path)), checkpoint, config, None, True), mesh)
    tree = choices(["a", "b", "c"], [[7], [8, 9], [8, 10, 11]], between=False)
    prefixes, after = [[1, 5, 9], [1, 5, 9, 4], [1, 6]], [[20], [20], [21]]
    read = Continuations(read_weights(files, mesh, "float32"), prefixes, after, tree, [1])
    rng = np.random.default_rng(0)
    rows = read.states(1) + 0.5 * rng.standard_normal((3, 32)).astype(np.float32)
    edit = rng.standard_normal((32, 1)) / 32, rng.standard_normal((32, 1)), np.zeros(32), np.ones(1)
    found = {
        "clean": read.clean().log_probabilities(tree)[:, 0],
        "rows": read.edited(1, rows[:, None]).log_probabilities(tree)[:, 0],
        "all": read.edited_on_the_way({1: edit}, where="all").log_probabilities(tree)[:, 0],
    }
    model = read_back(tmp_path).double()
    blocks = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers

    def says(kind, entity, said):
        at = len(prefixes[entity]) - 1

        def hook(module, inputs, output):
            x = (output[0] if isinstance(output, tuple) else output).clone()
            if kind == "rows":
                x[0, at] = torch.tensor(rows[entity], dtype=torch.float64)
            elif kind == "all":
                x[0] = torch.tensor(apply_edit(Edit(*edit), x[0].numpy()))
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = blocks[1].register_forward_hook(hook)
        ids = [*prefixes[entity], *after[entity], *said]
        with torch.no_grad(), float64_throughout():
            logits = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        handle.remove()
        return sum(float(logits[at + 1 + i, token]) for i, token in enumerate(said))

    for kind, values in found.items():
        expected = [[says(kind, entity, said) for said in tree.tokens] for entity in range(3)]
        assert np.abs(values - expected).max() < NAT, kind
    assert np.abs(found["rows"] - found["clean"]).max() > 0.01 < np.abs(found["all"] - found["clean"]).max()
