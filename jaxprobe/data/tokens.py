"""From names to token ids: which tokens the model reads, and which of them are the entity's."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxprobe.data.columns import in_rows
from jaxprobe.data.prompt import EMPTY, Prompt, find_prompt
from jaxprobe.errors import InputError
from jaxprobe.settings import Position

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

# Rows that are tokenised at a time: bounds the memory of the offsets (Python tuples), and is enough to fill all cores.
CHUNK_ROWS = 16_384


class Tokens(NamedTuple):
    """The token ids of N entities, each ending at the last token whose state is kept.

    Attributes:
      ids: [total] int32, one entity after the other; each starts with BOS, where the tokenizer has one.
      starts: [N+1] int64; entity i is ``ids[starts[i]:starts[i + 1]]``.
      straddling: [*] int64, the entities with a token that also covers text outside of the entity
        (a token's leading space does not count).
      bos_id: the id that every entity starts with; None where the tokenizer has no BOS.
      plain: [*] int64, the entities that spell a special token, of which the model reads the letters.
      spans: [N] int64, how many tokens at the end of each entity have a state that is kept.
      position: which ones these are.
    """

    ids: np.ndarray
    starts: np.ndarray
    straddling: np.ndarray
    bos_id: int | None
    plain: np.ndarray
    spans: np.ndarray
    position: Position = "last"


def tokenize(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    prompt: Prompt | str = "empty",
    *,
    max_length: int | None = None,
    longest_because: str = "the context",
    vocabulary: int | None = None,
    seed: int = 0,
    position: Position = "last",
) -> Tokens:
    """Token ids of each entity inside its prompt, up to the entity's last token, or to its first.

    The whole string is tokenised once and the entity's tokens are found by character offsets, because the tokens of
    the parts are not the parts of the tokens. Text after the entity shapes its tokens but is not run. BOS is prepended
    here where the tokenizer has one: without it a one-token name sits at position 0, where the massive activations
    are, and `token_notes` says so. A name is data: one that spells a special token ("Paris</s>") is read as the
    letters that it has, and a prompt's own special tokens stay what they are.

    Args:
      tokenizer: any fast tokenizer; its BOS, where it has one, starts every entity.
      texts: N entities.
      prompt: a Prompt, one of the common names, or a template with ``{}`` once.
      max_length: the most tokens that the model is exact for, BOS included; None for no limit.
      longest_because: what ends there, for the message: "the context", "an attention window".
      vocabulary: how many ids the model has, of which the random ones are drawn; None for all of the tokenizer's.
      seed: of the random ids, where the prompt asks for them.
      position: the entity's tokens whose states are kept: its last, its first, the mean of all, or each of all. They
        are those from the first that covers a character of it to the last that does.

    Raises:
      InputError: a prompt that brings its own BOS; entities that are empty, have no tokens, or are longer
        than `max_length`; a token that the model does not have; special tokens in entities and in their prompt.
    """
    prompt = find_prompt("", prompt) if isinstance(prompt, str) else prompt
    texts = prompt.spell(texts)
    special = _special_tokens(tokenizer)
    plain = [row for row, text in enumerate(texts) if special.search(text)]
    _check_input(tokenizer, texts, prompt, plain)
    count = len(tokenizer) if vocabulary is None else min(vocabulary, len(tokenizer))
    prefix = _random_ids(tokenizer, count, (len(texts) if prompt.prefix_per_row else 1, prompt.random_tokens), seed)
    before, after = prompt.template.split("{}")
    # Padding and truncation may be left from the file or an earlier call; transformers sets both at each of its own.
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    bos_id = tokenizer.bos_token_id
    bos = [] if bos_id is None or prompt.said is not None else [bos_id]
    ids, lengths, spans = array("i"), [], []
    straddling, without_tokens = [], []
    for first in range(0, len(texts), CHUNK_ROWS):
        chunk = [before + text + after for text in texts[first : first + CHUNK_ROWS]]
        backend.encode_special_tokens = not special.search(prompt.template)  # as text
        try:
            encodings = backend.encode_batch(chunk, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = False
        for row, (string, encoding) in enumerate(zip(chunk, encodings, strict=True), start=first):
            begin, stop, straddles = _entity_span(string, encoding.offsets, len(before), len(string) - len(after))
            if straddles:
                straddling.append(row)
            if not stop:
                without_tokens.append(row)
            if position == "first":
                stop = begin + 1
            entity_ids = [*bos, *prefix[row % len(prefix)], *encoding.ids[:stop]]
            ids.extend(entity_ids)
            lengths.append(len(entity_ids))
            spans.append(stop - begin if position in ("mean", "all") else 1)
    _check_lengths(texts, np.array(lengths), without_tokens, max_length, longest_because)
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if vocabulary is not None and max(ids) >= vocabulary:  # an embedding would be looked up at its last row, silently
        raise InputError(
            f"Token {max(ids)} of the tokenizer (it has {len(tokenizer):,}) is not one of the model's {vocabulary:,}. "
            "Name the model's own tokenizer with --tokenizer."
        )
    rows = [np.array(some, np.int64) for some in (straddling, plain)]
    spanned = np.array(spans, np.int64)
    if prompt.said is not None and list(ids[:1]) != [bos_id]:
        bos_id = None
    return Tokens(np.array(ids, np.int32), starts, rows[0], bos_id, rows[1], spanned, position)


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> re.Pattern:
    """Finds what a text spells of the special tokens, such as "</s>"."""
    spelled = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    spelled |= set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(spelled - {""}, key=len, reverse=True))) or r"(?!)")


def _entity_span(string: str, offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int, bool]:
    """The first token that covers a character of string[start:end], one past the last (0: none does), and whether a
    token of the entity also covers a character outside. Goes backwards: what follows the entity is short or absent."""
    begin, stop, straddles = 0, 0, False
    for index in range(len(offsets) - 1, -1, -1):
        left, right = offsets[index]
        if right <= start:
            break
        while left < right and string[left].isspace():
            left += 1
        if left < min(right, end):
            begin, stop = index, stop or index + 1
            straddles |= left < start or right > end
    return begin, stop, straddles


def _random_ids(
    tokenizer: PreTrainedTokenizerFast, vocabulary: int, shape: tuple[int, int], seed: int
) -> list[list[int]]:
    """Seeded ids of ordinary tokens below ``vocabulary``."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = np.array([token_id for token_id in range(vocabulary) if token_id not in special])
    return np.random.default_rng(seed).choice(ordinary, shape).tolist()


def _check_input(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], prompt: Prompt, plain: Sequence[int]
) -> None:
    problems = []
    has_own = prompt.said is not None  # a chat template's BOS is the one that is read
    if tokenizer.bos_token_id is not None and not has_own and prompt.template.startswith(tokenizer.bos_token):
        problems.append(
            f"Prompt {prompt.template!r} starts with BOS ({tokenizer.bos_token}), which is always prepended. "
            "Take it out of the prompt."
        )
    if plain and (own := _special_tokens(tokenizer).findall(prompt.template)):
        problems.append(
            f"Entities spell a special token of the tokenizer in {in_rows(plain, texts)}, and the prompt "
            f"has {', '.join(dict.fromkeys(own))}: all of them are taken as special or none. Leave these rows out."
        )
    if empty := [row for row, text in enumerate(texts) if not text.strip()]:
        problems.append(f"Empty entities: {in_rows(empty)}. Leave these rows out.")
    if problems:
        raise InputError(*problems)


