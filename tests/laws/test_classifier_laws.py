"""Sequence classifiers against plain transformers, one row at a time or padded under an attention mask: what the
evaluator, the cuts and the readings say of a label."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import pytest
import torch
import transformers
from fixtures.cuts import drops, possible
from fixtures.marks import slow_but
from fixtures.zoo import MULTIMODAL, OF_ALL_KINDS, by_hand, classifier, linearised, tiny
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing, rows_of
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.hf.anatomy import Anatomy, anatomy
from secateur.hf.families import CLASSIFIERS
from secateur.hf.load import Loaded
from secateur.methods.depth.readings import block_similarity
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects, first_order_effects
from secateur.probes.heads import head_importance
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.shape import shape_of
from secateur.tasks.encode import Classifier, Encoded
from secateur.tasks.example import Example, Task

GOLDS = (2, 0, 1, 2, 0)
TASK = Task(
    "laws", "choice", tuple(Example(str(i), "w5", "good", ("bad", "so-so", "good")) for i in range(5)),
    {"select": (0, 1, 2, 3, 4)},
)  # fmt: skip


def classes() -> dict[str, str]:
    """One model of the zoo for each class."""
    found: dict[str, str] = {}
    for name in OF_ALL_KINDS.keys() - MULTIMODAL:
        kind = getattr(transformers, OF_ALL_KINDS[name].args[1]).model_type
        cls = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(kind, "")
        if cls in CLASSIFIERS:
            found[cls] = min(name, found.get(cls, name))
    return found


NAMES = [*sorted(classes().values()), "opt-projected", "phi3-long"]
HEADS = (
    "bert",
    "bloom",
    "distilbert",
    "electra",
    "falcon-40b",
    "gpt2",
    "llama",
    "mixtral",
    "opt",
    "roberta",
)  # one of each
SINGLE = {
    "deepseek-v2",
    "bloom",
    "gemma2",
    "gpt-neo",
    "gptj",
    "mpt",
}  # attend in float32 whatever the weights are


@cache
def shared(name: str) -> PreTrainedModel:
    """A float64 model for tests that change nothing."""
    return classifier(name, torch.float64)


def encoded_for(parts: Anatomy, *, pairs: bool = False) -> dict[int, Encoded]:
    """Rows of several lengths, some alike; the last but one ends with the padding's token; and of pairs of texts."""
    draw = np.random.default_rng(0)
    how = Classifier(parts.details.bidirectional, parts.padding, parts.num_types)
    rows = [tuple(draw.integers(4, 96, length).tolist()) for length in (7, 9, 7, 6, 12)]
    rows[3] = (*rows[3], parts.padding, parts.padding)
    types = [tuple(int(at > 2) for at in range(len(row))) if pairs else () for row in rows]
    return {
        number: Encoded(
            tuple((row, (label,)) for label in range(3)),
            gold,
            (1, 1, 1),
            masks=((how.reads(row),),) * 3,
            types=kinds,
        )
        for number, (row, gold, kinds) in enumerate(zip(rows, GOLDS, types, strict=True))
    }


def inputs(one: Encoded) -> Mapping[str, Tensor]:
    """The arguments of plain transformers for one row."""
    found = {"input_ids": torch.tensor([one.whole(0)])}
    return found | ({"token_type_ids": torch.tensor([one.types])} if one.types else {})


def logp(model: PreTrainedModel, one: Encoded) -> Tensor:
    return model(**inputs(one)).logits[0].log_softmax(-1)


def plans_of(loaded: Loaded, *, few: bool = False) -> list[Plan]:
    edits = [[Truncate(Site(0, "v"), 2), *drops("b1.attn.h1")], drops("b1")]
    if not few:
        edits += [
            [], [Truncate(Site(1, "o"), 2)], drops("b0.mlp.n3", "b1.attn"), drops("b1.mlp"), drops("b0"),
            drops("b1.attn.h2"),
        ]  # fmt: skip
    return [Plan(loaded.fingerprint, tuple(possible(some, loaded.anatomy))) for some in edits]


