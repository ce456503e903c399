"""Questions to ask a model of each entity: a template, the answers to choose between, and which one is right.

A question is a small JSON file; those that come with the package are in questions/.
"""

import json
from collections import Counter
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import numpy as np

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.host.paths import as_path


@dataclass(frozen=True)
class Question:
    """What is asked, and what the answers are.

    Attributes:
      name: of the shipped question, or of the file.
      asks: in words.
      template: the prompt, with {} for the entity.
      continuation: how an answer follows it, with {} for the answer; begins with a space where words are apart.
      group: the group column whose values are the answers; "_" is read as a space.
      most: at most so many answers, the ones of most training rows.
      target: in the place of a group, the target column whose intervals are the answers.
      edges: ascending edges of these intervals, in the target's unit.
      labels: one more than edges: what each interval is called.
      neutral: text after the entity that asks for nothing of the kind.
      reworded: another template for the same answers; "" for none.
    """

    name: str
    asks: str
    template: str
    continuation: str = " {}"
    group: str | None = None
    most: int = 50
    target: str | None = None
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    neutral: str = " is a"
    reworded: str = ""

    def answers(self, table: EntityTable) -> tuple[list[str], np.ndarray]:
        """The answers, and for each row [N] the number of the right one; -1 where it is none of them.

        Raises:
          InputError: a column that the table has not, or fewer than two answers.
        """
        if self.group is not None:
            if self.group not in table.groups:
                raise InputError(
                    f"Question {self.name} needs group {self.group!r}; table {table.name} has "
                    f"{', '.join(table.groups) or 'none'}. Run it with --group {self.group}, or take another question."
                )
            right = [str(label).replace("_", " ") for label in table.groups[self.group]]
            counts = Counter(label for label, test in zip(right, table.is_test, strict=True) if label and not test)
            names = [label for label, count in counts.most_common(self.most) if count > 1]
        else:
            if self.target not in table.target_names:
                raise InputError(
                    f"Question {self.name} needs target {self.target!r}; table {table.name} has "
                    f"{', '.join(table.target_names)}. Take a question that fits."
                )
            column = table.targets[:, table.target_names.index(self.target)]
            names = list(self.labels)
            right = [names[i] for i in np.searchsorted(self.edges, column, side="right")]
        if len(names) < 2:
            raise InputError(f"Question {self.name} has {len(names)} answers in table {table.name}; wanted 2 or more.")
        number = {name: i for i, name in enumerate(names)}
        return names, np.array([number.get(label, -1) for label in right])


def shipped() -> tuple[str, ...]:
    """Names of the questions that come with the package."""
    folder = files("jaxprobe.experiments").joinpath("questions")
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def read_question(question: str) -> Question:
    """A shipped question by its name, or one from a JSON file.

    Raises:
      InputError: no such question, or a file that is none; every problem found is named.
    """
    if question in shipped():
        text, name = (
            files("jaxprobe.experiments").joinpath("questions", f"{question}.json").read_text("utf-8"),
            question,
        )
    else:
        path = as_path(question)
        if not path.is_file():
            raise InputError(f"There is no question {question!r}. Shipped are {', '.join(shipped())}; or name a file.")
        try:
            text, name = path.read_text(encoding="utf-8"), path.name.removesuffix(".json")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{question} can't be read as text ({error}).") from error
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{question} is not JSON ({error}). See the shipped questions for what one holds.") from error
    return _check(question, name, body)


def _check(place: str, name: str, body: Any) -> Question:
    if not isinstance(body, dict):
        raise InputError(f"{place} holds a {type(body).__name__}, not a question.")
    known = {field.name for field in fields(Question)} - {"name"}
    problems = [f"{place}: {key!r} is not known (known: {', '.join(sorted(known))})." for key in set(body) - known]
    words = ("asks", "template", "continuation", "group", "target", "neutral", "reworded")
    problems += [
        f"{place}: {key} is {body[key]!r}, wanted text." for key in words if not isinstance(body.get(key, ""), str)
    ]
    problems += [f"{place}: {key} is missing." for key in ("asks", "template") if not body.get(key)]
    for key in ("template", "continuation", "reworded"):
        text = body.get(key, "{}") or "{}"
        if isinstance(text, str) and text.count("{}") != 1:
            problems.append(f"{place}: {key} {text!r} has {{}} {text.count('{}')} times, wanted once.")
    edges, labels, most = body.get("edges", []), body.get("labels", []), body.get("most", 50)
    if not _all(edges, (int, float)) or list(edges) != sorted(edges):
        problems.append(f"{place}: edges {edges!r} are not ascending numbers.")
    elif not _all(labels, (str,)) or len(set(labels)) != len(labels):
        problems.append(f"{place}: labels {labels!r} are not different texts.")
    elif body.get("target") and len(labels) != len(edges) + 1:
        problems.append(f"{place}: {len(edges)} edges make {len(edges) + 1} intervals; there are {len(labels)} labels.")
    if type(most) is not int or most < 2:
        problems.append(f"{place}: most is {most!r}, wanted a number of 2 or more.")
    if bool(body.get("group")) == bool(body.get("target")):
        problems.append(f"{place}: wanted either group or target, which says what the right answer is.")
    if problems:
        raise InputError(*problems)
    return Question(name, **(body | {"edges": tuple(map(float, edges)), "labels": tuple(labels)}))


def _all(values: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(value, kinds) and type(value) is not bool for value in values)
