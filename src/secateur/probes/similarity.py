"""How little a block changes the stream: by a linear map that fits it, and by the angle. What depth pruning goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.hf.load import Loaded
from secateur.judge.rows import Packing, with_room
from secateur.linalg.least_squares import PairMoments
from secateur.probes.streams import Place, real_tokens, streams
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded


@dataclass(frozen=True)
class Similarity:
    """Of what enters a block to what leaves it: the linearity score with the residual, in-sample as the paper has it,
    and the mean cosine."""

    linearity: float
    cosine: float


def block_similarity(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    blocks: Sequence[int],
    *,
    under: Plan,
    packing: Packing,
    progress: Progress = silent,
) -> dict[int, Similarity]:
    """Of each of `blocks` in the model that `under` leaves, over all tokens of `examples`.

    Sources: Razzhigaev et al. 2024 (arXiv 2405.12250), section 3; Men et al. 2024 (arXiv 2403.03853), equation 1.
    """
    answers = {e: encoded[e].gold_alone for e in examples}
    operations = resolve(under, loaded.anatomy, loaded.fingerprint)
    places: list[Place] = [(kind, block) for block in blocks for kind in ("enters", "leaves")]

    def read(packing: Packing) -> dict[int, Similarity]:
        moments = {block: PairMoments() for block in blocks}
        cosines = dict.fromkeys(blocks, 0.0)
        batches = packing.pack(answers, examples)
        for number, batch in enumerate(batches):
            real = real_tokens(batch, answers).to(loaded.device)
            with masked(loaded.model, operations):
                found = streams(loaded, batch, places)
            for block in blocks:
                x, y = (found[kind, block][real].double() for kind in ("enters", "leaves"))
                moments[block].add(x, y)
                cosines[block] += float(torch.nn.functional.cosine_similarity(x, y, dim=-1).sum())
            progress("similarity", number + 1, len(batches))
        return {b: Similarity(moments[b].score(), cosines[b] / moments[b].count) for b in blocks}

    return with_room(packing, read)
