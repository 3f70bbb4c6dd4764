"""Encode an example as token ids: exactly the (context, continuation) pairs that the evaluation harness scores.

Source: lm-evaluation-harness 0.4.13, its rules for a causal Hugging Face model: white space at the end of the
context belongs to the continuation, the whole string is encoded and cut where the context alone ends, special
tokens are the tokenizer's default unless the string already begins with BOS, an empty context is BOS (else
EOS). Differs: an example longer than the context is refused, never truncated; a chat context keeps the white
space its template ends with (the same ids as the harness's, cut a little later), so that loss and rank are
about the answer; special tokens that a tokenizer puts after every text (EOS, SEP) are left out, where the
harness scores the answer after an ended prompt, without its first token. Knows tokenizers by their public
methods; never a model.

For a masked language model an example is a row with masks in the place of the answer, one for each of its tokens, all
at once. So LASER (arXiv 2312.13558) asks RoBERTa. Of text each token is predicted from all others of its chunk, one
mask at a time; the sum is the pseudo-log-likelihood (arXiv 1910.14659, equation 1). For a sequence classifier an
example is a text, or a pair of texts, whose label is predicted at one position. In both special tokens stand where the
tokenizer puts them.

For an encoder-decoder the prompt is what the encoder reads, with its special tokens, and the answer is what the decoder
writes: after its start token and what the tokenizer puts before a target text, without what it puts after it. So the
evaluation harness asks such a model, but with a space before the answer, and nothing but the start token before that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from secateur.core.acts import CHOSEN, POSITIONS, places
from secateur.core.fitted import Fitted
from secateur.errors import TaskError, TooLong
from secateur.tasks.example import Episode, Example

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
    without the space that joins it to the prompt; 1 where there are no choices. `joined`: an answer begins within
    the last token of its context, and that part of it is not in its continuation. `masks`: for a masked language model
    the positions in each context that stand for the tokens of its continuation, for a classifier the one that its label
    is read at; empty for a causal one. A classifier's continuation is the number of a label, and `types` says of which
    text of a pair each token is, by number; empty where the model is not told. `mask`: each token of the continuation,
    which the context has in its place, is predicted in a row of its own where it alone is this mask. `sources` are for
    an encoder-decoder what the encoder reads for each pair, whose context is then what the decoder begins with. For a
    decision transformer a context is three positions for each step, of which only the number counts, and `masks` are
    those at which the actions, the continuation, are predicted; `steps` is the logged play that is read, `episode` the
    one that is to be played.
    """

    pairs: tuple[tuple[Ids, Ids], ...]
    gold: int
    lengths: tuple[int, ...]
    joined: bool = False
    masks: tuple[Ids, ...] = ()
    types: Ids = ()
    mask: int | None = None
    sources: tuple[Ids, ...] = ()
    steps: Fitted | None = None
    episode: Episode | None = None

    @property
    def gold_alone(self) -> Encoded:
        """Return the same example with its gold answer as the only one."""
        gold = slice(self.gold, self.gold + 1)
        return replace(
            self,
            pairs=self.pairs[gold],
            gold=0,
            lengths=self.lengths[gold],
            masks=self.masks[gold],
            sources=self.sources[gold],
        )

    @property
    def as_read(self) -> Encoded:
        """Return the example as it is, but an episode as a row of logged play, as long as what is seen of it."""
        if self.episode is None:
            return self
        seen = self.episode.context
        return replace(self, pairs=((self.pairs[0][0], (0,) * seen),), masks=(places(seen),), episode=None)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest context with its continuation, or of the longest source."""
        wholes = map(self.whole, range(len(self.pairs)))
        return max(map(len, (*wholes, *self.sources)))

    def source(self, number: int) -> Ids:
        """Return the tokens that an encoder reads for a continuation; none where there is no encoder."""
        return self.sources[number] if self.sources else ()

    @property
    def num_run(self) -> int:
        """Return how many tokens run at most to score every continuation."""
        rows = (1 if self.mask is None else len(continuation) for _, continuation in self.pairs)
        return sum(
            (len(self.whole(number)) + len(self.source(number))) * count for number, count in enumerate(rows)
        )

    def whole(self, number: int) -> Ids:
        """Return the context with its continuation; where that is predicted within the row, the row alone."""
        context, continuation = self.pairs[number]
        return context if self.masks else context + continuation

    def read(self, number: int) -> Ids:
        """Return the tokens that are run to score a continuation: a causal model is not shown the last one."""
        return self.whole(number) if self.masks else self.whole(number)[:-1]

    def places(self, number: int) -> Sequence[int]:
        """Return the positions at which the tokens of a continuation are predicted."""
        context, continuation = self.pairs[number]
        if self.masks:
            return self.masks[number]
        return range(len(context) - 1, len(context) - 1 + len(continuation))


@dataclass(frozen=True)
class Classifier:
    """The way in which a sequence classifier reads a row: at the first position, or the last that is no `padding`.

    `num_types` are the texts of a row that its embeddings tell apart.
    """

    at_first: bool
    padding: int
    num_types: int

    def reads(self, row: Ids) -> int:
        """Return the position at which the label of a row is predicted."""
        if self.at_first:
            return 0
        return max((place for place, token in enumerate(row) if token != self.padding), default=0)


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    vocab_size: int | None = None,
    chat: bool = False,
    masked: bool = False,
    classifier: Classifier | None = None,
    start: int | None = None,
) -> Encoded:
    """Return the pairs of `example`; of a chunk of text the first token is the context, all others the continuation.

    Args:
        context: the model's longest sequence in tokens; None: no bound.
        vocab_size: the number of its embeddings; None: no bound.
        chat: put the prompt through the chat template, as the user's message or as the conversation that it is; the
            answer loses its leading space.
        masked: encode for a masked language model: one of `MASKS` in the prompt, or the tokenizer's own mask, stands
            for the answer; a prompt without one has it at its end. Several stand for a token each.
        classifier: encode for a sequence classifier, which reads its rows so.
        start: encode for an encoder-decoder, whose decoder begins with this token.

    Raises: `TaskError`, naming the example, for an answer of which no token is left after its prompt, a token
    that the model has no embedding for, a prompt and answer longer than `context`, and `chat` with a tokenizer
    that has no template; of a masked language model for `chat`, and another number of masks than of tokens; of a
    classifier for all but labelled text, and for `chat`; of an encoder-decoder for text and `chat`.
    """
    if example.steps is not None or example.episode is not None:
        raise TaskError(
            f"example {example.id!r} is play, which a decision transformer reads, and this model reads text. Give "
            "questions or text."
        )
    if classifier is not None:
        encoded = _encode_labelled(example, tokenizer, chat, classifier)
    elif masked:
        encoded = _encode_masks(example, tokenizer, chat)
    elif start is not None:
        encoded = _encode_source(example, tokenizer, chat, start)
    elif example.tokens is not None:
        encoded = Encoded(((example.tokens[:1], example.tokens[1:]),), 0, (1,))
    else:
        pairs, joined = zip(*_pairs(example, tokenizer, chat), strict=True)
        gold, lengths = (0, (1,)) if example.choices is None else (example.gold, _lengths(example))
        encoded = Encoded(pairs, gold, lengths, any(joined))
    _refuse_unknown(example, encoded, tokenizer, vocab_size)
    _refuse_long(example, encoded, context)
    return encoded


def encode_play(example: Example) -> Encoded:
    """Return logged play as rows of positions with the actions as its answer, or an episode that is to be played.

    Raises: `TaskError` for an example that is neither.
    """
    if example.episode is not None:
        row = (0,) * (POSITIONS * example.episode.context)
        return Encoded(((row, ()),), 0, (1,), masks=((),), episode=example.episode)
    if example.steps is None:
        raise TaskError(
            f"example {example.id!r} is text, and the model is a decision transformer. Give episodes or trajectories."
        )
    count = len(example.steps.content["timesteps"])
    chosen = example.steps.content[CHOSEN].tolist() or [0] * count
    row = (0,) * (POSITIONS * count)
    return Encoded(((row, tuple(chosen)),), 0, (1,), masks=(places(count),), steps=example.steps)


MASKS = ("<mask>", "[MASK]")  # in a prompt, whatever the mask of the tokenizer is


def _encode_masks(example: Example, tokenizer: PreTrainedTokenizerBase, chat: bool) -> Encoded:
    """Return the rows of `example` with masks. Raises: as `encode`."""
    if tokenizer.mask_token is None:
        raise TaskError(
            "this tokenizer has no mask token, and the model is a masked one: take the model's own tokenizer."
        )
    if chat:
        raise TaskError("a masked language model holds no conversation. Leave out --chat.")
    if example.tokens is not None:
        return _masked_one_by_one(example.tokens, tokenizer, tokenizer.mask_token_id)
    rows = [_masked_row(example, tokenizer, *wording) for wording in _wording(example)]
    pairs = tuple((row, answer) for row, answer, _ in rows)
    gold, lengths = (0, (1,)) if example.choices is None else (example.gold, _lengths(example))
    return Encoded(pairs, gold, lengths, masks=tuple(places for _, _, places in rows))


def _masked_one_by_one(tokens: Ids, tokenizer: PreTrainedTokenizerBase, mask: int) -> Encoded:
    """Return a chunk of text, of which every token is predicted from all others."""
    before, after = added_ids(tokenizer, str(tokenizer.decode(list(tokens), skip_special_tokens=True)))
    text = tokens[len(before) :]
    places = tuple(range(len(before), len(tokens)))
    return Encoded(((tokens + after, text),), 0, (1,), masks=(places,), mask=mask)


def _masked_row(
    example: Example, tokenizer: PreTrainedTokenizerBase, context: str, continuation: str
) -> tuple[Ids, Ids, Ids]:
    """Return a row with masks, the answer's tokens and the positions of the masks. Raises: as `encode`."""
    mask, answer = str(tokenizer.mask_token), continuation.strip()
    for mark in MASKS:
        context = context.replace(mark, mask)
    if mask not in context:
        context += continuation[: len(continuation) - len(continuation.lstrip())] + mask
    before, *others = context.split(mask)
    joined = " " if before[-1:].isspace() else ""  # some tokenizers tell a word from a piece of one by it
    ids = tuple(tokenizer.encode(joined + answer, add_special_tokens=False, verbose=False))
    if len(others) not in (1, len(ids)):
        raise TaskError(
            f"example {example.id!r}: its prompt has {len(others)} masks, and the answer {answer!r} is {len(ids)} "
            f"tokens. Write {MASKS[0]} once: it stands for the whole answer."
        )
    mark = mask * len(ids) if len(others) == 1 else mask
    *left, right = (before, *others)  # of which the space before a mask belongs to what it stands for
    text = "".join(part.rstrip() + mark for part in left) + right
    row = tuple(tokenizer.encode(text, verbose=False))
    places = tuple(place for place, token in enumerate(row) if token == tokenizer.mask_token_id)
    if not ids or len(places) != len(ids):
        raise TaskError(
            f"example {example.id!r}: the answer {answer!r} is {len(ids)} tokens, and its prompt {len(places)} masks, "
            "by this tokenizer. Give it another answer, or another place."
        )
    return row, ids, places


