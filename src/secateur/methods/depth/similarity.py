"""How little a block changes the stream: by a linear map that fits it, and by the angle. What depth pruning goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.evaluation.batching import Packing, with_room
from secateur.hf.load import Loaded
from secateur.hf.readable import readable_of
from secateur.linalg.least_squares import PairMoments
from secateur.probes.hooks import HookPoint, batches, hook_points, run, wide
from secateur.probes.outliers import TIMES, Medians, median_norms, norms, times_median
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded


@dataclass(frozen=True)
class Similarity:
    """Of what enters a block to what leaves it: the linearity score with the residual, in-sample as the paper has it
    but without outlier tokens, and the mean cosine, of all tokens."""

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
    Differs: outlier tokens, which would decide the linearity score alone, are left out of it (`outliers.py`).
    """
    readable = readable_of(loaded)
    pairs = (encoded[e].gold_alone.pairs[0] for e in examples)
    sequences = [context + answer[:-1] for context, answer in pairs]
    points = [point for point in hook_points(readable, blocks) if point.kind == "block"]
    with masked(loaded.model, resolve(under, loaded.anatomy, loaded.fingerprint)):
        medians = median_norms(readable, sequences, points, packing=packing, progress=progress)

        def read(packing: Packing) -> list[_Sums]:
            sums = {point: _Sums(point, medians[point]) for point in points}
            planned = list(batches(sequences, [False] * len(sequences), packing))
            for done, batch in enumerate(planned, start=1):
                run(readable, batch, points, lambda point, x, y: sums[point].add(wide(x), wide(y)))
                progress("similarity", done, len(planned))
            return list(sums.values())

        found = with_room(packing, read)
    return {block: sums.similarity for block, sums in zip(blocks, found, strict=True)}


class _Sums:
    """Sums over the tokens that pass one block: moments of all but the outliers, cosines of all."""

    def __init__(self, tap: HookPoint, medians: Medians) -> None:
        self._tap, self._medians = tap, medians
        self._moments = PairMoments()
        self._cosines, self._count = 0.0, 0

    def add(self, x: Tensor, y: Tensor) -> None:
        far = times_median(norms(self._tap, x, y), self._medians) > TIMES
        self._moments.add(x[~far], y[~far])
        self._cosines += float(nn.functional.cosine_similarity(x, y, dim=-1).sum())
        self._count += len(x)

    @property
    def similarity(self) -> Similarity:
        return Similarity(self._moments.score(), self._cosines / self._count)
