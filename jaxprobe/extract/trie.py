"""Token sequences -> packed bins in which each distinct prefix is computed once. NumPy only.

In a causal model the state at a token depends only on the tokens before it, so sequences that begin alike
share those states. The sequences are sorted; the longest prefix common to all is the root; the rest is walked
in depth-first order and laid into bins of T slots. Where a bin is full, the next one repeats the ancestors.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# T: one bin. On the paper's tables 128 slots give 1.02-1.08 slots for each distinct prefix, 64 give 1.06-1.17.
SLOTS = 128
SHARD_ENTITIES = 4096  # bins close at a shard's edge, so that its content does not depend on where a run started


class Batch(NamedTuple):
    """B bins of T slots for one step of the forward, and which rows of the shard its states belong to.

    Slot s is an ancestor-or-self of slot t when ``s <= t < ends[s]``; an unused slot sees only itself.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    ends: Int[np.ndarray, "B T"]
    wanted: Int[np.ndarray, "B W"]  # slots whose states are returned; unused entries are 0
    entities: Int[np.ndarray, " S"]  # rows of the shard, in order; one that stands several times is to be the mean
    bins: Int[np.ndarray, " S"]  # for each of these states, its bin ...
    columns: Int[np.ndarray, " S"]  # ... and its column of ``wanted``


class Shard(NamedTuple):
    """A fixed range of entities in sorted-token order."""

    rows: Int[np.ndarray, " E"]  # their rows in the table, or where every token is read those of their tokens
    batches: tuple[Batch, ...]


class Plan(NamedTuple):
    """Everything that the forward will run for one table and prompt."""

    root: Int[np.ndarray, " R"]  # tokens that every sequence begins with
    shards: tuple[Shard, ...]
    distinct_prefixes: int  # tokens that any scheme must compute, the root's included
    slots: int  # slots that will be computed: prefixes, repeated ancestors, padding, root


class _Sorted(NamedTuple):
    """Sequences in sorted order; equal ones share an entry."""

    ids: np.ndarray  # all tokens, concatenated
    begin: np.ndarray  # [U] where each distinct sequence begins in ``ids``
    length: np.ndarray  # [U]
    shared: np.ndarray  # [U] tokens that it has in common with the one before


