"""The demo model's own tokenizer on the paper's tables, against counts made by another program."""

import os

import numpy as np
import pytest

from jaxprobe.data.catalog import load_table
from jaxprobe.data.prompt import find_prompt
from jaxprobe.data.tokens import show_tokens, tokenize
from jaxprobe.models.files.source import find_model
from jaxprobe.models.tokenizer import load_tokenizer

DATA = os.environ.get("JAXPROBE_DATA")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_model("demo"))


def test_shown_tokens(tokenizer):
    tokens = tokenize(tokenizer, ["New York", "Reykjavik"], "Where is {} on the map?")
    first, second = show_tokens(tokenizer, tokens)
    assert first == "row 0: <|im_start|> | Where | Ġis | ĠNew | ĠYork"
    assert second.replace(" | ", "") == "row 1: <|im_start|>WhereĠisĠReykjavik"


def test_special_tokens_in_names_as_transformers_splits_them(tokenizer):
    names = ["Paris<|im_end|>", "<|im_start|>Paris", "<|endoftext|>"]
    tokens = tokenize(tokenizer, names, "Where is {}")
    for row, name in enumerate(names):
        expected = tokenizer("Where is " + name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokens.ids[tokens.starts[row] : tokens.starts[row + 1]].tolist() == [tokens.bos_id, *expected]


@pytest.mark.data
@pytest.mark.parametrize(
    ("table", "prompt", "padded", "distinct"),
    [
        ("world_place", "empty", 512_875, 127_279),
        ("world_place", "coords", 818_386, 127_092),
        # One distinct prefix less than counted there: "Milford city " ends in a space, which is no part of a name here.
        ("us_place", "coords", 476_759, 51_955 - 1),
        ("art", "release", 913_323, 162_498),
    ],
)
def test_forward_tokens(tokenizer, table, prompt, padded, distinct):
    """Tokens to run for a table, padded in batches of 128 rows in file order, and one for each distinct prefix."""
    texts = load_table(table, data_dir=DATA).texts
    tokens = tokenize(tokenizer, texts, find_prompt(table, prompt))
    lengths = np.diff(tokens.starts)
    batches = [lengths[first : first + 128] for first in range(0, len(lengths), 128)]
    assert sum(len(batch) * batch.max() for batch in batches) == padded
    prefixes = set()
    for start, stop in zip(tokens.starts[:-1], tokens.starts[1:], strict=True):
        row = tokens.ids[start:stop].tobytes()
        prefixes.update(row[:end] for end in range(4, len(row) + 1, 4))
    assert len(prefixes) == distinct
    assert tokens.straddling.size == 0
