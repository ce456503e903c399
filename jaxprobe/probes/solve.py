"""A batch of layers, from rows or from moments: which solver, where, and what is done again in float64.

On a CPU from rows: an eigendecomposition (eigen.py), whose products are in float32 where that suffices. On accelerators
from rows: float32 Cholesky (cholesky.py). From moments everywhere: Cholesky (folds.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from threadpoolctl import threadpool_limits

from jaxprobe.probes import cholesky, eigen, folds
from jaxprobe.probes.devices import SIDE_BY_SIDE, layer_mesh, on_cpu, on_tpu, over_layers
from jaxprobe.probes.groups import group_predictions, padded_groups, padded_rows, sort_groups
from jaxprobe.probes.moments import ROTATED, Moments, moments_of, pilot_mean, principal_axes, rotate_moments, rotation
from jaxprobe.probes.packed import packing
from jaxprobe.probes.search import CONDITION_LIMIT, LEAST_OTHERS, Choice, Solved, search

# Up to so many groups are each left out of x'x, in feature space; more are left out of the hat matrix.
FEW_GROUPS = 32
# Up to this width all folds are factored at once, so that columns are one step for all: each then takes some matrices
# of its own, on TPUs ten (and a TPU has less memory).
TOGETHER = {"cpu": 0, "gpu": 8192, "tpu": 4096}
# How moments are factored: (dtype, floor). Float32 products may leave x'x indefinite by their rounding; the last gives
# it that much, and the condition says that it was needed.
ATTEMPTS = ("float32", 0.0), ("float64", 0.0), ("float64", 3e-7)


def folds_together(width: int, platform: str) -> bool:
    """Whether all folds of a state's sums are factored at once."""
    return width <= TOGETHER[platform]


def place(devices: Sequence[jax.Device] | None, solver: str | None, dtype: str) -> tuple[Mesh, str]:
    """(mesh, eigh or cholesky): where and by what layers are solved."""
    mesh = layer_mesh(devices)
    if solver is None:
        solver = "cholesky" if dtype == "float32" and not on_cpu(mesh) else "eigh"
    if on_tpu(mesh) and (solver == "eigh" or dtype == "float64"):
        mesh = _host()
    return mesh, solver


def _host() -> Mesh:
    return layer_mesh(jax.local_devices(backend="cpu")[:1])


def make_choice(alphas, alpha_per_target: bool, criterion: str, groups, dtype: str, solver: str, mesh: Mesh) -> Choice:
    """The options of a fit, checked before, in the form that solve_batch wants."""
    alphas = None if alphas is None else np.asarray(alphas, np.float64)
    groups = None if groups is None else sort_groups(groups)
    return Choice(alphas, alpha_per_target, criterion, groups, dtype, solver, mesh)


def can_leave_out(rows: np.ndarray, d: int, criterion: str, dtype: str, solver: str | None, devices) -> bool:
    """Whether a fit may go over all N rows and count only those that ``rows`` [N] marks, as exactly as over these."""
    enough = eigen.product_dtype(int(rows.sum()), d, "float32") == "float32"
    return enough and criterion == "leave_one_out" and place(devices, solver, dtype)[1] == "eigh"


def solve_batch(x: Array, y: np.ndarray, choice: Choice, inside: np.ndarray | None = None) -> Solved:
    """Probes of x [B, N, D] for standardised y [N, C] (under ``jax.enable_x64``).

    ``inside`` [N] marks the rows that count, where `can_leave_out` allows. What float32 does not suffice for is solved
    again in float64.
    """
    if choice.solver == "cholesky":
        return _by_cholesky(x, y, choice)
    if choice.criterion == "k_fold" and not eigen.in_sample_space(*x.shape[1:]):
        held = padded_rows(choice.groups, choice.groups.sizes.max())
        of_layers = over_layers(_fold_moments, choice.mesh, (0, *(None,) * 3))(x, y, *held)
        layers = [solve_moments(jax.tree.map(lambda leaf, i=i: leaf[i], of_layers), choice) for i in range(len(x))]
        return Solved(*map(np.concatenate, zip(*layers, strict=True)))._replace(wide=np.zeros(len(x), bool))
    solved = _by_eigh(x, y, choice, inside)
    again = (solved.least < LEAST_OTHERS) | (solved.condition > CONDITION_LIMIT["float32"])
    if eigen.product_dtype(*x.shape[1:], choice.dtype) == "float64" or not again.any():
        return solved
    exact = choice._replace(dtype="float64", mesh=_host())
    for layer in np.flatnonzero(again):
        repeated = _by_eigh(np.asarray(x[layer])[None], y, exact, inside)
        repeated = repeated._replace(repeated=np.full(1, -1), wide=np.ones(1, bool))
        for leaf, value in zip(solved, repeated, strict=True):
            leaf[layer] = value[0]
    return solved


