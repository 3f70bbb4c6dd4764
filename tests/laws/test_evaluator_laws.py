"""The evaluator against a slow reference that shares nothing with it: one row per call, no padding, a model that is
really cut, log-softmax in numpy. And what must never change a result: batches, shards, interruptions, memory."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.zoo import by_layout, tiny, variant, written_
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from secateur.core.ledger import Ledger
from secateur.core.plan import Plan, Truncate
from secateur.core.score import OUTCOME
from secateur.core.site import Site
from secateur.errors import PlanError, TaskError
from secateur.evaluation.batching import Packing, rows_of
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.evaluation.forward import Forward
from secateur.evaluation.generate import answers_within, greedy
from secateur.hf.load import Loaded
from secateur.surgery.mask import swapped_forward
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

DTYPES = {"float32": torch.float32, "float64": torch.float64}
EAGER = 1e-6  # eager attention takes its softmax in float32 whatever the model's dtype
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
Wrap = Callable[[PreTrainedModel], Loaded]


@pytest.fixture(params=by_layout())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def some(seed: int, count: int) -> tuple[int, ...]:
    """Token ids without the special ones."""
    return tuple(np.random.default_rng(seed).integers(3, 96, count).tolist())


def choice(seed: int, context: int, lengths: Sequence[int], gold: int) -> Encoded:
    """Choices of given token lengths; the second begins with the whole first one where it is longer."""
    ends = [some(seed + 1 + i, n) for i, n in enumerate(lengths)]
    if len(ends) > 1 and lengths[1] > lengths[0]:
        ends[1] = ends[0] + ends[1][lengths[0] :]
    pairs = tuple((some(seed, context), end) for end in ends)
    return Encoded(pairs, gold, tuple(3 * n + seed % 4 for n in lengths))


CHOICES = {  # single tokens, lengths that differ, a choice that begins another, one beyond a window of 16
    0: choice(10, 5, (1, 1, 1), 2),
    1: choice(20, 7, (1, 3, 2), 1),
    2: choice(30, 1, (2, 4), 0),
    3: choice(40, 19, (3, 1), 0),
    4: Encoded(((some(50, 4), some(51, 2)), (some(52, 9), some(51, 2))), 1, (7, 7)),  # two contexts
    5: choice(60, 5, (1, 1, 1), 0),
}
TEXTS = {i: Encoded(((some(70 + i, 1), some(80 + i, n)),), 0, (1,)) for i, n in enumerate((23, 5, 23, 11))}
ANSWERS = {
    i: Encoded(((some(90 + i, c), some(95 + i, n)),), 0, (1,)) for i, (c, n) in enumerate(((4, 1), (9, 3)))
}
KINDS = {"choice": CHOICES, "text": TEXTS, "generation": ANSWERS}


def task_of(kind: str) -> Task:
    """The token ids are the tests'; a Judge asks of a task no more than its kind."""
    examples = tuple(Example(f"e{i}", "", "w5", ("w5",) if kind == "choice" else None) for i in KINDS[kind])
    return Task("laws", kind, examples, {"probe": (), "select": tuple(KINDS[kind]), "test": ()})


def judge_of(loaded: Loaded, kind: str = "choice", **options) -> Evaluator:
    return Evaluator(loaded, task_of(kind), KINDS[kind], **options)


def plans_for(loaded: Loaded) -> list[Plan]:
    """Nothing; each block alone by attention and by feed-forward; several at once, also in one fused parameter, and
    the same matrices again at other ranks."""
    last = loaded.anatomy.num_blocks - 1
    cuts: list[tuple[Truncate, ...]] = [()]
    for block in range(last + 1):
        cuts += [(Truncate(Site(block, "down"), 1),)]
        cuts += [(Truncate(Site(block, "v"), 2),)] if block in loaded.anatomy.attending else []
    for rank in (0, 3):
        cuts.append(tuple(Truncate(Site(last, kind), rank + 1) for kind in ("q", "k", "o", "up")))
        cuts.append((Truncate(Site(0, "up"), rank), Truncate(Site(last, "o"), rank)))
    cuts.append((Truncate(Site(0, "up"), 4), Truncate(Site(0, "o"), 2), Truncate(Site(last, "v"), 3, "tail")))
    return [Plan(loaded.fingerprint, edits) for edits in cuts]


