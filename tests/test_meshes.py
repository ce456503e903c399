"""One model on several meshes: same states, same scores, every array where the legend says, no needless traffic."""

import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxprobe.data.table import EntityTable
from jaxprobe.extract.extraction import extract_states
from jaxprobe.extract.forward import _compiled_root, compiled_step
from jaxprobe.mesh import make_mesh, parse_mesh, spec
from jaxprobe.models.families.known import parameters
from jaxprobe.models.load import load_model
from jaxprobe.models.transformer import Bins, Root
from jaxprobe.plan.hlo import collectives
from jaxprobe.runs.fit import fit_probes
from tests.tiny_llama import assert_same_states, save_model

NAMES = ("Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo")
ROWS = 80
ONE = "data=1"
MESHES = ["data=8", "model=8", "data=2,model=4", "data=2,fsdp=2,model=2"]
# States differ by float32 rounding, about 1e-6 of their norm; a score is a mean over 20 rows of what follows from them.
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, NAMES, heads=16, kv_heads=8)
    return str(folder)


@pytest.fixture(scope="module")
def few_heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    save_model(folder, NAMES, heads=8, kv_heads=2)
    return str(folder)


@pytest.fixture(scope="module")
def table():
    """Names whose last token tells the target, so that there is something to read."""
    rng = np.random.default_rng(0)
    first, last = rng.integers(10, size=(2, ROWS))
    texts = tuple(f"{NAMES[i]} {NAMES[j]}" for i, j in zip(first, last, strict=True))
    targets = np.stack([10.0 * first + 5.0 * last, 3.0 * last], axis=1) + rng.normal(size=(ROWS, 2))
    return EntityTable("towns", texts, targets, ("height", "size"), ("m", "km"), np.arange(ROWS) % 4 == 0)


@functools.cache
def load(folder, mesh, **options):
    return load_model(folder, mesh=make_mesh(parse_mesh(mesh)), **options)


def probe(model, table):
    states = extract_states(model, table, "Where is {}", final_norm=True)
    return states, fit_probes(states, table)


def assert_same_scores(found, expected):
    keys = ["layer", "target", "split", "metric"]
    found, expected = (probes.scores.set_index(keys).sort_index() for probes in (found, expected))
    assert found.index.equals(expected.index) and {"r2", "spearman"} <= set(found.reset_index()["metric"])
    np.testing.assert_allclose(found["value"], expected["value"], rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE)


@pytest.fixture(scope="module")
def whole(folder, table):
    return probe(load(folder, ONE), table)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_give_the_same_states_and_scores(folder, table, whole, mesh):
    states, probes = probe(load(folder, mesh), table)
    assert_same_states(states, whole[0])
    assert_same_scores(probes, whole[1])
    assert probes.headline == whole[1].headline


@pytest.fixture(scope="module")
def whole_of_few_heads(few_heads, table):
    return probe(load(few_heads, ONE), table)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["model=4", "model=8", "data=2,model=4"])
def test_copies_of_heads_give_the_same_states_and_scores(few_heads, table, whole_of_few_heads, mesh):
    states, probes = probe(load(few_heads, mesh, replicate_kv=True), table)
    assert_same_states(states, whole_of_few_heads[0])
    assert_same_scores(probes, whole_of_few_heads[1])


