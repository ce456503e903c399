"""A world model in the letters of LeCun's definition, which two kinds of model here satisfy.

    h(t) = Enc(x(t))                              a representation of what is observed
    s(t+1) = Pred(h(t), s(t), z(t), a(t))         the next state, under an action and under what nobody observes

trained from triplets (x(t), a(t), x(t+1)) while the encoder is kept from collapsing. An autoregressive model is the
special case whose encoder is the identity, whose state is a window of past inputs, and whose predictor gives a
distribution from which z picks.

    letter  here                      language                            joint embedding
    x       a city                    its word                            its number, or noisy features of it
    a       a heading and a distance  two words                           six numbers
    h       Enc(x)                    the word itself                     a vector [D]
    s       what is known             a window of words, the last one     a vector [D]
                                      the guess of x(t+1)
    z       the wind                  picks a word of the distribution    one of a set, the one of least energy
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxprobe.worlds.earth import World


@runtime_checkable
class WorldModel(Protocol):
    """What both kinds of model can be asked. B rows at a time; arrays are NumPy's."""

    world: World

    def encode(self, x: np.ndarray) -> np.ndarray:
        """h = Enc(x) of cities x [B]."""
        ...

    def predict(self, h: np.ndarray | None, s: np.ndarray | None, z: np.ndarray | None, a: np.ndarray) -> np.ndarray:
        """s(t+1) = Pred(h, s, z, a).

        Args:
          h: Enc of what is observed; None in an open loop, where the state's own guess takes its place.
          s: the state so far; None at the start of a walk.
          z: from `draw`; None for the most likely outcome.
          a: [B] actions.
        """
        ...

    def sample(self, s: np.ndarray) -> np.ndarray:
        """[B] the cities that states s stand for."""
        ...

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray | None:
        """[count] values of z at random, all that the model takes for possible; None where it has no z."""
        ...

    def states(self, cities: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        """State -> [B, D] at cities [B] with nothing before them; default: all cities, in the table's order."""
        ...

    def arrival_states(self, city: np.ndarray, action: np.ndarray) -> Mapping[str, np.ndarray]:
        """State -> [B, D] after an action: what may hold the place where it leads."""
        ...

    def handles(self) -> tuple[str, ...]:
        """Names of the states that an edit can take hold of: ``city ...`` holds the departure, others the target."""
        ...

    def held_states(self, handle: str, city: np.ndarray, action: np.ndarray) -> np.ndarray:
        """[B, D] the state of a handle, of departures and actions [B]."""
        ...

    def chances_with(self, handle: str, x: np.ndarray, city: np.ndarray, action: np.ndarray) -> np.ndarray:
        """[B, N] chances of the cities of arrival where that state is x [B, D]."""
        ...


def predict_arrivals(model: WorldModel, city: np.ndarray, action: np.ndarray) -> np.ndarray:
    """[B] the most likely city of arrival of each departure and action."""
    return model.sample(model.predict(model.encode(city), None, None, action))


def roll_out(model: WorldModel, city: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """[B, K] cities of an open loop: only the first city is observed, then K actions [B, K] follow."""
    h, s, found = model.encode(city), None, []
    for step in range(actions.shape[1]):
        s = model.predict(h if step == 0 else None, s, None, actions[:, step])
        found.append(model.sample(s))
    return np.stack(found, 1)


def sample_arrivals(
    model: WorldModel, city: np.ndarray, action: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """[count, B] cities of arrival, each with its own z."""
    h = model.encode(city)
    draws: list[Any] = [model.predict(h, None, model.draw(rng, len(city)), action) for _ in range(count)]
    return np.stack([model.sample(s) for s in draws])
