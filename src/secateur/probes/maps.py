"""Linear maps fitted to stand for runs of blocks: what enters a run, and what left it in the original model.

One pass of the original and one of the model under a plan for each batch, and second moments in float64, so memory does
not grow with the tokens. Maps are shrunk towards doing nothing as much as is best for tokens they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
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
from secateur.probes.residual_stream import Place, Streams, real_tokens, streams
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded

RIDGES = (0.0, *(10.0 ** (power / 2) for power in range(-12, 3)))  # shares of the mean eigenvalue of XᵀX


@dataclass(frozen=True)
class Run:
    """Blocks one after the other, and the form of what is to stand for them; `rank` of a `linear` map, or full."""

    blocks: tuple[int, ...]
    form: str
    rank: int | None = None


def fit_maps(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    runs: Sequence[Run],
    *,
    groups: Sequence[int],
    under: Plan,
    packing: Packing,
    progress: Progress = silent,
) -> dict[Run, Linearize]:
    """An edit for each run: in the model that `under` leaves, the stream after the map is as near as it can be to the
    original's after the run, in the mean square over all tokens of `examples`.

    `linear`: W and b with x → W x + b. `fold`: T with y → T y for what the network before the run gives, and where its
    output has a bias also what is added to it. The ridge is the one of RIDGES whose maps, fitted to either half of the
    groups of examples (a number for each), err least on the other half; then the map is fitted to all.
    Source: Razzhigaev et al. 2024 (arXiv 2405.12250) for W, ReplaceMe (arXiv 2505.02819), equation 5, for T.
    Differs: targets are the original's also under a plan, and maps shrink towards the identity instead of zero. The
    ridge stays the same number for twice as many tokens, as the best one does (noise by the size of the map).
    Raises: `ModelError` where activations are not finite.
    """
    assert examples, "a fit to no examples"
    answers = {e: encoded[e].gold_alone for e in examples}
    operations = resolve(under, loaded.anatomy, loaded.fingerprint)
    second = halved(examples, groups)

    def read(packing: Packing) -> dict[Run, _Halves]:
        halves = {run: _Halves() for run in runs}
        batches = packing.pack(answers, examples)
        for number, batch in enumerate(batches):
            real = real_tokens(batch, answers).to(loaded.device)
            in_second = torch.tensor([e in second for e in batch.row_example.tolist()])
            original = streams(loaded, batch, _ends(runs))
            with masked(loaded.model, operations):
                own = streams(loaded, batch, _begins(runs))
            for run in runs:
                halves[run].add(*_pair(run, own, original), real, in_second)
            progress("fit", number + 1, len(batches))
        return halves

    return {run: _edit(run, halves, loaded) for run, halves in with_room(packing, read).items()}


def _ends(runs: Iterable[Run]) -> set[Place]:
    return {("leaves", run.blocks[-1]) for run in runs}


def _begins(runs: Iterable[Run]) -> set[Place]:
    found: set[Place] = set()
    for run in runs:
        first = run.blocks[0]
        found |= (
            {("enters", first)} if run.form == "linear" else {("leaves", first - 1), ("gives", first - 1)}
        )
    return found


def _pair(run: Run, own: Streams, original: Streams) -> tuple[Tensor, Tensor]:
    """What goes into the map, and what should be added to it: (rows, length, d_model) each, float64."""
    first, target = run.blocks[0], original["leaves", run.blocks[-1]].double()
    if run.form == "linear":
        x = own["enters", first].double()
        return x, target - x
    return own["gives", first - 1].double(), target - own["leaves", first - 1].double()


# --------------------------------------------------------------------------------------------------------------- fits


def halved(examples: Sequence[int], groups: Sequence[int]) -> set[int]:
    """The examples of the second of two halves as equal as whole groups allow; of one group every other example.

    Neighbors in a text, or phrasings of a fact, resemble each other: in the other half they would be no test.
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
    """Moments of the sequences of either half."""

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
        assert self._moments is not None
        both = self._moments[0] + self._moments[1]
        if not np.isfinite(both.spread_y):
            raise ModelError(
                "activations are not finite, so nothing can be fitted to them (broken weights?)."
            )
        return both.fit(ridge=self._ridge(both, intercept), intercept=intercept), both

    def _ridge(self, both: PairMoments, intercept: bool) -> float:
        """The largest of all where there is but one sequence."""
        ridges = [share * both.mean_eigenvalue(intercept=intercept) for share in RIDGES]
        if min(moments.count for moments in self._moments) == 0:
            return ridges[-1]
        pairs = (self._moments, self._moments[::-1])
        errors = [one.ridge_errors(ridges, other, intercept=intercept) for one, other in pairs]
        return min(zip(map(sum, zip(*errors, strict=True)), ridges, strict=True))[1]


def _edit(run: Run, halves: _Halves, loaded: Loaded) -> Linearize:
    fold = run.form == "fold"
    into = loaded.anatomy.matrix(Site(run.blocks[0] - 1, "down")) if fold else None
    intercept = into is None or into.bias is not None
    found, moments = halves.fit(intercept=intercept)
    if run.rank is None:
        arrays = {"weight": found.weight + torch.eye(len(found.bias)).to(found.weight)}
        arrays |= {"bias": found.bias} if intercept else {}
    else:
        arrays = _factors(found.weight, moments.centered_xx, run.rank)
        arrays["bias"] = moments.mean_y - arrays["b"].T @ (arrays["a"] @ moments.mean_x)
    stored = torch.promote_types(loaded.model.dtype, torch.float32)
    kept = {name: array.to(stored).cpu().numpy() for name, array in arrays.items()}
    return Linearize(run.blocks, run.form, Fitted.of(kept))


def _factors(
    weight: Float[Tensor, "d d"], moment: Float[Tensor, "d d"], rank: int
) -> dict[str, Float[Tensor, "rank d"]]:
    """The best map of this rank on these data: bᵀ a is the weight's output along its largest directions."""
    found = directions(weight[None], moment[None])
    return {"a": found.rows[0, :rank], "b": found.u[0, :, :rank].T.contiguous()}
