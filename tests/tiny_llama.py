"""Tiny Llamas, saved by transformers itself, with a byte-level tokenizer, and when states are the same."""

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from jaxprobe.models.families.known import read_config

# Two threads that wait for each other in every small product are many times slower on a busy machine.
torch.set_num_threads(1)

# Of a float32 forward against one in float64: rounding is about 1e-6 over a few blocks.
ROW_NORM = 1e-5
# A few dimensions are up to 1e4 times larger and would hide the rest: each is held to its own spread as well.
PER_DIMENSION = 1e-3

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large enough for attention to differ between positions
}


def llama_config(
    *, layers=3, width=64, kv_heads=4, queries_per_kv=2, head_width=8, mlp_width=128, vocabulary=96, context=256
):
    """A Llama's configuration, by the alphabet's letters."""
    return read_config({
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": kv_heads * queries_per_kv,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "intermediate_size": mlp_width,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
    })  # fmt: skip


def save_llama(
    folder, *, heads=8, kv_heads=4, tied=False, rope=None, vocabulary=96, dtype=torch.float32, sizes=None, **save
):
    """Writes a random model's folder and returns the model as it reads back from there, in float32."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES | (sizes or {}),
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # gains start at one, and two of them that are exchanged would pass
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, **save)
    return reference(folder)


def reference(folder, dtype=torch.float32):
    """Read back from the file: a cast of the module would round its rotary frequencies too."""
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def save_tokenizer(folder, texts):
    """A byte-level tokenizer with BOS, trained on ``texts``; returns its vocabulary's size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_model(folder, texts, **llama):
    """A tiny Llama with a tokenizer trained on ``texts``; its vocabulary divides over eight devices."""
    vocabulary = save_tokenizer(folder, texts)
    return save_llama(folder, vocabulary=-(-vocabulary // 8) * 8, **llama)


def row_errors(found, expected):
    """State -> the norm of each row's difference over the norm of the row [N]."""
    norm = lambda rows: np.linalg.norm(rows.astype(np.float64), axis=1)
    return {state: norm(found[state] - expected[state]) / norm(expected[state]) for state in expected}


def assert_same_states(found, expected):
    assert list(found) == list(expected)
    for state, error in row_errors(found, expected).items():
        assert error.max() <= ROW_NORM, (state, error.max())
        spread = expected[state].std(0)
        moving = spread > 0
        error = np.abs(found[state] - expected[state]).max(0)
        assert (error[moving] <= PER_DIMENSION * spread[moving]).all(), state