def check_outcomes(
    loaded: Loaded, rows: Mapping[int, Encoded], plans: list[Plan], limits: Limits, within: float = 1e-10
) -> None:
    """Compare what the evaluator says to plain transformers, row by row."""
    judged = Evaluator(loaded, TASK, rows, limits=limits)(plans, tuple(rows))
    for plan in plans:
        model = by_hand(loaded, plan)
        for one, outcome in zip(rows.values(), judged[plan], strict=True):
            with torch.no_grad():
                said = logp(model, one)
            loss = -float(said[one.gold])
            assert [outcome["loss"], outcome["choice_loss"]] == pytest.approx([loss, loss], abs=within), plan
            best = int(said.argmax())
            assert (outcome["predicted"], outcome["correct"]) == (best, best == one.gold)
            assert outcome["rank"] == int((said > said[one.gold]).sum())


def test_every_classifier_of_the_table_is_asked():
    assert set(classes()) == set(CLASSIFIERS)


@pytest.mark.parametrize("name", slow_but(HEADS, NAMES))
def test_it_says_of_every_family_what_transformers_says_and_cuts_what_it_masks(
    name, as_loaded: Callable[[PreTrainedModel], Loaded]
):
    """Rows of a decoder are padded here, and its class finds their ends by itself."""
    loaded, within = as_loaded(shared(name)), 1e-6 if name in SINGLE else 1e-10
    rows = encoded_for(loaded.anatomy)
    plans = plans_of(loaded, few=True)
    check_outcomes(loaded, rows, plans, Limits(max_tokens=200), within)
    sites = ("b0.attn.h1", "b1.attn.h0", "b1.mlp.n3", "b0.mlp")
    plan = Plan(loaded.fingerprint, tuple(possible(drops(*sites), loaded.anatomy)))
    for some in (plan, plans[1]):
        model = cut(loaded, some)
        assert model.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
        hand = by_hand(loaded, some)
        for one in rows.values():
            torch.testing.assert_close(
                model(**inputs(one)).logits, hand(**inputs(one)).logits, rtol=0, atol=within
            )
        stored = sum(parameter.numel() for parameter in model.parameters())
        assert stored == shape_of(some, loaded.anatomy, factorize=False).num_parameters(loaded.anatomy)


@pytest.fixture(params=slow_but(("bert", "llama"), ["bert", "distilbert", "gpt2", "llama", "roberta"]))
def loaded(request: pytest.FixtureRequest, as_loaded: Callable[[PreTrainedModel], Loaded]) -> Loaded:
    return as_loaded(shared(request.param))


@pytest.mark.parametrize("max_tokens", [0, 20])
def test_batches_of_any_size_and_edits_of_any_block(loaded, max_tokens):
    check_outcomes(loaded, encoded_for(loaded.anatomy), plans_of(loaded), Limits(max_tokens=max_tokens))


def test_the_second_text_of_a_pair_is_told_by_its_types(as_loaded):
    loaded = as_loaded(shared("bert"))
    rows = encoded_for(loaded.anatomy, pairs=True)
    check_outcomes(loaded, rows, plans_of(loaded), Limits(max_tokens=40))
    plain = encoded_for(loaded.anatomy)
    judge, none = Evaluator(loaded, TASK, rows), Plan(loaded.fingerprint)
    read = block_similarity(loaded, rows, tuple(rows), [1], under=none, packing=judge.packing)[1]
    with torch.no_grad():
        states = [
            loaded.model(**inputs(one), output_hidden_states=True).hidden_states for one in rows.values()
        ]
    cosines = torch.cat([torch.cosine_similarity(one[1], one[2], dim=-1)[0] for one in states])
    assert read.cosine == pytest.approx(float(cosines.mean()), abs=1e-12)
    assert not torch.allclose(logp(loaded.model, rows[0]), logp(loaded.model, plain[0]), atol=1e-3)


@torch.no_grad()
def test_a_batch_is_what_padding_under_a_mask_gives(loaded):
    parts, encoded = loaded.anatomy, encoded_for(loaded.anatomy)
    rows = [one for number in encoded for one in rows_of(number, encoded[number], parts.switches)]
    assert len(rows) == len(encoded)
    longest, pad = max(len(one.tokens) for one in rows), loaded.model.config.pad_token_id
    ids = torch.tensor([[*one.tokens, *[pad] * (longest - len(one.tokens))] for one in rows])
    mask = torch.tensor([[1] * len(one.tokens) + [0] * (longest - len(one.tokens)) for one in rows])
    padded = loaded.model(ids, attention_mask=mask).logits
    found = {}
    for batch in Packing(10_000, 10_000, parts.padding, parts.switches).pack(encoded, encoded):
        said = loaded.model(**batch.inputs(loaded.device)).logits
        found |= dict(zip(batch.row_example.tolist(), said, strict=True))
    for number, said in enumerate(padded):
        torch.testing.assert_close(found[number], said, rtol=0, atol=1e-10)


