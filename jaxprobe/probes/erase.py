"""Edits of hidden states: what a probe reads is taken out of them, or moved to another place.

Every edit of a state x is one affine operator,

    x' = x + write (target - read'(x - mean)),      read' write = I,

so that the reading read'(x' - mean) is the target exactly. With S = cov(x), S_xz = cov(x, z) and a probe's weights w:

    orthogonal            read w                     write w (w'w)^-1            target 0: the mean reading
    LEACE                 read S^-1 S_xz             write S_xz (read'S_xz)^-1   target 0
    LEACE with shrinkage  read (S + aI)^-1 S_xz,     write S_xz (w'S_xz)^-1      target 0
                          the ridge probe w itself
    steer, minimum norm   read w                     write w (w'w)^-1            target: what w shall read
    steer, by covariance  read w                     write S_xz (w'S_xz)^-1      target: what w shall read

For any read, write = S_xz (read'S_xz)^-1 makes cov(x', z) = 0, so that a linear probe fitted anew on those rows finds
nothing; LEACE is the one that changes x least in mean square (Belrose et al. 2023, arXiv 2306.03819). S_xz (w'S_xz)^-1
is the pattern of a linear decoder (Haufe et al. 2014): what in x goes along with the reading, not just what reads it.

NumPy in float64: products and one eigendecomposition of [D, D] a layer, all from moments. Letters as in mesh.py; K is
the rank of an edit.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxprobe.errors import InputError
from jaxprobe.probes.moments import Moments, centre

# Canonical correlations below this share of the largest are rounding: of classes that sum to one, or of a target that
# is another one in other units.
TOLERANCE = 1e-6
# Length scales of a surface, in median distances between places, and penalties, in the kernel's mean eigenvalue.
LENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
PENALTIES = tuple(10.0**power for power in range(-4, 4))
SURFACE_ROWS = 8000  # the kernel [N, N] then takes 0.5 GB


class Edit(NamedTuple):
    """x' = x + write (target - read'(x - mean)) for states x [N, D].

    Attributes:
      read: [D, K] what is read.
      write: [D, K] what one unit of each reading adds to the state; read' write = I.
      mean: [D] the state at which the reading is 0.
      target: [K] the reading after the edit, or [N, K], one for each row; 0 is the mean reading.
    """

    read: Float[np.ndarray, "D K"]
    write: Float[np.ndarray, "D K"]
    mean: Float[np.ndarray, " D"]
    target: Float[np.ndarray, "*N K"]

    @property
    def rank(self) -> int:
        """K: the number of directions that the edit takes hold of."""
        return self.read.shape[1]


class Covariance(NamedTuple):
    """What erasers need of rows x [N, D] and targets z [N, C]; M of the D dimensions of x vary.

    Attributes:
      count: number of rows N.
      mean: [D] of x.
      values: [M] eigenvalues of cov(x) = vectors diag(values) vectors', ascending, those that are 0 left out.
      vectors: [D, M] its eigenvectors.
      cross: [D, C] cov(x, z), with z in standard deviations: tolerances then don't depend on z's units.
      target_mean: [C] of z, in its own units.
      target_scale: [C] standard deviation of z, 1 where z is constant.
    """

    count: float
    mean: Float[np.ndarray, " D"]
    values: Float[np.ndarray, " M"]
    vectors: Float[np.ndarray, "D M"]
    cross: Float[np.ndarray, "D C"]
    target_mean: Float[np.ndarray, " C"]
    target_scale: Float[np.ndarray, " C"]


def covariance(x: np.ndarray | Moments, z: np.ndarray | None = None) -> Covariance:
    """The covariances of rows, or of a layer's moments.

    Args:
      x: [N, D] states of one layer in any float dtype, or their `Moments`, which hold the targets as well.
      z: [N, C] or [N] targets, in any units; classes as columns of 0 and 1.

    Raises:
      InputError: fewer than two rows, shapes that do not fit, values that are not finite.
    """
    if isinstance(x, Moments):
        with jax.enable_x64(True):
            count, x_mean, z_mean, gram, cross, squares = (np.asarray(leaf, np.float64) for leaf in centre(x))
        count = float(count)
    else:
        x, z = _rows(x, "x"), _rows(z, "z")
        if len(x) != len(z) or len(x) < 2:
            raise InputError(f"x has {len(x)} rows and z {len(z)}; wanted as many, and two or more.")
        count, x_mean, z_mean = float(len(x)), x.mean(0), z.mean(0)
        centred, targets = x - x_mean, z - z_mean
        gram, cross, squares = centred.T @ centred, centred.T @ targets, (targets**2).sum(0)
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise InputError("The moments are not finite. Look for states or targets that are not.")
    values, vectors = np.linalg.eigh(gram / count)
    varies = values > values[-1] * len(values) * np.finfo(np.float64).eps
    scale = _target_scale(squares, count, z_mean)
    return Covariance(count, x_mean, values[varies], vectors[:, varies], cross / count / scale, z_mean, scale)


def with_targets(cov: Covariance, x: np.ndarray, z: np.ndarray) -> Covariance:
    """The same rows x [N, D] with other targets z [N, C], permuted ones say: no second eigendecomposition."""
    x, z = _rows(x, "x"), _rows(z, "z")
    if len(x) != len(z) or len(x) != cov.count:
        raise InputError(f"x has {len(x)} rows, z {len(z)}, the covariance {cov.count:.0f}; wanted the same rows.")
    targets = z - z.mean(0)
    scale = _target_scale((targets**2).sum(0), len(z), z.mean(0))
    cross = (x - cov.mean).T @ (targets / scale) / len(z)
    return cov._replace(cross=cross, target_mean=z.mean(0), target_scale=scale)


def leace(cov: Covariance) -> Edit:
    """Erases the targets with the least mean squared change of x; the authors' own form, by the whitened states.

    K is the number of targets, less what is collinear among them: 49 for 50 classes.
    """
    roots = np.sqrt(cov.values)
    whitened, sizes, _ = np.linalg.svd((cov.vectors.T @ cov.cross) / roots[:, None], full_matrices=False)
    kept = whitened[:, sizes > TOLERANCE * sizes[0]]
    return _erasure(cov.vectors @ (kept / roots[:, None]), cov.vectors @ (kept * roots[:, None]), cov.mean)


def shrunk_weights(cov: Covariance, alpha: float) -> Float[np.ndarray, "D C"]:
    """The weights of a ridge probe of standardised targets at ``alpha`` (squared activation, as `RidgeFit.alpha`)."""
    return cov.vectors @ ((cov.vectors.T @ cov.cross) / (cov.values + alpha / cov.count)[:, None])


def erase(cov: Covariance, weights: np.ndarray) -> Edit:
    """Erases the targets by what a probe reads: with the ridge probe's weights, LEACE with shrinkage.

    Args:
      weights: [D, C] of the same targets, in any units: `RidgeFit.weights` of the layer, or `shrunk_weights`.

    Raises:
      InputError: weights of another shape, or that read nothing of a target which varies with x.
    """
    weights = _weights(weights, cov)
    inner = weights.T @ cov.cross
    left, sizes, right = np.linalg.svd(inner)
    kept = sizes > TOLERANCE**2 * sizes[0]
    if kept.sum() < np.linalg.matrix_rank(cov.cross, tol=TOLERANCE * np.linalg.norm(cov.cross, 2)):
        raise InputError(
            f"The weights read {kept.sum()} directions that go along with the targets, which have more. "
            "Use a smaller penalty, or leace."
        )
    return _erasure(weights @ left[:, kept], cov.cross @ (right[kept].T / sizes[kept]), cov.mean)


def orthogonal(weights: np.ndarray, mean: np.ndarray) -> Edit:
    """Projects the directions of weights [D, C] out of x - mean [D]: what they read becomes the mean reading."""
    basis, sizes, _ = np.linalg.svd(_unit_columns(np.asarray(weights, np.float64)), full_matrices=False)
    basis = basis[:, sizes > TOLERANCE * sizes[0]]
    return _erasure(basis, basis, np.asarray(mean, np.float64))


def steer(
    weights: np.ndarray,
    intercept: np.ndarray,
    mean: np.ndarray,
    target: np.ndarray,
    cov: Covariance | None = None,
) -> Edit:
    """Moves the reading x @ weights + intercept to ``target``.

    Args:
      weights: [D, C] and intercept: [C] of a probe (a layer of `RidgeFit`).
      mean: [D] of its training rows.
      target: [C] or [N, C] in the probe's target units.
      cov: of the same targets: the change then goes along the states' own covariance with them; without, it is the
        change of least norm.

    Raises:
      InputError: readings that can't be moved independently of each other.
    """
    weights, mean = np.asarray(weights, np.float64), np.asarray(mean, np.float64)
    pattern = weights if cov is None else cov.cross
    if pattern.shape != weights.shape:
        raise InputError(f"The probe has weights {weights.shape}, the covariance {pattern.shape}; wanted the same.")
    # Columns of one size: the condition is then the readings' own, whatever their units are.
    columns, patterns = _unit_columns(weights), _unit_columns(pattern)
    inner = columns.T @ patterns
    if not np.isfinite(inner).all() or np.linalg.cond(inner) > 1 / TOLERANCE:
        raise InputError("The probe's readings are collinear: they can't be moved one by one. Steer one target.")
    write = patterns @ np.linalg.inv(inner)
    sizes = np.linalg.norm(weights, axis=0)
    at_mean = np.asarray(intercept, np.float64) + mean @ weights
    return Edit(weights, write / sizes, mean, np.asarray(target, np.float64) - at_mean)


def apply_edit(edit: Edit, x: np.ndarray) -> np.ndarray:
    """The edited states [N, D], computed in float64 and returned in x's own dtype."""
    x = np.asarray(x)
    if x.shape[-1] != len(edit.mean):
        raise InputError(f"x has {x.shape[-1]} dimensions, the edit {len(edit.mean)}. Pass states of its own layer.")
    wide = x.astype(np.float64)
    changed = wide + (edit.target - (wide - edit.mean) @ edit.read) @ edit.write.T
    return changed.astype(x.dtype if np.issubdtype(x.dtype, np.floating) or x.dtype.kind == "V" else np.float64)


