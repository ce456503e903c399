"""The search for each layer's penalty: a grid, a criterion, and the fit at the least of it. Internal to ridge.py."""

import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxprobe.errors import InputError
from jaxprobe.probes import cholesky, folds
from jaxprobe.probes import eigen as factors
from jaxprobe.probes.devices import layer_mesh, on_tpu, over_layers
from jaxprobe.probes.groups import Groups, group_predictions, sort_groups
from jaxprobe.probes.moments import Moments

# In units of the layer's scale, by half-decades. A grid as wide is looked at beyond an edge where the best one lies.
RELATIVE_ALPHAS = 10.0 ** np.linspace(-4, 1.5, 12)
# Rounding leaves a relative error of about epsilon times the condition; past this it can reach a probe's third digit.
CONDITION_LIMIT = {"float32": 1e4, "float64": 1e12}
# Leave-one-out divides by 1 - h. Float32 products leave some 1e-6 in it: below this that reaches the criterion's
# fourth digit, and a row at 1e5 times the spread of the others has spoilt x'x for these as well.
LEAST_OTHERS = 1e-2
CRITERIA = ("leave_one_out", "leave_one_group_out", "k_fold", "generalised")


class Choice(NamedTuple):
    """How penalties are found, and where: see fit_ridge's arguments of the same names."""

    alphas: np.ndarray | None
    alpha_per_target: bool
    criterion: str
    groups: Groups | None
    dtype: str
    engine: ModuleType  # factors or cholesky
    mesh: Mesh


class Solved(NamedTuple):
    """A batch of layers for standardised targets, with the leaves of RidgeFit but the intercept."""

    weights: np.ndarray
    x_mean: np.ndarray
    alpha: np.ndarray
    alphas: np.ndarray
    losses: np.ndarray
    condition: np.ndarray
    least: np.ndarray  # [B] the least 1 - h of a row at any penalty; 1 where the criterion has none
    repeated: np.ndarray  # [B] how many penalties were solved again in float64; -1 for all that there is


def check_options(alphas, criterion: str, groups, rows: int | None, dtype: str, solver: str | None) -> list[str]:
    """Everything that is wrong with the options of a fit."""
    problems = []
    if alphas is not None:
        grid = np.asarray(alphas, np.float64)
        if grid.ndim != 1 or not len(grid) or not (np.isfinite(grid) & (grid > 0)).all():
            problems.append(f"alphas are {alphas}; wanted a list of finite numbers above 0.")
    if criterion not in CRITERIA:
        problems.append(f"criterion is {criterion!r}; wanted one of {', '.join(CRITERIA)}.")
    elif (groups is not None) != (criterion in ("leave_one_group_out", "k_fold")):
        problems.append("groups go with criterion 'leave_one_group_out' or 'k_fold', and these with groups.")
    problems += check_groups(groups, rows)
    if dtype not in CONDITION_LIMIT:
        problems.append(f"dtype is {dtype!r}; wanted one of {', '.join(CONDITION_LIMIT)}.")
    if solver not in (None, "eigh", "cholesky"):
        problems.append(f"solver is {solver!r}; wanted eigh or cholesky.")
    return problems


def check_groups(groups, rows: int | None) -> list[str]:
    """What is wrong with the number of labels."""
    if groups is None or len(groups) == rows:
        return []
    return [f"groups has {len(groups)} labels for {rows} rows. Pass one for each row of y."]


def check_targets(y: np.ndarray) -> list[str]:
    """Everything that is wrong with targets [N, C]."""
    if y.ndim != 2 or len(y) < 2 or not y.shape[1]:
        return [f"y has shape {y.shape}; wanted at least 2 rows, and a column for each target."]
    bad = np.argwhere(~np.isfinite(y))
    return [f"y is not finite in row {bad[0][0]}, column {bad[0][1]}. Leave such rows out."] if len(bad) else []


def place(
    devices: Sequence[jax.Device] | None, solver: str | None, grouped: bool, dtype: str
) -> tuple[Mesh, ModuleType]:
    """(mesh, factors or cholesky): where and by what layers are solved, when products are in ``dtype``."""
    mesh = layer_mesh(devices)
    solver = "eigh" if grouped else solver
    if on_tpu(mesh) and (solver == "eigh" or dtype == "float64"):
        mesh = layer_mesh(jax.local_devices(backend="cpu")[:1])
    if solver is None:
        solver = "cholesky" if on_tpu(mesh) else "eigh"
    return mesh, cholesky if solver == "cholesky" else factors


