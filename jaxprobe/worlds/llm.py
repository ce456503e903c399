"""A language model of the world: our own Llama reads walks as words, and is trained to say the next city.

The encoder is the identity and the state a window of words; actions are words that are given, not predicted. Its
forward is the one that reads real checkpoints, and `write_checkpoint` makes a folder of it that every command opens.

Letters as in mesh.py.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from safetensors.numpy import save
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, replacing
from jaxprobe.mesh import make_mesh
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.known import family_of, parameters, read_config
from jaxprobe.models.transformer import (
    Bins,
    Transformer,
    abstract_weights,
    forward,
    logits,
    no_root,
    random_weights,
    run_blocks,
)
from jaxprobe.worlds.earth import SEPARATOR, START, World
from jaxprobe.worlds.training import Objective

MOVES = 3  # of a walk: a text is <s> city heading distance city heading distance city heading distance city ? label
HEAD_WIDTH, MLP_FACTOR = 32, 3
ROWS = 320
RATE, DECAY = 5e-3, 0.1

UNKNOWN = "<unk>"

Weights = dict[str, Any]


@dataclass(frozen=True)
class LanguageSettings:
    """Sizes of a language model: width D, a multiple of HEAD_WIDTH or smaller, and L blocks."""

    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if self.width < 2 or self.layers < 1 or self.width % min(self.width, HEAD_WIDTH):
            raise InputError(
                f"Width {self.width} with {self.layers} blocks is no model. Take 16, 32, 64, ...; 1 or more."
            )


def config_fields(vocabulary: int, settings: LanguageSettings) -> dict[str, Any]:
    """The config.json of a model of this world."""
    head = min(settings.width, HEAD_WIDTH)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": settings.width,
        "intermediate_size": MLP_FACTOR * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.width // head,
        "num_key_value_heads": 1,
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    }


def make_config(world: World, settings: LanguageSettings) -> ModelConfig:
    """The model's sizes, with its output head."""
    return replace(read_config(config_fields(len(world.words), settings)), head=True)


def objective(world: World, settings: LanguageSettings, seed: int, mesh: Mesh) -> Objective:
    """What the loop needs to train a language model; it keeps each step's loss and share of right cities."""
    config = make_config(world, settings)
    build = _builder(config, mesh)
    init = nnx.to_pure_dict(nnx.state(random_weights(config, mesh, jnp.float32, seed)))
    # After each distance comes a city, and after the question mark the label.
    asked = np.array([*range(3, 3 * MOVES + 1, 3), 3 * MOVES + 2], np.int32)

    def batches(rng: np.random.Generator, rows: int) -> np.ndarray:
        return world.story(*world.walks(rng, rows, MOVES))

    def loss(weights, words, key):
        scores = word_scores(build(weights), config, words[:, :-1], asked, mesh)
        wanted = words[:, asked + 1]
        error = optax.softmax_cross_entropy_with_integer_labels(scores, wanted).mean()
        right = (scores.argmax(-1) == wanted)[:, :-1].mean(dtype=jnp.float32)
        return error, jnp.stack([error, right])

    kinds = {name: parameter.kind == "matrix" for name, parameter in parameters(config).items()}
    decayed = jax.tree.map_with_path(lambda path, _: kinds[path[-1].key], init)
    return Objective(init, batches, loss, ROWS, RATE, DECAY, decayed)


def word_scores(
    weights: Transformer, config: ModelConfig, words: Int[Array, "B T"], slots: np.ndarray, mesh: Mesh
) -> Float[Array, "B W V"]:
    """Log-odds of the word after each of these slots."""
    bins = make_bins(words, slots)
    last = (str(config.layers - 1),)
    run = forward(weights, config, bins, no_root(config, jnp.float32), mesh=mesh, sites=last)
    return logits(weights, config, run.states(last)[last[0]], mesh=mesh)


def make_bins(words: Int[Array, "B T"], slots: np.ndarray) -> Bins:
    """One text a bin; states are wanted at these slots."""
    count, length = words.shape
    at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (count, length))
    wanted = jnp.broadcast_to(jnp.asarray(slots, jnp.int32), (count, len(slots)))
    return Bins(words, at, jnp.full_like(at, length), wanted)