def removed_variance(edit: Edit, cov: Covariance) -> float:
    """Mean squared change of a row by an erasure: tr(write cov(read'x) write'), in squared activation."""
    inside = cov.vectors.T @ edit.read
    return float(((edit.write.T @ edit.write) * (inside.T @ (cov.values[:, None] * inside))).sum())


def random_subspace(rng: np.random.Generator, cov: Covariance, rank: int, variance: float) -> Edit:
    """A control: erases ``rank`` random directions that hold as much variance as an erasure did.

    Directions are drawn at random in the whitened states, where LEACE is an orthogonal projection, and turned towards
    the large or the small principal components, by a power of the eigenvalues, until the removed variance is the one
    asked for.

    Args:
      rank: number of directions.
      variance: from `removed_variance`; a subspace of this rank that can't hold as much or as little comes as near as
        it can.
    """
    noise = rng.standard_normal((len(cov.values), rank))
    logs = np.log(cov.values) - np.log(cov.values).mean()

    def draw(power: float) -> np.ndarray:
        weight = power * logs
        return np.linalg.qr(np.exp(weight - weight.max())[:, None] * noise)[0]

    low, high = -64.0, 64.0
    for _ in range(50):
        middle = (low + high) / 2
        basis = draw(middle)
        held = (cov.values[:, None] * basis**2).sum()
        low, high = (middle, high) if held < variance else (low, middle)
    roots = np.sqrt(cov.values)[:, None]
    return _erasure(cov.vectors @ (basis / roots), cov.vectors @ (basis * roots), cov.mean)