def make_choice(
    alphas, alpha_per_target: bool, criterion: str, groups, dtype: str, engine: ModuleType, mesh: Mesh
) -> Choice:
    """The options of a fit, checked before, in the form that solve_batch wants."""
    alphas = None if alphas is None else np.asarray(alphas, np.float64)
    groups = None if groups is None else sort_groups(groups)
    return Choice(alphas, alpha_per_target, criterion, groups, dtype, engine, mesh)


def can_leave_out(rows: np.ndarray, d: int, criterion: str, dtype: str, solver: str | None, devices) -> bool:
    """Whether a fit may go over all N rows and count only those that ``rows`` [N] marks, as exactly as over these."""
    enough = factors.product_dtype(int(rows.sum()), d, "float32") == "float32"
    return enough and criterion == "leave_one_out" and place(devices, solver, False, dtype)[1] is factors


def solve_batch(x: Array, y: np.ndarray, choice: Choice, inside: np.ndarray | None = None) -> Solved:
    """Probes of x [B, N, D] for standardised y [N, C] (under ``jax.enable_x64``).

    ``inside`` [N] marks the rows that count, where `can_leave_out` allows. Layers for which float32 products do not
    suffice are solved again in float64.
    """
    solved = _solve_rows(x, y, choice, inside)
    again = (solved.least < LEAST_OTHERS) | (solved.condition > CONDITION_LIMIT["float32"])
    if factors.product_dtype(*x.shape[1:], choice.dtype) == "float64" or not again.any():
        return solved
    exact = choice._replace(dtype="float64", mesh=layer_mesh(jax.local_devices(backend="cpu")[:1]))
    for layer in np.flatnonzero(again):
        repeated = _solve_rows(np.asarray(x[layer])[None], y, exact, inside)._replace(repeated=np.full(1, -1))
        for leaf, value in zip(solved, repeated, strict=True):
            leaf[layer] = value[0]
    return solved


def _solve_rows(x, y: np.ndarray, choice: Choice, inside: np.ndarray | None) -> Solved:
    """`solve_batch` in the choice's dtype."""
    # In sample space the blocks of x x' are less work than moments, and lose fewer digits.
    if choice.criterion == "k_fold" and not factors.in_sample_space(*x.shape[1:]):
        fold_moments = over_layers(folds.fold_moments, choice.mesh, (0, None, None, None), dtype=choice.dtype)
        rows, inside = folds.padded_rows(choice.groups)
        return solve_moments(fold_moments(x, y, rows, inside), choice)
    engine, mesh, least = choice.engine, choice.mesh, [np.ones(len(x))]
    marked = () if inside is None else (inside,)
    f = over_layers(engine.factor, mesh, (0, None, *(None,) * len(marked)), dtype=choice.dtype)(x, y, *marked)

    def errors(alphas: np.ndarray) -> Array:
        if choice.criterion != "leave_one_out":
            return _errors(f, x, y, choice, alphas)
        axes = (0, 0, None, 0, *(None,) * len(marked))
        losses, others = over_layers(engine.leave_one_out, mesh, axes, dtype=choice.dtype)(f, x, y, alphas, *marked)
        least.append(np.asarray(others))
        return losses

    alpha, alphas, losses = _search(errors, f.scale, choice)
    weights = over_layers(engine.weights_at, mesh, (0, 0, 0))(f, x, alpha)
    return _solved(f, weights, alpha, alphas, losses, choice, np.minimum.reduce(least))


def solve_moments(m: Moments, choice: Choice, scale: Sequence[float] | None = None) -> Solved:
    """Probes from moments of standardised targets, leading axes [B, K]: k-fold over K, or generalised.

    ``scale`` [B]: of the penalties, where it is not to be taken from the moments.
    """
    mesh = choice.mesh
    f, without = over_layers(folds.factor, mesh, (0,), k_fold=choice.criterion == "k_fold")(m)
    if choice.criterion == "k_fold":
        errors = lambda alphas: over_layers(folds.errors, mesh, (0, 0, 0))(without, m, alphas)
    else:
        errors = lambda alphas: over_layers(folds.generalised, mesh, (0, 0, 0))(f, m, alphas)
    alpha, alphas, losses = _search(errors, f.scale if scale is None else scale, choice)
    weights = over_layers(factors.feature_weights, mesh, (0, 0))(f, alpha)
    return _solved(f, weights, alpha, alphas, losses, choice)


