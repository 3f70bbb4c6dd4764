"""Fit linear maps that replace runs of blocks, from the input of a run to its output in the original model.

One pass of the original and one of the model under a plan for each batch, and second moments in float64, so memory does
not grow with the tokens. Maps are shrunk towards the identity as much as is best for tokens they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.core.fitted import Fitted
from secateur.core.plan import Linearize, Plan
from secateur.core.progress import Progress, silent
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing, with_room
from secateur.hf.load import Loaded
from secateur.linalg.directions import directions
from secateur.linalg.least_squares import LinearMap, PairMoments
from secateur.probes.residual_stream import StreamPoint, Streams, read_streams, real_tokens
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded

RIDGES = (0.0, *(10.0 ** (power / 2) for power in range(-12, 3)))  # shares of the mean eigenvalue of XᵀX


@dataclass(frozen=True)
class BlockRun:
    """Blocks one after the other, and the form of the map that replaces them.

    `rank` is that of a `linear` map; None for full.
    """

    blocks: tuple[int, ...]
    form: str
    rank: int | None = None


def fit_maps(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    runs: Sequence[BlockRun],
    *,
    groups: Sequence[int],
    under: Plan,
    packing: Packing,
    progress: Progress = silent,
) -> dict[BlockRun, Linearize]:
    """Return an edit for each run, whose map brings the stream as near as it can to the original's after the run.

    Nearness is the mean square over all tokens of `examples`. `linear`: W and b with x → W x + b. `fold`: T with
    y → T y for the output y of the network before the run, and a bias where that output has one. The ridge is the one
    of RIDGES whose maps, fitted to either half of the groups, err least on the other half; then the map is fitted to
    all.

    Args:
        groups: The number of the group of each example.
        under: The plan of the model in which the maps will stand.

    Raises: `ModelError` where activations are not finite.

    Source: Razzhigaev et al. 2024 (arXiv 2405.12250) for W, ReplaceMe (arXiv 2505.02819), equation 5, for T.
    Differs: targets are the original's also under a plan, and maps shrink towards the identity instead of zero. The
    ridge stays the same number for twice as many tokens, as the best one does (noise by the size of the map).
    """
    assert examples, "a fit to no examples"
    answers = {e: encoded[e].gold_alone for e in examples}
    operations = resolve(under, loaded.anatomy, loaded.fingerprint)
    second = halved(examples, groups)

    def read(packing: Packing) -> dict[BlockRun, _Halves]:
        halves = {run: _Halves() for run in runs}
        batches = packing.pack(answers, examples)
        for number, batch in enumerate(batches):
            real = real_tokens(batch, answers).to(loaded.device)
            in_second = torch.tensor([e in second for e in batch.row_example.tolist()])
            original = read_streams(loaded, batch, {("leaves", run.blocks[-1]) for run in runs})
            with masked(loaded.model, operations):
                current = read_streams(loaded, batch, _inputs(runs))
            for run in runs:
                halves[run].add(*_pair(run, current, original), real, in_second)
            progress("fit", number + 1, len(batches))
        return halves

    return {run: _edit(run, halves, loaded) for run, halves in with_room(packing, read).items()}


def _inputs(runs: Iterable[BlockRun]) -> set[StreamPoint]:
    """Return the points that the maps of these runs read."""
    points: set[StreamPoint] = set()
    for run in runs:
        before = run.blocks[0] - 1
        fold = {("leaves", before), ("gives", before)}
        points |= {("enters", run.blocks[0])} if run.form == "linear" else fold
    return points


def _pair(run: BlockRun, current: Streams, original: Streams) -> tuple[Tensor, Tensor]:
    """Return the input of the map, and what should be added to it: (rows, length, d_model) each, float64."""
    first, target = run.blocks[0], original["leaves", run.blocks[-1]].double()
    if run.form == "linear":
        x = current["enters", first].double()
        return x, target - x
    return current["gives", first - 1].double(), target - current["leaves", first - 1].double()


# --------------------------------------------------------------------------------------------------------------- fits


def halved(examples: Sequence[int], groups: Sequence[int]) -> set[int]:
    """Return the second of two halves of the examples, as equal as whole groups allow; of one group every other one.

    Neighbors in a text, or phrasings of a fact, resemble each other: split between the halves they would be no test.
    """
    members: dict[int, list[int]] = {}
    for example, group in zip(examples, groups, strict=True):
        members.setdefault(group, []).append(example)
    parts = list(members.values()) if len(members) > 1 else [[example] for example in examples]
    halves: tuple[list[int], list[int]] = ([], [])
    for part in sorted(parts, key=len, reverse=True):
        min(halves, key=len).extend(part)
    return set(halves[1])


class _Halves:
    """Sum the moments of the sequences of either half."""

    def __init__(self) -> None:
        self._moments: tuple[PairMoments, PairMoments] | None = None

    def add(self, x: Tensor, y: Tensor, real: Tensor, in_second: Tensor) -> None:
        if self._moments is None:
            near = x[real].mean(0), y[real].mean(0)
            self._moments = PairMoments(near), PairMoments(near)
        for half, moments in enumerate(self._moments):
            rows = (in_second == bool(half)).to(x.device)
            if rows.any():
                moments.add(x[rows][real[rows]], y[rows][real[rows]])

    def fit(self, *, intercept: bool) -> tuple[LinearMap, PairMoments]:
        """Return the map with the best ridge, and the moments of all sequences."""
        assert self._moments is not None
        first, second = self._moments
        both = first + second
        if not np.isfinite(both.spread_y):
            raise ModelError(
                "activations are not finite, so nothing can be fitted to them (broken weights?)."
            )
        ridges = [share * both.mean_eigenvalue(intercept=intercept) for share in RIDGES]
        ridge = ridges[-1]  # where there is but one sequence
        if min(first.count, second.count) > 0:
            halves = ((first, second), (second, first))
            errors = [half.ridge_errors(ridges, other, intercept=intercept) for half, other in halves]
            ridge = min(zip(map(sum, zip(*errors, strict=True)), ridges, strict=True))[1]
        return both.fit(ridge=ridge, intercept=intercept), both


def _edit(run: BlockRun, halves: _Halves, loaded: Loaded) -> Linearize:
    fold = run.form == "fold"
    into = loaded.anatomy.matrix(Site(run.blocks[0] - 1, "down")) if fold else None
    intercept = into is None or into.bias is not None
    fitted, moments = halves.fit(intercept=intercept)
    if run.rank is None:
        arrays = {"weight": fitted.weight + torch.eye(len(fitted.bias)).to(fitted.weight)}
        arrays |= {"bias": fitted.bias} if intercept else {}
    else:
        # the best map of this rank on these data: bᵀ a is the weight's output along its largest directions
        parts = directions(fitted.weight[None], moments.centered_xx[None])
        arrays = {"a": parts.rows[0, : run.rank], "b": parts.u[0, :, : run.rank].T.contiguous()}
        arrays["bias"] = moments.mean_y - arrays["b"].T @ (arrays["a"] @ moments.mean_x)
    stored = torch.promote_types(loaded.model.dtype, torch.float32)
    kept = {name: array.to(stored).cpu().numpy() for name, array in arrays.items()}
    return Linearize(run.blocks, run.form, Fitted.of(kept))
