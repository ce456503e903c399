"""Tokens against an independent truth: the bytes that the tokens spell, counted without looking at offsets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from jaxprobe.data import tokens as tokens_module
from jaxprobe.data.prompt import Prompt, find_prompt
from jaxprobe.data.tokens import show_tokens, token_notes, tokenize
from jaxprobe.errors import InputError

TEXTS = ["Where is Paris", "Where is New York City", "São Paulo", "What are the lat/lon coordinates of Reykjavík"] * 20


def byte_level(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """As in GPT-2, SmolLM and Llama 3; the last step decides whether offsets include a token's leading space."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if trim_offsets:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>")


def metaspace() -> PreTrainedTokenizerFast:
    """As in Llama 2: a space is ▁, one is put before the text, and what the vocabulary lacks falls back to bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {
    "byte level": byte_level(trim_offsets=False),
    "byte level, trimmed offsets": byte_level(trim_offsets=True),
    "metaspace": metaspace(),
}
CHARACTER_OF_BYTE = {character: byte for byte, character in bytes_to_unicode().items()}


def token_bytes(kind: str, token: str) -> bytes:
    """The bytes of text that a token stands for."""
    if kind.startswith("byte level"):
        return bytes(CHARACTER_OF_BYTE[character] for character in token)
    if token.startswith("<0x"):
        return bytes([int(token[3:-1], 16)])
    return token.replace("▁", " ").encode()


def expected(kind: str, before: str, entity: str, after: str) -> tuple[list[int], bool]:
    """The ids of the shortest run of tokens that spells `before + entity`, and whether a token straddles an edge."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(before + entity + after, add_special_tokens=False)["input_ids"]
    spelled = [token_bytes(kind, token) for token in tokenizer.convert_ids_to_tokens(ids)]
    dummy = 1 if kind == "metaspace" else 0  # the space put before the text
    assert b"".join(spelled) == (b" " * dummy + (before + entity + after).encode())
    start, end = dummy + len(before.encode()), dummy + len((before + entity).encode())
    right, straddles = 0, False
    for index, piece in enumerate(spelled):
        left, right = right, right + len(piece)
        left += len(piece) - len(piece.lstrip())
        if right > start and left < start and left < right:
            straddles = True
        if right >= end:
            return ids[: index + 1], straddles or right > end
    raise AssertionError("the tokens do not reach the entity's end")


# Letters, accents, two- to four-byte characters, digits and punctuation; no characters that the two kinds reserve.
WORDS = st.text("aeistPRYéãß中🗺09'.,()-", min_size=1, max_size=6)
ENTITIES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
AROUND = st.sampled_from(["", "Where is ", "(", "a\n", "  ", "The place called "])
AFTER = st.sampled_from(["", "?", "s", "'s", " is in", ")\n"])


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(list(TOKENIZERS)), texts=st.lists(ENTITIES, min_size=1, max_size=5), before=AROUND, after=AFTER
)
def test_the_entitys_last_token(kind, texts, before, after):
    tokenizer = TOKENIZERS[kind]
    result = tokenize(tokenizer, texts, before + "{}" + after)
    wanted = [expected(kind, before, text, after) for text in texts]
    assert result.ids.dtype == np.int32 and result.starts.dtype == np.int64
    assert result.starts[0] == 0 and result.starts[-1] == len(result.ids)
    for row, (ids, _) in enumerate(wanted):
        assert result.ids[result.starts[row] : result.starts[row + 1]].tolist() == [tokenizer.bos_token_id, *ids]
    assert result.straddling.tolist() == [row for row, (_, straddles) in enumerate(wanted) if straddles]


def test_chunks_make_no_difference(monkeypatch):
    texts = [f"place {n}" for n in range(50)]
    whole = tokenize(TOKENIZERS["byte level"], texts, "Where is {}?")
    monkeypatch.setattr(tokens_module, "CHUNK_ROWS", 7)
    parts = tokenize(TOKENIZERS["byte level"], texts, "Where is {}?")
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_array_equal(whole.starts, parts.starts)