def _encode_source(example: Example, tokenizer: PreTrainedTokenizerBase, chat: bool, start: int) -> Encoded:
    """Return source and target of `example` for each of its wordings. Raises: as `encode`."""
    if example.tokens is not None:
        raise TaskError(
            f"example {example.id!r}: an encoder-decoder gives plain text no likelihood without a source. Give "
            'questions, as rows of {"prompt": ..., "answer": ...}: the encoder reads the prompt.'
        )
    if chat:
        raise TaskError("an encoder-decoder holds no conversation. Leave out --chat.")
    pairs, sources = [], []
    for context, continuation in _wording(example):
        source = tuple(tokenizer.encode(context.rstrip(), verbose=False))
        answer = continuation.lstrip()
        target = _target_ids(tokenizer, answer, whole=False)
        if not source or not target:
            lacks = f"answer {answer!r}" if source else f"prompt {context!r}"
            raise TaskError(f"example {example.id!r}: this tokenizer makes no tokens of the {lacks}.")
        whole = _target_ids(tokenizer, answer, whole=True)
        places = (n for n in range(len(whole)) if whole[n : n + len(target)] == target)
        place = next(places, None)
        if place is None:
            raise TaskError(
                f"example {example.id!r}: the tokenizer makes {list(target)} of {answer!r}, and {list(whole)} where it "
                "adds its special tokens: they do not stand around the text. Take another tokenizer."
            )
        pairs.append(((start, *whole[:place]), target))
        sources.append(source)
    gold, lengths = (0, (1,)) if example.choices is None else (example.gold, _lengths(example))
    return Encoded(tuple(pairs), gold, lengths, sources=tuple(sources))


