"""The plan against brute force: every sequence comes back from its slots, and each prefix is computed once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprobe.extract.trie import plan_bins

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def ragged(sequences):
    ids = np.array([token for sequence in sequences for token in sequence], np.int32)
    return ids, np.cumsum([0, *map(len, sequences)])


def bin_paths(plan, batch, row):
    """Each used slot's tokens from the root on, found by the visibility rule alone. Unused slots hold token 0."""
    index = np.arange(batch.tokens.shape[1])
    found = []
    for slot in index[batch.tokens[row] > 0]:
        visible = (index <= slot) & (slot < batch.ends[row])
        length = len(plan.root) + visible.sum()
        np.testing.assert_array_equal(batch.positions[row][visible], np.arange(len(plan.root), length))
        found.append((*plan.root.tolist(), *batch.tokens[row][visible].tolist()))
    return found


def check(sequences, plan):
    """Every entity's wanted slot holds its sequence; a prefix stands once, but for ancestors repeated in a new bin."""
    seen = np.zeros(len(sequences), int)
    for shard in plan.shards:
        computed = []  # paths that are not repeated at the head of their bin
        for batch in shard.batches:
            bins = [bin_paths(plan, batch, row) for row in range(len(batch.tokens))]
            for row, bin_, column in zip(shard.rows[batch.entities], batch.bins, batch.columns, strict=True):
                assert bins[bin_][batch.wanted[bin_, column]] == tuple(sequences[row])
                seen[row] += 1
            for paths in bins:
                assert len(set(paths)) == len(paths)
                # Ancestors come first, each below the one before it; what is no ancestor of the next is new.
                chain = itertools.takewhile(lambda pair: pair[1][:-1] == pair[0], itertools.pairwise(paths))
                ancestors = [short for short, _ in chain]
                computed += paths[len(ancestors) :]
        assert len(set(computed)) == len(computed)
    assert (seen == 1).all()


@given(
    st.lists(tokens, min_size=1, max_size=40),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(1, 3),
    st.integers(1, 50),
)
def test_every_sequence_comes_back(names, template, slots, bins, shard_entities):
    sequences = [[7, *(token + 1 for token in template), *(token + 1 for token in name)] for name in names]
    plan = plan_bins(*ragged(sequences), bins=bins, slots=slots, shard_entities=shard_entities)
    check(sequences, plan)
    prefixes = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    assert plan.distinct_prefixes == len(prefixes)


@given(st.lists(tokens, min_size=1, max_size=40))
def test_one_large_bin_holds_each_prefix_once(names):
    sequences = [[7, *(token + 1 for token in name)] for name in names]
    plan = plan_bins(*ragged(sequences), bins=1, slots=1024)
    (batch,) = plan.shards[0].batches
    computed = bin_paths(plan, batch, 0)
    prefixes = {tuple(s[:n]) for s in sequences for n in range(len(plan.root) + 1, len(s) + 1)}
    assert len(computed) == len(set(computed)) and set(computed) == prefixes


def check_read(sequences, spans, plan, mean):
    """Every token that is read is found at its own prefix, in the row that it is to have."""
    row_of, entity_of = {}, {}
    for entity, (sequence, span) in enumerate(zip(sequences, spans, strict=True)):
        for token in range(span):
            row = entity if mean else len(row_of)
            row_of[entity, token] = row
            entity_of.setdefault(row, []).append(tuple(sequence[: len(sequence) - span + 1 + token]))
    found = {row: [] for row in entity_of}
    for shard in plan.shards:
        for batch in shard.batches:
            bins = [bin_paths(plan, batch, row) for row in range(len(batch.tokens))]
            assert (np.diff(batch.entities) >= 0).all()
            for row, bin_, column in zip(shard.rows[batch.entities], batch.bins, batch.columns, strict=True):
                found[row].append(bins[bin_][batch.wanted[bin_, column]])
            for row, columns in enumerate(batch.wanted):  # a state that several entities read is fetched once
                used = columns[np.unique(batch.columns[batch.bins == row])]
                assert len(set(used)) == len(used)
    assert found == entity_of


