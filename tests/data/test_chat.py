"""Prompts in chat templates: the tokens are those of transformers' own apply_chat_template."""

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxprobe.data.chat import wrap_in_chat
from jaxprobe.data.prompt import find_prompt
from jaxprobe.data.tokens import token_notes, tokenize
from jaxprobe.errors import InputError

NAMES = ["New York", "Oslo", "São Paulo", "Åre", "{x}", "it's [INST]"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
# As published ones are built: with BOS by its name, without BOS, with a system message, and trimming what is said.
TEMPLATES = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "instruct": "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}",
    "trimmed": "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
}
PROMPTS = ["empty", "empty_all_caps", "Where is {}", "Where is {}? Be brief. "]


def make_tokenizer(kind: str, template):
    """Byte-level, or with the space before a text that sentencepiece's have; trained on the prompts."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="</s>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace()
        alphabet = sorted(set("".join(NAMES).upper() + "".join(NAMES) + "".join(TEMPLATES.values()) + "Where is?\n▁"))
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Where is New York?", "user assistant model", "INST"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.fixture(scope="module")
def tokenizers():
    return {
        (kind, name): make_tokenizer(kind, text) for kind in ("bytes", "pieces") for name, text in TEMPLATES.items()
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers(tokenizers, name):
    for kind in ("bytes", "pieces"):
        tokenizer = tokenizers[kind, name]
        for named in PROMPTS[1:] if kind == "bytes" else PROMPTS[3:]:
            prompt = find_prompt("", named)
            wrapped = wrap_in_chat(tokenizer, prompt)
            tokens = tokenize(tokenizer, NAMES, wrapped)
            for row, text in enumerate(prompt.spell(NAMES)):
                chat = [{"role": "user", "content": prompt.template.replace("{}", text)}]
                both = [
                    tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=more)["input_ids"]
                    for more in (False, True)
                ]
                ours = tokens.ids[tokens.starts[row] : tokens.starts[row + 1]].tolist()
                for theirs in both:
                    assert theirs[: len(ours)] == ours
                # The last one is the name's: what comes before it does not spell the name whole.
                rendered = tokenizer.apply_chat_template(chat, tokenize=False)
                end = rendered.index(text) + len(text)
                offsets = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
                assert offsets[len(ours) - 1][0] < end <= offsets[len(ours) - 1][1]
            assert (tokens.bos_id is None) == (name == "chatml")
            assert np.sum(tokens.ids[tokens.starts[0] : tokens.starts[1]] == tokenizer.bos_token_id) == (
                name != "chatml"
            )


def test_the_exact_text_is_in_the_notes(tokenizers):
    tokenizer = tokenizers["bytes", "chatml"]
    wrapped = wrap_in_chat(tokenizer, find_prompt("", "Where is {}"))
    assert wrapped.template == "<|im_start|>user\nWhere is {}<|im_end|>\n<|im_start|>assistant\n"
    assert wrapped.wording == "Where is {} (in a chat)" and wrapped.name == "Where is {}, chat"
    (note,) = token_notes(tokenizer, tokenize(tokenizer, NAMES, wrapped), wrapped)
    assert repr(wrapped.template) in note


def test_a_template_may_trim_a_prompt_but_not_a_name(tokenizers):
    tokenizer, prompt = tokenizers["bytes", "trimmed"], find_prompt("", "empty")
    with pytest.raises(InputError, match="trims white space around ' Oslo'"):
        wrap_in_chat(tokenizer, prompt, ["Paris", " Oslo"])
    wrap_in_chat(tokenizer, find_prompt("", "Where is {}?"), ["Paris", " Oslo"])  # trimmed neither here ...
    wrap_in_chat(tokenizers["bytes", "chatml"], prompt, ["Paris", " Oslo "])  # ... nor here


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template .* Leave --chat out"),
        ({"tool_use": "x", "rag": "y"}, "no default"),
        ("nothing of it", "wanted is a text with it once"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "wanted is a text with it once"),
        ("{} {{ messages[0]['content'] }}", "no {} besides"),
        ("{{ raise_exception('no user here') }}", "no user here"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ 'x' * 200000 }}{{ messages[0]['content'] }}", "more than 100,000 letters"),
        ("{{ 'x' * 9000000000 }}", "more than 2 GiB"),
        ("x" * 1_000_001, "wanted 1,000,000 at most"),
    ],
)
def test_templates_that_cannot_be_used(tokenizers, template, words):
    tokenizer = tokenizers["bytes", "chatml"]
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        with pytest.raises(InputError, match=words):
            wrap_in_chat(tokenizer, find_prompt("", "empty"))
    finally:
        tokenizer.chat_template = before


def test_a_template_that_never_ends_is_ended(tokenizers, monkeypatch):
    monkeypatch.setattr("jaxprobe.data.chat._SECONDS", 3)
    tokenizer = tokenizers["bytes", "instruct"]
    before = tokenizer.chat_template
    tokenizer.chat_template = "{{ 10 ** (10 ** 10) }}"
    try:
        with pytest.raises(InputError, match="not done after"):
            wrap_in_chat(tokenizer, find_prompt("", "empty"))
    finally:
        tokenizer.chat_template = before


def test_random_tokens_have_no_place_in_a_chat(tokenizers):
    with pytest.raises(InputError, match="random tokens"):
        wrap_in_chat(tokenizers["bytes", "chatml"], find_prompt("cities", "random"))