def _solved(f, weights, alpha, alphas, losses, choice: Choice, least: np.ndarray | None = None) -> Solved:
    condition = over_layers(choice.engine.condition_at, choice.mesh, (0, 0))(f, alpha.min(axis=1))
    alpha = alpha if choice.alpha_per_target else alpha[:, 0]
    least = np.ones(len(alpha)) if least is None else least
    found = weights, f.x_mean, alpha, alphas, losses, condition, least, np.zeros(len(alpha), int)
    return Solved(*(np.array(leaf) for leaf in found))  # copies: JAX's are read only


def _errors(f, x, y, choice: Choice, alphas: np.ndarray) -> Array:
    """[B, A, C] standardised mean squared error by the generalised criterion or by groups, for penalties [B, A]."""
    engine, mesh = choice.engine, choice.mesh
    if choice.criterion == "generalised":
        sample_space = factors.in_sample_space(*x.shape[1:])
        compiled = over_layers(engine.generalised, mesh, (0, None, None, 0), sample_space=sample_space)
        return compiled(f, np.sum(y**2, axis=0), float(len(y)), alphas)
    layers = (jax.tree.map(lambda leaf, i=i: leaf[i], f) for i in range(len(x)))
    held_out = (group_predictions(*args[:2], y, choice.groups, args[2]) for args in zip(layers, x, alphas, strict=True))
    return np.stack([np.mean((predictions - y) ** 2, axis=1) for predictions in held_out])


def _search(errors: Callable, scale: Array, choice: Choice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(chosen alpha [B, C], alphas [B, A], losses [B, A, C])."""
    host_errors = lambda alphas: np.asarray(errors(alphas))
    if choice.alphas is None:
        grid = RELATIVE_ALPHAS * np.asarray(scale)[:, None]
        alphas, losses = _self_extending(host_errors, grid, choice.alpha_per_target)
    else:
        alphas = np.tile(choice.alphas, (len(scale), 1))
        losses = host_errors(alphas)
    return np.take_along_axis(alphas, _best(losses, choice.alpha_per_target), axis=1), alphas, losses


def _best(losses: np.ndarray, alpha_per_target: bool) -> np.ndarray:
    """[B, C] index of the penalty with the least error, the same for every target unless each chooses for itself."""
    if not alpha_per_target:
        losses = np.broadcast_to(losses.mean(axis=2, keepdims=True), losses.shape)
    return np.argmin(np.where(np.isnan(losses), np.inf, losses), axis=1)


def _self_extending(errors: Callable, alphas: np.ndarray, alpha_per_target: bool) -> tuple[np.ndarray, np.ndarray]:
    """The grid [B, A] with as wide a one at each side, NaN unless the layer's best was at that edge."""
    losses = errors(alphas)
    best = _best(losses, alpha_per_target)
    width = alphas[0, 1] * alphas[0, -1] / alphas[0, 0] ** 2
    sides = []
    for grid, edge in ((alphas / width, 0), (alphas * width, alphas.shape[1] - 1)):
        wanted = (best == edge).any(axis=1)
        side = errors(grid) if wanted.any() else np.full_like(losses, np.nan)
        sides.append(np.where(wanted[:, None, None], side, np.nan))
    return np.concatenate([alphas / width, alphas, alphas * width], 1), np.concatenate([sides[0], losses, sides[1]], 1)


def check_finite(names: Sequence[str], solved: Solved) -> None:
    """Refuses states that were not finite."""
    bad = [name for name, condition in zip(names, solved.condition, strict=True) if np.isnan(condition)]
    if bad:
        raise InputError(
            f"State {', '.join(bad)} holds values that are not finite. Read it again, in float32 if it was narrower."
        )


def notes_of(names: Sequence[str], solved: Solved) -> tuple[str, ...]:
    """What a reader of the fit should know: layers for which float32 did not suffice."""
    notes = []
    for name, condition, least, repeated in zip(names, solved.condition, solved.least, solved.repeated, strict=True):
        if repeated:
            share = "solved" if repeated < 0 else f"{repeated} penalties solved"
            notes.append(
                f"State '{name}': {share} again in float64 on the host, as float32 does not suffice "
                f"(least 1 - h of a row {least:.1e}, condition {condition:.1e})."
            )
    return tuple(notes)


def warn_of_condition(names: Sequence[str], solved: Solved, dtype: str) -> None:
    """Warns of each state that rounding in ``dtype`` may have spoilt."""
    for name, condition, alpha in zip(names, solved.condition, solved.alpha, strict=True):
        if condition > CONDITION_LIMIT[dtype]:
            warnings.warn(
                f"State '{name}' has condition {condition:.1e} at its penalty {np.min(alpha):.3g}, above "
                f"{CONDITION_LIMIT[dtype]:.0e}: rounding in {dtype} may reach the third digit. Take larger alphas.",
                stacklevel=4,
            )