@given(
    st.lists(st.tuples(tokens, st.integers(1, 9)), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_token_of_a_span_comes_back(names, template, slots, shard_entities, mean):
    sequences = [[token + 1 for token in (*template, *name)] for name, _ in names]
    spans = np.array([min(span, len(name)) for name, span in names])
    plan = plan_bins(*ragged(sequences), bins=2, slots=slots, shard_entities=shard_entities, spans=spans, mean=mean)
    check_read(sequences, spans, plan, mean)
    prefixes = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    assert plan.distinct_prefixes == len(prefixes)


def test_a_path_longer_than_a_bin_takes_a_longer_bin():
    sequences = [[1, 2], [1, *range(3, 103)], [1, 2, 5]]
    plan = plan_bins(*ragged(sequences), bins=2, slots=16)
    check(sequences, plan)
    assert {batch.tokens.shape for batch in plan.shards[0].batches} == {(2, 16), (1, 128)}


def test_a_few_long_names_cost_a_few_slots():
    rng = np.random.default_rng(3)
    sequences = [[1, *rng.integers(1, 500, rng.integers(1, 6))] for _ in range(2000)]
    short = plan_bins(*ragged(sequences), bins=16, slots=16)
    long = [[1, *rng.integers(1, 500, 40)] for _ in range(20)]
    plan = plan_bins(*ragged(sequences + long), bins=16, slots=16)
    check(sequences + long, plan)
    assert {batch.tokens.shape for batch in plan.shards[0].batches} == {(16, 16), (4, 64)}
    # 20 bins of 64, and what is left empty of the two last batches.
    assert plan.slots <= short.slots + 20 * 64 + 16 * 16


def test_bins_of_every_length_divide():
    sequences = [[1, *range(2, 2 + length)] for length in (3, 30, 100, 200)]
    plan = plan_bins(*ragged(sequences), bins=8, multiple=4, slots=16)
    assert {len(batch.tokens) for batch in plan.shards[0].batches} <= {4, 8}


def test_the_root_is_the_longest_common_prefix_and_leaves_every_entity_a_slot():
    plan = plan_bins(*ragged([[1, 5, 6, 7], [1, 5, 6, 8]]), bins=1)
    assert plan.root.tolist() == [1, 5, 6]
    plan = plan_bins(*ragged([[1, 5, 6], [1, 5, 6, 8]]), bins=1)
    assert plan.root.tolist() == [1, 5]
    plan = plan_bins(*ragged([[1, 5]] * 3), bins=1)
    assert plan.root.tolist() == [1]
    assert plan.shards[0].batches[0].entities.tolist() == [0, 1, 2]


def test_repeated_ancestors_and_padding_stay_few_on_a_thousand_names():
    rng = np.random.default_rng(0)
    sequences = [[1, *rng.integers(1, 30, rng.integers(2, 8))] for _ in range(1000)]
    plan = plan_bins(*ragged(sequences), bins=4)
    assert plan.slots / plan.distinct_prefixes < 1.2


def test_a_shard_does_not_depend_on_the_others():
    rng = np.random.default_rng(1)
    sequences = [[1, *rng.integers(1, 9, rng.integers(1, 6))] for _ in range(60)]
    plan = plan_bins(*ragged(sequences), bins=2, slots=16, shard_entities=20)
    rows = plan.shards[1].rows
    alone = plan_bins(*ragged([sequences[row] for row in rows]), bins=2, slots=16)
    if len(alone.root) == len(plan.root):
        for mine, other in zip(plan.shards[1].batches, alone.shards[0].batches, strict=True):
            np.testing.assert_array_equal(mine.tokens, other.tokens)
    assert sorted(np.concatenate([shard.rows for shard in plan.shards])) == list(range(60))


@pytest.mark.parametrize("sequences", [[], [[1, 2], []]])
def test_entities_without_a_token_are_refused(sequences):
    with pytest.raises(ValueError, match="at least one token"):
        plan_bins(*ragged(sequences), bins=1)


@pytest.mark.parametrize(("bins", "multiple"), [(64, 8), (64, 1), (7, 7), (24, 8)])
def test_steps_share_a_shards_bins_evenly(bins, multiple):
    rng = np.random.default_rng(2)
    sequences = [[1, *rng.integers(1, 9, rng.integers(1, 6))] for _ in range(400)]
    whole = plan_bins(*ragged(sequences), bins=bins, slots=16, shard_entities=150)
    even = plan_bins(*ragged(sequences), bins=bins, multiple=multiple, even=True, slots=16, shard_entities=150)
    check(sequences, even)
    rows = {len(batch.tokens) for shard in even.shards for batch in shard.batches}
    assert len(rows) == 1 and max(rows) <= bins and max(rows) % multiple == 0
    # No more steps than with all bins, and no more slots.
    assert [len(shard.batches) for shard in even.shards] == [len(shard.batches) for shard in whole.shards]
    assert even.slots <= whole.slots
