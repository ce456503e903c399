"""What the ridge benchmark compares: each engine fits every layer and says what it chose. One engine a process.

    python -m benchmarks.ridge_engines ENGINE FOLDER

reads lines from its standard input (each means: fit once more) and answers each with a line of JSON.
FOLDER holds x.npy [L, N, D] float32, y.npy [N, C] standardised float64, alphas.npy [A] and folds.npy [N].
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxprobe.host.progress import peak_memory


class Problem(NamedTuple):
    """x [L, N, D], y [N, C] of mean 0 and variance 1, alphas [A], folds [N]."""

    x: np.ndarray
    y: np.ndarray
    alphas: np.ndarray
    folds: np.ndarray


class Answer(NamedTuple):
    """Chosen penalties [L] or [L, C], and the mean squared errors [L, A, C] they were chosen by, where shown."""

    alpha: np.ndarray
    errors: np.ndarray | None


def load(folder: Path) -> Problem:
    # Mapped, so that every process shares one copy.
    read = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r" if name == "x" else None)
    return Problem(*map(read, Problem._fields))


def jaxprobe(problem: Problem, **options) -> Callable[[], Answer]:
    from jaxprobe.probes.ridge import fit_ridge

    def run():
        fit = fit_ridge(problem.x, problem.y, problem.alphas, **options)
        return Answer(fit.alpha, fit.loo_mse)

    return run


def scikit_learn(problem: Problem, dtype: str) -> Callable[[], Answer]:
    from sklearn.linear_model import RidgeCV

    y = problem.y.astype(dtype)

    def run():
        fits = [RidgeCV(problem.alphas).fit(layer.astype(dtype, copy=False), y) for layer in problem.x]
        return Answer(np.array([fit.alpha_ for fit in fits]), None)

    return run


def scikit_learn_array_api(problem: Problem) -> Callable[[], Answer]:
    """The same on PyTorch's tensors, on a GPU where there is one: scikit-learn 1.8 and later compute where they are."""
    os.environ["SCIPY_ARRAY_API"] = "1"  # read when SciPy is imported
    import torch
    from sklearn import config_context
    from sklearn.linear_model import RidgeCV

    device = "cuda" if torch.cuda.is_available() else "cpu"
    y = torch.asarray(problem.y.astype(np.float32), device=device)

    def run():
        with config_context(array_api_dispatch=True):
            fits = [
                RidgeCV(problem.alphas).fit(torch.asarray(np.array(layer), device=device), y) for layer in problem.x
            ]
        return Answer(np.array([fit.alpha_ for fit in fits]), None)

    return run


def numpy(problem: Problem, dtype: str) -> Callable[[], Answer]:
    """Exact leave-one-out as a careful user would write it: Gram matrix and eigh (with D > N of x x', as one would)."""
    y = problem.y.astype(dtype)

    def layer_errors(x):
        n, d = x.shape
        x = x - x.mean(0)
        if d < n:
            values, vectors = np.linalg.eigh(x.T @ x)
            z = x @ vectors
            rotated = z.T @ y
            hats = ((z @ (rotated / (values + a)[:, None]), 1 / n + z**2 @ (1 / (values + a))) for a in problem.alphas)
        else:
            values, vectors = np.linalg.eigh(x @ x.T)
            values = np.maximum(values, 0)
            rotated, share = vectors.T @ y, lambda a: values / (values + a)
            hats = ((vectors @ (rotated * share(a)[:, None]), 1 / n + vectors**2 @ share(a)) for a in problem.alphas)
        return [(((y - fitted) / (1 - hat)[:, None]) ** 2).mean(0) for fitted, hat in hats]

    def run():
        errors = np.array([layer_errors(layer.astype(dtype, copy=False)) for layer in problem.x])
        return Answer(problem.alphas[errors.mean(2).argmin(1)], errors)

    return run