def _target_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, whole: bool) -> Ids:
    """Return a text as a decoder writes it, in the target language where a tokenizer has two; `whole`: with all special
    tokens."""
    found = tokenizer(text_target=text, add_special_tokens=whole, verbose=False)
    return tuple(found["input_ids"])


def _encode_labelled(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat: bool, classifier: Classifier
) -> Encoded:
    """Return the row of a text or a pair, with each label as a choice. Raises: as `encode`."""
    if not example.labelled:
        raise TaskError(
            f"example {example.id!r}: a sequence classifier gives texts a label, and this has none. Give "
            'rows such as {"text": ..., "label": ...}.'
        )
    if chat:
        raise TaskError("a sequence classifier holds no conversation. Leave out --chat.")
    found = tokenizer(example.prompt, example.pair or None, verbose=False)
    row = tuple(found["input_ids"])
    if not row:
        raise TaskError(f"example {example.id!r}: this tokenizer makes no tokens of its text. Leave it out.")
    types = tuple(found.get("token_type_ids", (0,)))
    labels = range(len(example.choices or ()))
    return Encoded(
        tuple((row, (label,)) for label in labels),
        example.gold,
        (1,) * len(labels),
        masks=((classifier.reads(row),),) * len(labels),
        types=types if 0 < max(types) < classifier.num_types else (),
    )