def random_shifts(rng: np.random.Generator, x: np.ndarray, sizes: np.ndarray) -> Float[np.ndarray, "N D"]:
    """A control: differences of two random rows of x [M, D], one for each of N sizes and of exactly that length.

    Pairs of equal rows, as names with one last token have them before the first block, are drawn again.
    """
    x, sizes = _rows(x, "x"), np.asarray(sizes, np.float64)
    if not np.ptp(x, axis=0).any():
        raise InputError("All rows of x are equal, so that no difference has a direction. Pass rows that differ.")
    shifts, again = np.zeros((len(sizes), x.shape[1])), np.arange(len(sizes))
    while len(again):
        shifts[again] = x[rng.integers(0, len(x), len(again))] - x[rng.integers(0, len(x), len(again))]
        again = again[~shifts[again].any(axis=1)]
    lengths = np.linalg.norm(shifts, axis=1)
    return shifts * (sizes / lengths)[:, None]


class Surface(NamedTuple):
    """Kernel ridge from places to states: the surface on which the states of places lie.

    Attributes:
      places: [N, C] where it was fitted.
      dual: [N, D] weights of the rows; they sum to 0.
      kernel_mean: [N] mean of the kernel over rows, taken out of it.
      mean: [D] of the states.
      length: of the Gaussian kernel, in the places' units.
      alpha: the penalty.
      r2: leave-one-out R2, the mean over dimensions of the state.
    """

    places: Float[np.ndarray, "N C"]
    dual: Float[np.ndarray, "N D"]
    kernel_mean: Float[np.ndarray, " N"]
    mean: Float[np.ndarray, " D"]
    length: float
    alpha: float
    r2: float


class Kernels(NamedTuple):
    """Gaussian kernels between N places, decomposed: what surfaces through the states of several layers share.

    Attributes:
      places: [N, C].
      parts: for each length its value in the places' units, the kernel's mean over rows [N], and the eigenvalues [N]
        and eigenvectors [N, N] of the kernel with its means taken out: the intercept is then not penalised, and its
        leverage is 1/N for every row.
    """

    places: Float[np.ndarray, "N C"]
    parts: tuple[tuple[float, np.ndarray, np.ndarray, np.ndarray], ...]


