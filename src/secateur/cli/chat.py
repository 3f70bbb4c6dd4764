"""The verb that talks to a checkpoint: `chat`, alone or beside another model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.options import AsJson, Commands, Device, Dtype, Quiet, Revision, Trust, examples, print_json
from secateur.core.machine import check_device, check_dtype
from secateur.core.ranges import MOST, Range, check_number
from secateur.errors import SecateurError

if TYPE_CHECKING:
    from rich.table import Table

    from secateur.hf.chat import Message
    from secateur.hf.load import Loaded

TOKENS = Range(1, MOST, whole=True)  # that an answer may have


@dataclass
class Speaker:
    """A model in a conversation: what was said to it and what it said."""

    name: str
    loaded: Loaded
    messages: list[Message] = field(default_factory=list)


@dataclass
class Reply:
    """One model's answer, as `--json` prints it.

    Attributes:
        tokens: How many were generated.
        seconds: How long that took.
        chat_template: Whether the model was asked by its chat template, or continued the prompt.
    """

    model: str
    answer: str = ""
    tokens: int = 0
    seconds: float = 0.0
    chat_template: bool = False


def chat(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A checkpoint folder, or any MODEL.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Answer beside this one, such as the original.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this once, print the answer and end.")
    ] = None,
    new: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer, in tokens.")
    ] = 128,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a checkpoint in the terminal, and to the original beside it.

    Answers are greedy. Models with a chat template remember the conversation; others continue what you write. `/new`
    begins again; Ctrl-D or Ctrl-C ends.
    """
    from secateur.cli.progress import bars

    if as_json and prompt is None:
        raise SecateurError("--json answers one --prompt TEXT. Give it, or leave out --json.")
    check_number("max_new_tokens", new, TOKENS)
    check_dtype(dtype)
    check_device(device)
    names = [model] if against is None else [model, against]
    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, len(names))
        from secateur import api

        speakers = []
        for name in names:
            own = revision if name == model else None
            loaded = api.load(
                name, revision=own, dtype=dtype, device=device, trust_remote_code=trust_remote_code
            )
            speakers.append(Speaker(name, loaded))
            progress("load", len(speakers), len(names))
    if prompt is None:
        _converse(speakers, new)
    elif as_json:
        replies = [Reply(speaker.name) for speaker in speakers]
        for speaker, reply in zip(speakers, replies, strict=True):
            _answer(speaker, prompt, new, reply, lambda: None)
        print_json({"prompt": prompt, "answers": [asdict(reply) for reply in replies]})
    else:
        _turn(speakers, prompt, new)


def _converse(speakers: Sequence[Speaker], new: int) -> None:
    """Ask for prompts until the input ends."""
    templates = [speaker.name for speaker in speakers if not speaker.loaded.tokenizer.chat_template]
    if templates:
        print(f"{' and '.join(templates)}: no chat template, so what you write is continued.")
    print("/new begins again, Ctrl-D ends.")
    try:
        while True:
            said = input("\n> ").strip()
            if said == "/new":
                for speaker in speakers:
                    speaker.messages.clear()
            elif said:
                _turn(speakers, said, new)
    except (EOFError, KeyboardInterrupt):
        print()


def _turn(speakers: Sequence[Speaker], prompt: str, new: int) -> None:
    """Print the answers to one prompt, side by side, as they come."""
    from rich.live import Live

    from secateur.cli.terminal import terminal

    replies = [Reply(speaker.name) for speaker in speakers]
    console = terminal()
    with Live(_side_by_side(replies), console=console, vertical_overflow="visible") as live:
        for speaker, reply in zip(speakers, replies, strict=True):
            _answer(speaker, prompt, new, reply, lambda: live.update(_side_by_side(replies)))
    if not console.is_terminal:
        print()  # Live ends its last line on a terminal alone


def _side_by_side(replies: Sequence[Reply]) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), expand=len(replies) > 1)
    for reply in replies:
        pace = f"{reply.tokens} tokens, {reply.tokens / reply.seconds:.0f} a second" if reply.seconds else "…"
        made.add_column(Text(f"{reply.model}  ({pace})", style="bold"), ratio=1, overflow="fold")
    made.add_row(*(Text(reply.answer.strip("\n")) for reply in replies))
    return made


def _answer(speaker: Speaker, prompt: str, new: int, reply: Reply, shown: Callable[[], None]) -> None:
    """Fill `reply` piece by piece, calling `shown` after each, and remember the turn."""
    from secateur.evaluation.generate import reply as generate

    def add(text: str) -> None:
        reply.answer += text
        shown()

    asked: list[Message] = [*speaker.messages, {"role": "user", "content": prompt}]
    start = time.perf_counter()
    tokens = generate(speaker.loaded, asked, new, add)
    reply.seconds = time.perf_counter() - start
    reply.tokens = len(tokens)
    reply.chat_template = bool(speaker.loaded.tokenizer.chat_template)
    speaker.messages = [*asked, {"role": "assistant", "content": reply.answer}]
    shown()


VERBS: Commands = (
    (
        chat,
        {
            "epilog": examples(
                "secateur chat out --against ./my-llama",
                'secateur chat out --prompt "The capital of France is" --json',
            )
        },
    ),
)
