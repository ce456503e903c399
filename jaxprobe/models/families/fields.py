"""Untrusted fields, of a config.json or GGUF metadata: taken one by one and checked, and the rest refused."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

# No model has more; a file that says so is not one, and must not make anything loop or allocate.
MOST = {"layers": 4096, "size": 2**24, "context": 2**31}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
NEEDED: Any = object()  # where a field must be there


class Fields:
    """Fields by name. Every method takes a field away and notes what is wrong with it; ``problems`` has it all.

    A value that is wrong is replaced by one that can be computed with, so that all problems are found at once.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        source: str = "config.json",
        problems: list[str] | None = None,
        *,
        start: str = "",
    ):
        """``source`` and ``start`` are for messages: where the fields are, and what their names begin with there."""
        self._left = dict(fields)
        self._start = start
        self.source = source
        self.problems: list[str] = [] if problems is None else problems

    def problem(self, text: str) -> None:
        self.problems.append(text)

    @staticmethod
    def shown(value: Any) -> str:
        """A value as a message can show it, however long."""
        return _short.repr(value)

    def left(self) -> dict[str, Any]:
        """What nobody took."""
        return dict(self._left)

    def has(self, name: str) -> bool:
        """Whether the field is there, if only as null."""
        return name in self._left

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it is; ``default`` where it is absent or null."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def integer(self, name: str, default: Any = NEEDED, *, least: int = 1, most: int = MOST["size"]) -> int:
        """A whole number. Absent or null: ``default``, or a problem where there is none."""
        value = self.take(name)
        if value is None:
            return self._absent(name, default, least)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._wrong(name, value, f"a whole number from {least} to {most} is needed")
            return least
        return value

    def number(self, name: str, default: Any = NEEDED, *, above: float = -math.inf, most: float = 1e30) -> float:
        """A finite number greater than ``above``."""
        value = self.take(name)
        if value is None:
            return self._absent(name, default, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            self._wrong(name, value, f"a number above {above:g} is needed")
            return 1.0
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """So many positive numbers."""
        value = self.take(name)
        fits = isinstance(value, list) and len(value) == count
        if not fits or any(isinstance(x, bool) or not isinstance(x, int | float) or not 0 < x < 1e30 for x in value):
            self._wrong(name, value, f"{count} positive numbers are needed")
            return (1.0,) * count
        return tuple(map(float, value))

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            self._wrong(name, value, "true or false is needed")
            return default
        return value

    def one_of(self, name: str, known: Mapping[str, Any], default: Any) -> Any:
        """What ``known`` has for the field's word; ``default`` where it is absent."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in known:
            self._wrong(name, value, f"only {' and '.join(map(repr, known))} can be run")
            return default
        return known[value]

    def mapping(self, name: str) -> dict[str, Any] | None:
        """A dictionary, or None where it is absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            self._wrong(name, value, "a dictionary is needed")
            return None
        return value

    def words(self, name: str, known: tuple[str, ...], count: int) -> list[str] | None:
        """A list of ``count`` of the known words, or None where it is absent."""
        value = self.take(name)
        if value is None:
            return None
        fits = isinstance(value, list) and len(value) == count
        if not fits or not all(isinstance(word, str) and word in known for word in value):
            self._wrong(name, value, f"{count} of {', '.join(known)} are needed")
            return None
        return value

    def only(self, name: str, *values: Any) -> None:
        """Takes a field of which only ``values`` can be run (or its absence)."""
        value = self.take(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in values):
            wanted = " or ".join(map(repr, values)) or "null"
            self._wrong(name, value, f"only {wanted} is implemented")

    def without_effect(self, names: frozenset[str] | set[str]) -> None:
        """Takes fields that change no hidden state."""
        for name in names & set(self._left):
            del self._left[name]

    def refuse_the_rest(self) -> None:
        """Every field that nobody took is a problem, unless it is null."""
        for name, value in self._left.items():
            if value is None:
                continue
            self.problem(
                f"{self.source} has {self.shown(self._start + name)[1:-1]}={_short.repr(value)}, a field that is not "
                "understood: it may change the hidden states."
            )

    def _wrong(self, name: str, value: Any, needed: str) -> None:
        self.problem(f"{self.source} has {self._start}{name}={_short.repr(value)}; {needed}.")

    def _absent(self, name: str, default: Any, stand_in: Any) -> Any:
        if default is NEEDED:
            self.problem(f"{self.source} has no {self._start + name!r}. It is not complete; fetch the model again.")
            return stand_in
        return default
