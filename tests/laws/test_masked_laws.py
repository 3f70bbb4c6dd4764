"""Masked language models against slow code that shares nothing with ours: plain transformers, one row at a time, or
many of them padded under an attention mask, which we never have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from fixtures.cuts import drops
from fixtures.zoo import by_hand, linearised, tiny
from torch import Tensor
from transformers import PreTrainedModel

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.evaluation.batching import Packing, rows_of
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.hf.load import Loaded
from secateur.methods.directions.effects import directions_effects
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects, first_order_effects
from secateur.probes.heads import head_importance
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded
from secateur.tasks.example import Example, Task

NAMES = ["bert", "distilbert", "modernbert", "roberta"]
MASK = 3  # as good as any id


def row(seed: int, length: int, *places: int) -> tuple[int, ...]:
    tokens = np.random.default_rng(seed).integers(4, 96, length)
    tokens[list(places)] = MASK
    return tuple(tokens.tolist())


ROWS = {  # choices of one token share a row; others have as many masks as tokens, also apart from each other
    0: Encoded(((row(1, 7, 4), (11,)), (row(1, 7, 4), (50,))), 1, (3, 4), masks=((4,), (4,))),
    1: Encoded(
        ((row(2, 9, 2), (8,)), (row(3, 11, 2, 3, 4), (9, 60, 71))), 0, (2, 9), masks=((2,), (2, 3, 4))
    ),
    2: Encoded(((row(4, 5, 0, 3), (33, 34)), (row(4, 5, 0, 3), (35, 6))), 1, (5, 5), masks=((0, 3), (0, 3))),
    3: Encoded(((row(5, 7, 6), (12,)), (row(5, 7, 6), (90,))), 0, (3, 3), masks=((6,), (6,))),
}
TASK = Task(
    "laws", "choice", tuple(Example(str(i), "", " w5", (" w5",)) for i in ROWS), {"select": tuple(ROWS)}
)


def plans_of(loaded: Loaded) -> list[Plan]:
    edits = [
        [], [Truncate(Site(0, "v"), 2)], [Truncate(Site(1, "down"), 3)], [Truncate(Site(0, "q"), 1, "tail")],
        [Truncate(Site(1, "o"), 2), Truncate(Site(1, "up"), 4)], drops("b1.attn.h2"), drops("b0.mlp.n3", "b1.attn"),
        drops("b1.mlp"), drops("b0"), drops("b1"),
    ]  # fmt: skip
    return [Plan(loaded.fingerprint, tuple(some)) for some in edits]


def logp(
    model: PreTrainedModel, tokens: tuple[int, ...], places: tuple[int, ...], answer: tuple[int, ...]
) -> Tensor:
    table = model(torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens))).logits[0].log_softmax(-1)
    return torch.stack([table[place, token] for place, token in zip(places, answer, strict=True)]).sum()


def alone(model: PreTrainedModel, example: int) -> list[Tensor]:
    """The log-likelihood of each answer, a row at a time."""
    one = ROWS[example]
    pairs = zip(one.pairs, one.masks, strict=True)
    return [logp(model, tokens, places, answer) for (tokens, answer), places in pairs]


@pytest.fixture(params=NAMES)
def loaded(request: pytest.FixtureRequest, as_loaded: Callable[[PreTrainedModel], Loaded]) -> Loaded:
    return as_loaded(tiny(request.param, torch.float64))


@pytest.mark.parametrize("max_tokens", [0, 20])
def test_the_evaluator_says_what_transformers_says_row_by_row(loaded, max_tokens):
    """Compare to 1e-10, for plans in every block, in batches of any size, with what is reused below an edit."""
    judge = Evaluator(loaded, TASK, ROWS, limits=Limits(max_tokens=max_tokens))
    plans = plans_of(loaded)
    judged = judge(plans, tuple(ROWS))
    for plan in plans:
        model = by_hand(loaded, plan)
        for example, outcome in zip(ROWS, judged[plan], strict=True):
            with torch.no_grad():
                said = np.array([float(value) for value in alone(model, example)])
            gold = ROWS[example].gold
            loss = -said[gold] / len(ROWS[example].pairs[gold][1])
            among = np.logaddexp.reduce(said) - said[gold]
            assert [outcome["loss"], outcome["choice_loss"]] == pytest.approx([loss, among], abs=1e-10), str(
                plan
            )
            assert outcome["predicted"] == said.argmax()


@torch.no_grad()
def test_a_batch_is_what_padding_under_a_mask_gives(loaded):
    """All rows at once, as transformers pads them, against batches of rows of one length."""
    rows = [one for example in ROWS for one in rows_of(example, ROWS[example], loaded.anatomy.switches)]
    longest = max(len(one.tokens) for one in rows)
    pad = loaded.model.config.pad_token_id
    ids = torch.tensor([[*one.tokens, *[pad] * (longest - len(one.tokens))] for one in rows])
    padded = loaded.model(ids, attention_mask=(ids != pad).long()).logits
    batches = Packing(10_000, 10_000, 0, loaded.anatomy.switches).pack(ROWS, ROWS)
    assert all(batch.tokens.shape[1] == len(tokens) for batch in batches for tokens in batch.tokens.tolist())
    found = {
        tuple(tokens): table
        for b in batches
        for tokens, table in zip(b.tokens.tolist(), loaded.model(b.tokens).logits, strict=True)
    }
    for one, table in zip(rows, padded, strict=True):
        torch.testing.assert_close(found[one.tokens], table[: len(one.tokens)], rtol=0, atol=1e-10)


# ----------------------------------------------------------------------------------------------------------- text

CHUNKS = {  # each between two tokens that are not predicted
    number: Encoded(
        ((row(number, length), row(number, length)[1:-1]),),
        0,
        (1,),
        masks=(tuple(range(1, length - 1)),),
        mask=MASK,
    )
    for number, length in ((8, 7), (9, 5), (10, 7))
}
TEXT = Task(
    "text",
    "text",
    tuple(Example(str(number), "", "", tokens=(1, 2)) for number in range(11)),
    {"select": tuple(CHUNKS)},
)


def pseudo(model: PreTrainedModel, example: int) -> Tensor:
    """Log p of each token given all others of its chunk, added up."""
    ((tokens, _),) = CHUNKS[example].pairs
    found = [
        logp(model, (*tokens[:place], MASK, *tokens[place + 1 :]), (place,), (tokens[place],))
        for place in range(1, len(tokens) - 1)
    ]
    return torch.stack(found).sum()


@pytest.mark.parametrize("max_tokens", [0, 20])
def test_text_is_predicted_token_by_token_from_all_others(loaded, max_tokens):
    judge = Evaluator(loaded, TEXT, CHUNKS, limits=Limits(max_tokens=max_tokens))
    plans = plans_of(loaded)
    judged = judge(plans, tuple(CHUNKS))
    for plan in plans:
        model = by_hand(loaded, plan)
        with torch.no_grad():
            said = [-float(pseudo(model, e)) / len(CHUNKS[e].pairs[0][1]) for e in CHUNKS]
        assert judged[plan]["loss"].tolist() == pytest.approx(said, abs=1e-10), str(plan)
    assert judged[plans[0]]["tokens"].tolist() == [5, 3, 5]


def test_screens_of_text_do_not_depend_on_which_rows_run_together(loaded):
    """The rows of a chunk are as many as its tokens; their gradient is that of the odds of the whole chunk."""
    margin = AnswerMargin.of(loaded, CHUNKS, tuple(CHUNKS), False)
    plan = Plan(loaded.fingerprint, (Truncate(Site(1, "up"), 2),))
    (operation,) = resolve(plan, loaded.anatomy, loaded.fingerprint)
    model = copy.deepcopy(loaded.model)
    weight = model.get_parameter(operation.parameter).requires_grad_()
    taken = by_hand(loaded, plan).get_parameter(operation.parameter) - weight.detach()
    wanted = []
    for example in CHUNKS:
        whole = pseudo(model, example)
        (slope,) = torch.autograd.grad(whole - torch.log(-torch.expm1(whole)), weight)
        wanted.append(float((slope * taken).sum()))
    within = 1e-6 if loaded.anatomy.family == "modernbert" else 1e-10
    for tokens in (10_000, 14, 1):
        packing = Packing(tokens, 10_000, 0, loaded.anatomy.switches)
        spectra = Evaluator(loaded, TEXT, CHUNKS).spectra
        found = first_order_effects(margin, tuple(CHUNKS), [plan], spectra=spectra, packing=packing)
        np.testing.assert_allclose(found.changes[plan], wanted, rtol=0, atol=within)
    assert np.abs(wanted).max() > 1e-6


# ------------------------------------------------------------------------------------------------------- answers


@torch.no_grad()
def test_a_free_answer_is_right_where_every_mask_says_its_token(loaded):
    """Of one row the likeliest token at each mask; of the same row with the last of them changed."""
    tokens, places = row(7, 9, 1, 2, 6), (1, 2, 6)
    said = tuple(loaded.model(torch.tensor([tokens])).logits[0].argmax(-1)[list(places)].tolist())
    wrong = (*said[:2], (said[2] + 1) % 96)
    rows = {
        n: Encoded(((tokens, answer),), 0, (1,), masks=(places,)) for n, answer in enumerate((said, wrong))
    }
    task = Task("free", "generation", tuple(Example(str(n), "", " w5") for n in rows), {"select": (0, 1)})
    plan = Plan(loaded.fingerprint)
    outcomes = Evaluator(loaded, task, rows)([plan], (0, 1))[plan]
    assert outcomes["correct"].tolist() == [1.0, 0.0]
    assert outcomes["predicted"].tolist() == [said[0], said[0]]
    assert outcomes["rank"].tolist() == [0, 0]


def test_answers_of_as_many_tokens_share_a_row():
    assert [len(rows_of(example, one, range(99))) for example, one in ROWS.items()] == [1, 2, 1, 1]


def odds(model: PreTrainedModel, example: int) -> Tensor:
    right, wrong = alone(model, example)
    return right - wrong if ROWS[example].gold == 0 else wrong - right


def test_screens_are_the_gradients_of_plain_transformers(loaded):
    """First order in what is taken away, by autograd through the whole model row by row; and a last block is exact."""
    judge = Evaluator(loaded, TASK, ROWS)
    margin = AnswerMargin.of(loaded, ROWS, tuple(ROWS), True)
    how = {"spectra": judge.spectra, "packing": judge.packing}
    plans = [
        Plan(loaded.fingerprint, tuple(edits))
        for edits in (
            [Truncate(Site(0, "k"), 3)],
            [Truncate(Site(1, "up"), 2)],
            drops("b0.attn.h1"),
            drops("b1.mlp.n5"),
        )
    ]
    found = first_order_effects(margin, tuple(ROWS), plans, **how)
    exact = block_effects(margin, tuple(ROWS), plans, **how)
    within = 1e-6 if loaded.anatomy.family == "modernbert" else 1e-10  # which rotates in float32
    model = copy.deepcopy(loaded.model)
    for plan in plans:
        (operation,) = resolve(plan, loaded.anatomy, loaded.fingerprint)
        weight = model.get_parameter(operation.parameter).requires_grad_()
        cut = by_hand(loaded, plan)
        taken = cut.get_parameter(operation.parameter) - weight.detach()
        wanted = []
        path = loaded.anatomy.blocks[loaded.anatomy.lowest_block(plan)]
        for example in ROWS:
            before = odds(model, example)
            (slope,) = torch.autograd.grad(before, weight)
            wanted.append(float((slope * taken).sum()))
        weight.requires_grad_(False)
        np.testing.assert_allclose(found.changes[plan], wanted, rtol=0, atol=within)
        assert np.abs(wanted).max() > 1e-6
        changes = [linearised(model, cut, path, partial(odds, example=example)) for example in ROWS]
        np.testing.assert_allclose(exact.changes[plan], changes, rtol=0, atol=within)


def test_readings_are_means_over_every_token_of_the_rows(loaded):
    """Mean inputs, which directions fold, and E|A·dL/dA| of heads: by hooks on plain transformers, row by row."""
    site, num_heads = Site(1, "o"), loaded.anatomy.num_heads
    packing = Evaluator(loaded, TASK, ROWS).packing
    (piece,) = directions_effects(loaded, ROWS, tuple(ROWS), [site], packing=packing).matrices
    heads = head_importance(loaded, ROWS, tuple(ROWS), packing=packing)
    inputs, worth = [], []
    module = loaded.model.get_submodule(loaded.anatomy.module(site))
    for one in ROWS.values():
        (tokens, answer), places = one.pairs[one.gold], one.masks[one.gold]
        seen: list[Tensor] = []

        def before(_module: object, args: tuple[Tensor], seen: list[Tensor] = seen) -> tuple[Tensor]:
            seen.append(args[0].detach().requires_grad_())
            return (seen[0],)

        handle = module.register_forward_pre_hook(before)
        loss = -logp(loaded.model, tokens, places, answer) / len(answer)
        handle.remove()
        (slope,) = torch.autograd.grad(loss, seen[0])
        inputs.append(seen[0].detach()[0])
        worth.append((seen[0].detach() * slope)[0].unflatten(-1, (num_heads, -1)).sum(-1).abs())
    np.testing.assert_allclose(piece.mean_input, torch.cat(inputs).mean(0), rtol=0, atol=1e-12)
    wanted = torch.cat(worth).mean(0).tolist()
    found = [heads.values[str(Site(1, "attn", "h", head))] for head in range(num_heads)]
    assert found == pytest.approx(wanted, rel=1e-9)
