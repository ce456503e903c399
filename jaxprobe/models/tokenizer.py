"""The model's own tokenizer, through transformers; from a GGUF file too, without PyTorch."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxprobe.errors import InputError
from jaxprobe.host.paths import as_path, is_address
from jaxprobe.models.files.checkpoint import Checkpoint
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.source import SMALL_FILES, ModelSource, find_tokenizer

# tokenizer.ggml.pre of byte-level vocabularies whose splitting is known to be the model's own. "olmo" is split as GPT-2
# (Pythia's is called so too), "dbrx" as Llama 3. Source: llama.cpp's table of splittings.
_KNOWN_SPLITS = ("smollm", "llama-bpe", "qwen2", "gpt-2", "olmo", "dbrx")
# Architectures whose sentencepiece vocabularies transformers has a builder of their own for, spaces and all.
_OWN_PIECES = ("gemma2", "gemma3", "phi3")
_SPECIAL = ("bos", "eos", "unk", "pad")


def load_tokenizer(
    source: ModelSource, tokenizer: str | None = None, checkpoint: Checkpoint | None = None
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of ``source``, or the one that ``tokenizer`` names (a folder, an address or a hub name).

    ``checkpoint`` is that of ``source``, where it is open already.

    Raises:
      InputError: no fast tokenizer is there, or a GGUF file asks for a splitting that is not verified.
    """
    if tokenizer is None and source.is_gguf:
        checkpoint = checkpoint or open_checkpoint(source.path)
        return _from_gguf(source.path.name, getattr(checkpoint, "metadata", {}))
    place = tokenizer or str(source.path)
    try:
        with _on_this_machine(place) as folder:
            # use_fast is what gives character offsets; trust_remote_code stays off.
            loaded = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # the libraries raise whatever they come across in a file that is none
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"No tokenizer could be read from {place} ({cause}). Name one with --tokenizer.") from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise InputError(f"The tokenizer of {place} gives no character offsets. Name a fast one with --tokenizer.")
    return loaded


def start_with(tokenizer: PreTrainedTokenizerFast, token: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer with ``token`` in the place of its BOS; None leaves it as it is.

    Raises InputError for a text that is not one token of the vocabulary.
    """
    if token is not None:
        if token not in tokenizer.get_vocab():
            known = ", ".join(sorted(map(str, tokenizer.all_special_tokens))[:8]) or "none"
            raise InputError(f"--prepend {token!r} is no token of the vocabulary. Special ones are {known}.")
        tokenizer.bos_token = token
    return tokenizer


@contextmanager
def _on_this_machine(place: str) -> Iterator[str]:
    """A folder that transformers can read: the place itself, or one with an address's or a hub name's small files."""
    if not is_address(place):
        # Fetched here, not by transformers, which tries a name that is not there for the better part of a minute.
        yield place if Path(place).expanduser().exists() else str(find_tokenizer(place))
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in as_path(place).iterdir():
            if any(map(file.match, SMALL_FILES)):
                (Path(folder) / file.name).write_bytes(file.read_bytes())
        yield folder


def _from_gguf(file_name: str, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    # Not public API of transformers (AutoTokenizer's own route, and its reader, insist on PyTorch): the version is
    # bounded in pyproject.toml and tests compare the result with the model's published splitting.
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    renames = GGUF_TOKENIZER_MAPPING["tokenizer"].items()
    parts = {ours: metadata[f"tokenizer.{key}"] for key, ours in renames if f"tokenizer.{key}" in metadata}
    kind, split = parts.get("tokenizer_type"), parts.get("pre_tokenizer_type")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and split not in _KNOWN_SPLITS):
        raise InputError(
            f"{file_name} asks for tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={split!r}, whose splitting "
            f"is not verified here (verified: {', '.join(_KNOWN_SPLITS)}). Name the model's tokenizer with --tokenizer."
        )
    architecture = metadata.get("general.architecture")
    backend, _ = convert_gguf_tokenizer(architecture if architecture in _OWN_PIECES else "llama", parts)
    if kind == "llama" and architecture not in _OWN_PIECES and parts.get("add_prefix_space") is False:
        # The converter leaves the space before the text that most sentencepiece vocabularies were trained with.
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    if split == "smollm":
        # The converter leaves this kind at GPT-2's splitting; the model was trained with single digits.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokens = parts["tokens"]
    special = {f"{name}_token": tokens[parts[f"{name}_token_id"]] for name in _SPECIAL if f"{name}_token_id" in parts}
    template = metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)
