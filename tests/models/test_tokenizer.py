"""The tokenizer from a GGUF file: splitting as the model was trained, BOS known, unknown kinds refused."""

import re
import subprocess
import sys
import time

import gguf
import pytest

from jaxprobe.errors import InputError
from jaxprobe.models.files.source import find_model
from jaxprobe.models.load import open_model
from jaxprobe.models.tokenizer import load_tokenizer
from tests.models.test_weights import write_gguf
from tests.tiny_llama import save_llama, save_tokenizer


@pytest.fixture(scope="module")
def demo():
    return load_tokenizer(find_model("demo"))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # Single digits and GPT-2's words: SmolLM2's published tokenizer.json.
        ("Where is Paris", ["Where", "Ġis", "ĠParis"]),
        ("in 1984", ["in", "Ġ", "1", "9", "8", "4"]),
        ("90210", ["9", "0", "2", "1", "0"]),
        ("it's", ["it", "'s"]),
    ],
)
def test_demo_tokens(demo, text, tokens):
    assert demo.tokenize(text) == tokens


def test_demo_names_its_bos_and_gives_offsets(demo):
    assert (demo.bos_token, demo.bos_token_id) == ("<|im_start|>", 1)
    text = "Zürich and 서울"
    encoded = demo(text, return_offsets_mapping=True, add_special_tokens=False)
    assert encoded.offset_mapping[0][0] == 0 and encoded.offset_mapping[-1][1] == len(text)
    assert demo.decode(encoded.input_ids) == text


def test_an_unverified_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("unheard-of")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges([])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="tokenizer.ggml.pre='unheard-of'.*--tokenizer"):
        load_tokenizer(find_model(str(path)))


def test_a_gguf_file_is_parsed_once(monkeypatch):
    parsed, parse = [], gguf.GGUFReader.__init__
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda self, path: parsed.append(path) or parse(self, path))
    files = open_model("demo")
    assert parsed == [files.source.path] and files.tokenizer.bos_token_id == 1


def test_another_tokenizer_can_be_named(tmp_path):
    truth = save_llama(tmp_path)
    write_gguf(tmp_path / "tiny.gguf", truth)
    save_tokenizer(tmp_path, ["Where is Paris"])
    tokenizer = load_tokenizer(find_model(str(tmp_path / "tiny.gguf")), str(tmp_path))
    assert tokenizer.bos_token == "<s>"


def test_a_token_to_start_with(tmp_path):
    save_llama(tmp_path)
    save_tokenizer(tmp_path, ["Where is Paris"])
    assert open_model(str(tmp_path), prepend="a").tokenizer.bos_token == "a"
    with pytest.raises(InputError, match="--prepend '<eos>' is no token of the vocabulary. Special ones are <s>"):
        open_model(str(tmp_path), prepend="<eos>")


def test_a_folder_without_a_tokenizer(tmp_path):
    save_llama(tmp_path)
    with pytest.raises(InputError, match=r"No tokenizer could be read from .* \(.+\). Name one with --tokenizer"):
        load_tokenizer(find_model(str(tmp_path)))


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"model": 3}', '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_file_that_is_none(tmp_path, content):
    save_llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"(No tokenizer could be read|gives no character offsets)"):
        load_tokenizer(find_model(str(tmp_path)))


@pytest.mark.parametrize("name", ["nope", "./nope", "nope/nope/nope", "no such/name", "someone/tokenizer.json"])
def test_a_tokenizer_that_is_not_there_is_said_at_once(name):
    started = time.perf_counter()
    with pytest.raises(InputError, match=f"No tokenizer at {re.escape(name)}. Name a folder"):
        load_tokenizer(find_model("demo"), name)
    assert time.perf_counter() - started < 5


def write_sentencepiece(path, **settings):
    """A GGUF file with a sentencepiece vocabulary of a few words."""
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "P", "a", "r", "i", "s", "Pa", "ri", "ris", "Paris", "\u2581Paris"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 3 + [-float(place) for place in range(len(tokens) - 4, 0, -1)] + [0.0])
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in settings.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, ["\u2581Paris"]),
        ({"add_space_prefix": True}, ["\u2581Paris"]),
        ({"add_space_prefix": False}, ["Paris"]),
    ],
)
def test_the_space_before_a_sentencepiece_text_is_as_the_file_says(tmp_path, settings, tokens):
    write_sentencepiece(tmp_path / "pieces.gguf", **settings)
    tokenizer = load_tokenizer(find_model(str(tmp_path / "pieces.gguf")))
    assert tokenizer.tokenize("Paris") == tokens and tokenizer.bos_token_id == 1
    assert tokenizer.tokenize("Paris Paris")[1:] == ["\u2581Paris"]


def write_vocabulary(path, architecture, model, tokens, **lists):
    """A GGUF file with a vocabulary whose first four tokens are special."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    for name, value in lists.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_bos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_tokenizer(find_model(str(path)))


@pytest.mark.parametrize(
    ("architecture", "text", "tokens"),
    [
        # Gemma begins a text without a space; its merges go by the order of the pieces, whatever their scores say.
        ("gemma2", "Paris Paris", ["Paris", "\u2581Paris"]),
        ("gemma3", "Paris  Paris", ["Paris", "\u2581\u2581", "Paris"]),
        ("phi3", "Paris Paris", ["\u2581Paris", "\u2581Paris"]),
    ],
)
def test_sentencepiece_vocabularies_of_families_with_spaces_of_their_own(tmp_path, architecture, text, tokens):
    gemma = architecture.startswith("gemma")
    two = "  " if gemma else "\u2581\u2581"
    words = [two, "ri", "Pa", "ris", "Paris", "\u2581Paris", "\u2581", "P", "a", "r", "i", "s"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *words]
    scores = [0.0] * 5 + [0.0 - place for place in range(len(words) - 1)]
    space = {"add_space_prefix": False} if gemma else {}
    tokenizer = write_vocabulary(tmp_path / "pieces.gguf", architecture, "llama", pieces, token_scores=scores, **space)
    assert tokenizer.tokenize(text) == tokens and tokenizer.bos_token == "<bos>"


@pytest.mark.parametrize(
    ("split", "tokens"),
    [
        ("gpt-2", ["12345", "\u0120it", "'s"]),
        ("olmo", ["12345", "\u0120it", "'s"]),
        ("dbrx", ["123", "45", "\u0120it", "'s"]),  # at most three digits together
    ],
)
def test_byte_level_vocabularies_are_split_as_their_name_says(tmp_path, split, tokens):
    letters = [*"12345it's", "\u0120"]
    merges = ["1 2", "12 3", "123 4", "1234 5", "4 5", "i t", "\u0120 it", "' s"]
    words = list(dict.fromkeys([*letters, *(merge.replace(" ", "") for merge in merges)]))
    vocabulary = ["<|a|>", "<|b|>", "<|c|>", "<|d|>", *words]
    tokenizer = write_vocabulary(
        tmp_path / "bytes.gguf", "gpt2", "gpt2", vocabulary, tokenizer_pre=split, token_merges=merges
    )
    assert tokenizer.tokenize("12345 it's") == tokens


@pytest.mark.slow
def test_a_gguf_tokenizer_needs_no_pytorch():
    """PyTorch is there for the tests only: a user's environment has none."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from jaxprobe.models.files.source import find_model\n"
        "from jaxprobe.models.tokenizer import load_tokenizer\n"
        "assert load_tokenizer(find_model('demo')).bos_token_id == 1\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
