"""Predict what edits do to the loss, by running nothing but the blocks that they change. Any kind of edit.

The change of a block's output is exact; what the rest of the model makes of it is taken to first order, from the
gradient of each example's loss. Prices a candidate at one block instead of all blocks above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from secateur.core.plan import Plan, blocks_of
from secateur.core.progress import Progress, silent
from secateur.evaluation.batching import Packing, with_room
from secateur.evaluation.workers import CACHE_BYTES
from secateur.probes.answer_loss import AnswerLoss
from secateur.probes.block_gradients import BlockGradients, read_blocks
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.surgery.spectra import Spectra

Effect = Float[np.ndarray, " examples"]  # predicted change of each example's loss, nats


def block_effects(
    answer_loss: AnswerLoss,
    examples: Sequence[int],
    plans: Iterable[Plan],
    *,
    spectra: Spectra,
    packing: Packing,
    room: int = CACHE_BYTES,
    progress: Progress = silent,
    stage: str = "screen",
) -> dict[Plan, Effect]:
    """Return the predicted change of each example's loss under each plan, negative where cutting helps.

    A plan that changes several blocks has the sum of what each of them would do alone.

    Args:
        plans: No edit of them may change several blocks at once.
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

    def run(packing: Packing) -> dict[Plan, Effect]:
        effects: dict[Plan, Effect] = {}
        for read in read_blocks(answer_loss, examples, pieces, packing, room):
            for block in read.blocks:
                before = [read.leaving(block, batch) for batch in range(len(read.batches))]
                for piece in pieces[block]:
                    effects[piece] = _effect(answer_loss, read, block, before, piece, spectra, len(examples))
                    progress(stage, len(effects), total)
        return effects

    effects = with_room(packing, run)
    nothing = np.zeros(len(examples))
    return {plan: sum((effects[piece] for piece in parts[plan].values()), nothing) for plan in plans}


def _by_block(plan: Plan) -> Mapping[int, Plan]:
    """Return the plan's edits by the block that they change."""
    found: dict[int, list] = {}
    for edit in plan.edits:
        (block,) = blocks_of(edit)
        found.setdefault(block, []).append(edit)
    return {block: Plan(plan.model, tuple(edits)) for block, edits in found.items()}


@torch.inference_mode()
def _effect(
    answer_loss: AnswerLoss,
    read: BlockGradients,
    block: int,
    before: Sequence[torch.Tensor],
    piece: Plan,
    spectra: Spectra,
    num_examples: int,
) -> Effect:
    """Return Σ over positions of ⟨change of the block's output, gradient there⟩, for each example."""
    loaded = answer_loss.loaded
    effect = torch.zeros(num_examples, dtype=torch.float64)
    with masked(loaded.model, resolve(piece, loaded.anatomy, loaded.fingerprint), spectra):
        for batch, rows in enumerate(read.examples):
            change = (read.leaving(block, batch) - before[batch]) * read.gradient[block][batch]
            effect.index_add_(0, rows, change.flatten(1).sum(dim=1, dtype=torch.float64).cpu())
    return effect.numpy()
