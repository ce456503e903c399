"""Packed sums against NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprobe.probes.packed import Packing, add_to, opened, packed_product, sums_of, unpack


@pytest.mark.parametrize("width", [1, 5, 64, 100])
def test_a_product_comes_back_whole(width):
    rng = np.random.default_rng(width)
    x, beside = (rng.integers(-9, 9, size=(40, n)).astype(np.float32) for n in (width, 3))  # exact in float32
    packing = Packing(width, 3)
    rectangle = packed_product(jnp.asarray(x), jnp.asarray(beside))
    assert rectangle.shape == packing.rectangle
    square, columns = unpack(rectangle, packing)
    np.testing.assert_array_equal(square, x.T @ x)
    np.testing.assert_array_equal(columns, x.T @ beside)


def test_a_sum_keeps_32_bits():
    """Numbers of both signs and many sizes, whose float32 sum is off by a thousand times as much."""
    rng = np.random.default_rng(0)
    packing = Packing(24, 2)
    values = (rng.normal(size=(500, *packing.rectangle)) * 10 ** rng.uniform(-4, 2, size=(500, 1, 1))).astype(
        np.float32
    )
    values += 1
    words, alone = jnp.zeros(packing.words, jnp.uint32), np.zeros(packing.rectangle, np.float32)
    add = jax.jit(add_to)
    for value in values:
        words, alone = add(words, jnp.asarray(value)), alone + value
    total, rest = (np.asarray(part, np.float64) for part in opened(words))
    exact = values.astype(np.float64).sum(0)
    most = np.abs(np.cumsum(values, axis=0, dtype=np.float64)).max(0)
    assert (abs(total + rest - exact) <= len(values) ** 0.5 * 2.0**-32 * most).all()
    assert (abs(alone - exact) / most).max() > 100 * (abs(total + rest - exact) / most).max()
    np.testing.assert_array_equal(sums_of(words), total.astype(np.float32))
    assert (abs(rest) <= 2.0**-24 * abs(total)).all()
