"""The options of a fit, the search for each layer's penalty, and what there is to say of the result."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxprobe.errors import InputError
from jaxprobe.probes.groups import Groups

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
    solver: str  # eigh or cholesky
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
    left: np.ndarray  # [B] how many were not though float32 does not suffice, as they are far from the best
    wide: np.ndarray  # [B] whether the weights have more digits than float32
    r2: np.ndarray  # [B, C] on the rows that were fitted; NaN of a constant target, and where the rows can tell


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


def search(errors: Callable, scale: Array, choice: Choice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(chosen alpha [B, C], alphas [B, A], losses [B, A, C]).

    ``errors``: (alphas [B, A], wanted [B]: which layers are looked at) -> losses [B, A, C].
    """
    host_errors = lambda alphas, wanted: np.asarray(errors(alphas, wanted))
    everyone = np.ones(len(scale), bool)
    if choice.alphas is None:
        grid = RELATIVE_ALPHAS * np.asarray(scale)[:, None]
        alphas, losses = _self_extending(host_errors, grid, choice.alpha_per_target)
    else:
        alphas = np.tile(choice.alphas, (len(scale), 1))
        losses = host_errors(alphas, everyone)
    return np.take_along_axis(alphas, _best(losses, choice.alpha_per_target), axis=1), alphas, losses


def _best(losses: np.ndarray, alpha_per_target: bool) -> np.ndarray:
    """[B, C] index of the penalty with the least error, the same for every target unless each chooses for itself."""
    if not alpha_per_target:
        losses = np.broadcast_to(losses.mean(axis=2, keepdims=True), losses.shape)
    return np.argmin(np.where(np.isnan(losses), np.inf, losses), axis=1)


def _self_extending(errors: Callable, alphas: np.ndarray, alpha_per_target: bool) -> tuple[np.ndarray, np.ndarray]:
    """The grid [B, A] with as wide a one at each side, NaN unless the layer's best was at that edge."""
    losses = errors(alphas, np.ones(len(alphas), bool))
    best = _best(losses, alpha_per_target)
    width = alphas[0, 1] * alphas[0, -1] / alphas[0, 0] ** 2
    sides = []
    for grid, edge in ((alphas / width, 0), (alphas * width, alphas.shape[1] - 1)):
        wanted = (best == edge).any(axis=1)
        side = errors(grid, wanted) if wanted.any() else np.full_like(losses, np.nan)
        sides.append(np.where(wanted[:, None, None], side, np.nan))
    return np.concatenate([alphas / width, alphas, alphas * width], 1), np.concatenate([sides[0], losses, sides[1]], 1)


def check_finite(names: Sequence[str], solved: Solved) -> None:
    """Refuses states that were not finite, and such as cannot be fitted."""
    bad = [name for name, condition in zip(names, solved.condition, strict=True) if np.isnan(condition)]
    if bad:
        raise InputError(
            f"State {', '.join(bad)} holds values that are not finite. Read it again, in float32 if it was narrower."
        )
    bad = [name for name, weights in zip(names, solved.weights, strict=True) if not np.isfinite(weights).all()]
    if bad:
        raise InputError(
            f"State {', '.join(bad)} has no probe at penalties as small as {solved.alpha.min():.3g}: x'x is too large "
            "for float64 beside them. Take larger alphas."
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
    if left := [f"'{name}'" for name, some in zip(names, solved.left, strict=True) if some]:
        notes.append(
            f"State {', '.join(left)}: at up to {solved.left.max()} penalties the criterion may be wrong in its third "
            "digit, as float32 does not suffice; it is too far above the least for these to be chosen."
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
