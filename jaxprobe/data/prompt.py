"""Prompts: the text around a name, by the paper's own names or as a template of one's own."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxprobe.errors import InputError


class Prompt(NamedTuple):
    """How an entity is put before the model.

    Attributes:
      name: what results call it; for a template of one's own, the template.
      template: the text, with ``{}`` once, where the entity goes.
      spelling: the entity as it is, in capitals, or without its last character where that is a full stop.
      random_tokens: how many random token ids stand between BOS and the text (ids, not text: see tokens.py).
      prefix_per_row: these are drawn anew for every row, as the paper did, instead of once for all rows, which then
        share their computation.
      said: of a prompt in a chat template (see chat.py), what is put into it; its ``template`` is then the whole text,
        with the BOS that it is to have.
    """

    name: str
    template: str = "{}"
    spelling: Literal["as_is", "all_caps", "no_full_stop"] = "as_is"
    random_tokens: int = 0
    prefix_per_row: bool = False
    said: str | None = None

    @property
    def wording(self) -> str:
        """What the model reads, for people: the template, and what is done to the name or put before it."""
        spelled = {"as_is": "{}", "all_caps": "{} in capitals", "no_full_stop": "{} without its full stop"}
        words = (self.said or self.template).replace("{}", spelled[self.spelling])
        if self.said is not None:
            words = f"{words} (in a chat)"
        if self.random_tokens:
            words = f"{self.random_tokens} random tokens{' (new for each row)' * self.prefix_per_row}, then {words}"
        return words

    def spell(self, texts: Sequence[str]) -> list[str]:
        """The entities as this prompt spells them."""
        if self.spelling == "all_caps":
            return [text.upper() for text in texts]
        if self.spelling == "no_full_stop":
            return [text.removesuffix(".") for text in texts]
        return list(texts)


EMPTY = Prompt("empty")
EMPTY_ALL_CAPS = Prompt("empty_all_caps", spelling="all_caps")
RANDOM = Prompt("random", random_tokens=10)
RANDOM_PER_ROW = Prompt("random_per_row", random_tokens=10, prefix_per_row=True)
COORDS = Prompt("coords", "What are the lat/lon coordinates of {}")
WHERE_IS = Prompt("where_is", "Where is {}")

# The names and templates of Gurnee & Tegmark's reference code, table by table. Where there is `random`, there is also
# `random_per_row`, which is that code's own `random`.
PROMPTS: dict[str, tuple[Prompt, ...]] = {
    "cities": (EMPTY, EMPTY_ALL_CAPS, RANDOM, COORDS, WHERE_IS),
    "world_place": (EMPTY, EMPTY_ALL_CAPS, RANDOM, COORDS),
    "us_place": (EMPTY, RANDOM, COORDS, Prompt("where_us", "Where in the United States is {}")),
    "nyc_place": (EMPTY, RANDOM, WHERE_IS, Prompt("where_nyc", "Where in New York City is {}")),
    "historical_figure": (
        EMPTY,
        RANDOM,
        Prompt("when", "When did {}"),
        Prompt("when_all_caps", "When did {}", spelling="all_caps"),
    ),
    "art": (EMPTY, RANDOM, EMPTY_ALL_CAPS, Prompt("release", "When was the release date of {}")),
    "headline": (
        EMPTY,
        Prompt("empty_wo_period", spelling="no_full_stop"),
        Prompt("when", "Publication date of: {}"),
        Prompt("when_wo_period", "Publication date of: {}", spelling="no_full_stop"),
    ),
}
# For a table of one's own.
COMMON_PROMPTS = PROMPTS["cities"]


def list_prompts(dataset: str) -> tuple[Prompt, ...]:
    """The named prompts of a data set; a table of one's own has the common ones."""
    return PROMPTS.get(dataset, COMMON_PROMPTS)


def find_prompt(dataset: str, prompt: str) -> Prompt:
    """The prompt of that name, or one made from a template such as ``"Where is {}"``.

    Raises:
      InputError: neither a name this data set has nor a template with exactly one ``{}``.
    """
    known = {named.name: named for named in list_prompts(dataset)}
    if RANDOM.name in known:
        known[RANDOM_PER_ROW.name] = RANDOM_PER_ROW
    if prompt == EMPTY.template:
        return EMPTY
    if prompt in known:
        return known[prompt]
    count = prompt.count("{}")
    if count != 1:
        found = f"has {{}} {count} times" if count else "is not the name of a prompt and has no {}"
        raise InputError(
            f"Prompt {prompt!r} {found}. Use one of the names here ({', '.join(known)}), "
            'or a template with {} once, where the entity goes, e.g. "Where is {}".'
        )
    return Prompt(prompt, prompt)