@pytest.mark.parametrize("mesh", MESHES)
def test_every_parameter_is_where_the_legend_says(folder, mesh):
    model = load(folder, mesh)
    sizes = model.config.sizes()
    for name, parameter in parameters(model.config).items():
        axes, weight = parameter.axes, getattr(model.weights.blocks if parameter.in_block else model.weights, name)[...]
        wanted = NamedSharding(model.mesh, spec(axes))
        assert weight.shape == tuple(sizes[letter] for letter in axes)
        assert weight.sharding.is_equivalent_to(wanted, weight.ndim), (name, weight.sharding)
        assert len(weight.addressable_shards) == 8
    # One in numbers, so that the legend itself is held to something.
    d, k = model.mesh.shape["fsdp"], model.mesh.shape["model"]
    assert model.weights.blocks.down[...].addressable_shards[0].data.shape == (3, 128 // k, 64 // d)
    assert model.weights.blocks.query[...].addressable_shards[0].data.shape == (3, 64 // d, 8 // k, 2, 4)


BINS, SLOTS, WANTED, ROOT_SLOTS = 16, 24, 16, 48


@functools.cache
def compile_forward(folder, mesh, what):
    """The compiled forward of one batch ("step"), or of the prefix that all share ("root")."""
    model = load(folder, mesh)
    mesh, config = model.mesh, model.config

    def array(shape, letters, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(letters)))

    slots = array((BINS, SLOTS), "BT")
    bins = Bins(slots, slots, slots, array((BINS, WANTED), "BT"))
    if what == "root":
        return _compiled_root(config, mesh).lower(model.weights, bins, None).compile()
    keys = array((config.layers, ROOT_SLOTS, config.kv_heads, config.head_width), "LRKH", jnp.float32)
    root = Root(keys, keys, jax.ShapeDtypeStruct((), jnp.int32))
    return compiled_step(config, config.states(), mesh, "float32").lower(model.weights, bins, root).compile()


def allowed_traffic(model, what):
    """(kind, whether once a block) -> the bytes that a device may receive, each part with its reason."""
    data, fsdp, share = (model.mesh.shape[axis] for axis in ("data", "fsdp", "model"))
    sizes = model.config.sizes()
    count = lambda axes: math.prod(sizes[letter] for letter in axes)
    stream = 4 * BINS // (data * fsdp) * SLOTS * count("D")
    allowed = Counter()
    if share > 1:
        # Attention's output and the MLP's are sums over heads and MLP units, which ``model`` shares.
        allowed["all-reduce", True] += 2 * stream
        # Each row of the embedding is on one device of ``model``.
        allowed["all-reduce", False] += stream
    if fsdp > 1:
        # One block's weights, whole but for what ``model`` shares, when their turn comes.
        allowed["all-gather", True] += sum(
            4 * count(one.axes[1:]) // (share if one.kind == "matrix" else 1)
            for one in parameters(model.config).values()
            if one.in_block
        )
        # The last norm's gains; and the token ids of all bins of the group, whose columns a device looks up ...
        allowed["all-gather", False] += 4 * count("D") + 4 * BINS // data * SLOTS
        # ... and sends each bin's to the device that has the bin.
        allowed["all-to-all", False] += stream
    if what == "root":
        # Every bin is the same prefix; all devices get the first one's keys and values.
        allowed["all-reduce", False] += 2 * 4 * count("LKH") // share * SLOTS
    return allowed


@pytest.mark.slow
@pytest.mark.parametrize("what", ["step", "root"])
@pytest.mark.parametrize("mesh", [*MESHES, "fsdp=8"])
def test_devices_exchange_no_more_than_the_list_allows(folder, mesh, what):
    """No gathering of a whole weight, of the whole embedding or of activations, and nothing that has no reason."""
    model = load(folder, mesh)
    found = Counter()
    for one in collectives(compile_forward(folder, mesh, what).as_text()):
        assert one.times in (1, model.config.layers)
        found[one.kind, one.times > 1] += one.size
    allowed = allowed_traffic(model, what)
    assert set(found) <= set(allowed)
    assert not found - allowed, (found, allowed)
    assert bool(found) == bool(allowed)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_results_are_where_the_legend_says(folder, mesh):
    """States by bins and wanted rows, the root's keys by heads; once as the shape of one device's part."""
    model = load(folder, mesh)
    data, fsdp, share = (model.mesh.shape[axis] for axis in ("data", "fsdp", "model"))
    shardings = list(compile_forward(folder, mesh, "step").output_shardings.values())
    states = NamedSharding(model.mesh, jax.P(None, ("data", "fsdp"), "model", None))
    assert len(shardings) == 3 and all(sharding.is_equivalent_to(states, 4) for sharding in shardings)
    shape = (3, BINS, WANTED, 64)
    assert shardings[1].shard_shape(shape) == (3, BINS // (data * fsdp), WANTED // share, 64)
    for sharding in compile_forward(folder, mesh, "root").output_shardings:
        assert sharding.is_equivalent_to(NamedSharding(model.mesh, jax.P(None, None, "model", None)), 4)
