"""The one exception for what a user can mend."""

from collections.abc import Mapping, Sequence


class InputError(ValueError):
    """Input that can't be used: each problem states the fact, what was found against what was wanted, and the remedy.

    Checks collect every problem they find and raise once: ``raise InputError(problem, ...)``.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def tell_once(found: Mapping[str, Sequence[str]], kind: str) -> list[str]:
    """The problems of several things, each once: with who has it ("KIND a, b: problem"), unless all of them do."""
    who: dict[str, list[str]] = {}
    for name, problems in found.items():
        for problem in problems:
            who.setdefault(problem, []).append(name)
    return [
        problem if len(names) == len(found) else f"{kind} {', '.join(names)}: {problem}"
        for problem, names in who.items()
    ]


def first_line(error: BaseException) -> str:
    """What an exception says, in a line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
