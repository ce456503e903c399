"""A prompt inside the chat that a model was tuned on, by the template that comes with its tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxprobe.data.prompt import Prompt, find_prompt
from jaxprobe.data.render_chat import CPU_SECONDS
from jaxprobe.errors import InputError

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

_HERE = "jaxprobe1entity1here"  # stands for the entity while the template is rendered
_SECONDS = 60  # of the clock: for a machine that does other things as well
_LONGEST_TEMPLATE = 1_000_000  # letters; published ones have a few thousand
_WITHOUT = "Leave --chat out, or name another tokenizer with --tokenizer."


def put_prompt(
    tokenizer: PreTrainedTokenizerFast, dataset: str, prompt: Prompt | str, texts: Sequence[str], *, chat: bool
) -> Prompt:
    """The prompt of a data set by its name or template (see `find_prompt`), in the tokenizer's chat where asked for.

    Raises:
      InputError: as `find_prompt` and `wrap_in_chat`.
    """
    found = find_prompt(dataset, prompt) if isinstance(prompt, str) else prompt
    return wrap_in_chat(tokenizer, found, texts) if chat else found


def wrap_in_chat(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, texts: Sequence[str] = ()) -> Prompt:
    """The prompt as what a user says, in the chat template of the tokenizer, up to where the assistant would answer.

    Its text is that of transformers' ``apply_chat_template``, the template's BOS, or lack of one, included.

    Args:
      texts: the entities, of which those with white space around are tried, as many templates trim what is said.

    Raises:
      InputError: no template; one that fails, takes too long, or does not leave the prompt as it is; random tokens.
    """
    if prompt.random_tokens:
        raise InputError(f"Prompt {prompt.name} is of random tokens, which no chat template has. Leave --chat out.")
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # none, or several without a default
        raise InputError(f"The tokenizer has no chat template (or several, and no default). {_WITHOUT}") from error
    odd = [text for text in prompt.spell(texts) if text != text.strip()][:1000]
    rendered = _render(tokenizer, template, [prompt.template.replace("{}", text) for text in (_HERE, *odd)])
    whole = rendered[0].replace(_HERE, "{}")
    if rendered[0].count(_HERE) != 1 or whole.count("{}") != 1:
        raise InputError(
            f"The chat template makes {rendered[0][:300]!r} of {prompt.template.replace('{}', _HERE)!r}; wanted is a "
            f"text with it once, and no {{}} besides. {_WITHOUT}"
        )
    changed = [text for text, found in zip(odd, rendered[1:], strict=True) if found != whole.replace("{}", text)]
    if changed:
        raise InputError(f"The chat template trims white space around {changed[0]!r}. Take it out of the table.")
    return prompt._replace(name=f"{prompt.name}, chat", template=whole, said=prompt.template)


def _render(tokenizer: PreTrainedTokenizerFast, template: str, said: Sequence[str]) -> list[str]:
    if len(template) > _LONGEST_TEMPLATE:
        raise InputError(f"The chat template has {len(template):,} letters; wanted {_LONGEST_TEMPLATE:,} at most.")
    chats = [[{"role": "user", "content": text}] for text in said]
    asked = json.dumps({"template": template, "chats": chats, "names": tokenizer.special_tokens_map})
    command = [sys.executable, "-m", "jaxprobe.data.render_chat"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "USE_TORCH": "0"}
    try:
        done = subprocess.run(
            command, input=asked, capture_output=True, encoding="utf-8", timeout=_SECONDS, env=environment
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        answer = None
    if answer is None:
        answer = {"problem": f"it was not done after {CPU_SECONDS} s"}
    if "problem" in answer:
        raise InputError(f"The chat template of the tokenizer can't be used: {answer['problem']}. {_WITHOUT}")
    return answer["texts"]
