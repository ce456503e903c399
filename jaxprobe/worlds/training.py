"""The loop that trains both kinds of world model: optax under `jax.jit` on a mesh, checkpoints, and going on from them.

A step's batch follows from the seed and the step's number alone, and a checkpoint holds weights, optimiser and losses,
so that a run that was killed goes on to the numbers that it would have had.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, absolute
from jaxprobe.host.progress import Progress

CHUNK = 25  # steps of one call of the compiled program
# The first hundreds of steps are where a map appears, so they are looked at more often.
EARLY_CHECKPOINTS = (25, 50, 100, 150, 200, 300, 400)
LATER_CHECKPOINTS = 200  # steps from one to the next
UNFINISHED = "*.orbax-checkpoint-tmp*"  # what Orbax leaves behind when its process dies
WARM_UP = 100  # steps
LAST_RATE = 0.02  # of the highest
CLIP = 1.0


class Objective(NamedTuple):
    """What a kind of model gives the loop.

    Attributes:
      init: the weights, a tree of arrays.
      batches: (rng, rows) -> a tree of arrays [rows, ...]; rows of the same rng are always the same.
      loss: (weights, batch, key) -> the loss, and numbers to keep of each step, [K].
      rows: of one step.
      rate: the highest learning rate.
      decay: of the weights that are marked, as AdamW has it.
      decayed: a tree of bool like ``init``: matrices, not gains or biases.
    """

    init: Any
    batches: Callable[[np.random.Generator, int], Any]
    loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]
    rows: int
    rate: float
    decay: float
    decayed: Any


@dataclass(frozen=True)
class History:
    """What training left.

    Attributes:
      weights: step -> weights, as they were before training (0) and at each checkpoint, in NumPy.
      losses: [steps, K] the numbers of every step.
      seconds: that training took, with compiling; NaN where it went on from a checkpoint.
    """

    weights: dict[int, Any]
    losses: np.ndarray
    seconds: float


def checkpoint_steps(steps: int) -> list[int]:
    """When weights are kept: often at first, every 200 steps later, and at the end."""
    kept = {*EARLY_CHECKPOINTS, *range(LATER_CHECKPOINTS, steps, LATER_CHECKPOINTS), steps}
    return sorted(step for step in kept if step <= steps)


def check_plan(objective: Objective, steps: int, mesh: Mesh) -> None:
    """Raises InputError for steps that are no chunks, and for rows that do not divide over the mesh."""
    if steps < CHUNK or steps % CHUNK:
        raise InputError(
            f"{steps} steps are not a multiple of {CHUNK}. Ask for {max(round(steps / CHUNK), 1) * CHUNK}."
        )
    if objective.rows % mesh.shape["data"]:
        raise InputError(f"{objective.rows} rows a step do not divide over {mesh.shape['data']} devices. Use fewer.")


def train(
    objective: Objective, steps: int, seed: int, mesh: Mesh, folder: AnyPath | None, progress: Progress
) -> History:
    """Trains for ``steps``, from the last checkpoint in ``folder`` where there is one.

    Args:
      steps: a multiple of CHUNK.
      mesh: its axis ``data`` shares the rows of each step.
      folder: of the checkpoints; None keeps them in memory only.

    Raises:
      InputError: steps or rows that do not divide.
    """
    check_plan(objective, steps, mesh)
    run = _program(objective, mesh)
    carry, losses, kept = _resume(objective, folder)
    carry = _place(carry, mesh)
    begun, first = time.perf_counter(), len(losses)
    with progress.task("train", steps, "steps") as advance:
        advance(first)
        for done in range(first, steps, CHUNK):
            carry, numbers = run(carry, *_inputs(objective, seed, done, mesh), np.float32(steps))
            losses = np.concatenate([losses, numbers])
            done += CHUNK
            if done in checkpoint_steps(steps):
                kept[done] = jax.device_get(carry[0])
                if folder is not None:
                    _save(folder / str(done), carry, losses)
            advance(CHUNK)
    return History(kept, losses, np.nan if first else time.perf_counter() - begun)


def seconds_a_step(objective: Objective, seed: int, mesh: Mesh) -> float:
    """How long a step takes on this machine now, from the second call of the program."""
    run, total = _program(objective, mesh), np.float32(1000)
    for _ in range(2):
        started = time.perf_counter()
        carry = _place((objective.init, _optimiser(objective).init(objective.init)), mesh)
        jax.block_until_ready(run(carry, *_inputs(objective, seed, 0, mesh), total))
    return (time.perf_counter() - started) / CHUNK


def _optimiser(objective: Objective) -> optax.GradientTransformation:
    """AdamW at a rate of 1; the rate of the step comes on top, so that one program serves plans of any length."""
    adamw = optax.adamw(1.0, b2=0.98, weight_decay=objective.decay, mask=objective.decayed)
    return optax.chain(optax.clip_by_global_norm(CLIP), adamw)


def _rate(step: jax.Array, steps: jax.Array, highest: float) -> jax.Array:
    """Up in a line, down in a cosine."""
    down = jnp.clip((step - WARM_UP) / jnp.maximum(steps - WARM_UP, 1), 0, 1)
    cosine = LAST_RATE + (1 - LAST_RATE) * (1 + jnp.cos(jnp.pi * down)) / 2
    return highest * jnp.minimum(step / WARM_UP, 1) * cosine


def _program(objective: Objective, mesh: Mesh) -> Callable:
    """(weights and optimiser, batches, keys, first step, steps) -> the same after a chunk, and its numbers."""
    optimiser = _optimiser(objective)

    def run(carry, batches, keys, first, steps):
        def step(carry, inputs):
            weights, state = carry
            batch, key, number = inputs
            (_, numbers), gradient = jax.value_and_grad(objective.loss, has_aux=True)(weights, batch, key)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to its integer step count
                update, state = optimiser.update(gradient, state, weights)
            rate = _rate(number, steps, objective.rate)
            return (jax.tree.map(lambda leaf, change: leaf + rate * change, weights, update), state), numbers

        return jax.lax.scan(step, carry, (batches, keys, first + jnp.arange(CHUNK, dtype=jnp.float32)))

    return jax.jit(run, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _inputs(objective: Objective, seed: int, done: int, mesh: Mesh) -> tuple[Any, jax.Array, np.float32]:
    """The batches, keys and number of the chunk after ``done`` steps."""
    drawn = objective.batches(np.random.default_rng([seed, done]), CHUNK * objective.rows)
    shared = NamedSharding(mesh, PartitionSpec(None, "data"))
    place = lambda leaf: jax.device_put(leaf.reshape(CHUNK, objective.rows, *leaf.shape[1:]), shared)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), done), CHUNK)
    return jax.tree.map(place, drawn), _place(keys, mesh), np.float32(done)


def _place(tree: Any, mesh: Mesh) -> Any:
    """Whole on every device; a copy, since the program takes what it is given for its own."""
    return jax.tree.map(lambda leaf: jax.device_put(jnp.array(leaf), NamedSharding(mesh, PartitionSpec())), tree)


def _resume(objective: Objective, folder: AnyPath | None) -> tuple[Any, np.ndarray, dict[int, Any]]:
    """Weights and optimiser as the last checkpoint has them, losses so far, and the weights that are kept so far."""
    init = jax.device_get(objective.init)
    carry, kept = (init, _optimiser(objective).init(init)), {0: init}
    losses = np.zeros((0, _numbers(objective)), np.float32)
    for step in saved_steps(folder) if folder is not None else ():
        carry, losses = _load(folder / str(step), carry, losses, step)
        kept[step] = carry[0]
    return carry, losses, kept


def _numbers(objective: Objective) -> int:
    """K: how many numbers the loss keeps of a step."""
    batch = objective.batches(np.random.default_rng(0), objective.rows)
    return jax.eval_shape(objective.loss, objective.init, batch, jax.random.key(0))[1].shape[0]


# ---- Checkpoints ------------------------------------------------------------------------------------------------


def saved_steps(folder: AnyPath) -> list[int]:
    """Steps with a checkpoint; one that was being written when its process died has another name, and goes."""
    if not folder.is_dir():
        return []
    for unfinished in folder.glob(UNFINISHED):
        shutil.rmtree(unfinished)
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def load_history(objective: Objective, folder: AnyPath) -> History:
    """What is kept of a training, finished or not; its seconds are not known."""
    _, losses, kept = _resume(objective, folder)
    return History(kept, losses, np.nan)


def _save(path: AnyPath, carry: Any, losses: np.ndarray) -> None:
    weights, state = jax.device_get(carry)
    # Orbax takes no path that hangs on the folder that the command was given in.
    ocp.save_checkpointables(
        absolute(path), {"weights": weights, "optimiser": jax.tree.leaves(state), "losses": [losses]}
    )


def _load(path: AnyPath, carry: Any, losses: np.ndarray, step: int) -> tuple[Any, np.ndarray]:
    weights, state = carry
    wanted = {
        "weights": _abstract(weights),
        "optimiser": _abstract(jax.tree.leaves(state)),
        "losses": [np.zeros((step, losses.shape[1]), np.float32)],
    }
    found = _read(path, wanted)
    return (found["weights"], jax.tree.unflatten(jax.tree.structure(state), found["optimiser"])), found["losses"][0]


def _read(path: AnyPath, wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        return ocp.load_checkpointables(absolute(path), wanted)
    except (ValueError, KeyError, OSError) as error:  # of another shape, or damaged
        line = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path} can't be read as a checkpoint of this model ({line}). Remove it and train again."
        ) from error


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.device_get(tree))
