"""The arithmetic of a block against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprobe.mesh import make_mesh
from jaxprobe.models.arithmetic import accelerator_arithmetic, choose_arithmetic
from jaxprobe.models.parts import attend

# A sum of N float32 products is off by less than N times this of the sum of their sizes.
ROUNDING = np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_exact_and_summed_in_float32(dtype):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, 5, 48)), jnp.float32)
    weight = jnp.asarray(generator.normal(size=(48, 7)), dtype)
    rounded, exact = (np.asarray(a, np.float64) for a in (x.astype(dtype), weight))
    arithmetic = choose_arithmetic(make_mesh({"data": 1}), weight.dtype)
    sizes = np.abs(rounded) @ np.abs(exact)
    for multiply in (arithmetic.product, arithmetic.inner, arithmetic.add):
        found = jax.jit(lambda x, weight, multiply=multiply: multiply("BTD,DF->BTF", x, weight))(x, weight)
        assert found.dtype == jnp.float32
        assert (np.abs(found - rounded @ exact) <= 48 * ROUNDING * sizes).all()


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("slots", [1, 2, 7])  # one, an even and an odd number
def test_a_slot_attends_to_the_root_and_its_ancestors(slots, cap, parts, apart):
    """Slot t's parent is drawn from the slots before it; T need not divide in halves."""
    generator = np.random.default_rng(slots)
    bins, root, heads, group, width = 2, 3, 2, 2, 8
    normal = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    query, key, value = normal(bins, slots, heads, group, width), *(normal(bins, slots, heads, width) for _ in "kv")
    root_key, root_value = normal(root, heads, width), normal(root, heads, width)
    visible, root_visible = np.zeros((bins, slots, slots), bool), np.array([True, True, False])
    for one in visible:
        for slot in range(slots):
            one[slot, slot] = True
            if slot:
                one[slot] |= one[generator.integers(slot)]
    arithmetic = choose_arithmetic(make_mesh({"data": 1}), jnp.dtype("float32"))
    arithmetic = arithmetic._replace(attention_parts=parts, root_apart=apart)
    seen = jnp.asarray(visible), root_key, root_value, jnp.asarray(root_visible)
    found = attend(query, key, value, *seen, divisor=jnp.float32(3.0), cap=cap, arithmetic=arithmetic)
    for b, t, k, g in np.ndindex(bins, slots, heads, group):
        keys = np.concatenate([root_key[root_visible, k], key[b, visible[b, t], k]]).astype(np.float64)
        values = np.concatenate([root_value[root_visible, k], value[b, visible[b, t], k]]).astype(np.float64)
        scores = keys @ np.asarray(query[b, t, k, g], np.float64) / 3.0
        weights = np.exp(scores if cap is None else cap * np.tanh(scores / cap))
        np.testing.assert_allclose(found[b, t, k, g], weights @ values / weights.sum(), rtol=0, atol=1e-6)


def test_a_root_of_which_nothing_is_seen_adds_nothing():
    generator = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    slots = normal(2, 4, 2, 2, 8), normal(2, 4, 2, 8), normal(2, 4, 2, 8), jnp.tril(jnp.ones((2, 4, 4), bool))
    options = dict(divisor=jnp.float32(1.0), cap=None, arithmetic=accelerator_arithmetic(jnp.dtype("float32")))
    root = normal(3, 2, 8)
    nothing = attend(*slots, root, root, jnp.zeros(3, bool), **options)
    without = attend(*slots, root[:0], root[:0], jnp.zeros(0, bool), **options)
    np.testing.assert_array_equal(nothing, without)
