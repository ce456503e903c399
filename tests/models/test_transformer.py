"""The forward's sites, edits, later beginnings and output head against PyTorch with hooks, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.load import load_model
from jaxprobe.models.transformer import (
    Bins,
    Edits,
    Root,
    embed,
    forward,
    logits,
    no_root,
    random_weights,
    run_blocks,
)
from tests.tiny_llama import ROW_NORM, save_tokenizer
from tests.tiny_models import Variant, float64_throughout, read_back, save

VARIANTS = {
    "gated": Variant("llama", "", {"num_key_value_heads": 4, "initializer_range": 0.07}),
    "tied, capped": Variant(
        "gemma2", "", {"num_key_value_heads": 4, "final_logit_softcapping": 3.0, "initializer_range": 0.01}
    ),
    "parallel": Variant("gpt_neox", "", {}, {"hidden_size": 64}),
    "learned positions": Variant("gpt2", "", {"initializer_range": 0.05}),
}
TOKENS = np.random.default_rng(0).integers(2, 96, (8, 12)).astype(np.int32)
LAYERS = 4
# One program serves the tests that ask for these; not every block's stream is among them.
SITES = ("embed", "mlp.0", "0", "2", "mlp.3", "3", "final_norm")


def bins_of(tokens, wanted=None):
    """Chains, of which every slot is wanted."""
    slots = tokens.shape[1]
    index = np.broadcast_to(np.arange(slots, dtype=np.int32), tokens.shape)
    return Bins(tokens, index, np.full_like(tokens, slots), index if wanted is None else wanted)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, variant in VARIANTS.items():
        found[name] = tmp_path_factory.mktemp("model")
        save_tokenizer(found[name], ["Where is Paris"])
        save(variant, found[name])
    return found


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, folders):
    return load_model(str(folders[request.param]), mesh=make_mesh({"data": 1}), head=True), folders[request.param]


@functools.cache
def compiled_forward(config, mesh, options):
    run = lambda weights, bins, root, edits: forward(
        weights, config, bins, root, mesh=mesh, edits=edits, **dict(options)
    )
    return jax.jit(run)


def run(model, bins=None, root=None, edits=None, **options):
    """The compiled forward of every slot, of `TOKENS` unless other bins are given."""
    root = root or no_root(model.config, model.weights.dtype)
    compiled = compiled_forward(model.config, model.mesh, tuple(options.items()))
    return compiled(model.weights, bins or bins_of(TOKENS), root, edits)


def decoder_of(theirs):
    return theirs.base_model.h if hasattr(theirs.base_model, "h") else theirs.base_model.layers


def mlp_input_of(block):
    """The module whose input are the neurons."""
    mlp = block.mlp
    return next(getattr(mlp, name) for name in ("down_proj", "dense_4h_to_h", "c_proj") if hasattr(mlp, name))


def attention_of(block):
    return next(getattr(block, name) for name in ("self_attn", "attention", "attn") if hasattr(block, name))


def hooked(folder, tokens, edit=None):
    """What PyTorch has at every slot: neurons and streams by block, and logits. ``edit``: block -> function of it."""
    theirs, seen = read_back(folder).double(), {}
    first = lambda output: output[0] if isinstance(output, tuple) else output

    def after(layer):
        def hook(module, args, output):
            new = edit(layer, first(output)) if edit else first(output)
            seen[str(layer)] = new
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    for layer, block in enumerate(decoder_of(theirs)):
        mlp_input_of(block).register_forward_pre_hook(
            lambda m, args, layer=layer: seen.update({f"mlp.{layer}": args[0]})
        )
        block.register_forward_hook(after(layer))
    with torch.inference_mode(), float64_throughout():
        result = theirs(torch.tensor(tokens.astype(np.int64)))
    return {name: value.numpy() for name, value in seen.items()} | {"logits": result.logits.numpy()}


def assert_close(found, expected):
    error = np.linalg.norm(np.asarray(found) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() <= ROW_NORM, error.max()


def test_neurons_and_streams_are_those_that_pytorch_hooks_see(model):
    ours, folder = model
    found, expected = run(ours, sites=SITES).states(SITES), hooked(folder, TOKENS)
    for site in ("mlp.0", "0", "2", "mlp.3", "3"):
        assert_close(found[site], expected[site])


def test_the_stream_between_attention_and_mlp(folders):
    """It is what the norm before the MLP is given, in blocks that have one between."""
    ours = load_model(str(folders["gated"]), mesh=make_mesh({"data": 1}))
    theirs, seen = read_back(folders["gated"]).double(), {}
    theirs.model.layers[2].post_attention_layernorm.register_forward_pre_hook(lambda m, args: seen.update(mid=args[0]))
    with torch.inference_mode(), float64_throughout():
        theirs(torch.tensor(TOKENS.astype(np.int64)))
    assert_close(run(ours, sites=("2.mid",)).states(("2.mid",))["2.mid"], seen["mid"].numpy())
    parallel = load_model(str(folders["parallel"]), mesh=make_mesh({"data": 1}))
    with pytest.raises(ValueError, match="none between them"):
        run(parallel, sites=("2.mid",))


def test_the_head_gives_the_logits(model):
    ours, folder = model
    rows = run(ours, sites=SITES).states(SITES)["3"]
    assert_close(logits(ours.weights, ours.config, rows, mesh=ours.mesh), hooked(folder, TOKENS)["logits"])


def test_the_head_is_read_on_request_only(folders):
    one = make_mesh({"data": 1})
    without = load_model(str(folders["gated"]), mesh=one)
    with pytest.raises(ValueError, match="head=True"):
        logits(without.weights, without.config, jnp.zeros((1, 32)), mesh=one)
    with pytest.raises(InputError, match="head follows layer 3"):
        load_model(str(folders["gated"]), mesh=one, head=True, last_layer=1)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,model=2", "fsdp=2,model=4"])
def test_sites_and_logits_on_eight_devices(folders, mesh):
    folder, sites = str(folders["gated"]), ("mlp.1", "2.mid", "3")
    one, eight = (load_model(folder, mesh=make_mesh(parse_mesh(text)), head=True) for text in ("data=1", mesh))
    expected, found = (run(each, sites=sites).states(sites) for each in (one, eight))
    for site in sites:
        assert_close(found[site], np.asarray(expected[site]))
    last = [logits(m.weights, m.config, jnp.asarray(np.asarray(expected["3"])), mesh=m.mesh) for m in (one, eight)]
    assert_close(last[1], np.asarray(last[0]))


def low_rank(config, seed=0, rank=3):
    """Edits that differ from block to block, about as large as the stream."""
    normal = np.random.default_rng(seed).standard_normal
    make = lambda *shape: (normal(shape) / np.sqrt(config.width)).astype(np.float32)
    return Edits(make(LAYERS, config.width, rank), make(LAYERS, config.width, rank), 3 * make(LAYERS, rank))


def numpy_edit(edits, slots=None):
    def edit(layer, x):
        read, write = (torch.tensor(a[layer]).double() for a in (edits.read, edits.write))
        target = torch.tensor(edits.target[layer]).double()
        new = x + (target - x @ read) @ write.T
        return new if slots is None else torch.where(torch.tensor(slots)[..., None], new, x)

    return edit


@pytest.mark.parametrize("where", ["every slot", "some slots", "a target for each slot"])
def test_edits_are_those_of_pytorch_hooks(model, where):
    ours, folder = model
    edits, slots = low_rank(ours.config), None
    if where == "some slots":
        slots = np.random.default_rng(1).random(TOKENS.shape) < 0.3
        edits = edits._replace(slots=slots)
    if where == "a target for each slot":
        target = np.random.default_rng(2).standard_normal((LAYERS, *TOKENS.shape, 3)).astype(np.float32)
        edits = edits._replace(target=target)
    sites = ("0", "2", "3")
    found, expected = (
        run(ours, sites=sites, edits=edits).states(sites),
        hooked(folder, TOKENS, numpy_edit(edits, slots)),
    )
    for site in sites:
        assert_close(found[site], expected[site])


@pytest.mark.slow
@pytest.mark.compiled_fully
def test_an_edit_of_zeros_changes_no_bit(model):
    ours, _ = model
    nothing = jax.tree.map(np.zeros_like, low_rank(ours.config))
    sites = ("0", "3", "final_norm")
    plain, edited = run(ours, sites=sites), run(ours, sites=sites, edits=nothing)
    for site in sites:
        np.testing.assert_array_equal(plain.states(sites)[site], edited.states(sites)[site])


@pytest.mark.slow
def test_an_edit_of_the_root_and_of_what_follows_is_that_of_the_whole(model):
    """The same edit at every slot: a prefix that is run once, edited, gives the states of whole prompts, edited."""
    ours, _ = model
    tokens, edits = np.concatenate([np.tile(TOKENS[:1, :5], (8, 1)), TOKENS[:, 5:]], axis=1), low_rank(ours.config)
    whole = run(ours, bins_of(tokens), edits=edits, sites=("3",)).states(("3",))["3"]
    root = run(ours, bins_of(tokens[:1, :5]), edits=edits, return_keys=True)
    root = Root(root.keys[:, 0], root.values[:, 0], jnp.int32(5))
    rest = bins_of(tokens[:, 5:])
    rest = rest._replace(positions=rest.positions + 5)
    part = run(ours, rest, root, edits, sites=("3",)).states(("3",))["3"]
    assert_close(part, np.asarray(whole, np.float64)[:, 5:])


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True])
def test_going_on_from_a_block_is_the_forward(model, traced):
    """With one row replaced by another bin's it is also what PyTorch gives with a hook that replaces it."""
    ours, folder = model
    config, bins, sites = ours.config, bins_of(TOKENS), ("3", "mlp.3", "final_norm")
    whole = run(ours, sites=SITES).states(SITES)

    def go_on(weights, x, first):
        root = no_root(config, weights.dtype)
        return run_blocks(weights, config, x, bins, root, mesh=ours.mesh, first=first, sites=sites)

    swap = lambda x: torch.cat([torch.cat([x[:1, :5], x[1:2, 5:6], x[:1, 6:]], 1), x[1:]])
    compiled = jax.jit(go_on) if traced else jax.jit(go_on, static_argnums=2)
    for first, before in ((0, "embed"), (1, "0"), (3, "2")):
        x = whole[before]
        same = compiled(ours.weights, x, first).states(sites)
        for site in sites:
            np.testing.assert_allclose(same[site], whole[site], rtol=1e-5, atol=1e-5)
        if first:
            expected = hooked(folder, TOKENS, lambda layer, x, at=first - 1: swap(x) if layer == at else x)
            replaced = x.at[0, 5].set(x[1, 5])
            assert_close(compiled(ours.weights, replaced, first).states(sites)["3"], expected["3"])


