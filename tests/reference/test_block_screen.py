"""Effects of edits, priced at one block, against the whole model run one example and one row at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.zoo import FEWEST, by_layout, tiny
from reference.test_truncation_probe import EXAMPLES, PACKING, margin

from secateur.core.plan import Drop, Plan, Truncate, blocks_of
from secateur.core.site import Site
from secateur.hf.load import Loaded
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Encoded


def output_of(loaded: Loaded, block: int, encoded: Encoded, number: int, caught: list[torch.Tensor]) -> None:
    """Run one choice of an example; add what leaves the block to `caught`."""
    context, answer = encoded.pairs[number]
    module = loaded.model.get_submodule(loaded.anatomy.blocks[block.block])
    handle = module.register_forward_hook(
        lambda m, a, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    loaded.model(torch.tensor([[*context, *answer[:-1]]]))
    handle.remove()


def by_whole_model(loaded: Loaded, plan: Plan, contrast: bool) -> np.ndarray:
    """Σ ⟨change of each edited block's output, gradient of the margin there⟩ over blocks and choices, by example."""
    expected = np.zeros(len(EXAMPLES))
    for block in {b for edit in plan.edits for b in blocks_of(edit)}:
        part = Plan(plan.model, tuple(edit for edit in plan.edits if block in blocks_of(edit)))
        operations = resolve(part, loaded.anatomy, loaded.fingerprint)
        for place, encoded in enumerate(EXAMPLES.values()):
            read = encoded if contrast else encoded.gold_alone
            caught: list[torch.Tensor] = []
            module = loaded.model.get_submodule(loaded.anatomy.blocks[block.block])
            handle = module.register_forward_hook(
                lambda m, a, out, caught=caught: caught.append(out[0] if isinstance(out, tuple) else out)
            )
            embedding = loaded.model.get_submodule(loaded.anatomy.embedding)
            begin = embedding.register_forward_hook(lambda m, a, out: out.detach().requires_grad_())
            with torch.enable_grad():
                gradients = torch.autograd.grad(margin(loaded.model, read, contrast), caught)
            handle.remove()
            begin.remove()
            changed: list[torch.Tensor] = []
            with torch.no_grad(), masked(loaded.model, operations):
                for number in range(len(read.pairs)):
                    output_of(loaded, block, read, number, changed)
            expected[place] += sum(
                float(((after - before.detach()) * gradient).sum())
                for before, after, gradient in zip(caught, changed, gradients, strict=True)
            )
    return expected


def plans_for(loaded: Loaded) -> list[Plan]:
    last, empty = loaded.anatomy.num_blocks - 1, Plan(loaded.fingerprint)
    up, q = Truncate(Site(0, "up"), 3), Truncate(Site(last, "q"), 2, "tail")
    dropped = [Drop(Site(last, "mlp")), Drop(Site(0, "attn", "h", 1))] if loaded.anatomy.mlps else []
    return [
        empty + up,
        empty + q,
        empty + up + q,
        empty + up + Truncate(Site(0, "v"), 1),
        *(empty + d for d in dropped),
    ]


@pytest.mark.parametrize("contrast", [False, True], ids=["gold alone", "contrast"])
@pytest.mark.parametrize("name", by_layout(first=FEWEST))
def test_effects_are_those_of_the_block_in_the_whole_model(name, contrast, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    packing = replace(PACKING, switches=loaded.anatomy.switches)
    examples = list(EXAMPLES)
    read = AnswerMargin.of(loaded, EXAMPLES, examples, contrast)
    plans = plans_for(loaded)
    for room, limits in ((2**30, packing), (1, replace(packing, max_tokens=1, max_kept=1))):
        found = block_effects(read, examples, plans, spectra=Spectra(2**24), packing=limits, room=room)
        for plan in plans:
            np.testing.assert_allclose(
                found.changes[plan], by_whole_model(loaded, plan, contrast), rtol=1e-4, atol=1e-6
            )
        with torch.no_grad():
            odds = [
                float(margin(loaded.model, e if contrast else e.gold_alone, contrast))
                for e in EXAMPLES.values()
            ]
        np.testing.assert_allclose(found.margins.odds, odds, rtol=1e-4, atol=1e-6)
    assert max(abs(found.changes[plan]).max() for plan in plans) > 0.01  # nats: something happened


def test_a_small_cut_of_the_last_block_changes_the_margin_as_predicted(as_loaded):
    """Compare the first order with the truth, which differ by the square of the change."""
    loaded = as_loaded(tiny("gpt2", torch.float64))
    site = Site(loaded.anatomy.num_blocks - 1, "down")
    plan = Plan(loaded.fingerprint) + Truncate(site, min(loaded.anatomy.matrix(site).shape) - 1)
    read = AnswerMargin.of(loaded, EXAMPLES, list(EXAMPLES), True)
    found = block_effects(read, list(EXAMPLES), [plan], spectra=Spectra(2**24), packing=PACKING)
    with torch.no_grad():
        before = np.array([float(margin(loaded.model, e, True)) for e in EXAMPLES.values()])
        with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
            after = np.array([float(margin(loaded.model, e, True)) for e in EXAMPLES.values()])
    np.testing.assert_allclose(found.changes[plan], after - before, rtol=0.12, atol=1e-4)
    loss = np.log1p(np.exp(-after)) - np.log1p(np.exp(-before))
    np.testing.assert_allclose(found.loss(plan), loss.mean(), rtol=0.15, atol=1e-3)


def test_an_expert_is_priced_by_where_its_tokens_go(as_loaded):
    """Alone, with an edit of another's matrix, and where an expert of the same router is gone already."""
    loaded = as_loaded(tiny("mixtral", torch.float64))
    empty, examples = Plan(loaded.fingerprint), list(EXAMPLES)
    gone, expert = (Drop(Site(1, "mlp", "e", number)) for number in (0, 2))
    read = AnswerMargin.of(loaded, EXAMPLES, examples, True)
    for under, plans in (
        (None, [empty + expert, empty + expert + Truncate(Site(0, "up", "e", 1), 2)]),
        (empty + gone, [empty + expert]),
    ):
        found = block_effects(
            read, examples, plans, spectra=Spectra(2**24), packing=PACKING, under=under
        ).changes
        before = () if under is None else resolve(under, loaded.anatomy, loaded.fingerprint)
        for plan in plans:
            with masked(loaded.model, before):
                expected = by_whole_model(loaded, plan, True)
            np.testing.assert_allclose(found[plan], expected, rtol=1e-4, atol=1e-6)
            assert abs(expected).max() > 0.01
