"""Runs a plan's bins through the model and hands out each shard's hidden states as it is complete."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxprobe.errors import InputError
from jaxprobe.extract.shares import Shares, find_shares, put_alike, put_bins, share_count, steps, take_rows, waves
from jaxprobe.extract.trie import Batch, Plan
from jaxprobe.mesh import spec
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.load import DTYPES, LanguageModel
from jaxprobe.models.transformer import Bins, Edits, Root, Transformer, forward, no_root
from jaxprobe.sites import Site

# B bins for each device that shares the bins: enough rows to keep the matmuls at their full rate, and on a CPU no more,
# since half a step is lost at the end of a shard.
BINS_PER_DEVICE = {"cpu": 4, "gpu": 128, "tpu": 64}
# The root's length is rounded up to this, so that prompts of about one length share a compiled program.
ROOT_MULTIPLE = 16
# Steps whose results may wait on the devices while the host copies the oldest.
STEPS_IN_FLIGHT = 2


class ShardStates(NamedTuple):
    """The hidden states of one shard's entities: this process's part of a wave (see shares.py)."""

    wave: tuple[int, ...]  # the shards that all processes computed side by side
    index: int | None  # this one's; None (and no rows) where only others have a shard
    rows: np.ndarray  # [E] table rows
    states: dict[str, np.ndarray]  # state -> [E, D], of neurons [E, F]

    @property
    def values(self) -> np.ndarray:
        """[L, E, D] where all states are as wide: their one buffer."""
        return next(iter(self.states.values())).base


def bins_per_step(mesh: Mesh) -> int:
    """The most bins of one process's share of a step: so many for each of its devices along the bin axis."""
    return BINS_PER_DEVICE[mesh.devices.flat[0].platform] * devices_per_share(mesh)


def devices_per_share(mesh: Mesh) -> int:
    """Devices along the bin axis that one process's share of a step is cut over."""
    return mesh.shape["data"] * mesh.shape["fsdp"] // share_count(mesh)


