"""Check that a chat template ends: render it once in a process of its own, with bounds on time and memory.

A template is a program that came with a checkpoint. transformers runs it in jinja's sandbox, which keeps it
from files and from Python, but lets it loop and grow as it likes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from jinja2 import TemplateError

from secateur.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 20.0  # to begin a process on a busy machine, and to render, which takes milliseconds
BYTES = 2 * 2**30  # of address space


def check_template(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    """Render `prompt` as a user's message; errors of the template itself are not looked at.

    Raises: `ModelError` where that takes too long or too much memory.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):  # none, or several by name
        template = (template or {}).get("default")
    if template is None:
        return
    words = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    request = json.dumps({"template": template, "prompt": prompt, "words": words})
    light = os.environ | {"USE_TORCH": "0", "USE_TF": "0", "USE_FLAX": "0"}  # a template needs none of them
    command = [sys.executable, "-W", "ignore", "-m", "secateur.hf.chat"]
    try:
        done = subprocess.run(
            command, input=request, text=True, capture_output=True, env=light, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(_stopped(f"did not end within {SECONDS:.0f} seconds")) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
        raise ModelError(
            _stopped(f"took more than {BYTES / 2**30:.0f} GiB, or failed otherwise ({last:.200})")
        )


class Message(TypedDict):
    """One message of a conversation, as chat templates have it."""

    role: str
    content: str


def conversation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the tokens that a model answers to: by its chat template, else those of the last message alone.

    Raises: `ModelError` where the template cannot be applied.
    """
    if not tokenizer.chat_template:
        return list(tokenizer(messages[-1]["content"])["input_ids"])
    plain: list[dict[str, str]] = [{"role": m["role"], "content": m["content"]} for m in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"the chat template of this tokenizer cannot be applied ({' '.join(str(error).split()):.200}). Mend "
            "chat_template.jinja, or chat_template in tokenizer_config.json."
        ) from error
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _stopped(why: str) -> str:
    return (
        f"the chat template of this tokenizer {why} for one message. Mend chat_template.jinja, or chat_template in "
        "tokenizer_config.json; or leave out --chat."
    )


def _render(template: str, prompt: str, words: Mapping[str, str]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = BYTES if hard == resource.RLIM_INFINITY else min(BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    message = [[{"role": "user", "content": prompt}]]
    ends = (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    )
    with suppress(*ends):  # what else is wrong is told where an example can be named
        render_jinja_template(message, chat_template=template, add_generation_prompt=True, **words)  # type: ignore[arg-type]  # any words are for the template


if __name__ == "__main__":
    _render(**json.load(sys.stdin))
