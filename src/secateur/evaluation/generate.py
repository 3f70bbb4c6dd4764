"""Generate greedy continuations through the model's own `generate`, in left-padded batches: always the likeliest token
of the plain logits, whatever generation_config.json asks for, until one of the tokens that end a text. Play episodes in
the same way: always the action that the model prefers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from secateur.core.acts import POSITIONS
from secateur.errors import TaskError
from secateur.evaluation.batching import Packing
from secateur.hf.calls import logits_of, played
from secateur.hf.chat import Message, conversation_ids
from secateur.hf.generation import generating_by, positions, unwritable
from secateur.hf.load import Loaded
from secateur.hf.rope import regime
from secateur.tasks.encode import Encoded, Ids
from secateur.tasks.environments import open_environment
from secateur.tasks.example import Episode, Task


def greedy(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    max_tokens: int,
    ban: Sequence[int] = (),
    begun: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """Return the greedy continuation of each prompt: token ids up to and without the end of sequence, none of `ban`.

    Args:
        max_tokens: Tokens of one batch, prompts and continuations together.
        begun: For an encoder-decoder, which reads the prompts by its encoder, the tokens that each answer begins with;
            they are not returned.

    Raises: `TaskError` where a prompt and its continuation are longer than the model's context.
    """
    context, longest = loaded.anatomy.context, max(map(len, begun or prompts), default=0)
    if context is not None and longest + max_new_tokens - 1 > context:  # the last token is never read
        raise TaskError(
            f"a prompt of {longest} tokens leaves no room for {max_new_tokens} more in the model's context of "
            f"{context}. Leave out the longest prompts, or ask for fewer tokens."
        )
    conditions = [
        _conditions(loaded, len(prompt), max_new_tokens, tuple(begun[i]) if begun else ())
        for i, prompt in enumerate(prompts)
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[list[int]] = [[] for _ in prompts]
    while order:
        last = order[-1]
        count = max(1, max_tokens // (len(prompts[last]) + max_new_tokens))
        batch = [i for i in order[-count:] if conditions[i] == conditions[last]]
        order = order[: -len(batch)]
        rows = [prompts[i] for i in batch]
        how = conditions[last]
        continuations = _generate(loaded, rows, max_new_tokens, ban, how.cached, begun=how.begun)
        for index, tokens in zip(batch, continuations, strict=True):
            out[index] = tokens
    return out


class _Conditions(NamedTuple):
    """The conditions under which prompts may run together. With a `length` only prompts of that length may."""

    regime: int
    length: int | None
    cached: bool
    begun: Ids = ()


def _conditions(loaded: Loaded, length: int, max_new_tokens: int, begun: Ids = ()) -> _Conditions:
    """Decide what a prompt may run with; text that crosses a switch of rotation (`hf/rope.py`) is not cached.

    Nothing may be padded where a mixer of a hybrid would make something of it (`Anatomy.pads_left`).
    In float64 nothing may be padded: eager attention takes its softmax in float32, where float64's mask value is −∞,
    and the rows of padding, which see nothing else, would make everything NaN. An encoder sees padding, so that its
    rows are of one length.
    """
    if encoder := loaded.anatomy.num_encoder:
        cached = loaded.anatomy.carved or loaded.anatomy.can_cache(
            encoder, loaded.anatomy.num_blocks - encoder
        )
        return _Conditions(0, length, cached, begun)
    now, later = (regime(n, loaded.anatomy.switches) for n in (length, length + max_new_tokens - 1))
    may_pad = now == later and loaded.model.dtype != torch.float64 and loaded.anatomy.pads_left
    return _Conditions(now, None if may_pad else length, cached=now == later)


class _Pieces(TextStreamer):
    """Hand each piece of text on as it is generated."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._show(text)


def reply(
    loaded: Loaded, messages: Sequence[Message], max_new_tokens: int, show: Callable[[str], None]
) -> list[int]:
    """Return the greedy answer to a conversation as token ids.

    By the tokenizer's chat template; a model without one continues the last message. The oldest messages are left out
    where the context has no room for all, and the answer is as long as what room is left.

    Args:
        show: Told each piece of text as soon as it is there.

    Raises: `TaskError` where the last message alone fills the context.
    """
    loaded.anatomy.check_causal("chat")
    context, kept = loaded.anatomy.context, list(messages)
    prompt = conversation_ids(loaded.tokenizer, kept)
    while context is not None and len(prompt) + max_new_tokens - 1 > context and len(kept) > 2:
        kept = kept[2:]  # a question and its answer
        prompt = conversation_ids(loaded.tokenizer, kept)
    room = max_new_tokens if context is None else min(max_new_tokens, context - len(prompt) + 1)
    if room < 1:
        raise TaskError(
            f"a prompt of {len(prompt)} tokens fills the model's context of {context}. Ask something shorter."
        )
    cached = _conditions(loaded, len(prompt), room).cached
    pieces = _Pieces(loaded.tokenizer, show)
    return _generate(loaded, [prompt], room, (), cached, pieces)[0]


def _generate(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ban: Sequence[int],
    cached: bool,
    streamer: TextStreamer | None = None,
    begun: Ids = (),
) -> list[list[int]]:
    length = max(len(prompt) for prompt in prompts)
    device = loaded.device
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        suppress_tokens=[*ban, *unwritable(loaded.anatomy.details, loaded.model)] or None,
        eos_token_id=list(loaded.ends) or None,
        pad_token_id=0,
        use_cache=cached,
        decoder_start_token_id=begun[0] if begun else None,
    )
    with torch.inference_mode(), generating_by(loaded.model, config):
        generated = loaded.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            streamer=streamer,
            **positions(loaded.anatomy.details, loaded.model, mask),
            **({"decoder_input_ids": torch.tensor([begun] * len(prompts), device=device)} if begun else {}),
        )
    ends, first = set(loaded.ends), len(begun) or length
    return [list(takewhile(lambda token: token not in ends, row)) for row in generated[:, first:].tolist()]