def test_padding_and_truncation_left_in_the_tokenizer_are_not_applied():
    tokenizer = byte_level(trim_offsets=False)
    plain = tokenize(tokenizer, ["a", "São Paulo and beyond"])
    tokenizer.backend_tokenizer.enable_padding(length=64, pad_id=1, pad_token="<pad>", direction="left")
    tokenizer.backend_tokenizer.enable_truncation(2)
    np.testing.assert_array_equal(tokenize(tokenizer, ["a", "São Paulo and beyond"]).ids, plain.ids)


def test_a_leading_space_does_not_straddle_and_a_bracket_does():
    tokenizer = TOKENIZERS["byte level"]
    assert "ĠParis" in tokenizer.get_vocab()
    assert tokenize(tokenizer, ["Paris"], "Where is {}").straddling.tolist() == []
    within = tokenize(tokenizer, ["aris", "Lyon"], "Where is P{}")
    assert within.straddling.tolist() == [0]
    assert token_notes(tokenizer, within)[1].endswith("row 0: <s> | Where | Ġis | ĠParis")


def test_shown_tokens_start_with_bos_and_stop_at_the_entity():
    tokenizer = TOKENIZERS["metaspace"]
    result = tokenize(tokenizer, ["Paris"], "Where is {} ?")
    assert show_tokens(tokenizer, result) == ["row 0: <s> | ▁Where | ▁is | ▁Paris"]
    assert len(token_notes(tokenizer, result)) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", ["Paris</s>", "<s>Paris", "New <pad>York", "</s>", "<s>", "Paris<|im_end|>"])
def test_a_special_token_in_a_name_is_read_as_text(kind, name):
    tokenizer = TOKENIZERS[kind]
    added = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    with_more = PreTrainedTokenizerFast(tokenizer_object=added, bos_token="<s>", eos_token="</s>")
    with_more.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<pad>"]})
    result = tokenize(with_more, ["Paris", name], "Where is {}")
    ids = result.ids[result.starts[1] :].tolist()
    # Only BOS is special, and what the rest spells is the prompt and the name.
    assert ids[0] == with_more.bos_token_id and not set(ids[1:]) & set(with_more.all_special_ids)
    spelled = b"".join(token_bytes(kind, token) for token in with_more.convert_ids_to_tokens(ids[1:]))
    assert spelled.decode().strip() == f"Where is {name}"
    assert result.plain.tolist() == [1]
    assert any("read as text: 1, e.g. row 1: <s> | " in note for note in token_notes(with_more, result))
    # As before for everyone else who asks.
    assert with_more.encode("</s>", add_special_tokens=False) == [with_more.eos_token_id]