class WorldLanguageModel:
    """A trained model of this kind, as a `WorldModel`."""

    def __init__(self, world: World, settings: LanguageSettings, weights: Weights):
        self.world, self.settings, self.weights = world, settings, weights
        self.config = make_config(world, settings)
        self._programs = _programs(self.config)
        self._model = self._programs.build(jax.tree.map(jnp.asarray, weights))

    def encode(self, x):
        """h: the word itself, [B]."""
        return np.asarray(x, np.int32)

    def predict(self, h, s, z, a):
        """s' [B, T]: the window of words, the last one a guess of the next city, until an observed h takes its place.

        ``z`` [B] in [0, 1) picks from the distribution over cities; None picks the likeliest.
        """
        window = h[:, None] if s is None else s if h is None else np.concatenate([s[:, :-1], h[:, None]], 1)
        window = window[:, -(3 * (MOVES - 1) + 1) :]  # no longer than the walks of the training
        action = np.stack([self.world.heading_word(a), self.world.distance_word(a)], 1)
        chances = self.chances(self.scores(self.world.text(window, action)))
        guess = chances.argmax(1) if z is None else (chances.cumsum(1) > z[:, None]).argmax(1)
        return np.concatenate([window, action, guess[:, None]], 1).astype(np.int32)

    def sample(self, s):
        """[B] the guessed cities."""
        return s[:, -1]

    def draw(self, rng, count):
        """[count] numbers in [0, 1)."""
        return rng.random(count)

    def scores(self, words: np.ndarray) -> Float[np.ndarray, "B V"]:
        """Log-odds of the word after texts [B, T]."""
        return np.asarray(self._programs.scores(self._model, jnp.asarray(words)))

    def chances(self, scores: np.ndarray) -> Float[np.ndarray, "B N"]:
        """Probabilities of the cities, among cities."""
        scores = scores[:, : len(self.world)].astype(np.float64)
        chances = np.exp(scores - scores.max(1, keepdims=True))
        return chances / chances.sum(1, keepdims=True)

    def states_of(self, words: np.ndarray) -> dict[str, Float[np.ndarray, "B T D"]]:
        """Every state at every word of texts [B, T]."""
        found = self._programs.states(self._model, jnp.asarray(words))
        return {state: np.asarray(found[state]) for state in self.config.states()}

    def scores_from(self, x: Float[np.ndarray, "B T D"], words: np.ndarray, first: int) -> Float[np.ndarray, "B V"]:
        """Log-odds of the word after texts, from the stream before block ``first``, which may have been edited."""
        return np.asarray(
            self._programs.scores_from(self._model, jnp.asarray(x, jnp.float32), jnp.asarray(words), jnp.int32(first))
        )

    def states(self, cities=None) -> Mapping[str, np.ndarray]:
        """Every state at the city's word, with nothing before it."""
        cities = np.arange(len(self.world)) if cities is None else cities
        return {state: values[:, 1] for state, values in self.states_of(self.world.text(cities)).items()}

    def handles(self) -> tuple[str, ...]:
        """States that may matter for the city of arrival: at the city's word up to the last block but one, then at the
        distance's, where the answer is given."""
        blocks = range(self.config.layers)
        return ("city embed", *(f"city {layer}" for layer in blocks[:-1]), *(f"distance {layer}" for layer in blocks))

    def held_states(self, handle, city, action):
        """[B, D] the state of a handle."""
        slot, state = _parse(handle)
        return self.states_of(self.world.prompt(city, action))[state][:, slot]

    def chances_with(self, handle, x, city, action):
        """[B, N] chances of the cities of arrival where the state of a handle is x [B, D]."""
        slot, state = _parse(handle)
        words = self.world.prompt(city, action)
        stream = self.states_of(words)[state].copy()
        stream[:, slot] = x
        return self.chances(self.scores_from(stream, words, 0 if state == "embed" else int(state) + 1))

    def arrival_states(self, city, action) -> Mapping[str, np.ndarray]:
        """``distance 0`` and so on: the stream after each block at the distance's word, after which comes the city."""
        found = self.states_of(self.world.prompt(city, action))
        return {f"distance {layer}": found[str(layer)][:, 3] for layer in range(self.config.layers)}