def added_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Ids, Ids]:
    """Return the ids that the tokenizer puts before and after every text: BOS, EOS, or nothing.

    They are found on the first word of `text` that shows them.

    Raises: `TaskError` for a tokenizer that does anything else to a text when it adds special tokens.
    """
    for word in re.finditer(r"\S+", text):
        plain = tuple(tokenizer.encode(word.group(), add_special_tokens=False, verbose=False))
        whole = tuple(tokenizer.encode(word.group(), verbose=False))
        places = [n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain]
        if not places:
            raise TaskError(
                f"the tokenizer makes {list(plain)} of {word.group()!r}, and {list(whole)} where it adds its special "
                "tokens: they do not stand around the text. Take another tokenizer."
            )
        if len(places) == 1:
            return whole[: places[0]], whole[places[0] + len(plain) :]
    return (), ()


def _pairs(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> Iterator[tuple[tuple[Ids, Ids], bool]]:
    """Yield each pair, and True where its continuation begins within the last token of its context."""
    reader = None
    for context, continuation in _wording(example):
        if chat:
            turns = example.turns or (("user", context),)
            context, continuation = _templated(turns, tokenizer, example.id), continuation.removeprefix(" ")
        else:
            kept = context.rstrip()
            context, continuation = kept, context[len(kept) :] + continuation
        reader = reader or _Reader.of(tokenizer, context + continuation)
        pair, joined = reader.split(context, continuation)
        if not pair[1]:
            raise _nothing_left(example.id, context, continuation, joined)
        yield pair, joined


def _wording(example: Example) -> list[tuple[str, str]]:
    if example.contexts is not None:
        return [(context, example.answer) for context in example.contexts]
    if example.choices is not None:
        return [(example.prompt, choice) for choice in example.choices]
    return [(example.prompt, example.answer)]


@dataclass(frozen=True)
class _Reader:
    """A tokenizer that reads as the harness does but ends no text: `after` are the ids it would put there."""

    tokenizer: PreTrainedTokenizerBase
    after: Ids

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> _Reader:
        return cls(tokenizer, added_ids(tokenizer, text)[1])

    def split(self, context: str, continuation: str) -> tuple[tuple[Ids, Ids], bool]:
        """Encode the whole text, then cut where the context alone ends, as the harness does.

        Returns: the pair, and True where the continuation changed the context's tokens.
        """
        head = self.context(context)
        if context:
            whole = self._ids(context + continuation)
            return (head, whole[len(head) :]), whole[: len(head)] != head
        tail = tuple(self.tokenizer.encode(continuation, add_special_tokens=False))
        return ((tail[:1], tail[1:]) if tail[:1] == head else (head, tail)), False

    def context(self, text: str) -> Ids:
        if text:
            return self._ids(text)
        prefix = self._prefix
        if prefix is None:
            raise TaskError(
                "an empty prompt needs a BOS or EOS token to start from, and this tokenizer has neither."
            )
        return (prefix,)

    def _ids(self, text: str) -> Ids:
        prefix = self._prefix
        begun = prefix is not None and text.startswith(str(self.tokenizer.decode(prefix)))
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=not begun, verbose=False))
        return ids if begun else ids[: len(ids) - len(self.after)]

    @property
    def _prefix(self) -> int | None:
        eos: int | None = self.tokenizer.eos_token_id
        bos: int | None = self.tokenizer.bos_token_id
        return eos if bos is None else bos