def odds(model: PreTrainedModel, one: Encoded) -> Tensor:
    said = logp(model, one)
    others = [score for label, score in enumerate(said) if label != one.gold]
    return said[one.gold] - torch.logsumexp(torch.stack(others), 0)


def test_screens_are_the_gradients_of_plain_transformers(loaded):
    """First order in what is taken away, by autograd through the whole model row by row."""
    rows = encoded_for(loaded.anatomy)
    judge = Evaluator(loaded, TASK, rows)
    margin = AnswerMargin.of(loaded, rows, tuple(rows), True)
    how = {"spectra": judge.spectra, "packing": judge.packing}
    edits = ([Truncate(Site(0, "k"), 3)], drops("b0.attn.h1"), drops("b1.mlp.n5"))
    plans = [Plan(loaded.fingerprint, tuple(some)) for some in edits]
    found = first_order_effects(margin, tuple(rows), plans, **how)
    exact = block_effects(margin, tuple(rows), plans, **how)
    model = copy.deepcopy(loaded.model)
    for plan in plans:
        (operation,) = resolve(plan, loaded.anatomy, loaded.fingerprint)
        weight = model.get_parameter(operation.parameter).requires_grad_()
        done, path = by_hand(loaded, plan), loaded.anatomy.blocks[loaded.anatomy.lowest_block(plan)]
        taken = done.get_parameter(operation.parameter) - weight.detach()
        wanted = []
        for one in rows.values():
            (slope,) = torch.autograd.grad(odds(model, one), weight)
            wanted.append(float((slope * taken).sum()))
        weight.requires_grad_(False)
        np.testing.assert_allclose(found.changes[plan], wanted, rtol=0, atol=1e-10)
        assert np.abs(wanted).max() > 1e-6
        changes = [linearised(model, done, path, partial(odds, one=one)) for one in rows.values()]
        np.testing.assert_allclose(exact.changes[plan], changes, rtol=0, atol=1e-10)


def test_the_importance_of_heads_is_that_of_plain_transformers(loaded):
    """E|A·dL/dA| at every token of a row, by a hook on the output projection."""
    rows, site = encoded_for(loaded.anatomy), Site(1, "o")
    heads = head_importance(loaded, rows, tuple(rows), packing=Evaluator(loaded, TASK, rows).packing)
    module, worth = loaded.model.get_submodule(loaded.anatomy.module(site)), []
    for one in rows.values():
        seen: list[Tensor] = []

        def before(_module: object, args: tuple[Tensor], seen: list[Tensor] = seen) -> tuple[Tensor]:
            seen.append(args[0].detach().requires_grad_())
            return (seen[0],)

        handle = module.register_forward_pre_hook(before)
        loss = -logp(loaded.model, one)[one.gold]
        handle.remove()
        (slope,) = torch.autograd.grad(loss, seen[0])
        worth.append(
            (seen[0].detach() * slope)[0].unflatten(-1, (loaded.anatomy.num_heads, -1)).sum(-1).abs()
        )
    found = [heads.values[str(Site(1, "attn", "h", head))] for head in range(loaded.anatomy.num_heads)]
    assert found == pytest.approx(torch.cat(worth).mean(0).tolist(), rel=1e-9)


def test_what_gives_no_single_label_of_several_is_refused():
    for changes, words in (
        ({"problem_type": "regression"}, "problem_type 'regression'"),
        ({"problem_type": "multi_label_classification"}, "problem_type 'multi_label"),
        ({"id2label": {0: "score"}}, "1 label, as for regression"),
        ({"id2label": {0: "a", 1: "a"}}, "name each"),
        ({"id2label": {1: "a", 2: "b"}}, "number the labels from 0"),
        ({"pad_token_id": None}, "pad_token_id None"),
    ):
        with pytest.raises(ModelError, match=words):
            anatomy(classifier("llama", **changes))
    with pytest.raises(ModelError, match="is_decoder"):
        anatomy(classifier("bert", is_decoder=True))
    assert not anatomy(tiny("llama")).labels