def root_slots(tokens: np.ndarray) -> int:
    """Slots of a compiled root for a shared prefix [R]."""
    return -(-len(tokens) // ROOT_MULTIPLE) * ROOT_MULTIPLE


def compile_plan(
    model: LanguageModel, plan: Plan, states: tuple[str, ...], advance: Callable[[int], None] = lambda count: None
) -> None:
    """Compiles the step for each shape that the plan's batches have; `run_plan` then finds it compiled."""
    step = compiled_step(model.config, states, model.mesh, model.dtype)
    root = run_root(model, plan.root)
    shapes = {batch.tokens.shape: batch for shard in plan.shards for batch in shard.batches}
    for batch in shapes.values():
        step.lower(model.weights, put_batch(batch, model.mesh), root).compile()
        advance(1)


def run_plan(
    model: LanguageModel,
    plan: Plan,
    states: tuple[str, ...],
    shards: Iterable[int] | None = None,
    advance: Callable[[int], None] = lambda count: None,
    texts: Sequence[str] | None = None,
) -> Iterator[ShardStates]:
    """Computes shards in order (default: all), each complete before it is handed out.

    Of several processes each takes shards of its own, and all go through the same number of steps and of results.
    ``advance`` is told how many entities each step completed, of all processes. The next steps run on the devices
    while the host copies the last one's rows. States have the model's dtype.

    Raises:
      InputError: a state that is not finite; names the entity's row, its text out of ``texts`` [N], and the state.
    """
    step = compiled_step(model.config, states, model.mesh, model.dtype)
    root = run_root(model, plan.root)
    shares = find_shares(model.mesh)
    dtype = np.dtype(DTYPES[model.dtype])
    for wave in waves(range(len(plan.shards)) if shards is None else tuple(shards), shares.count):
        index = wave[shares.index] if shares.index < len(wave) else None
        rows = np.empty(0, np.int64) if index is None else plan.shards[index].rows
        buffers = _make_buffers(states, len(rows), model.config, dtype)
        side_by_side = steps([plan.shards[shard] for shard in wave], shares.count)
        started = ((row, step(model.weights, put_batch(_own(row, shares), model.mesh), root)) for row in side_by_side)
        for row, parts in in_flight(started, STEPS_IN_FLIGHT):
            _copy(parts, row[shares.index], buffers)
            del parts  # before the next step starts, which needs the room
            advance(sum(len(np.unique(batch.entities)) for batch in row if batch is not None))
        _check_finite(buffers, rows, texts)
        yield ShardStates(wave, index, rows, buffers)


def _own(row: tuple[Batch | None, ...], shares: Shares) -> Batch:
    """This share's batch of a step; where it has none any other's, whose results are left alone."""
    own = row[shares.index]
    return own if own is not None else next(batch for batch in row if batch is not None)


def _make_buffers(states: Sequence[str], rows: int, config: ModelConfig, dtype: np.dtype) -> dict[str, np.ndarray]:
    """State -> [E, its width]; those of one width lie in one array."""
    letters, sizes = [Site.parse(state).letter for state in states], config.sizes()
    wide = {letter: np.empty((letters.count(letter), rows, sizes[letter]), dtype) for letter in set(letters)}
    place = [letters[:i].count(letter) for i, letter in enumerate(letters)]
    return {state: wide[letter][i] for state, letter, i in zip(states, letters, place, strict=True)}


def _copy(parts: dict[str, jax.Array], batch: Batch | None, buffers: dict[str, np.ndarray]) -> None:
    """[n, B, W, width] of each kind of site -> this batch's rows, the mean of several; without a batch nothing."""
    kinds = [Site.parse(state).kind for state in buffers]
    if batch is not None:
        entities, first, counts = np.unique(batch.entities, return_index=True, return_counts=True)
    for kind, part in parts.items():
        values = take_rows(part)
        states = [state for state, of in zip(buffers, kinds, strict=True) if of == kind]
        for state, rows in zip(states, values, strict=True) if batch is not None else ():
            found = rows[batch.bins, batch.columns]
            if len(entities) < len(found):  # float32 whatever the dtype, as bfloat16 can't hold a sum
                found = np.add.reduceat(found.astype(np.float32), first) / counts[:, None].astype(np.float32)
            buffers[state][entities] = found.astype(buffers[state].dtype, copy=False)


def in_flight(started: Iterator, count: int) -> Iterator:
    """Keeps ``count`` results of an asynchronous dispatch waiting ahead of the consumer."""
    waiting: collections.deque = collections.deque()
    for result in started:
        waiting.append(result)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def put_batch(batch: Batch, mesh: Mesh) -> Bins:
    """The batch on the devices; each has its bins."""
    wanted = np.pad(batch.wanted, ((0, 0), (0, -batch.wanted.shape[1] % mesh.shape["model"])))
    fields = Bins(batch.tokens, batch.positions, batch.ends, wanted)
    return put_bins(fields, mesh)


@functools.lru_cache(maxsize=4)
def compiled_step(config: ModelConfig, states: tuple[str, ...], mesh: Mesh, dtype: str) -> jax.stages.Wrapped:
    """The jitted forward of one batch: the wanted rows of each kind of site, [n, B, W, width] in the sites' order."""

    def step(weights: Transformer, bins: Bins, root: Root) -> dict[str, jax.Array]:
        return forward(weights, config, bins, root, mesh=mesh, sites=states, states_dtype=DTYPES[dtype]).stacks

    return jax.jit(step, out_shardings=NamedSharding(mesh, spec("LBWD")))


def run_root(model: LanguageModel, tokens: np.ndarray, edits: Edits | None = None) -> Root:
    """Keys and values of the shared prefix, computed once; padded to a length that other prompts share.

    ``edits`` are those of every slot.
    """
    if not len(tokens):
        return no_root(model.config, DTYPES[model.dtype])
    slots = root_slots(tokens)
    copies = model.mesh.shape["data"] * model.mesh.shape["fsdp"]  # every device that shares the bins runs one
    padded = np.zeros((copies, slots), np.int32)
    padded[:, : len(tokens)] = tokens
    index = np.broadcast_to(np.arange(slots, dtype=np.int32), padded.shape)
    # A chain: the subtree of every slot reaches to the end.
    nothing = np.zeros((copies, model.mesh.shape["model"]), np.int32)
    batch = Bins(padded, index, np.full_like(padded, slots), nothing)
    batch = put_alike(batch, NamedSharding(model.mesh, spec("BT")))
    keys, values = _compiled_root(model.config, model.mesh)(model.weights, batch, edits)
    return Root(keys, values, jnp.int32(len(tokens)))


@functools.lru_cache(maxsize=4)
def _compiled_root(config: ModelConfig, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def run(weights: Transformer, bins: Bins, edits: Edits | None) -> tuple[jax.Array, jax.Array]:
        root = no_root(config, weights.dtype)
        result = forward(weights, config, bins, root, mesh=mesh, edits=edits, return_keys=True)
        return result.keys[:, 0], result.values[:, 0]

    return jax.jit(run, out_shardings=NamedSharding(mesh, spec("LRKH")))


def _check_finite(buffers: dict[str, np.ndarray], rows: np.ndarray, texts: Sequence[str] | None) -> None:
    # One sum a row finds a NaN or an infinity without a copy of the buffer's size.
    bad = [(state, np.flatnonzero(~np.isfinite(x.sum(-1, dtype=np.float32)))) for state, x in buffers.items()]
    bad = [(state, entities) for state, entities in bad if len(entities)]
    if bad:
        state, entity = bad[0][0], bad[0][1][0]
        name = "" if texts is None else f" ({texts[rows[entity]]!r})"
        raise InputError(
            f"State {state!r} of table row {rows[entity]}{name} is not finite "
            f"({sum(len(entities) for _, entities in bad)} such rows). "
            "The weights hold a NaN or an infinity, or the dtype overflows: try --dtype float32."
        )
