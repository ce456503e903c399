"""Predictions for every group of rows by the probe fitted without it, from one factorisation.

With the residual r and the hat matrix H of the fit on all rows, the residual of group g without it is
(I - H_gg)^-1 r_g ("block form"). For a group of many rows it is less work to take its moments away and solve again.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from jaxprobe.errors import InputError
from jaxprobe.probes.eigen import Factors, centred_product, constant_share, in_sample_space
from jaxprobe.probes.moments import ROWS, product


class Groups(NamedTuple):
    """Rows sorted by group: group i has rows ``order[starts[i] : starts[i] + sizes[i]]``."""

    order: np.ndarray  # [N]
    starts: np.ndarray  # [groups]
    sizes: np.ndarray  # [groups]


def sort_groups(labels: np.ndarray) -> Groups:
    """Groups of rows with equal labels [N]; numbers or strings.

    Raises:
      InputError: all rows are of one group.
    """
    names, number, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"All rows are of one group, '{names[0]}': none are left to fit on. Take a column with more.")
    return Groups(np.argsort(number, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def padded_groups(groups: Groups) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Sets of groups of about one size: the row numbers [G, S], padded with row 0, and which are of the group."""
    sizes, sets = _bucket(groups.sizes), []
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        sets.append(padded_rows(groups._replace(starts=groups.starts[alike], sizes=groups.sizes[alike]), size))
    return tuple(sets)


def padded_rows(groups: Groups, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of each group [G, size], padded with row 0, and which are of the group."""
    places = np.arange(size)
    inside = places < groups.sizes[:, None]
    return groups.order[np.where(inside, groups.starts[:, None] + places, 0)], inside


def group_predictions(f: Factors, x: Float[Array, "N D"], y: Float[Array, "N C"], groups: Groups, alphas: np.ndarray):
    """[A, N, C] standardised predictions of each row by the probe without its group (under ``jax.enable_x64``)."""
    y = np.asarray(y)
    sample_space = in_sample_space(*x.shape)
    # Padded, so that a slice of fixed size may start at any row.
    pad = max(ROWS, _bucket(groups.sizes.max()))
    rows = np.pad(_coordinates(f, x, sample_space=sample_space)[groups.order], ((0, pad), (0, 0)))
    targets = np.pad(y[groups.order], ((0, pad), (0, 0)))
    rows_on_device, targets_on_device = jnp.asarray(rows), jnp.asarray(targets)
    by_block = (groups.sizes <= rows.shape[1] // 2) | sample_space
    result = np.empty((len(alphas), *y.shape))
    buckets = np.where(by_block, _bucket(groups.sizes), 0)
    for size in np.unique(buckets[by_block]):
        chosen = np.flatnonzero(buckets == size)
        args = rows_on_device, targets_on_device, groups.starts[chosen], groups.sizes[chosen], alphas
        held_out = np.asarray(_block_residuals(f, *args, n=len(y), size=int(size), sample_space=sample_space))
        for i, residual in zip(chosen, held_out, strict=True):
            members = groups.order[groups.starts[i] :][: groups.sizes[i]]
            result[:, members] = y[members] - residual[:, : groups.sizes[i]]
    for i in np.flatnonzero(~by_block):
        start, count = groups.starts[i], groups.sizes[i]
        solved = _weights_without(f, rows_on_device, targets_on_device, start, count, alphas, n=len(y))
        weights, row_mean, y_mean = map(np.asarray, solved)
        result[:, groups.order[start : start + count]] = (rows[start : start + count] - row_mean) @ weights + y_mean
    return result


def _bucket(size):
    """The size that a block is padded to: 8, 32, 128, 512, 1024, 1536, ...: few shapes to compile."""
    power = 8 * 4 ** np.ceil(np.log2(np.maximum(size, 8) / 8) / 2)
    return np.where(np.asarray(size) <= 512, power, 512 * np.ceil(np.asarray(size) / 512)).astype(int)


@partial(jax.jit, static_argnames="sample_space")
def _coordinates(f, x, *, sample_space):
    return f.vectors if sample_space else centred_product(x, f.x_mean, f.vectors, "float64")


@partial(jax.jit, static_argnames=("n", "size", "sample_space"))
def _block_residuals(f, rows, y, starts, sizes, alphas, *, n, size, sample_space):
    """[groups, A, size, C] residuals (I - H_gg)^-1 r_g."""

    def one_group(start, count):
        inside = jnp.arange(size) < count
        z = jnp.where(inside[:, None], lax.dynamic_slice_in_dim(rows, start, size), 0)
        yb = jnp.where(inside[:, None], lax.dynamic_slice_in_dim(y, start, size), 0)

        def one_alpha(alpha):
            shrunk = z / (f.values + alpha)[None, :]
            if sample_space:
                others = alpha * product(shrunk, z.T) - constant_share(f.diagonal, alpha[None])[0]
                residual = alpha * product(shrunk, f.rotated)
            else:
                others = jnp.eye(size) - product(shrunk, z.T) - 1 / n
                residual = yb - product(shrunk, f.rotated)
            both = inside[:, None] & inside[None, :]
            return cho_solve(cho_factor(jnp.where(both, others, jnp.eye(size))), residual)

        return lax.map(one_alpha, alphas)

    return lax.map(lambda group: one_group(*group), (starts, sizes))


@partial(jax.jit, static_argnames="n")
def _weights_without(f, rows, y, start, count, alphas, *, n):
    """(weights [A, K, C], mean of rows [K], mean of y [C]) of the fit on all rows but those from start on."""

    def add(i, sums):
        inside = (jnp.arange(ROWS) < count - i * ROWS)[:, None]
        z = jnp.where(inside, lax.dynamic_slice_in_dim(rows, start + i * ROWS, ROWS), 0)
        yb = jnp.where(inside, lax.dynamic_slice_in_dim(y, start + i * ROWS, ROWS), 0)
        return jax.tree.map(jnp.add, sums, (z.sum(0), yb.sum(0), product(z.T, z), product(z.T, yb)))

    k, c = f.rotated.shape
    zeros = jnp.zeros(k), jnp.zeros(c), jnp.zeros((k, k)), jnp.zeros((k, c))
    z_sum, y_sum, zz, zy = lax.fori_loop(0, (count + ROWS - 1) // ROWS, add, zeros)
    # Over all rows both sum to 0, so over the rest they sum to minus the group's.
    rest = (n - count).astype(jnp.float64)
    gram = jnp.diag(f.values) - zz - jnp.outer(z_sum, z_sum) / rest
    cross = f.rotated - zy - jnp.outer(z_sum, y_sum) / rest
    weights = lax.map(lambda alpha: cho_solve(cho_factor(gram + alpha * jnp.eye(k)), cross), alphas)
    return weights, -z_sum / rest, -y_sum / rest