# ---- By eigendecomposition ------------------------------------------------------------------------------------------


def _by_eigh(x, y: np.ndarray, choice: Choice, inside: np.ndarray | None) -> Solved:
    mesh, dtype, least = choice.mesh, choice.dtype, [np.ones(len(x))]
    if choice.groups is not None:
        dtype = "float64"  # a group that holds a row far from all others is taken away from x'x
    marked = () if inside is None else (inside,)
    f = over_layers(eigen.factor, mesh, (0, None, *(None,) * len(marked)), dtype=dtype)(x, y, *marked)

    def errors(alphas: np.ndarray, wanted: np.ndarray) -> Array:
        if choice.criterion == "leave_one_out":
            axes = (0, 0, None, 0, *(None,) * len(marked))
            losses, others = over_layers(eigen.leave_one_out, mesh, axes, dtype=dtype)(f, x, y, alphas, *marked)
            least.append(np.asarray(others))
            return losses
        if choice.criterion == "generalised":
            sample_space = eigen.in_sample_space(*x.shape[1:])
            compiled = over_layers(eigen.generalised, mesh, (0, None, None, 0), sample_space=sample_space)
            return compiled(f, np.sum(y**2, axis=0), float(len(y)), alphas)
        layers = (jax.tree.map(lambda leaf, i=i: leaf[i], f) for i in range(len(x)))
        each = zip(layers, x, alphas, strict=True)
        held_out = (group_predictions(layer, rows, y, choice.groups, grid) for layer, rows, grid in each)
        return np.stack([np.mean((predictions - y) ** 2, axis=1) for predictions in held_out])

    alpha, alphas, losses = search(errors, f.scale, choice)
    weights = over_layers(eigen.weights_at, mesh, (0, 0, 0))(f, x, alpha)
    condition = over_layers(eigen.condition_at, mesh, (0, 0))(f, alpha.min(axis=1))
    wide = np.zeros(len(x), bool)
    return _solved(choice, weights, f.x_mean, alpha, alphas, losses, condition, np.minimum.reduce(least), wide=wide)


def _solved(
    choice: Choice, weights, x_mean, alpha, alphas, losses, condition, least=None, repeated=None, r2=None, *, wide
):
    alpha = alpha if choice.alpha_per_target else alpha[:, 0]
    least = np.ones(len(alpha)) if least is None else least
    repeated = np.zeros(len(alpha), int) if repeated is None else repeated
    r2 = np.full((len(alpha), losses.shape[2]), np.nan) if r2 is None else r2
    found = weights, x_mean, alpha, alphas, losses, condition, least, repeated, np.zeros(len(alpha), int), wide, r2
    return Solved(*(np.array(leaf) for leaf in found))  # copies: JAX's are read only


# ---- By Cholesky, from rows -----------------------------------------------------------------------------------------


