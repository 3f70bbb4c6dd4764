"""Scores, greedy text and readings of a row do not depend on what else is in its batch, whatever the model's rotary
positions depend on: every kind of them in every family that has any, against one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.marks import slow_but
from fixtures.zoo import CONTEXT, tiny, variant

from secateur.core.plan import Plan
from secateur.evaluation.batching import Packing, rows_of
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.evaluation.generate import greedy
from secateur.hf.load import Loaded
from secateur.hf.readable import readable_of
from secateur.hf.rope import regime, rope_switches
from secateur.probes.linearity import linearity
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task
from secateur.training.answers import answer_losses, batches, collate

SHORT = 16  # the length that the models were first trained on
FACTORS = {  # how many frequencies a head has
    **dict.fromkeys(["llama", "mistral", "qwen2", "falcon-7b", "phi3"], 4),
    **dict.fromkeys(["qwen3", "gemma2", "gemma3"], 6),
    **dict.fromkeys(["gpt-neox", "phi"], 2),
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": SHORT},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": SHORT,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": SHORT},
}


def some(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 96, count).tolist())


LENGTHS = [12, 13, 14, 15, 16, 17, 18, 40, 3, CONTEXT]
ROWS = [some(number, length) for number, length in enumerate(LENGTHS)]
CHOICES = {  # the second choice goes on where the first one ends, and crosses the length that matters
    number: Encoded(
        ((row, some(100, 1)), (row, some(100, 1) + some(200, 6)), (row, some(300, 2))), 1, (1, 2, 3)
    )
    for number, row in enumerate(ROWS)
    if len(row) < CONTEXT - 8
}


def rotated(name: str, kind: str, as_loaded: Callable[..., Loaded]) -> Loaded:
    told = {"rope_type": kind, "rope_theta": 10000.0} | KINDS[kind]
    if kind == "longrope":
        count = FACTORS[name]
        told |= {"short_factor": [1.0 + 0.1 * n for n in range(count)]}
        told |= {"long_factor": [2.0 + 3.0 * n for n in range(count)]}
    if name in ("gpt-neox", "phi"):
        told["partial_rotary_factor"] = 0.5
    if name == "gemma3":
        other = {"rope_type": "default", "rope_theta": 500.0}
        by_layer = {"full_attention": told, "sliding_attention": other}
        return as_loaded(variant(name, rope_parameters=by_layer, layer_types=list(by_layer)))
    more = {"original_max_position_embeddings": SHORT} if name == "phi3" else {}
    return as_loaded(variant(name, rope_parameters=told, **more))


FIRST = {"gemma3", "llama", "phi3"}
CASES = [
    (name, kind) for name in FACTORS for kind in KINDS if name != "phi3" or kind in ("default", "longrope")
]


@pytest.fixture(params=slow_but([case for case in CASES if case[0] in FIRST], CASES), ids="-".join)
def loaded(request, as_loaded) -> Loaded:
    return rotated(*request.param, as_loaded)


def by_itself(loaded: Loaded, row: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(torch.tensor([row]), use_cache=False).logits[0].double()


def losses(loaded: Loaded, encoded: Encoded) -> list[float]:
    """−log p of every continuation, each run by itself."""
    found = []
    for context, answer in encoded.pairs:
        logp = by_itself(loaded, (*context, *answer[:-1])).log_softmax(-1)[len(context) - 1 :]
        found.append(-float(logp[torch.arange(len(answer)), list(answer)].sum()))
    return found


def test_scores(loaded):
    examples = tuple(Example(f"e{n}", "", "w5", ("w4", "w5", "w6")) for n in range(len(ROWS)))
    task = Task("rope", "choice", examples, {"select": tuple(CHOICES)})
    for limits in (Limits(max_tokens=1), Limits(max_tokens=200), Limits(max_tokens=4096)):
        judge = Evaluator(loaded, task, CHOICES, limits=limits)
        tally = judge.tally(Plan(loaded.fingerprint), list(CHOICES))
        for number, encoded in CHOICES.items():
            found = [-logp for logp in tally.choice_logps(number)]
            np.testing.assert_allclose(found, losses(loaded, encoded), rtol=2e-5)


def test_greedy_text(loaded):
    prompts = [row for row in ROWS if len(row) + 5 <= CONTEXT]
    expected = [argmax_of_plain_logits(loaded, prompt, 6) for prompt in prompts]
    for max_tokens in (1, 100, 4096):
        assert greedy(loaded, prompts, 6, max_tokens) == expected


def argmax_of_plain_logits(loaded: Loaded, prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(by_itself(loaded, text)[-1].argmax()))
    made = text[len(prompt) :]
    return made[: made.index(2)] if 2 in made else made


def test_what_is_rotated_by_length_is_known(loaded, request):
    """Only LongRoPE, whose lengths matter: a row does change where the batch is longer."""
    short = torch.tensor([ROWS[0]])
    padded = torch.nn.functional.pad(short, (0, CONTEXT - short.shape[1]))
    with torch.no_grad():
        alone, beside = (
            loaded.model(ids, use_cache=False).logits[:, : short.shape[1]] for ids in (short, padded)
        )
    depends = not torch.allclose(alone, beside, rtol=1e-3, atol=1e-4)
    assert depends == bool(loaded.anatomy.switches) == request.node.callspec.id.endswith("longrope")
    assert loaded.anatomy.context == CONTEXT


@pytest.fixture
def long(as_loaded) -> Loaded:
    return rotated("llama", "longrope", as_loaded)


def test_losses_in_training(long):
    """The mean of whole splits; a sample is run with its last token."""
    samples = [(row, 1) for row in ROWS]
    expected = [
        long.model(torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in ROWS
    ]
    for size in (1, 4, 100):
        found = 0.0
        for rows in batches(samples, size, rope_switches(long.model.config)):
            assert len(rows) <= size
            batch = collate(rows)
            found += float(answer_losses(long.model(batch["input_ids"]).logits, batch["labels"]).sum())
        assert found == pytest.approx(float(sum(expected)), rel=1e-5)


def test_readings_of_streams(long):
    held_out = [number % 3 == 0 for number in range(len(ROWS))]
    readable = readable_of(long)
    one, many = (linearity(readable, ROWS, held_out, max_tokens=most) for most in (1, 4096))
    for first, second in zip(one.rows, many.rows, strict=True):
        np.testing.assert_allclose(vars(first.stream)["held_out"], vars(second.stream)["held_out"], rtol=1e-6)


def test_a_row_is_not_saved_where_it_is_the_beginning_of_a_longer_one_of_another_regime():
    rows = rows_of(0, CHOICES[0], (SHORT,))
    assert len(ROWS[0]) == 12
    assert sorted(len(row.tokens) for row in rows) == [13, 18]
    assert sorted(len(row.tokens) for row in rows_of(0, CHOICES[0])) == [13, 18]
    straddling = rows_of(
        4, CHOICES[4], (SHORT,)
    )  # a prompt of 16 tokens, and of 18 with the whole second choice
    assert sorted(len(row.tokens) for row in straddling) == [16, 17, 22]
    assert sorted(len(row.tokens) for row in rows_of(4, CHOICES[4])) == [17, 22]
    packed = Packing(4096, 4096, 0, (SHORT,)).pack(CHOICES, list(CHOICES))
    lengths = [batch.tokens.shape[1] for batch in packed]
    assert [regime(length, (SHORT,)) for length in lengths] == [0, 1]


def test_the_lengths_of_several_kinds_of_layers():
    gemma = tiny("gemma3").config
    one, other = ({"rope_type": "longrope", "original_max_position_embeddings": n} for n in (40, 20))
    gemma.rope_parameters = {"full_attention": one, "sliding_attention": other}
    assert rope_switches(gemma) == (20, 40)
    assert [regime(length, (20, 40)) for length in (1, 20, 21, 40, 41)] == [0, 0, 1, 1, 2]
    assert rope_switches(tiny("gpt2").config) == ()