def _builder(config: ModelConfig, mesh: Mesh) -> Callable[[Weights], Transformer]:
    """Weights by name -> the model, also while a program is traced."""
    graph, abstract = abstract_weights(config, mesh, jnp.float32)
    names = [path for path, _ in nnx.to_flat_state(abstract)]

    def build(weights: Weights) -> Transformer:
        found = [(path, functools.reduce(dict.__getitem__, path, weights)) for path in names]
        return nnx.merge(graph, nnx.from_flat_state([(path, nnx.Param(value)) for path, value in found]))

    return build


def _parse(handle: str) -> tuple[int, str]:
    """Slot of a prompt <s> city heading distance, and the state."""
    word, state = handle.split()
    return {"city": 1, "distance": 3}[word], state


class _Programs(NamedTuple):
    """What all checkpoints of one model share."""

    build: Callable[[Weights], Transformer]
    states: Callable  # (model, words [B T]) -> state -> [B T D]
    scores: Callable  # (model, words) -> [B V] of the word after the last
    scores_from: Callable  # (model, x [B T D], words, first) -> the same, from the stream before block ``first``


@functools.cache
def _programs(config: ModelConfig) -> _Programs:
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    root, sites = no_root(config, jnp.float32), config.states()

    def states(model, words):
        bins = make_bins(words, np.arange(words.shape[1]))
        return forward(model, config, bins, root, mesh=mesh, sites=sites).states(sites)

    def scores(model, words):
        return word_scores(model, config, words, np.array([words.shape[1] - 1]), mesh)[:, 0]

    def scores_from(model, x, words, first):
        bins = make_bins(words, np.array([words.shape[1] - 1]))
        stream = run_blocks(model, config, x, bins, root, mesh=mesh, first=first).stream
        return logits(model, config, stream[:, -1], mesh=mesh)

    return _Programs(_builder(config, mesh), *map(nnx.jit, (states, scores, scores_from)))


# ---- As a checkpoint --------------------------------------------------------------------------------------------


def write_checkpoint(world: World, fields: dict[str, Any], weights: Weights, folder: AnyPath) -> None:
    """A Hugging Face folder: config.json, model.safetensors and a tokenizer with a token for each word.

    Args:
      fields: of config.json.
      weights: by our names, the output head among them.
    """
    config = replace(read_config(fields), head=True)
    family, flat = family_of(config), dict(weights["blocks"]) | {k: v for k, v in weights.items() if k != "blocks"}
    tensors = {}
    for name, place in family.tensors(config).items():
        axes, values = parameters(config)[name].axes, np.asarray(flat[name], np.float32)
        for layer, part in enumerate(values if axes[0] == "L" else values[None]):
            letters = axes.removeprefix("L")
            ordered = part.transpose([letters.index(letter) for letter in "".join(place.dims)])
            shape = [np.prod([config.sizes()[letter] for letter in dim], dtype=int) for dim in place.dims]
            tensor = family.HEADS[0] if name == "head" else family.PREFIXES[0] + place.name.format(layer)
            tensors[tensor] = np.ascontiguousarray(ordered.reshape(shape))
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    # A name that the world does not have becomes a word that the model does not have, which is refused.
    vocabulary = {word: number for number, word in enumerate((*world.words, UNKNOWN))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SEPARATOR), "removed")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, unk_token=UNKNOWN).save_pretrained(folder)


def write_codes(world: World, codes: Float[np.ndarray, "N D"], folder: AnyPath) -> None:
    """Codes of the cities as a checkpoint, so that whatever opens a model opens an encoder too.

    Its embedding is the codes (zeros for words that are no city); its one block is empty and adds nothing.
    """
    words, width = len(world.words), codes.shape[1]
    fields = config_fields(words, LanguageSettings()) | {
        "hidden_size": width,
        "intermediate_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 2,
        "tie_word_embeddings": True,
    }
    config = read_config(fields)
    weights: Weights = {"blocks": {}}
    for name, parameter in parameters(config).items():
        shape = tuple(config.sizes()[letter] for letter in parameter.axes)
        values = np.ones(shape, np.float32) if parameter.kind == "gain" else np.zeros(shape, np.float32)
        (weights["blocks"] if parameter.in_block else weights)[name] = values
    weights["embedding"][: len(codes)] = codes
    write_checkpoint(world, fields, weights, folder)
