"""A joint-embedding world model: it predicts codes of places, not places, and nothing but its terms against collapse
keeps the codes apart.

    h = Enc(x)                     a vector a place, or a network on noisy features of it
    s' = Pred(s, z, a) = s + MLP([s, a, z])
    loss = mean over k of ||s(t+k) - h(t+k)||^2, s rolled out in an open loop from h(t), + weight x term(h)

No target network, no stopped gradient. Under wind z is one of a set, and the loss takes the one of least energy.
Letters: N city, B row, D width, K steps of the roll, Z values of z.
Source: LeCun (2022), "A Path Towards Autonomous Machine Intelligence", section 4; the losses' in collapse.py.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxprobe.errors import InputError
from jaxprobe.worlds import collapse
from jaxprobe.worlds.earth import World
from jaxprobe.worlds.training import Objective

ROLL = 3  # K, steps of the open loop in training
HIDDEN = 256
FEATURES, NOISE = 128, 0.3  # numbers a city, and the deviation of what is added to each at every visit
ROWS = 512
RATE, DECAY = 3e-3, 1e-4
REGULARISERS = {"vicreg": 1.0, "sigreg": 0.0005, "none": 0.0}  # with the weights at which they are used
ENCODERS = ("vector", "features")

Weights = dict[str, Any]


@dataclass(frozen=True)
class JointEmbeddingSettings:
    """What a joint-embedding model is made of.

    Attributes:
      width: D.
      encoder: "vector" (a free vector a city) or "features" (a network on noisy numbers).
      regulariser: "vicreg", "sigreg" or "none".
      weight: of the regulariser; None takes the one in REGULARISERS.
    """

    width: int = 32
    encoder: str = "vector"
    regulariser: str = "vicreg"
    weight: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("encoder", ENCODERS), ("regulariser", tuple(REGULARISERS))):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"There is no {name} {value!r}. Take one of {', '.join(known)}.")


def initial_weights(world: World, settings: JointEmbeddingSettings, seed: int) -> Weights:
    """Random weights of Enc and Pred, float32."""
    keys = jax.random.split(jax.random.key(seed), 3)
    width, inputs = settings.width, world.action_features().shape[1] + winds(world)
    encoder: Weights
    if settings.encoder == "vector":
        encoder = {"table": 0.1 * jax.random.normal(keys[0], (len(world), width))}
    else:
        encoder = {"layers": _layers(keys[0], (FEATURES, HIDDEN, HIDDEN, width))}
    return {"encoder": encoder, "predictor": {"layers": _layers(keys[1], (width + inputs, HIDDEN, HIDDEN, width))}}


def winds(world: World) -> int:
    """Z: values of z, one for each wind; 0 where none blows."""
    return world.arrival.shape[2] if world.settings.wind_km else 0


def features(world: World) -> Float[np.ndarray, "N features"]:
    """Fixed random numbers of each city: all that the encoder "features" sees of it, less the noise."""
    return np.random.default_rng([world.settings.seed, FEATURES]).standard_normal((len(world), FEATURES), np.float32)


def enc(weights: Weights, seen: Float[np.ndarray, "N features"], x: Int[Array, "*B"], key: Array | None = None):
    """h = Enc(x): [*B, D] codes of cities x; with a key the features are noisy."""
    encoder = weights["encoder"]
    if "table" in encoder:
        return encoder["table"][x]
    observed = jnp.asarray(seen)[x]
    if key is not None:
        observed = observed + NOISE * jax.random.normal(key, observed.shape)
    return _network(encoder["layers"], observed)


def pred(weights: Weights, s: Float[Array, "*B D"], z: Float[Array, "*B Z"], a: Float[Array, "*B features"]):
    """s' = Pred(s, z, a): [*B, D]."""
    return s + _network(weights["predictor"]["layers"], jnp.concatenate([s, a, z], axis=-1))


