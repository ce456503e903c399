"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Input that can't be used: each problem states the fact, what was found against what was wanted, and the remedy.

    Checks collect every problem they find and raise once: ``raise InputError(problem, ...)``.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def first_line(error: BaseException) -> str:
    """What an exception says, in a line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