# --------------------------------------------------------------------------------------------- the reference


def really_cut(loaded: Loaded, plan: Plan) -> PreTrainedModel:
    model = copy.deepcopy(loaded.model)
    written_(model, resolve(plan, loaded.anatomy, loaded.fingerprint))
    return model


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def scored_alone(model: PreTrainedModel, context: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
    """log p over the vocabulary at each token of the continuation: (tokens, vocab) float64."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation[:-1]]])).logits[0].double().numpy()
    return log_softmax(logits)[len(context) - 1 :]


def reference(model: PreTrainedModel, kind: str, examples: Sequence[int]) -> np.ndarray:
    rows = []
    for example in examples:
        encoded = KINDS[kind][example]
        tables = [scored_alone(model, *pair) for pair in encoded.pairs]
        said = [
            sum(float(row[token]) for row, token in zip(table, pair[1], strict=True))
            for table, pair in zip(tables, encoded.pairs, strict=True)
        ]
        table, answer = tables[encoded.gold], encoded.pairs[encoded.gold][1]
        rank = int((table[0] > table[0][answer[0]]).sum())
        correct, norm, among, predicted = np.nan, np.nan, np.nan, -1
        if kind == "generation":
            correct = float(all(row.argmax() == token for row, token in zip(table, answer, strict=True)))
            predicted = int(table[0].argmax())
        if kind == "choice":
            predicted = max(range(len(said)), key=lambda i: said[i])
            correct = float(predicted == encoded.gold)
            by_length = [value / length for value, length in zip(said, encoded.lengths, strict=True)]
            norm = float(max(range(len(said)), key=lambda i: by_length[i]) == encoded.gold)
            among = -math.log(math.exp(said[encoded.gold]) / sum(map(math.exp, said)))
        loss = -said[encoded.gold] / len(answer)
        rows.append((example, loss, correct, norm, among, rank, predicted, len(answer)))
    return np.array(rows, dtype=OUTCOME)


def tolerance(model: PreTrainedModel) -> float:
    """Relative to losses of 4 to 6 nats; rounding alone."""
    eager = model.config._attn_implementation == "eager"
    return max(TOLERANCE[model.dtype], EAGER if eager else 0)


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.dtype == OUTCOME
    for column in ("loss", "choice_loss"):
        scale = tolerance * (
            1 if column == "loss" else 20
        )  # a sum over the tokens of an answer, not their mean
        np.testing.assert_allclose(found[column], expected[column], rtol=scale, atol=scale, err_msg=column)
    for column in set(OUTCOME.names) - {"loss", "choice_loss"}:
        np.testing.assert_array_equal(found[column], expected[column], err_msg=column)


def bits(judged: Mapping[Plan, np.ndarray]) -> dict[str, bytes]:
    return {plan.identity: outcomes.tobytes() for plan, outcomes in judged.items()}


# ------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("choice", "float64"), ("text", "float64"), ("generation", "float64"), ("choice", "float32")],
)
def test_outcomes_are_those_of_a_model_really_cut_called_one_row_at_a_time(name, kind, dtype, as_loaded):
    loaded = as_loaded(tiny(name, DTYPES[dtype]))
    plans, examples = plans_for(loaded), list(KINDS[kind])
    judged = judge_of(loaded, kind)(plans, examples)
    assert list(judged) == plans
    for plan in plans:
        expected = reference(really_cut(loaded, plan), kind, examples)
        assert_same(judged[plan], expected, tolerance(loaded.model))


@pytest.mark.parametrize(("name", "kind"), [("lfm2-biased", "choice"), ("qwen3.5", "text")])
def test_rows_of_a_hybrid_do_not_see_each_other_nor_their_padding(name, kind, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    plans, examples = plans_for(loaded)[:6:2], list(KINDS[kind])
    judged = judge_of(loaded, kind)(plans, examples)
    for plan in plans:
        expected = reference(really_cut(loaded, plan), kind, examples)
        assert_same(judged[plan], expected, tolerance(loaded.model))


def test_every_plan_is_felt(name, as_loaded):
    """Otherwise the comparison above would prove nothing."""
    loaded = as_loaded(tiny(name))
    judged = judge_of(loaded, "text")(plans_for(loaded), list(TEXTS))
    losses = {tuple(outcomes["loss"].round(6)) for outcomes in judged.values()}
    assert len(losses) == len(judged)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_tokens=1),
        Limits(max_tokens=64),
        Limits(cache_bytes=1),
        Limits(cache_bytes=6000),
        Limits(logit_bytes=1),
        Limits(max_tokens=40, cache_bytes=9000, logit_bytes=3000),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_limits_change_no_score(kind, limits, as_loaded):
    loaded = as_loaded(tiny("llama-tied-biased", torch.float64))
    plans, examples = plans_for(loaded), list(KINDS[kind])
    expected = judge_of(loaded, kind)(plans, examples)
    found = judge_of(loaded, kind, limits=limits)(plans, examples)
    for plan in plans:
        assert_same(found[plan], expected[plan], 1e-12)


def test_other_examples_change_no_score_and_the_order_asked_is_the_order_given(as_loaded):
    loaded = as_loaded(tiny("gpt2-untied-wide", torch.float64))
    plans = plans_for(loaded)
    whole = judge_of(loaded)(plans, list(CHOICES))
    for subset in ([3], [5, 0], [4, 2, 1], [5, 4, 3, 2, 1, 0]):
        found = judge_of(loaded)(plans, subset)
        for plan in plans:
            assert found[plan]["example"].tolist() == subset
            assert_same(found[plan], whole[plan][subset], 1e-12)


def test_banned_tokens_are_never_answered(as_loaded):
    loaded = as_loaded(tiny("qwen2", torch.float64))
    plan = Plan(loaded.fingerprint)
    free = judge_of(loaded, "generation")([plan], list(ANSWERS))[plan]
    ban = free["predicted"].tolist()
    tied = judge_of(loaded, "generation", ban=ban)([plan], list(ANSWERS))[plan]
    for example, encoded in ANSWERS.items():
        context, answer = encoded.pairs[0]
        table = scored_alone(loaded.model, context, answer)
        table[:, ban] = -np.inf
        table = log_softmax(table)
        assert tied[example]["predicted"] == table[0].argmax() != free[example]["predicted"]
        loss = -np.mean([row[token] for row, token in zip(table, answer, strict=True)])
        np.testing.assert_allclose(tied[example]["loss"], loss, rtol=1e-12)


def test_tally_gives_the_likelihood_of_every_choice(as_loaded):
    loaded = as_loaded(tiny("phi3", torch.float64))
    plan = plans_for(loaded)[-1]
    tally, cut = judge_of(loaded).tally(plan, list(CHOICES)), really_cut(loaded, plan)
    for example, encoded in CHOICES.items():
        tables = [(scored_alone(cut, *pair), pair[1]) for pair in encoded.pairs]
        expected = [table[np.arange(len(answer)), answer].sum() for table, answer in tables]
        np.testing.assert_allclose(tally.choice_logps(example), expected, rtol=1e-12)


def test_a_plan_for_another_model_is_refused(as_loaded):
    loaded = as_loaded(tiny("llama"))
    with pytest.raises(PlanError, match="its weights differ"):
        judge_of(loaded)([Plan("other")], list(CHOICES))


# ---------------------------------------------------------------------------------------- nothing runs twice


@contextmanager
def executions(loaded: Loaded) -> Iterator[Counter]:
    """How often each block really ran: whoever runs it computes its keys, and a stand-in computes none.

    Calls with two tokens are not counted: by them a Judge learns once what shape the blocks have."""
    ran: Counter = Counter()

    def count(block: int) -> Callable[..., None]:
        return lambda _module, args, _out: ran.update([block] * (args[0].shape[:-1].numel() > 2))

    paths = [loaded.anatomy.matrix(Site(b, "k")).module for b in range(loaded.anatomy.num_blocks)]
    handles = [loaded.model.get_submodule(p).register_forward_hook(count(b)) for b, p in enumerate(paths)]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def test_blocks_below_an_edit_run_once_for_all_plans(name, as_loaded):
    loaded = as_loaded(tiny(name))
    judge, plans, num_blocks = judge_of(loaded), plans_for(loaded), loaded.anatomy.num_blocks
    batches = len(judge.packing.pack(CHOICES, list(CHOICES)))
    with executions(loaded) as ran:
        judge(plans, list(CHOICES))
    for block in range(num_blocks):
        cached = int(block < num_blocks - 1)  # once, for the activations that enter the blocks above
        above = sum(loaded.anatomy.lowest_block(plan) < block for plan in plans)
        here = sum(loaded.anatomy.lowest_block(plan) == block for plan in plans)
        # what an edit leaves alone within its own lowest block need not run for every plan
        assert cached + above < ran[block] / batches <= cached + above + here, block


def test_one_plan_at_the_last_block_costs_one_forward(as_loaded):
    loaded = as_loaded(tiny("llama-tied-biased"))
    judge, plan = judge_of(loaded), Plan(loaded.fingerprint, (Truncate(Site(2, "down"), 1),))
    with executions(loaded) as ran:
        judge([plan], list(CHOICES))
    batches = len(judge.packing.pack(CHOICES, list(CHOICES)))
    assert ran == {0: batches, 1: batches, 2: batches}


def test_the_unembedding_sees_the_scored_positions_alone(as_loaded):
    loaded = as_loaded(tiny("gpt2"))
    judge, plan = judge_of(loaded), Plan(loaded.fingerprint)
    seen: list[tuple[int, ...]] = []
    handle = loaded.model.lm_head.register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape)))
    judge([plan], list(CHOICES))
    handle.remove()
    batches = judge.packing.pack(CHOICES, list(CHOICES))
    assert seen == [(1, len(batch.keep), 96) for batch in batches]
    assert sum(len(batch.keep) for batch in batches) < sum(batch.num_tokens for batch in batches) / 3


def test_rows_that_begin_others_are_not_run():
    encoded = Encoded((((3, 4), (5,)), ((3, 4), (5, 6)), ((3, 4), (7, 8)), ((3, 4), (9,))), 0, (1, 1, 1, 1))
    rows = rows_of(0, encoded)
    assert [row.tokens for row in rows] == [(3, 4, 5), (3, 4, 7)]
    first, second = rows
    assert {(t.position, t.token, t.continuation) for t in second.targets} == {(1, 7, 2), (2, 8, 2)}
    assert {(t.position, t.token, t.continuation, t.first) for t in first.targets} == {
        (1, 5, 0, True),
        (1, 5, 1, True),
        (2, 6, 1, False),
        (1, 9, 3, True),
    }


# ------------------------------------------------------------------------------------- everything given back


def lenders(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if "forward" in module.__dict__]


def test_forwards_are_given_back(name, as_loaded):
    loaded = as_loaded(tiny(name))
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    with torch.no_grad():
        whole = loaded.model(torch.tensor([some(1, 20)])).logits
        judge_of(loaded)(plans_for(loaded), list(CHOICES))
        assert lenders(loaded.model) == []
        assert torch.equal(loaded.model(torch.tensor([some(1, 20)])).logits, whole)
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())


def test_forwards_and_weights_are_given_back_after_an_exception(name, as_loaded):
    loaded = as_loaded(tiny(name))
    judge, plan = judge_of(loaded), plans_for(loaded)[-3]  # the last block's, so that stand-ins are out
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    last = loaded.model.get_submodule(loaded.anatomy.matrix(plan.lowest_block.beside("k")).module)
    lent_then: list[str] = []

    def breaks(*_: object) -> None:
        lent_then.extend(lenders(loaded.model))
        raise KeyboardInterrupt

    handle = last.register_forward_hook(breaks)
    with pytest.raises(KeyboardInterrupt):
        judge([plan], list(CHOICES))
    handle.remove()
    assert loaded.anatomy.blocks[0] in lent_then
    assert lenders(loaded.model) == []
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())


def test_lent_forwards_nest():
    module = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    own = module(x)
    with swapped_forward(module, lambda x: x + 1):
        with swapped_forward(module, lambda x: x + 2):
            assert torch.equal(module(x), x + 2)
        assert torch.equal(module(x), x + 1)
    assert torch.equal(module(x), own)
    assert "forward" not in module.__dict__


def test_activations_entered_again_are_those_of_a_plain_call(name, as_loaded):
    """`entering` in steps, and the logits from there, against hooks on an untouched call of the whole model."""
    loaded = as_loaded(tiny(name, torch.float64))
    forward = Forward(loaded.model, loaded.anatomy)
    batch = Packing(4096, 4096, 0).pack(CHOICES, [1, 2, 3])[0]
    entered: dict[int, torch.Tensor] = {}

    def keep(block: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            entered[block] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    blocks = [loaded.model.get_submodule(path) for path in loaded.anatomy.blocks]
    handles = [b.register_forward_pre_hook(keep(i), with_kwargs=True) for i, b in enumerate(blocks)]
    with torch.no_grad():
        plain = loaded.model(batch.tokens).logits.flatten(0, 1)[batch.keep]
    for handle in handles:
        handle.remove()
    hidden, start = None, 0
    with torch.no_grad():
        for block in range(1, len(blocks)):
            hidden, start = forward.entering(batch, block, start=start, hidden=hidden), block
            torch.testing.assert_close(hidden, entered[block])
            held = hidden.clone()
            torch.testing.assert_close(forward.logits(batch, start=block, hidden=hidden), plain)
            assert torch.equal(hidden, held), "a block wrote into the kept activations"
        torch.testing.assert_close(forward.logits(batch), plain)


# -------------------------------------------------------------------------------- remembered and interrupted


def test_what_the_ledger_knows_is_not_computed_again(tmp_path, as_loaded):
    loaded = as_loaded(tiny("mistral"))
    plans, examples = plans_for(loaded), list(CHOICES)
    with Ledger.open(tmp_path / "ledger") as ledger:
        first = judge_of(loaded, ledger=ledger, scope="s")
        some_first = first(plans[:3], examples[:2])
        judged = first(plans, examples)
        assert first.evaluated == len(plans) * len(examples)
        for plan in plans[:3]:
            assert judged[plan][:2].tobytes() == some_first[plan].tobytes()
        second = judge_of(loaded, ledger=ledger, scope="s")
        with executions(loaded) as ran:
            assert bits(second(plans, examples)) == bits(judged)
        assert (second.evaluated, sum(ran.values())) == (0, 0)
        other = judge_of(loaded, ledger=ledger, scope="another")
        other(plans[:1], examples)
        assert other.evaluated == len(examples)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 4, 9, 17])
def test_interrupted_and_resumed_is_never_interrupted(after, tmp_path, as_loaded):
    loaded = as_loaded(tiny("gpt2-untied-wide"))
    plans, examples = plans_for(loaded), list(CHOICES)
    limits = Limits(cache_bytes=6000)  # several shards

    def kill(stage: str, done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == after:
            raise Killed

    with Ledger.open(tmp_path / "whole") as ledger:
        expected = judge_of(loaded, ledger=ledger, scope="s", limits=limits)(plans, examples)
    calls: list[int] = []
    with Ledger.open(tmp_path / "killed") as ledger:
        killed = judge_of(loaded, ledger=ledger, scope="s", limits=limits, progress=kill)
        with pytest.raises(Killed):
            killed(plans, examples)
        assert lenders(loaded.model) == []
    with Ledger.open(tmp_path / "killed") as ledger:
        resumed = judge_of(loaded, ledger=ledger, scope="s", limits=limits)
        assert bits(resumed(plans, examples)) == bits(expected)
        assert resumed.evaluated + killed.evaluated == len(plans) * len(examples)
        assert killed.evaluated > 0
        assert ledger.evaluations("s") == len(plans) * len(examples)


def test_progress_counts_every_example_of_every_plan(as_loaded):
    loaded = as_loaded(tiny("opt"))
    seen: list[tuple[str, int, int]] = []
    plans = plans_for(loaded)
    judge = judge_of(loaded, limits=Limits(cache_bytes=6000), progress=lambda *said: seen.append(said))
    judge(plans, list(CHOICES), "here")
    total = len(plans) * len(CHOICES)
    done = [d for _, d, _ in seen]
    assert done == sorted(set(done))
    assert (seen[-1], {(s, t) for s, _, t in seen}) == (("here", total, total), {("here", total)})


# --------------------------------------------------------------------------------------------- out of memory


@contextmanager
def short_of_memory(loaded: Loaded, most: int) -> Iterator[list[int]]:
    """The last block's keys cannot be computed for more than `most` tokens at a time."""
    path = loaded.anatomy.matrix(Site(loaded.anatomy.num_blocks - 1, "k")).module
    module = loaded.model.get_submodule(path)
    own, refused = module.forward, []

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.shape[:-1].numel() > most:
            refused.append(x.shape[:-1].numel())
            raise torch.OutOfMemoryError
        return own(x)

    with swapped_forward(module, forward):
        yield refused


@pytest.mark.parametrize("kind", ["choice", "text"])
def test_when_memory_runs_out_batches_halve_and_results_stay(kind, tmp_path, as_loaded):
    loaded = as_loaded(tiny("llama-tied-biased", torch.float64))
    plans, examples = plans_for(loaded), list(KINDS[kind])
    expected = judge_of(loaded, kind)(plans, examples)
    with Ledger.open(tmp_path / "ledger") as ledger, short_of_memory(loaded, 45) as refused:
        judge = judge_of(loaded, kind, limits=Limits(max_tokens=2048), ledger=ledger, scope="s")
        found = judge(plans, examples)
        assert ledger.evaluations("s") == judge.evaluated == len(plans) * len(examples)
    assert refused
    assert judge.packing.max_tokens < 2048
    for plan in plans:
        assert_same(found[plan], expected[plan], 1e-12)
    assert lenders(loaded.model) == []


def test_memory_that_never_suffices_is_an_error_not_a_loop(as_loaded):
    loaded = as_loaded(tiny("llama"))
    with short_of_memory(loaded, 1), pytest.raises(torch.OutOfMemoryError):
        judge_of(loaded)(plans_for(loaded), list(CHOICES))


# ------------------------------------------------------------------------------------------------ generation


def alone(loaded: Loaded, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy, by hand: the whole text again for every token, no cache, no padding."""
    text = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(loaded.model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())
        if token == loaded.tokenizer.eos_token_id:
            break
        text.append(token)
    return text[len(prompt) :]


PROMPTS = [some(200 + i, n) for i, n in enumerate((3, 19, 8, 8, 1, 12))]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_left_padded_batches_generate_what_one_prompt_alone_does(name, dtype, as_loaded):
    loaded = as_loaded(tiny(name, DTYPES[dtype]))
    expected = [alone(loaded, p, 6) for p in PROMPTS]
    for max_tokens in (1, 60, 4096):
        assert greedy(loaded, PROMPTS, 6, max_tokens) == expected


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_generation_fills_the_context_and_refuses_to_go_beyond(family, as_loaded):
    loaded = as_loaded(tiny(family))
    assert loaded.anatomy.context == 64
    prompt = some(1, 60)
    assert greedy(loaded, [prompt], 5, 4096) == [alone(loaded, prompt, 5)]
    with pytest.raises(TaskError, match=r"60 tokens leaves no room for 6 more .* context of 64"):
        greedy(loaded, [some(2, 3), prompt], 6, 4096)


def test_generation_stops_at_the_end_of_sequence(as_loaded):
    model = tiny("llama", torch.float64)
    loaded = as_loaded(model)
    free = [alone(loaded, p, 8) for p in PROMPTS]
    stop = free[0][2]  # from now on this token ends a sequence
    loaded.tokenizer.eos_token = f"w{stop}"
    try:
        cut = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in free]
        assert greedy(loaded, PROMPTS, 8, 4096) == cut != free
    finally:
        loaded.tokenizer.eos_token = "w2"


ASKED = [  # what generation_config.json may hold
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[n] for n in range(40, 96)]},
    {"suppress_tokens": [*range(40, 96)]},
    {"begin_suppress_tokens": [*range(40, 96)]},
    {"sequence_bias": [[[n], -50.0] for n in range(40, 96)]},
    {"forced_bos_token_id": 5},
    {"forced_eos_token_id": 5},
    {"exponential_decay_length_penalty": (1, 90.0)},
    {"max_length": 3},
    {"min_length": 60},
    {"min_new_tokens": 6},
    {"do_sample": True, "temperature": 9.0, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9},
    {"num_beams": 3, "length_penalty": 4.0, "early_stopping": True},
    {"num_return_sequences": 2, "num_beams": 2},
    {"guidance_scale": 5.0},
    {"prompt_lookup_num_tokens": 3},
    {"stop_strings": ["w"]},
    {"max_time": 1e-9},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: next(iter(asked)))
def test_greedy_text_is_the_argmax_of_plain_logits_whatever_the_model_asks_for(asked, as_loaded):
    loaded = as_loaded(tiny("llama"))
    expected = [alone(loaded, prompt, 6) for prompt in PROMPTS]
    own = loaded.model.generation_config = GenerationConfig(eos_token_id=2, **asked)
    assert greedy(loaded, PROMPTS, 6, 4096) == expected
    assert loaded.model.generation_config is own


def test_parameters_of_generation_in_config_json_change_nothing(as_loaded):
    """Where checkpoints of old have them."""
    loaded = as_loaded(tiny("llama"))
    expected = greedy(loaded, PROMPTS, 6, 4096)
    loaded.model.config.repetition_penalty = 1.8
    assert greedy(loaded, PROMPTS, 6, 4096) == expected


@pytest.mark.parametrize("stated", [7, [7], [2, 7], [96, 7, 500]], ids=str)
def test_generation_also_stops_where_the_model_says_that_a_text_ends(stated, as_loaded):
    loaded = as_loaded(tiny("llama"))
    free = [alone(loaded, prompt, 8) for prompt in PROMPTS]
    stop = free[0][2]
    stated = [stop if one == 7 else one for one in stated] if isinstance(stated, list) else stop
    loaded.model.generation_config = GenerationConfig(eos_token_id=stated)
    cut = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in free]
    assert greedy(loaded, PROMPTS, 8, 4096) == cut != free
    assert set(loaded.ends) == {2, *(stated if isinstance(stated, list) else [stated])}


def test_a_model_for_which_no_text_ends(as_loaded):
    loaded = as_loaded(variant("llama", eos_token_id=None))
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.eos_token = None
    endless = replace(loaded, tokenizer=tokenizer)
    assert endless.ends == ()
    assert [len(tokens) for tokens in greedy(endless, PROMPTS, 8, 4096)] == [8] * len(PROMPTS)


@pytest.mark.parametrize("family", ["gpt2", "llama-tied-biased", "bloom", "opt"])
def test_generation_accuracy_is_gold_within_the_first_tokens_of_the_cut_model(family, as_loaded):
    loaded = as_loaded(tiny(family))
    encoded = {i: Encoded(((prompt, (5,)),), 0, (1,)) for i, prompt in enumerate(PROMPTS)}
    plans = plans_for(loaded)
    answers = {plan: [] for plan in plans}
    for plan in plans:
        cut = as_loaded(really_cut(loaded, plan))
        answers[plan] = [alone(cut, prompt, 4) for prompt in PROMPTS]
    # gold: the last token of the whole model, so that a cut may lose it
    golds = [f" w{tokens[-1]}" for tokens in answers[plans[0]]]
    examples = tuple(Example(f"g{i}", "p", gold) for i, gold in enumerate(golds))
    task = Task("said", "generation", examples, {}, max_new_tokens=4)
    judged = Evaluator(loaded, task, encoded, limits=Limits(max_tokens=70, cache_bytes=9000))(plans, range(6))
    for plan in plans:
        texts = [" ".join(f"w{token}" for token in tokens) for tokens in answers[plan]]
        expected = [float(gold.strip() in text) for gold, text in zip(golds, texts, strict=True)]
        assert judged[plan]["correct"].tolist() == expected
        first = [tokens[0] if tokens else 2 for tokens in answers[plan]]
        assert judged[plan]["predicted"].tolist() == first
    assert judged[plans[0]]["correct"].all()
    assert not all(outcomes["correct"].all() for outcomes in judged.values())
    packing = Packing(4096, 4096, 0)
    assert answers_within(loaded, task, range(6), encoded, packing).tolist() == [1.0] * 6


# ------------------------------------------------------------------------------------------- another process


def digest_of_outcomes(wrap: Wrap) -> str:
    loaded = wrap(tiny("llama"))
    judged = judge_of(loaded)(plans_for(loaded), list(CHOICES))
    return hashlib.sha256(repr(sorted(bits(judged).items())).encode()).hexdigest()


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(as_loaded):
    here = Path(__file__).resolve().parent
    code = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
        "import conftest, test_evaluator_laws as laws, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "words = conftest.words.__wrapped__()\n"
        "print(laws.digest_of_outcomes(conftest.as_loaded.__wrapped__(words)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.stdout.strip() == digest_of_outcomes(as_loaded), done.stderr