def objective(world: World, settings: JointEmbeddingSettings, seed: int) -> Objective:
    """What the loop needs to train a joint-embedding model; it keeps each step's prediction error and term."""
    actions, seen = jnp.asarray(world.action_features()), features(world)
    weight = REGULARISERS[settings.regulariser] if settings.weight is None else settings.weight
    every_z = jnp.eye(winds(world)) if winds(world) else jnp.zeros((1, 0))

    def batches(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return world.walks(rng, rows, ROLL)

    def loss(weights, batch, key):
        cities, taken = batch
        noise, slices = jax.random.split(key)
        h = enc(weights, seen, cities, noise)
        s, error = h[:, 0], jnp.float32(0)
        for step in range(ROLL):
            outcomes = jax.vmap(
                lambda z, s=s, a=actions[taken[:, step]]: pred(weights, s, jnp.broadcast_to(z, (len(s), z.size)), a)
            )(every_z)
            energies = jnp.square(outcomes - h[None, :, step + 1]).mean(-1)
            least = energies.argmin(0)  # of [Z, B]: the z that explains best what was seen
            s = jnp.take_along_axis(outcomes, least[None, :, None], axis=0)[0]
            error += energies.min(0).mean() / ROLL
        codes = h.reshape(-1, h.shape[-1])
        terms = {
            "vicreg": lambda: collapse.vicreg(codes),
            "sigreg": lambda: collapse.sigreg(h[:, 0], slices),
            "none": lambda: collapse.none(codes),
        }
        term = terms[settings.regulariser]()
        return error + weight * term, jnp.stack([error, term])

    init = initial_weights(world, settings, seed)
    return Objective(init, batches, loss, ROWS, RATE, DECAY, jax.tree.map(lambda leaf: leaf.ndim > 1, init))


_enc, _pred = jax.jit(enc), jax.jit(pred)


class JointEmbedding:
    """A trained model of this kind, as a `WorldModel`."""

    def __init__(self, world: World, weights: Weights):
        self.world, self.weights = world, weights
        self._features, self._actions = features(world), world.action_features()
        self._codes = self.encode(np.arange(len(world)))

    def encode(self, x: np.ndarray) -> np.ndarray:
        """h = Enc(x), [B, D]; features without noise."""
        return np.asarray(_enc(self.weights, self._features, jnp.asarray(x)))

    def predict(self, h, s, z, a) -> np.ndarray:
        """s' [B, D]; without a z the mean over all of them."""
        s, count = s if h is None else h, winds(self.world)
        choose = lambda z: jax.nn.one_hot(jnp.full(len(s), z) if np.isscalar(z) else jnp.asarray(z), count)
        step = lambda z: np.asarray(_pred(self.weights, jnp.asarray(s), choose(z), self._actions[a]))
        return np.mean([step(value) for value in range(max(count, 1))], axis=0) if z is None else step(z)

    def sample(self, s) -> np.ndarray:
        """[B] the cities whose codes are nearest."""
        return (np.square(self._codes).sum(1) - 2 * s @ self._codes.T).argmin(1)

    def draw(self, rng, count):
        """[count] values of z."""
        return rng.integers(winds(self.world), size=count) if winds(self.world) else None

    def states(self, cities=None) -> Mapping[str, np.ndarray]:
        """``embed``: h."""
        return {"embed": self._codes if cities is None else self.encode(cities)}

    def handles(self) -> tuple[str, ...]:
        """The one state there is."""
        return ("city h",)

    def held_states(self, handle, city, action):
        """[B, D] h."""
        return self.encode(city)

    def chances_with(self, handle, x, city, action):
        """[B, N]: 1 at the city whose code is nearest to Pred of h = x [B, D]."""
        return np.eye(len(self.world))[self.sample(self.predict(np.asarray(x, np.float32), None, None, action))]

    def arrival_states(self, city, action) -> Mapping[str, np.ndarray]:
        """``predicted``: s'."""
        return {"predicted": self.predict(self.encode(city), None, None, action)}


def _layers(key: Array, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
    """Dense layers: normal weights of deviation 1 / sqrt(inputs), no bias."""
    pairs = list(itertools.pairwise(sizes))
    return [
        {"weight": jax.random.normal(part, pair) / np.float32(np.sqrt(pair[0])), "bias": jnp.zeros(pair[1])}
        for part, pair in zip(jax.random.split(key, len(pairs)), pairs, strict=True)
    ]


def _network(layers: list[dict[str, Array]], x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
    for number, layer in enumerate(layers):
        x = jnp.matmul(x, layer["weight"]) + jnp.expand_dims(layer["bias"], tuple(range(x.ndim - 1)))
        x = jax.nn.gelu(x) if number < len(layers) - 1 else x
    return x