def plan_bins(
    ids: Int[np.ndarray, " total"],
    starts: Int[np.ndarray, " Eplus1"],
    *,
    bins: int,
    multiple: int = 1,
    even: bool = False,
    spans: Int[np.ndarray, " E"] | None = None,
    mean: bool = False,
    slots: int = SLOTS,
    shard_entities: int = SHARD_ENTITIES,
) -> Plan:
    """Plans the bins for entities whose tokens are ``ids[starts[i]:starts[i + 1]]``.

    Args:
      bins: B of ordinary bins, for each step; of longer bins there are fewer, so that a step has about as many slots.
      multiple: B divides by this; ``bins`` has to.
      even: whether B may be less than ``bins``, so that the steps of a shard are about full.
      spans: how many of each entity's last tokens are read; default: one.
      mean: whether these are averaged, for a row an entity. Without it each has a row of its own, those of entity i
        being ``sum(spans[:i])`` and so on.
      slots: T of an ordinary bin; a longer sequence takes a bin of the next power of two times T.
      shard_entities: entities a shard.
    """
    lengths = np.diff(starts)
    spans = np.ones_like(lengths) if spans is None else spans
    if len(lengths) == 0 or spans.min() < 1 or (lengths < spans).any():
        raise ValueError("every entity needs at least one token, and no more can be read than it has")
    first_rows = np.cumsum(spans) - spans
    order = _sorted_order(ids, starts)
    shared = _shared_prefix(ids, starts[:-1][order], lengths[order])
    # What is read needs a slot after the root.
    root_length = int(min(shared[1:].min(initial=lengths[order[0]]), (lengths - spans).min()))
    width = 8
    shards, used = [], root_length
    for first in range(0, len(order), shard_entities):
        rows = order[first : first + shard_entities]
        shard_shared = shared[first : first + shard_entities].copy()
        shard_shared[0] = 0
        new = (shard_shared < lengths[rows]) | (np.r_[0, lengths[rows][:-1]] != lengths[rows])
        sequences = _Sorted(ids, starts[:-1][rows[new]], lengths[rows[new]], shard_shared[new])
        filled = _fill_bins(sequences, root_length, slots)
        read = _find_read(sequences, filled, np.cumsum(new) - 1, spans[rows])
        if not mean:
            rows = first_rows[rows[read.entity]] + read.token
            read = read._replace(entity=np.arange(len(rows)))
        shards.append((rows, read, sequences, filled))
        width = max(width, int(np.bincount(read.bin[read.new]).max()))
    width = -(-width // 8) * 8
    if even:
        bins = _bins_that_fill(max(len(shard[3].capacity) for shard in shards), bins, multiple)
    size = lambda capacity: np.maximum(multiple, bins * slots // capacity // multiple * multiple)
    planned = tuple(_lay_out(*shard, root_length, size(shard[3].capacity), width) for shard in shards)
    used += sum(batch.tokens.size for shard in planned for batch in shard.batches)
    new_tokens = lengths[order] - np.maximum(np.r_[0, shared[1:]], root_length)
    return Plan(ids[starts[order[0]] :][:root_length], planned, root_length + int(new_tokens.sum()), used)


def _bins_that_fill(needed: int, bins: int, multiple: int) -> int:
    """B of steps that share ``needed`` bins evenly: a slice of many chips has room for several shards in one step."""
    steps = -(-needed // bins)
    each = -(-needed // steps)
    return -(-each // multiple) * multiple


def _sorted_order(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    # Big-endian bytes compare as the token sequences do, a prefix before what it begins.
    raw, edges = ids.astype(">u4").tobytes(), (4 * starts).tolist()
    keys = [raw[a:b] for a, b in itertools.pairwise(edges)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _shared_prefix(ids: np.ndarray, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """For each sequence, the number of tokens in common with the one before it; 0 for the first."""
    shared = np.zeros(len(begin), np.int64)
    limit = np.minimum(length[1:], length[:-1])
    same = np.arange(len(limit))  # pairs that agree so far
    depth = 0
    while len(same):
        same = same[limit[same] > depth]
        same = same[ids[begin[same] + depth] == ids[begin[same + 1] + depth]]
        shared[same + 1] += 1
        depth += 1
    return shared


class _Filled(NamedTuple):
    """For each distinct sequence: its bin and the depth from which its tokens get slots; for each bin: its T."""

    bin: np.ndarray  # [U]
    depth: np.ndarray  # [U]
    capacity: np.ndarray  # [bins]


def _fill_bins(sequences: _Sorted, root_length: int, slots: int) -> _Filled:
    """Puts sequences into bins in order; a bin closes when the next sequence's new tokens do not fit."""
    bins, depths = [], []
    capacities: list[int] = []
    room = 0
    for length, shared in zip(sequences.length.tolist(), sequences.shared.tolist(), strict=True):
        depth = shared if shared > root_length else root_length
        if length - depth > room or not capacities:
            depth = root_length
            capacity = slots
            while capacity < length - depth:
                capacity *= 2
            capacities.append(capacity)
            room = capacity
        room -= length - depth
        bins.append(len(capacities) - 1)
        depths.append(depth)
    return _Filled(np.array(bins), np.array(depths), np.array(capacities))


class _Read(NamedTuple):
    """The S states of a shard that are kept, in the order of its entities."""

    entity: np.ndarray  # [S]
    token: np.ndarray  # [S] which one of the entity's, counted from the first that is read
    bin: np.ndarray  # [S]
    slot: np.ndarray  # [S]
    column: np.ndarray  # [S] a bin's slots that are read, counted; several entities may read one
    new: np.ndarray  # [columns of all bins] a state of each


def _find_read(sequences: _Sorted, filled: _Filled, distinct: np.ndarray, spans: np.ndarray) -> _Read:
    """Where the states of a shard's entities are computed.

    Args:
      distinct: [E] each entity's sequence.
      spans: [E] how many of its last tokens are read.
    """
    count = sequences.length - filled.depth  # new slots of each sequence
    before = np.cumsum(count) - count
    begin = before - before[np.searchsorted(filled.bin, filled.bin)]  # the first of them, in its bin
    entity = np.repeat(np.arange(len(spans)), spans)
    token = np.arange(len(entity)) - np.repeat(np.cumsum(spans) - spans, spans)
    slot = (begin + count - 1)[distinct][entity]  # of the last token
    if len(slot) > len(spans):
        path = np.zeros(int(sequences.length.max()), np.int64)  # the slot at each depth of the sequence that is walked
        parts, walked = [], -1
        lengths = sequences.length[distinct]
        for sequence, length, span in zip(distinct.tolist(), lengths.tolist(), spans.tolist(), strict=True):
            while walked < sequence:
                walked += 1
                depth = filled.depth[walked]
                path[depth : sequences.length[walked]] = begin[walked] + np.arange(count[walked])
            parts.append(path[length - span : length].copy())
        slot = np.concatenate(parts)
    bin_ = filled.bin[distinct][entity]
    widest = int(filled.capacity.max())
    keys, new, place = np.unique(bin_ * widest + slot, return_index=True, return_inverse=True)
    column = place - np.searchsorted(keys, bin_ * widest)
    return _Read(entity, token, bin_, slot, column, new)


def _lay_out(
    rows: np.ndarray,
    read: _Read,
    sequences: _Sorted,
    filled: _Filled,
    root_length: int,
    size: np.ndarray,
    width: int,
) -> Shard:
    """Writes one shard's bins into arrays, those of one T together; a T's last batch is padded with empty bins.

    Args:
      size: [bins] B of the batch that each bin goes to.
    """
    batch_of_bin, place_in_batch = _into_batches(filled.capacity, size)
    count_batches = int(batch_of_bin.max()) + 1

    count = sequences.length - filled.depth  # new slots of each sequence
    sequence = np.repeat(np.arange(len(count)), count)
    offset = np.arange(len(sequence)) - np.repeat(np.cumsum(count) - count, count)
    depth = filled.depth[sequence] + offset
    token = sequences.ids[sequences.begin[sequence] + depth]
    slot_bin = filled.bin[sequence]
    bin_begin = np.searchsorted(slot_bin, slot_bin)
    slot = np.arange(len(sequence)) - bin_begin
    end = _subtree_ends(depth) - bin_begin

    by_batch = lambda bins: _members(batch_of_bin[bins], count_batches)
    first = [int(members[0]) for members in by_batch(np.arange(len(batch_of_bin)))]  # a bin of each batch
    batches = []
    for bin_, inside, states in zip(first, by_batch(slot_bin), by_batch(read.bin), strict=True):
        shape = (int(size[bin_]), int(filled.capacity[bin_]))
        at = (place_in_batch[slot_bin[inside]], slot[inside])
        tokens, positions = np.zeros(shape, np.int32), np.full(shape, root_length, np.int32)
        ends = np.tile(np.arange(1, shape[1] + 1, dtype=np.int32), (shape[0], 1))
        tokens[at], positions[at], ends[at] = token[inside], depth[inside], end[inside]
        wanted = np.zeros((shape[0], width), np.int32)
        bins = place_in_batch[read.bin[states]]
        wanted[bins, read.column[states]] = read.slot[states]
        batches.append(
            Batch(
                tokens=tokens,
                positions=positions,
                ends=ends,
                wanted=wanted,
                entities=read.entity[states],
                bins=bins,
                columns=read.column[states],
            )
        )
    return Shard(rows, tuple(batches))


def _into_batches(capacity: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each bin, its batch and its place there: bins of one T follow each other, ``size`` of them to a batch."""
    order = np.argsort(capacity, kind="stable")
    position = np.arange(len(order))
    change = np.r_[True, np.diff(capacity[order]) != 0]
    run_start = np.maximum.accumulate(np.where(change, position, 0))
    opens = (position - run_start) % size[order] == 0
    batch, place = np.empty_like(position), np.empty_like(position)
    batch[order] = np.cumsum(opens) - 1
    place[order] = position - np.flatnonzero(opens)[batch[order]]
    return batch, place


def _members(batch: np.ndarray, count: int) -> list[np.ndarray]:
    """For each of ``count`` batches, the indices that are of it, in order."""
    order = np.argsort(batch, kind="stable")
    return np.split(order, np.searchsorted(batch[order], np.arange(1, count)))


def _subtree_ends(depth: Int[np.ndarray, " slots"]) -> Int[np.ndarray, " slots"]:
    """For each slot of the shard, the next one that is not below it: the first later one of its depth or less.

    A bin's first slot has the least depth there is, so no subtree reaches into the next bin.
    """
    depth = np.append(depth, -1)
    ends = np.arange(1, len(depth))
    below = np.arange(len(ends))
    while len(below := below[depth[ends[below]] > depth[below]]):
        # The slot found so far lies in the subtree, so the subtree reaches at least to where that one's ends.
        ends[below] = ends[ends[below]]
    return ends


def with_one_width(plans: Sequence[Plan]) -> list[Plan]:
    """The plans with the widest one's columns of ``wanted``, so that one compiled program runs them all."""
    width = max(batch.wanted.shape[1] for plan in plans for shard in plan.shards for batch in shard.batches)

    def widen(batch: Batch) -> Batch:
        return batch._replace(wanted=np.pad(batch.wanted, ((0, 0), (0, width - batch.wanted.shape[1]))))

    def widen_shard(shard: Shard) -> Shard:
        return shard._replace(batches=tuple(map(widen, shard.batches)))

    return [plan._replace(shards=tuple(map(widen_shard, plan.shards))) for plan in plans]


def batch_shapes(plan: Plan) -> Sequence[tuple[int, int]]:
    """The distinct (B, T) that the forward will be compiled for."""
    return sorted({batch.tokens.shape for shard in plan.shards for batch in shard.batches})
