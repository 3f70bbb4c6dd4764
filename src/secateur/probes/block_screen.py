"""Predict what edits do to the answers, by running nothing but the blocks that they change. Any kind of edit.

The change of a block's output is exact; what the rest of the model makes of it is taken to first order, from the
gradient of each example's margin. Prices a candidate at one block instead of all blocks above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from secateur.core.plan import Edit, Plan, blocks_of
from secateur.core.progress import Progress, silent
from secateur.evaluation.batching import Packing, with_room
from secateur.evaluation.workers import CACHE_BYTES
from secateur.probes.answer_margin import AnswerMargin, Margins, PerExample
from secateur.probes.block_gradients import BlockGradients, read_blocks
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.surgery.spectra import Spectra


@dataclass(frozen=True, eq=False)
class PredictedEffects:
    """Predicted changes of each example's margin under some plans, nats; with the margins of the model itself."""

    margins: Margins
    changes: Mapping[Plan, PerExample]

    def loss(self, plan: Plan) -> float:
        """Return the expected change of the mean loss, nats: negative where cutting helps."""
        return self.margins.expected_loss_change(self.changes[plan])


def block_effects(
    answer_margin: AnswerMargin,
    examples: Sequence[int],
    plans: Iterable[Plan],
    *,
    spectra: Spectra,
    packing: Packing,
    under: Plan | None = None,
    room: int = CACHE_BYTES,
    progress: Progress = silent,
    stage: str = "screen",
) -> PredictedEffects:
    """Return the predicted change of each example's margin under each plan.

    A plan that changes several blocks has the sum of what each of them would do alone.

    Args:
        plans: No edit of them may change several blocks at once.
        under: A plan that is carried out beside each of them, and whose margins they change; none of them may write
            what it writes.
        spectra: Decompositions of the model's matrices.
        room: Bytes of activations and gradients between blocks that may be kept.

    Cost: one forward and one backward pass over the examples for as many blocks as there is room for, and one pass
        through a block for each different set of edits in it.
    """
    plans = list(dict.fromkeys(plans))
    parts = {plan: _by_block(plan) for plan in plans}
    pieces: dict[int, list[Plan]] = {}
    for by_block in parts.values():
        for block, piece in by_block.items():
            pieces.setdefault(block, []).append(piece)
    pieces = {block: sorted(set(some), key=str) for block, some in pieces.items()}
    total = sum(map(len, pieces.values()))

    def run(packing: Packing) -> PredictedEffects:
        effects: dict[Plan, PerExample] = {}
        margins = answer_margin.unread(examples)
        for read in read_blocks(answer_margin, examples, pieces, packing, room):
            margins = read.margins
            for block in read.blocks:
                before = [read.leaving(block, batch) for batch in range(len(read.batches))]
                for piece in pieces[block]:
                    effects[piece] = _effect(answer_margin, read, block, before, piece, spectra)
                    progress(stage, len(effects), total)
        nothing = np.zeros(len(examples))
        changes = {plan: sum((effects[piece] for piece in parts[plan].values()), nothing) for plan in plans}
        return PredictedEffects(margins, changes)

    loaded = answer_margin.loaded
    carried_out = () if under is None else resolve(under, loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, carried_out, spectra):
        return with_room(packing, run)


def _by_block(plan: Plan) -> Mapping[int, Plan]:
    """Return the plan's edits by the block that they change."""
    found: dict[int, list[Edit]] = {}
    for edit in plan.edits:
        (block,) = blocks_of(edit)
        found.setdefault(block, []).append(edit)
    return {block: Plan(plan.model, tuple(edits)) for block, edits in found.items()}


@torch.inference_mode()
def _effect(
    answer_margin: AnswerMargin,
    read: BlockGradients,
    block: int,
    before: Sequence[torch.Tensor],
    piece: Plan,
    spectra: Spectra,
) -> PerExample:
    """Return Σ over positions of ⟨change of the block's output, gradient there⟩, for each example."""
    loaded = answer_margin.loaded
    effect = torch.zeros(len(read.margins.odds), dtype=torch.float64)
    with masked(loaded.model, resolve(piece, loaded.anatomy, loaded.fingerprint), spectra):
        for batch, rows in enumerate(read.examples):
            change = (read.leaving(block, batch) - before[batch]) * read.gradient[block][batch]
            effect.index_add_(0, rows, change.flatten(1).sum(dim=1, dtype=torch.float64).cpu())
    return effect.numpy()
