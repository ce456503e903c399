"""A program: chat templates rendered by transformers' own code, in a process with bounds.

A template comes with a model, and is a program of whoever made it. transformers runs it in Jinja's sandbox, which keeps
it from files and from Python's objects, but not from taking forever or all of the memory.

Reads a JSON object on stdin: template, chats (lists of messages), names (of special tokens). Writes on stdout a JSON
object: ``texts``, or ``problem``.
"""

import json
import sys
from typing import Any

CPU_SECONDS, BYTES, LETTERS = 10, 2 * 2**30, 100_000


def bound() -> None:
    """Bounds what this process takes from here on, where the system can."""
    try:
        import resource
    except ImportError:  # Windows; the caller's clock is left
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # macOS, which does not bound memory either
        return
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, taken + BYTES))


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    asked = json.load(sys.stdin)
    bound()
    try:
        rendered: Any = render_jinja_template(
            asked["chats"], chat_template=asked["template"], add_generation_prompt=True, **asked["names"]
        )
        texts = rendered[0]  # its annotation says str
        long = max(map(len, texts)) > LETTERS
        answer = {"problem": f"it writes more than {LETTERS:,} letters"} if long else {"texts": texts}
    except MemoryError:
        answer = {"problem": f"it takes more than {BYTES / 2**30:.0f} GiB of memory"}
    except Exception as error:  # whatever a template raises
        answer = {"problem": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