def decompose_kernels(places: np.ndarray, lengths: tuple[float, ...] = LENGTHS) -> Kernels:
    """Kernels of several lengths, in median distances between places [N, C]. Raises InputError as `fit_surface`."""
    places = _rows(places, "places")
    if not 3 <= len(places) <= SURFACE_ROWS:
        raise InputError(f"There are {len(places)} places; wanted 3 to {SURFACE_ROWS}.")
    squares = _squared_distances(places, places)
    median = np.sqrt(np.median(squares[np.triu_indices(len(places), 1)]))
    if not median > 0:
        raise InputError("Most places are the same place, which leaves no surface to fit. Pass places that differ.")
    parts = []
    for length in lengths:
        kernel = np.exp(-squares / (2 * (length * median) ** 2))
        mean = kernel.mean(0)
        values, vectors = np.linalg.eigh(kernel - mean - mean[:, None] + mean.mean())
        parts.append((float(length * median), mean, np.maximum(values, 0), vectors))
    return Kernels(places, tuple(parts))


def fit_surface(places: np.ndarray | Kernels, x: np.ndarray, penalties: tuple[float, ...] = PENALTIES) -> Surface:
    """Fits place -> state with a Gaussian kernel; its length and penalty by exact leave-one-out.

    Args:
      places: [N, C] coordinates in which distance has a meaning: points on the unit sphere (`unit_vectors`), or years;
        or their kernels.
      x: [N, D] states of one layer.
      penalties: in the kernel's mean eigenvalue.

    Raises:
      InputError: fewer than three rows or more than 8,000, shapes that do not fit, places that are all the same.
    """
    kernels = places if isinstance(places, Kernels) else decompose_kernels(places)
    x = _rows(x, "x")
    if len(kernels.places) != len(x):
        raise InputError(f"There are {len(kernels.places)} places and {len(x)} states; wanted as many.")
    mean = x.mean(0)
    centred = x - mean
    variance = (centred**2).mean(0)
    varies = variance > 0
    best = None
    for length, kernel_mean, values, vectors in kernels.parts:
        rotated, leverage = vectors.T @ centred, vectors**2
        for penalty in penalties:
            alpha = penalty * values.mean()
            kept = values / (values + alpha)
            residual = centred - vectors @ (kept[:, None] * rotated)
            residual /= (1 - 1 / len(x) - leverage @ kept)[:, None]
            r2 = 1 - ((residual[:, varies] ** 2).mean(0) / variance[varies]).mean()
            if best is None or r2 > best.r2:
                dual = vectors @ (rotated / (values + alpha)[:, None])
                best = Surface(kernels.places, dual, kernel_mean, mean, length, alpha, float(r2))
    return best


def surface_at(surface: Surface, places: np.ndarray) -> Float[np.ndarray, "M D"]:
    """The surface's states [M, D] at places [M, C]; ``x + surface_at(B) - surface_at(A)`` moves x from A to B."""
    squares = _squared_distances(_rows(places, "places"), surface.places)
    return surface.mean + (np.exp(-squares / (2 * surface.length**2)) - surface.kernel_mean) @ surface.dual


def _erasure(read: np.ndarray, write: np.ndarray, mean: np.ndarray) -> Edit:
    return Edit(read, write, mean, np.zeros(read.shape[1]))


def _rows(values: np.ndarray, name: str) -> Float[np.ndarray, "N C"]:
    values = np.asarray(values, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"{name} has shape {values.shape}; wanted finite numbers of shape [rows, columns].")
    return values


def _weights(weights: np.ndarray, cov: Covariance) -> Float[np.ndarray, "D C"]:
    weights = np.asarray(weights, np.float64)
    if weights.shape != cov.cross.shape:
        raise InputError(f"The weights have shape {weights.shape}; wanted {cov.cross.shape}, as cov(x, z).")
    return _unit_columns(weights)


def _unit_columns(matrix: Float[np.ndarray, "D C"]) -> Float[np.ndarray, "D C"]:
    sizes = np.linalg.norm(matrix, axis=0)
    return matrix / np.where(sizes > 0, sizes, 1)


def _target_scale(squares: np.ndarray, count: float, mean: np.ndarray) -> Float[np.ndarray, " C"]:
    """Standard deviations; 1 for a target that is constant but for rounding."""
    scale = np.sqrt(squares / count)
    return np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "N M"]:
    if a.shape[1] > 3:  # about the mean, so that little cancels
        a, b = a - b.mean(0), b - b.mean(0)
        return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
    return sum((a[:, None, c] - b[None, :, c]) ** 2 for c in range(a.shape[1]))