def _check_lengths(
    texts: Sequence[str],
    lengths: np.ndarray,
    without_tokens: Sequence[int],
    max_length: int | None,
    longest_because: str,
) -> None:
    problems = []
    if without_tokens:
        problems.append(
            f"Entities without tokens: {in_rows(without_tokens, texts)}. "
            "The tokenizer drops their characters; leave these rows out."
        )
    if max_length is not None and (too_long := np.flatnonzero(lengths > max_length)).size:
        problems.append(
            f"Entities longer, with their prompt, than {longest_because} of {max_length:,} tokens: "
            f"{in_rows(too_long, texts)}; the longest has {lengths.max():,}. Shorten them, or leave them out."
        )
    if problems:
        raise InputError(*problems)


def show_tokens(tokenizer: PreTrainedTokenizerFast, tokens: Tokens, rows: Sequence[int] = range(5)) -> list[str]:
    """One line a row: its tokens as the vocabulary spells them, BOS first, the last one that is read last; several that
    are read stand in brackets."""
    lines = []
    for row in rows:
        if row < len(tokens.starts) - 1:
            ids = tokens.ids[tokens.starts[row] : tokens.starts[row + 1]]
            spelled = tokenizer.convert_ids_to_tokens(ids.tolist())
            if tokens.spans[row] > 1:
                spelled[-tokens.spans[row]] = f"[{spelled[-tokens.spans[row]]}"
                spelled[-1] += "]"
            lines.append(f"row {row}: " + " | ".join(spelled))
    return lines


# What is said of the entity's tokens that are read, where it is not the last.
_POSITIONS = {
    "first": "The state is read at each name's first token, of which the model knows nothing that follows.",
    "mean": "States are means over each name's tokens, {:.1f} on average.",
    "all": "States are read at each of a name's tokens, {:.1f} on average.",
}


def token_notes(tokenizer: PreTrainedTokenizerFast, tokens: Tokens, prompt: Prompt = EMPTY) -> list[str]:
    """What the user should know: where states are read; BOS, or the text of a chat template; and entities with special
    tokens or tokens across their edge, with an example."""
    notes = [f"BOS {tokenizer.bos_token} (id {tokens.bos_id}) is prepended to every entity."]
    if tokens.bos_id is None:
        notes = [
            "The tokenizer has no BOS: the first token of a text stands at position 0, where models keep massive "
            "activations. Prepend a token with --prepend, such as the one that ends a text."
        ]
    if prompt.said is not None:
        notes = [f"By the tokenizer's chat template the model reads {prompt.template!r}, the name being in {{}}."]
    if tokens.position != "last":
        notes.append(_POSITIONS[tokens.position].format(tokens.spans.mean()))
    if tokens.plain.size:
        notes.append(
            f"Entities that spell a special token, which is read as text: {tokens.plain.size:,}, e.g. "
            + show_tokens(tokenizer, tokens, tokens.plain[:1].tolist())[0]
        )
    if tokens.straddling.size:
        notes.append(
            f"Entities with a token that also covers text outside of the entity: {tokens.straddling.size:,}, e.g. "
            + show_tokens(tokenizer, tokens, tokens.straddling[:1].tolist())[0]
        )
    return notes