def test_sites_that_are_not_there_are_refused(model):
    ours, _ = model
    for site in ("4", "mlp.4", "-1", "mlp", "3.mlp", "logits"):
        with pytest.raises(ValueError, match=r"is no site|sites of blocks"):
            run(ours, sites=(site,))
    with pytest.raises(ValueError, match="sites of blocks 1 to 1; run are 2 to 3"):
        x = embed(ours.weights, ours.config, bins_of(TOKENS), ours.mesh)
        root = no_root(ours.config, ours.weights.dtype)
        run_blocks(ours.weights, ours.config, x, bins_of(TOKENS), root, mesh=ours.mesh, first=2, sites=("1",))


@pytest.mark.slow
def test_it_trains(folders):
    """`jax.value_and_grad` through forward and head: the gradient is the slope of the loss."""
    ours = load_model(str(folders["gated"]), mesh=make_mesh({"data": 1}), head=True)

    def loss(weights):
        found = forward(weights, ours.config, bins_of(TOKENS), no_root(ours.config, weights.dtype), mesh=ours.mesh,
                        sites=("3",)).states(("3",))["3"]  # fmt: skip
        chances = jax.nn.log_softmax(logits(weights, ours.config, found, mesh=ours.mesh))
        return -jnp.take_along_axis(chances[:, :-1], TOKENS[:, 1:, None], axis=-1).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(ours.weights)
    norm = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
    step = 1e-3 / norm
    moved = jax.tree.map(lambda w, g: w - step * g, ours.weights, gradient)
    assert np.isfinite(norm) and (float(value) - float(jax.jit(loss)(moved))) == pytest.approx(1e-3, rel=0.1)


@pytest.mark.slow
def test_random_weights_have_the_checkpoints_own_spread(model):
    """The spread, the gains and the biases that transformers' own initialisation gives."""
    ours, folder = model
    found = random_weights(ours.config, ours.mesh, jnp.dtype("float32"), seed=1)
    written = read_back(folder)
    theirs = type(written)(written.config)
    own = {name: parameter.detach().numpy() for name, parameter in theirs.named_parameters()}
    down = next(
        value
        for name, value in own.items()
        if any(word in name for word in ("down_proj.weight", "4h_to_h.weight", "mlp.c_proj.weight"))
    )
    assert np.asarray(found.blocks.down[...][0]).std() == pytest.approx(down.std(), rel=0.1)
    up = next(
        value
        for name, value in own.items()
        if any(word in name for word in ("up_proj.weight", "h_to_4h.weight", "mlp.c_fc.weight"))
    )
    assert np.asarray(found.blocks.up[...][0]).std() == pytest.approx(up.std(), rel=0.1)
    gain = next(value for name, value in own.items() if "ln_1.weight" in name or "input_layernorm.weight" in name)
    assert (np.asarray(found.blocks.attention_norm[...]) == gain[0]).all() and len(set(gain)) == 1