def answers_within(
    loaded: Loaded,
    task: Task,
    examples: Sequence[int],
    encoded: Mapping[int, Encoded],
    packing: Packing,
    ban: Sequence[int] = (),
) -> np.ndarray:
    """Return 1.0 where the first greedy tokens hold the gold answer, else 0.0. (n,) float64.

    How many tokens is what the task of the first example asks for, which must be the same for all. Where the task has
    an extraction, the answer that it finds must be the right one; else the gold answer must occur.

    Source: generation accuracy of LASER (arXiv 2312.13558, section 4), compared as stripped, case-sensitive text; exact
    match of lm-evaluation-harness (`tasks/extract.py`).
    """
    contexts = [encoded[e].pairs[0][0] for e in examples]
    sources = [encoded[e].source(0) for e in examples] if loaded.anatomy.num_encoder else []
    limits = {task.member(e).new_tokens for e in examples}
    assert len(limits) == 1, "examples that are generated from together have one bound"
    begun = contexts if sources else []
    continuations = greedy(loaded, sources or contexts, limits.pop(), packing.max_tokens, ban, begun)
    texts = loaded.tokenizer.batch_decode(continuations)
    hits = [_holds(task, e, text) for e, text in zip(examples, texts, strict=True)]
    return np.array(hits, dtype=np.float64)


def _holds(task: Task, example: int, text: str) -> bool:
    """Return True where a generated text holds the answer of an example."""
    gold, extraction = task.examples[example].answer, task.member(example).extraction
    return gold.strip() in text if extraction is None else extraction.agrees(text, gold)


# ---------------------------------------------------------------------------------------------------------- episodes


class Played(NamedTuple):
    """The return of an episode, NaN where the model gave no number; its steps; and 1 where it succeeded, else 0."""

    total: float
    steps: int
    success: float


@torch.inference_mode()
def play(loaded: Loaded, episodes: Sequence[Episode], max_tokens: int) -> list[Played]:
    """Return what the model makes of each episode, taking the likeliest action at each step, or the predicted numbers.

    The environment is reset with the episode's seed, and the model is shown what is left of the target return, so that
    nothing is drawn. All episodes run side by side, and leave when they are over.

    Args:
        episodes: Of one environment and one context; only seeds and returns may differ.
        max_tokens: Positions of one batch, of which a step has three.

    Source: Decision Transformer (Chen et al. 2021, arXiv 2106.01345), algorithm 1. Differs: the best action is taken.
    """
    acts = loaded.anatomy.acts
    assert acts is not None, "only decision transformers play"
    first = episodes[0]
    worlds = [open_environment(one.environment, one.max_steps) for one in episodes]
    try:
        discrete, most, count = worlds[0].space.discrete, first.max_steps, len(episodes)
        states, actions = torch.zeros(count, most, acts.state_dim), torch.zeros(count, most, acts.act_dim)
        to_go, totals, lengths = torch.zeros(count, most, 1), np.zeros(count), [0] * count
        for row, (world, one) in enumerate(zip(worlds, episodes, strict=True)):
            states[row, 0] = torch.from_numpy(world.reset(one.seed))
            to_go[row, 0] = one.target_return / one.return_scale
        left = list(range(count))
        for now in range(most):
            begin = max(0, now + 1 - first.context)
            seen = {"states": states, "actions": actions, "returns_to_go": to_go}
            shown = {name: array[left, begin : now + 1] for name, array in seen.items()}
            shown["timesteps"] = torch.arange(begin, now + 1).expand(len(left), -1)
            at_once = max(1, max_tokens // (POSITIONS * (now + 1 - begin)))
            for row, preferred in zip(left, _last_actions(loaded, shown, at_once), strict=True):
                if not np.isfinite(preferred).all():
                    totals[row], lengths[row] = np.nan, now + 1
                    continue
                taken = int(preferred.argmax()) if discrete else preferred
                actions[row, now] = (
                    torch.eye(acts.act_dim)[taken] if discrete else torch.from_numpy(preferred)
                )
                state, reward, done = worlds[row].step(taken)
                totals[row] += reward
                lengths[row] = now + 1 if done or now + 1 == most else 0
                if not lengths[row]:
                    states[row, now + 1] = torch.from_numpy(state)
                    rest = episodes[row].target_return - totals[row]
                    to_go[row, now + 1] = rest / episodes[row].return_scale
            left = [row for row in left if not lengths[row]]
            if not left:
                break
    finally:
        for world in worlds:
            world.close()
    return [
        Played(float(total), steps, float(total >= one.success_return))
        for total, steps, one in zip(totals, lengths, episodes, strict=True)
    ]


def _last_actions(loaded: Loaded, shown: Mapping[str, torch.Tensor], at_once: int) -> list[np.ndarray]:
    """Return the head's output for the last step of each row, (act_dim,)."""
    found: list[np.ndarray] = []
    parts = zip(*(array.split(at_once) for array in shown.values()), strict=True)
    for part in parts:
        steps = {name: array.to(loaded.device) for name, array in zip(shown, part, strict=True)}
        found += [*logits_of(loaded.model, played(steps))[:, -1].float().cpu().numpy()]
    return found