def _templated(turns: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, name: str = "") -> str:
    if not tokenizer.chat_template:
        where = f"example {name!r}: " if name else ""
        raise TaskError(
            f"{where}the tokenizer has no chat template. Leave out --chat, or take an instruction-tuned one."
        )
    message = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ImportError, *_BROKEN) as error:
        where = f"example {name!r}: " if name else ""
        raise TaskError(
            f"{where}the chat template of this tokenizer cannot be applied ({' '.join(str(error).split()):.200}). Mend "
            "chat_template.jinja, or chat_template in tokenizer_config.json; or leave out --chat."
        ) from error


def _lengths(example: Example) -> tuple[int, ...]:
    if example.lengths is not None:
        return example.lengths
    return tuple(max(1, len(choice.removeprefix(" "))) for choice in example.choices or ())


def _nothing_left(name: str, context: str, continuation: str, joined: bool) -> TaskError:
    if not joined:
        return TaskError(
            f"example {name!r}: the answer {continuation!r} tokenizes to nothing after its prompt. "
            "Give it text that this tokenizer keeps."
        )
    ending = context if len(context) <= 24 else f"...{context[-24:]}"
    return TaskError(
        f"example {name!r}: the answer {continuation!r} and the end of its prompt {ending!r} are one token, so that "
        "nothing is left to score. Let the answer begin at a word's border: move the end of the prompt into it."
    )


def _refuse_unknown(
    example: Example, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None
) -> None:
    rows = [context if example.labelled else context + answer for context, answer in encoded.pairs]
    highest = max(map(max, (*rows, *encoded.sources)))
    if vocab_size is not None and highest >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise TaskError(
            f"example {example.id!r}: its text has the token {token!r} (id {highest}), and the model has no embedding "
            f"for it: its vocab_size is {vocab_size}. Either the token was added to the tokenizer without resizing the "
            "model, or the tokenizer is that of another model. Leave the token out, or mend the model."
        )


def _refuse_long(example: Example, encoded: Encoded, context: int | None) -> None:
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