def test_a_prompts_special_tokens_stay_special():
    tokenizer = byte_level(trim_offsets=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    user, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    result = tokenize(tokenizer, ["Paris", "Lyon"], "<|user|>Where is {}<|end|>")
    first = result.ids[: result.starts[1]].tolist()
    assert first == [tokenizer.bos_token_id, user, *tokenizer.encode("Where is Paris", add_special_tokens=False)]
    assert end not in result.ids and result.plain.size == 0 and len(token_notes(tokenizer, result)) == 1
    message = r"special token of the tokenizer in 1 row \(row 1 'Ly<\|end\|>on'\), and the prompt has <\|user\|>:"
    with pytest.raises(InputError, match=message):
        tokenize(tokenizer, ["Paris", "Ly<|end|>on"], "<|user|>Where is {}")


def test_random_prefix():
    tokenizer = TOKENIZERS["metaspace"]
    texts = ["Paris", "São Paulo", "Reykjavík"]
    prompt = Prompt("random", random_tokens=10)
    plain = tokenize(tokenizer, texts)

    def rows(result):
        return [result.ids[a:b].tolist() for a, b in zip(result.starts[:-1], result.starts[1:], strict=True)]

    shared = rows(tokenize(tokenizer, texts, prompt))
    assert rows(tokenize(tokenizer, texts, prompt)) == shared
    assert rows(tokenize(tokenizer, texts, prompt, seed=1)) != shared
    # One prefix for all rows, whatever rows there are; BOS before it and the name's own tokens after it.
    assert {tuple(row[1:11]) for row in shared} == {tuple(rows(tokenize(tokenizer, texts[2:], prompt))[0][1:11])}
    assert [[row[0], *row[11:]] for row in shared] == rows(plain)
    per_row = find_prompt("cities", "random_per_row")
    each = rows(tokenize(tokenizer, texts, per_row))
    assert len({tuple(row[1:11]) for row in each}) == 3
    assert [[row[0], *row[11:]] for row in each] == rows(plain)
    many = tokenize(tokenizer, ["Paris"] * 2000, per_row)
    drawn = set(many.ids.reshape(2000, -1)[:, 1:11].ravel().tolist())
    special = {*tokenizer.added_tokens_decoder}
    assert special and not drawn & special
    assert drawn == set(range(len(tokenizer))) - special


def test_limit_counts_bos_and_prefix():
    tokenizer = TOKENIZERS["byte level"]
    length = len(tokenize(tokenizer, ["abc"]).ids)
    assert len(tokenize(tokenizer, ["abc"], max_length=length).ids) == length
    with pytest.raises(InputError, match=rf"than the context of {length - 1} tokens: 1 row .row 0 'abc'"):
        tokenize(tokenizer, ["abc"], max_length=length - 1)
    prompt = Prompt("random", random_tokens=10)
    assert len(tokenize(tokenizer, ["abc"], prompt, max_length=length + 10).ids) == length + 10
    with pytest.raises(InputError, match="the longest has"):
        tokenize(tokenizer, ["abc"], prompt, max_length=length + 9)


def test_bad_entities():
    tokenizer = TOKENIZERS["byte level"]
    with pytest.raises(InputError, match=r"Empty entities: 4 rows \(row 1, row 2, row 4, \.\.\.\)"):
        tokenize(tokenizer, ["a", "", "  ", "b", "\n", "\t "])
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Replace("x", "")
    dropping = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    with pytest.raises(InputError) as raised:
        tokenize(dropping, ["a", "xxx", "a long name"], "Where is {}", max_length=10)
    assert len(raised.value.problems) == 2
    assert "Entities without tokens: 1 row (row 1 'xxx')" in raised.value.problems[0]
    assert "row 2 'a long name'" in raised.value.problems[1]


def test_bos():
    tokenizer = byte_level(trim_offsets=False)
    with pytest.raises(InputError, match="starts with BOS"):
        tokenize(tokenizer, ["a"], "<s>Where is {}")


def test_without_bos_a_text_starts_with_its_own_token_and_a_note_says_so():
    tokenizer = byte_level(trim_offsets=False)
    with_bos = tokenize(tokenizer, ["a", "b c"])
    tokenizer.bos_token = None
    without = tokenize(tokenizer, ["a", "b c"])
    assert without.bos_id is None and len(without.ids) == len(with_bos.ids) - 2
    assert without.ids[without.starts[1] :].tolist() == with_bos.ids[with_bos.starts[1] + 1 :].tolist()
    (note,) = token_notes(tokenizer, without)
    assert "has no BOS" in note and "--prepend" in note


def test_what_ends_a_prompt_is_named():
    tokenizer = byte_level(trim_offsets=False)
    with pytest.raises(InputError, match="than an attention window of 3 tokens"):
        tokenize(tokenizer, ["a long name"], max_length=3, longest_because="an attention window")


def test_no_entities():
    result = tokenize(TOKENIZERS["byte level"], [], max_length=5)
    assert len(result.ids) == 0 and result.starts.tolist() == [0]