def himalaya(problem: Problem) -> Callable[[], Answer]:
    """k-fold with the same folds and an intercept, on PyTorch; it chooses for each target."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    backend = set_backend("torch")
    x, y = backend.asarray(problem.x, dtype="float32"), backend.asarray(problem.y, dtype="float32")
    options = dict(alphas=problem.alphas.astype(np.float32), cv=PredefinedSplit(problem.folds))

    def run():
        if x.shape[2] > x.shape[1]:  # as its documentation advises; it has no intercept, so the mean goes first
            fits = [KernelRidgeCV(**options).fit(layer - layer.mean(0), y) for layer in x]
        else:
            fits = [RidgeCV(fit_intercept=True, **options).fit(layer, y) for layer in x]
        return Answer(np.stack([backend.to_numpy(fit.best_alphas_) for fit in fits]), None)

    return run


def floor(problem: Problem, products: int, dtype: str = "float32") -> Callable[[], Answer]:
    """What the mathematics asks for at least: bare products with x, and one eigh in float64, a layer."""
    import jax
    import jax.numpy as jnp

    from jaxprobe.probes.devices import solving

    wide = problem.x.shape[2] >= problem.x.shape[1]
    gram = jax.jit(lambda x: jnp.matmul(*((x, x.T) if wide else (x.T, x)), precision="highest"))
    eigh = jax.jit(jnp.linalg.eigh)

    def run():
        with solving(problem.x.shape):  # with as many BLAS threads as ours
            for layer in problem.x:
                layer = jax.device_put(layer.astype(dtype, copy=False))
                for _ in range(products):
                    matrix = jax.block_until_ready(gram(layer))
                jax.block_until_ready(eigh(matrix.astype(jnp.float64)))
        return Answer(np.array([]), None)

    return run


ENGINES: dict[str, tuple[Callable[..., Callable[[], Answer]], dict]] = {
    "jaxprobe": (jaxprobe, {}),
    "jaxprobe float64": (jaxprobe, {"dtype": "float64"}),
    "jaxprobe generalised": (jaxprobe, {"criterion": "generalised"}),
    "jaxprobe k-fold": (jaxprobe, {"criterion": "k_fold", "alpha_per_target": True}),
    "floor": (floor, {"products": 2}),
    "floor float64": (floor, {"products": 2, "dtype": "float64"}),
    "floor generalised": (floor, {"products": 1}),
    "scikit-learn": (scikit_learn, {"dtype": "float32"}),
    "scikit-learn float64": (scikit_learn, {"dtype": "float64"}),
    "scikit-learn array API": (scikit_learn_array_api, {}),
    "numpy": (numpy, {"dtype": "float32"}),
    "numpy float64": (numpy, {"dtype": "float64"}),
    "himalaya": (himalaya, {}),
}


def can_run(engine: str) -> bool:
    """Whether an engine that needs more than the package is of use here."""
    if engine == "himalaya":
        return importlib.util.find_spec("himalaya") is not None
    if engine == "scikit-learn array API":  # without a GPU it is scikit-learn again
        return importlib.util.find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available()
    return True


# So slow that they fit the first layer only; their time is that of one, times the layers.
ONE_LAYER = ("himalaya",)


def main(engine: str, folder: str) -> None:
    from threadpoolctl import threadpool_info

    problem = load(Path(folder))
    if engine in ONE_LAYER:
        problem = problem._replace(x=problem.x[:1])
    build, options = ENGINES[engine]
    if options.get("criterion") == "k_fold":
        options = options | {"groups": problem.folds}
    run = build(problem, **options)
    for _ in sys.stdin:
        began = time.perf_counter()
        answer = run()
        seconds = time.perf_counter() - began
        errors = None if answer.errors is None else np.asarray(answer.errors, np.float64).tolist()
        peak = peak_memory()  # the mapped x counts
        said = {"seconds": seconds, "alpha": answer.alpha.tolist(), "errors": errors, "peak_bytes": peak}
        print(json.dumps(said | {"blas": threadpool_info()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