class _Rows:
    """Layers that are ready to be fitted in one dtype, and the fits. Nothing here is in another dtype."""

    def __init__(self, x, y: np.ndarray, choice: Choice, dtype: str, mesh: Mesh):
        self._x64, self._mesh = partial(jax.enable_x64, dtype == "float64"), mesh
        self._options = dict(blocked=on_tpu(mesh))
        self._can_whiten = cholesky.in_feature_space(*x.shape[1:])
        with self._x64():
            self._y = np.asarray(y, dtype)
            found = over_layers(cholesky.survey, mesh, (0,), dtype=dtype)(x)
            self.finite = np.asarray(found.finite)
            if not self.finite.all():
                return
            axes, self._top = principal_axes(np.asarray(found.block)), np.asarray(found.top)
            self._rotation = rotation(axes)
            self._layers = over_layers(cholesky.prepare, mesh, (0, 0, 0))(x, found, axes)
        self.x_mean = np.asarray(found.x_mean, np.float64) + np.asarray(found.x_rest, np.float64)
        self.scale = np.asarray(found.scale, np.float64)
        self._criterion = partial(self._run, cholesky.criteria, criterion=choice.criterion)
        self._groups: tuple | np.ndarray = ()
        if choice.groups is not None and self._can_whiten and len(choice.groups.sizes) <= FEW_GROUPS:
            self._criterion, self._groups = partial(self._run, cholesky.fold_criteria), _held(choice, len(y))
            self._can_whiten = False
        elif choice.groups is not None:
            self._groups = padded_groups(choice.groups)
        self._whiten = {} if self._criterion.args[0] is cholesky.fold_criteria else dict(whiten=False)

    def _run(self, function: Callable, values: np.ndarray, *rest, **static):
        axes = (0, None, 0, *(None,) * len(rest))
        with self._x64():
            compiled = over_layers(function, self._mesh, axes, **self._options, **static)
            return jax.tree.map(
                partial(np.array, dtype=np.float64),
                compiled(self._layers, self._y, values.astype(self._y.dtype), *rest),
            )

    def criteria(self, alphas: Float[np.ndarray, "B A"]) -> cholesky.Criterion:
        """Leading axes [B, A]; what is in doubt is whitened where that can be done."""
        found = self._criterion(alphas, self._groups, **self._whiten)
        doubtful = ~(found.doubt < 1)
        for column in np.flatnonzero(doubtful.any(axis=0) & self._can_whiten):
            again = self._criterion(alphas[:, column : column + 1], self._groups, whiten=True)
            _take(found, again, doubtful[:, column], column)
        return found

    def weights(self, alpha: Float[np.ndarray, " B"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(weights [B, D, C] of the dimensions of x, condition [B], doubt [B])."""
        weights, condition, doubt = self._run(cholesky.weights_at, alpha, whiten=False)
        doubtful = ~(doubt < 1)
        if doubtful.any() and self._can_whiten:
            for leaf, again in zip(
                (weights, condition, doubt), self._run(cholesky.weights_at, alpha, whiten=True), strict=True
            ):
                leaf[doubtful] = again[doubtful]
        for of_layer, top, axes in zip(weights, self._top, self._rotation, strict=True):
            of_layer[top] = axes @ of_layer[top]
        return weights, condition, doubt


def _take(found: cholesky.Criterion, again: cholesky.Criterion, layers: np.ndarray, column: int) -> None:
    """Puts the one penalty of ``again`` in place of ``found``'s at ``column``, for layers [B] that are marked."""
    for leaf, value in zip(found, again, strict=True):
        leaf[layers, column] = value[layers, 0]


def _by_cholesky(x, y: np.ndarray, choice: Choice) -> Solved:
    shift = np.zeros((len(x), x.shape[2]))
    if x.dtype == np.float64 and choice.dtype == "float32":  # what is far from 0 keeps its digits
        shift = np.asarray(x.mean(axis=1))
        x = (x - shift[:, None]).astype(np.float32)
    fits = _Rows(x, y, choice, choice.dtype, choice.mesh)
    if not fits.finite.all():  # refused by `check_finite`
        none = [np.zeros(len(x))] * len(Solved._fields)
        return Solved(*none)._replace(condition=np.where(fits.finite, 1, np.nan))
    exact: dict[int, _Rows] = {}
    least, repeated = np.ones(len(x)), np.zeros(len(x), int)

    def in_float64(layer: int) -> _Rows:
        if layer not in exact:
            exact[layer] = _Rows(np.asarray(x[layer])[None], y, choice, "float64", _host())
        return exact[layer]

    def errors(alphas: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        found = fits.criteria(alphas)
        doubtful = ~(found.doubt < 1) & wanted[:, None]
        for layer, column in np.argwhere(doubtful & (choice.dtype == "float32")):
            again = in_float64(layer).criteria(alphas[layer, None, column, None])
            for leaf, value in zip(found, again, strict=True):
                leaf[layer, column] = value[0, 0]
        np.minimum(least, np.where(wanted, found.least.min(axis=1), 1), out=least)
        repeated[:] += doubtful.sum(axis=1)
        return found.losses

    alpha, alphas, losses = search(errors, fits.scale, choice)
    weights, condition = np.zeros((len(x), x.shape[2], y.shape[1])), np.zeros(len(x))
    targets = range(y.shape[1]) if choice.alpha_per_target else [slice(None)]
    for target in targets:
        at = alpha[:, target] if choice.alpha_per_target else alpha[:, 0]
        found = fits.weights(at)
        for layer in np.flatnonzero(~(found[2] < 1) & (choice.dtype == "float32")):
            for leaf, value in zip(found, in_float64(layer).weights(at[layer, None]), strict=True):
                leaf[layer] = value[0]
            repeated[layer] += 1
        weights[..., target], condition = found[0][..., target], np.maximum(condition, found[1])
    return _solved(
        choice,
        weights,
        fits.x_mean + shift,
        alpha,
        alphas,
        losses,
        condition,
        least,
        repeated,
        wide=np.ones(len(x), bool),
    )


def row_programs(
    mesh: Mesh, layers: int, rows: int, width: int, targets: int, dtype: str, penalties: int
) -> dict[str, tuple]:
    """The programs of `_by_cholesky` for leave-one-out, in their order: name -> (compiled function, its arguments).

    Arguments are shapes: ``layers`` (of all devices) of ``rows`` training rows in ``dtype``. Call under
    ``jax.enable_x64(False)``. Each but "whitening" (only for penalties that rounding spoilt) runs once a batch.
    """
    of_layers, everywhere = (NamedSharding(mesh, spec) for spec in (P("layer"), P()))
    shaped = lambda shape, dtype="float32": jax.ShapeDtypeStruct((layers, *shape), dtype, sharding=of_layers)
    each = lambda function, *arguments: jax.tree.map(
        lambda leaf: shaped(leaf.shape[1:], leaf.dtype), jax.eval_shape(function, *arguments)
    )
    x, y = shaped((rows, width), dtype), jax.ShapeDtypeStruct((rows, targets), "float32", sharding=everywhere)
    survey = over_layers(cholesky.survey, mesh, (0,), dtype="float32")
    prepare = over_layers(cholesky.prepare, mesh, (0, 0, 0))
    found = each(survey, x)
    ready = each(prepare, x, found, found.block)
    criteria = partial(over_layers, cholesky.criteria, mesh, (0, None, 0, None), criterion="leave_one_out")
    options = dict(blocked=on_tpu(mesh))
    programs = {
        "survey": (survey, x),
        "normal equations": (prepare, x, found, found.block),
        "leave-one-out": (criteria(whiten=False, **options), ready, y, shaped((penalties,)), ()),
    }
    if cholesky.in_feature_space(rows, width):
        programs["whitening"] = criteria(whiten=True, **options), ready, y, shaped((1,)), ()
    weights = over_layers(cholesky.weights_at, mesh, (0, None, 0), whiten=False, **options)
    return programs | {"weights": (weights, ready, y, shaped(()))}


def _held(choice: Choice, rows: int) -> np.ndarray:
    """[J, N] the rows of each group."""
    groups = choice.groups
    held = np.zeros((len(groups.sizes), rows), bool)
    for mark, start, size in zip(held, groups.starts, groups.sizes, strict=True):
        mark[groups.order[start : start + size]] = True
    return held


# ---- From moments ---------------------------------------------------------------------------------------------------


def _fold_moments(x: Float[Array, "N D"], y: Float[Array, "N C"], rows, inside) -> Moments:
    """Moments of each fold, leading axis [J], about the same shift; in float64 (they outlast the products' digits)."""
    x_shift = pilot_mean(x, "float64")
    return jax.lax.map(lambda fold: moments_of(x[fold[0]], y[fold[0]], "float64", x_shift, fold[1]), (rows, inside))


class _OnHost:
    """One state's moments of standardised targets, leading axis [J], on a CPU in float64.

    Factors are in float32, refined to the moments' float64; where that does not converge they are in float64 too.
    """

    def __init__(self, m: Moments, criterion: str):
        rotated, self._top, self._axes, self.scale = rotate_moments(m)
        self._criterion = folds.k_fold if criterion == "k_fold" else folds.generalised
        with self._here():
            self._rotated = Moments(*map(jax.numpy.asarray, rotated))

    @contextmanager
    def _here(self) -> Iterator[None]:
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            yield

    def criteria(self, alphas: Float[np.ndarray, " A"]) -> tuple[Float[np.ndarray, "A C"], int]:
        """(the criterion at every penalty, how many of them needed factors in float64)."""
        with self._here():
            losses, doubt = self._attempt(ATTEMPTS[0], alphas)
            doubtful = int((~(doubt < 1)).sum())
            for attempt in ATTEMPTS[1:]:
                for column in np.flatnonzero(~(doubt < 1)):
                    (losses[column],), (doubt[column],) = self._attempt(attempt, alphas[column, None])
        return losses, doubtful

    def _attempt(self, attempt: tuple[str, float], alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the criterion [A, C], the doubt [A]) of one of ATTEMPTS."""
        side_by_side = min(SIDE_BY_SIDE, len(alphas))
        # Threads of calls that are made at once would wait for each other; a call that is alone has all.
        with threadpool_limits(1 if side_by_side > 1 else None, user_api="blas"):
            found = _compiled(self._criterion, *attempt, side_by_side=side_by_side)(self._rotated, alphas)
            return np.array(found.losses), np.array(found.doubt)

    def weights(self, alpha: float) -> tuple[Float[np.ndarray, "D C"], float, Float[np.ndarray, " C"]]:
        """(weights of the dimensions of x, condition, R2 on the rows) at one penalty."""
        for attempt in ATTEMPTS:
            with self._here():
                weights, condition, doubt, r2 = map(
                    np.array, _compiled(folds.weights_at, *attempt)(self._rotated, alpha)
                )
            if doubt < 1:
                break
        weights[self._top] = self._axes @ weights[self._top]
        return weights, float(condition), r2

    def x_mean(self) -> Float[np.ndarray, " D"]:
        m = self._rotated
        mean = np.asarray(m.x_shift[0]) + np.asarray(m.x_sum).sum(axis=0) / np.asarray(m.count).sum()
        mean[self._top] = self._axes @ mean[self._top]
        return mean


def solve_moments(m: Moments, choice: Choice) -> Solved:
    """Probes of one layer from moments of standardised targets, leading axis [J]: k-fold over J, or generalised."""
    host, repeated = _OnHost(m, choice.criterion), np.zeros(1, int)

    def errors(alphas: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        losses, again = host.criteria(alphas[0])
        repeated[0] += again
        return losses[None]

    alpha, alphas, losses = search(errors, [host.scale], choice)
    weights, condition, r2 = np.zeros((1, *m.xy.shape[1:])), np.zeros(1), np.zeros((1, m.yy.shape[1]))
    for value in np.unique(alpha):
        found, at, of_rows = host.weights(value)
        chosen = alpha[0] == value
        weights[0][:, chosen], r2[0, chosen], condition = found[:, chosen], of_rows[chosen], np.maximum(condition, at)
    x_mean, wide = host.x_mean()[None], np.ones(1, bool)
    return _solved(choice, weights, x_mean, alpha, alphas, losses, condition, None, repeated, r2, wide=wide)


# Of the criterion from sums, a unit of doubt: on planted states errors came to 2e-3 at most.
MOST_ERROR = 1e-2
# Up to this width float64 on the host takes less than a second a penalty, and every penalty in doubt is redone.
REDONE_WIDTH = 2048


class Sums(NamedTuple):
    """Streamed sums of L states on the devices of one process, which share them; see extract/sums.py."""

    mesh: Mesh  # of these devices
    sums: Array  # [L, J, words, columns], x shifted and rotated, packed
    shift: Array  # [L, D]
    top: Array  # [L, k]
    axes: Array  # [L, k, k]
    count: np.ndarray  # [J]
    y_shift: np.ndarray  # [C] near the mean
    y_sum: np.ndarray  # [J, C] about it
    yy: np.ndarray  # [J, C]


def solve_sums(
    s: Sums, y_scale: np.ndarray, choice: Choice, states: int, moments: Callable[[int], Moments]
) -> list[Solved]:
    """Probes of each state, in float32 where the sums are, each device one state after the other.

    A penalty in doubt goes to the host. Above REDONE_WIDTH only such as may be the best one do: the others, nearly all,
    stay as float32 has them and are counted, as float64 of the same sums would take the host minutes to hours.

    Args:
      y_scale: [C] deviations of the targets.
      states: how many of the L are no filling.
      moments: of standardised targets of a state, by its number; asked for where float32 does not suffice.
    """
    mesh = s.mesh
    each = len(s.sums) // mesh.size
    width = s.shift.shape[1]
    targets = [np.asarray(leaf, np.float32) for leaf in (s.count, s.y_sum, s.yy)]
    options = dict(dtype="float32", blocked=on_tpu(mesh))
    if choice.criterion == "k_fold":
        criterion, how = folds.k_fold, dict(together=folds_together(width, mesh.devices.flat[0].platform))
    else:
        criterion, how = folds.generalised, {}
    shift, top, axes = (np.asarray(leaf) for leaf in (s.shift, s.top, s.axes))
    turned = rotation(axes)
    back = np.linalg.inv(turned)

    def one_of_each_device(here: np.ndarray) -> list[Solved]:
        run = lambda function, values, **static: jax.tree.map(
            partial(np.array, dtype=np.float64),
            over_sums(function, mesh, width, **static)(np.int32(here[0]), s.sums, *targets, values),
        )
        with jax.enable_x64(False):
            x_off, squares, block = run(folds.spread, top[here])
        mean_of_top = np.einsum("lk,lkd->ld", np.take_along_axis(x_off, top[here], axis=1), back[here])
        np.put_along_axis(x_off, top[here], mean_of_top, axis=1)
        scale = [_scale(*one) for one in zip(squares, top[here], block, back[here], strict=True)]
        least = np.full(len(here), np.inf)  # of the criterion where it is believed
        repeated, left = np.zeros((2, len(here)), int)
        on_host = cache(lambda i: _OnHost(moments(here[i]), choice.criterion))

        def errors(alphas: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            with jax.enable_x64(False):
                found = run(criterion, alphas.astype(np.float32), **how, **options)
            losses, asked = found.losses / y_scale**2, (wanted & (here < states))[:, None]
            mean, doubtful = losses.mean(axis=2), ~(found.doubt < 1) & asked
            np.minimum(least, np.where(asked & ~doubtful, mean, np.inf).min(axis=1), out=least)
            too_much = np.zeros_like(doubtful)
            if width > REDONE_WIDTH and choice.criterion == "k_fold":  # of the generalised no such bound is known
                too_much = mean * (1 - MOST_ERROR * found.doubt) > least[:, None]  # what is NaN may be anything
            for i, column in np.argwhere(doubtful & ~too_much):
                losses[i, column] = on_host(i).criteria(alphas[i, column, None])[0][0]
            repeated[:] += (doubtful & ~too_much).sum(axis=1)
            left[:] += (doubtful & too_much).sum(axis=1)
            return losses

        alpha, alphas, losses = search(errors, scale, choice._replace(alpha_per_target=False))
        with jax.enable_x64(False):
            weights, condition, doubt, r2 = run(folds.weights_at, alpha[:, 0].astype(np.float32), **options)
        for i, state in enumerate(here):
            if doubt[i] < 1 or state >= states:
                weights[i][top[state]] = turned[state] @ weights[i][top[state]]
                weights[i] /= y_scale
            else:
                weights[i], condition[i], r2[i] = on_host(i).weights(alpha[i, 0])
                repeated[i] += 1
        found = weights, shift[here] + x_off, alpha, alphas, losses, condition, None, repeated, r2
        solved = _solved(choice, *found, wide=np.ones(len(here), bool))._replace(left=left)
        return [Solved(*(leaf[i, None] for leaf in solved)) for i in range(len(here))]

    found = (one_of_each_device(np.arange(turn, len(s.sums), each)) for turn in range(each))
    by_device = zip(*found, strict=True)
    return [one for device in by_device for one in device][:states]


def _scale(squares: np.ndarray, top: np.ndarray, block: np.ndarray, back: np.ndarray) -> float:
    """Median sum of squares of the dimensions that vary, of ``top`` by their products [k, k] along other axes."""
    varies = squares[0] > 1e-7 * squares[1]  # what rounding leaves of a constant is less
    found = squares[0].copy()
    of_top = np.einsum("ad,ab,bd->d", back, block, back)
    # What a dimension's parts along the axes come to before they cancel: where float32 leaves that no digits, all that
    # is known is that it was among the largest.
    rounding = 1e-6 * (np.sqrt(np.maximum(np.diagonal(block), 0)) @ abs(back)) ** 2
    found[top], varies[top] = 0, of_top > 0
    found[top] = np.where(rounding < 1e-3 * of_top, of_top, np.maximum(of_top, found.max()))
    return float(np.median(found[varies])) if varies.any() else 1.0


@cache
def over_sums(function: Callable, mesh: Mesh, width: int, **static) -> Callable:
    """``function(moments [J], values)`` compiled for the state at one place of each device's; values lead by device."""

    def one(turn, sums, count, y_sum, yy, values):
        found = function(folds.of_sums(sums[turn], count, y_sum, yy, width), values[0], **static)
        return jax.tree.map(lambda leaf: leaf[None], found)

    specs = P(), P("layer"), P(), P(), P(), P("layer")
    return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=P("layer"), check_vma=False))


def sums_programs(mesh: Mesh, layers: int, segments: int, width: int, targets: int, penalties: int) -> dict[str, tuple]:
    """The programs of `solve_sums` for k-fold: name -> (compiled function, its arguments, shapes).

    ``layers`` of all devices; each runs once for each of a device's states. Call under ``jax.enable_x64(False)``.
    """
    of_layers, everywhere = (NamedSharding(mesh, spec) for spec in (P("layer"), P()))
    shaped = lambda sharding, *shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    sums = shaped(of_layers, layers, segments, *packing(width, targets).words, dtype="uint32")
    of_y = shaped(everywhere, segments, targets)
    first = shaped(everywhere, dtype="int32"), sums, shaped(everywhere, segments), of_y, of_y
    options = dict(dtype="float32", blocked=on_tpu(mesh))
    values = lambda *shape, dtype="float32": shaped(of_layers, mesh.size, *shape, dtype=dtype)
    together = folds_together(width, mesh.devices.flat[0].platform)
    k_fold = over_sums(folds.k_fold, mesh, width, together=together, **options)
    return {
        "spread": (over_sums(folds.spread, mesh, width), *first, values(min(ROTATED, width), dtype="int32")),
        "five folds": (k_fold, *first, values(penalties)),
        "weights": (over_sums(folds.weights_at, mesh, width, **options), *first, values()),
    }


@cache
def _compiled(function: Callable, dtype: str, floor: float, **static) -> Callable:
    return jax.jit(partial(function, dtype=dtype, floor=floor, blocked=False, **static))
