"""How an example becomes token ids: exactly the (context, continuation) pairs the evaluation harness scores.

Source: lm-evaluation-harness 0.4.13, its rules for a causal Hugging Face model: white space at the end of the
context belongs to the continuation, the whole string is encoded and cut where the context alone ends, special
tokens are the tokenizer's default unless the string already begins with BOS, an empty context is BOS (else
EOS). Differs: what is longer than the context is refused, never truncated; a chat context keeps the white
space its template ends with (the same ids as the harness's, cut a little later), so that loss and rank are
about the answer. Knows tokenizers by their public methods; never a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from secateur.errors import TaskError, TooLong
from secateur.tasks.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
_BROKEN = (  # what expressions in a template may do
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """One example as token ids: a (context, continuation) pair per choice, or the gold answer's pair alone.

    `gold` is an index into `pairs`. `lengths` are the characters of each choice as the harness counts them,
    without the space that joins it to the prompt; 1 where there are no choices.
    """

    pairs: tuple[tuple[Ids, Ids], ...]
    gold: int
    lengths: tuple[int, ...]

    @property
    def gold_alone(self) -> Encoded:
        """The same example with its gold answer as the only one."""
        gold = slice(self.gold, self.gold + 1)
        return Encoded(self.pairs[gold], 0, self.lengths[gold])

    @property
    def longest(self) -> int:
        """Tokens of the longest context with its continuation."""
        return max(len(context) + len(continuation) for context, continuation in self.pairs)


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, context: int | None, chat: bool = False
) -> Encoded:
    """The pairs of `example`; a chunk of text has its first token as context and all others as continuation.

    `context` is the model's longest sequence in tokens (None: unbounded). With `chat`, the prompt goes
    through the chat template as the user's message and the answer loses its leading space.

    Raises: `TaskError`, naming the example, for an answer that tokenizes to nothing, a prompt and answer
    longer than `context`, and `chat` with a tokenizer that has no template.
    """
    if example.tokens is not None:
        encoded = Encoded(((example.tokens[:1], example.tokens[1:]),), 0, (1,))
    elif example.choices is None:
        encoded = Encoded(tuple(_pairs(example, tokenizer, chat)), 0, (1,))
    else:
        encoded = Encoded(tuple(_pairs(example, tokenizer, chat)), example.gold, _lengths(example))
    _check(example, encoded, context)
    return encoded


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> Ids:
    """The ids to generate from: the same as the context of `encode` for the same prompt."""
    return (
        _context_ids(_templated(text, tokenizer), tokenizer)
        if chat
        else _context_ids(text.rstrip(), tokenizer)
    )


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """What the tokenizer puts before every text by default: BOS, or nothing."""
    with_special, plain = (tokenizer.encode("a", add_special_tokens=special) for special in (True, False))
    return tuple(with_special[: with_special.index(plain[0])]) if plain else ()


def _pairs(example: Example, tokenizer: PreTrainedTokenizerBase, chat: bool) -> Iterator[tuple[Ids, Ids]]:
    for context, continuation in _wording(example):
        if chat:
            context, continuation = _templated(context, tokenizer, example.id), continuation.removeprefix(" ")
        else:
            kept = context.rstrip()
            context, continuation = kept, context[len(kept) :] + continuation
        yield _split(context, continuation, tokenizer)


def _wording(example: Example) -> list[tuple[str, str]]:
    if example.contexts is not None:
        return [(context, example.answer) for context in example.contexts]
    if example.choices is not None:
        return [(example.prompt, choice) for choice in example.choices]
    return [(example.prompt, example.answer)]


def _split(context: str, continuation: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """Encode the whole, then cut where the context alone ends, as the harness does."""
    head = _context_ids(context, tokenizer)
    if context:
        return head, _ids(context + continuation, tokenizer)[len(head) :]
    tail = tuple(tokenizer.encode(continuation, add_special_tokens=False))
    return (tail[:1], tail[1:]) if tail[:1] == head else (head, tail)


def _context_ids(context: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    if context:
        return _ids(context, tokenizer)
    prefix = _prefix_id(tokenizer)
    if prefix is None:
        raise TaskError(
            "an empty prompt needs a BOS or EOS token to start from, and this tokenizer has neither."
        )
    return (prefix,)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    prefix = _prefix_id(tokenizer)
    begun = prefix is not None and text.startswith(tokenizer.decode(prefix))
    return tuple(tokenizer.encode(text, add_special_tokens=not begun, verbose=False))


def _prefix_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _templated(prompt: str, tokenizer: PreTrainedTokenizerBase, name: str = "") -> str:
    if not tokenizer.chat_template:
        where = f"example {name!r}: " if name else ""
        raise TaskError(
            f"{where}the tokenizer has no chat template. Leave out --chat, or take an instruction-tuned one."
        )
    message = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ImportError, *_BROKEN) as error:
        where = f"example {name!r}: " if name else ""
        raise TaskError(
            f"{where}the chat template of this tokenizer cannot be applied ({' '.join(str(error).split()):.200}). Mend "
            "chat_template.jinja, or chat_template in tokenizer_config.json; or leave out --chat."
        ) from error


def _lengths(example: Example) -> tuple[int, ...]:
    if example.lengths is not None:
        return example.lengths
    return tuple(max(1, len(choice.removeprefix(" "))) for choice in example.choices)


def _check(example: Example, encoded: Encoded, context: int | None) -> None:
    for number, (_, continuation) in enumerate(encoded.pairs):
        if not continuation:
            text = example.answer if example.choices is None else example.choices[number]
            raise TaskError(
                f"example {example.id!r}: the answer {text!r} tokenizes to nothing after its prompt. "
                "Give it text that this tokenizer keeps."
            )
    if context is not None and encoded.longest > context:
        raise TooLong(
            f"example {example.id!r}: prompt and answer take {encoded.longest} tokens, "
            f"{encoded.longest - context} more than the model's context of {context}. "
            + (
                "Take a smaller --seqlen."
                if example.tokens is not None
                else "Shorten it, or --skip-long leaves it out."
            )
        )
