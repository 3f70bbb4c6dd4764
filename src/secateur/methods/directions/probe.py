"""What removing each singular direction of a matrix would do to the loss, all read by one backward pass per batch.

Removed under mean ablation: where the direction read the input, it reads the input's mean, so that what it adds on
average stays. That part is one vector for all positions, which a bias can hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.core.readings import check_finite
from secateur.core.site import Site
from secateur.evaluation.batching import Batch, Packing, with_room
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.linalg.directions import Directions, directions, pieces
from secateur.linalg.least_squares import Moments
from secateur.probes.gradient_hooks import read_taps
from secateur.probes.residual_stream import real_tokens
from secateur.surgery.mask import masked
from secateur.surgery.operations import Decompose, decompose, resolve
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Encoded

ROOM = 2**30  # bytes of float32 directions held at once; what has no room is read in passes of its own


@dataclass(frozen=True, eq=False)
class MatrixEffects:
    """One matrix, or one head of it, direction by direction in descending σ. Numpy float64.

    `effect` is the first-order change of the mean loss when that direction alone goes, in nats: positive where
    removing hurts. `curvature` is the second-order term, or None. `mean_input` is what the directions read instead.
    """

    site: Site
    head: int | None
    sigma: Float[np.ndarray, " k"]
    effect: Float[np.ndarray, " k"]
    curvature: Float[np.ndarray, " k"] | None
    mean_input: Float[np.ndarray, " in"]
    u: Float[np.ndarray, "out k"] | None = None

    def __post_init__(self) -> None:
        whole = float(np.sum(self.predicted)) + float(
            np.sum(self.mean_input)
        )  # not finite where one of them is not
        check_finite("effects of directions", {str(self.site): whole})

    @property
    def predicted(self) -> Float[np.ndarray, " k"]:
        """All that is known of the change: `effect`, with the `curvature` where that was read."""
        return self.effect if self.curvature is None else self.effect + self.curvature

    def to_json(self) -> dict[str, Any]:
        arrays = ("sigma", "effect", "curvature", "mean_input")
        found = {name: None if vars(self)[name] is None else vars(self)[name].tolist() for name in arrays}
        return {"site": str(self.site), "head": self.head} | found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MatrixEffects:
        """What `to_json` wrote, which leaves out `u`."""
        names = ("sigma", "effect", "curvature", "mean_input")
        arrays = {name: None if data[name] is None else np.array(data[name], np.float64) for name in names}
        return cls(Site.parse(data["site"]), data["head"], **arrays)


@dataclass(frozen=True, eq=False)
class DirectionEffects:
    """What `directions_effects` read on `n` examples; `num_tokens` are those that the mean inputs are over."""

    split: str
    n: int
    num_tokens: int
    whitened: bool
    matrices: tuple[MatrixEffects, ...]

    def of(self, site: Site, head: int | None = None) -> MatrixEffects:
        return next(one for one in self.matrices if (one.site, one.head) == (site, head))

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"matrices": [one.to_json() for one in self.matrices]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DirectionEffects:
        read = tuple(MatrixEffects.from_json(one) for one in data["matrices"])
        return cls(**dict(data) | {"matrices": read})


def directions_effects(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    sites: Iterable[Site],
    *,
    packing: Packing,
    per_head: bool = False,
    second_order: bool = False,
    whitened: bool = False,
    under: Plan | None = None,
    bases: Mapping[Site, Float[np.ndarray, "pieces out k"]] | None = None,
    split: str = "probe",
    room: int = ROOM,
    decompose: Decompose = decompose,
    progress: Progress = silent,
) -> DirectionEffects:
    """The effect on the loss of removing each singular direction of each matrix in `sites`.

    effectᵢ = meanₙ eₙᵢ with eₙᵢ = Σ_t ⟨g_t, σᵢ uᵢ (vᵢ · (x̄ − x_t))⟩, g_t = dLₙ/dy_t at the matrix's part of its
    layer's output, x_t the layer's true input, x̄ its mean over all tokens of all examples that are run (prompt and
    answer but its last token; padding is not among them). Lₙ is the mean log-loss of example n's gold answer. With
    `second_order` also ½ meanₙ eₙᵢ², the Fisher approximation of the curvature. `per_head`: each head's rows of q, k
    and v (key/value heads for k and v) and columns of o have directions of their own; other matrices are read whole.
    `whitened`: the directions of W C^½, C the input's second moment over the same tokens.
    `under` a plan the same directions of the original weights are read in the model that it leaves; `bases` hands in
    directions that were read before, in place of those. Plain ones of whole matrices, and those of the plan, come
    from `decompose`.

    Units: nats. Source: Vergara-Browne et al. 2024 (arXiv 2404.03147); curvature and whitening are ours.
    Differs: their reference is another example of the batch, so that a batch of one has no effects, and their taps of
    q, k and v sit before the norm.
    Cost: one forward and one backward pass, with `whitened` one more forward pass, for as many matrices as have
    directions within `room` bytes. Memory does not grow with the examples.
    Raises: `ModelError` where a layer never runs as a module, `UnknownName` for a site that is no matrix.
    """
    assert examples, "a mean over no examples"
    answers = {e: encoded[e].gold_alone for e in examples}
    matrices = [loaded.anatomy.matrix(site) for site in dict.fromkeys(sites)]
    groups = Spectra(room).fitting(matrices)
    cuts = {m.site: loaded.anatomy.heads_in(m.site) if per_head else None for m in matrices}

    asked = _Asked(cuts, second_order, whitened and not bases, under, bases or {}, decompose)

    def read(packing: Packing) -> list[MatrixEffects]:
        passes = len(groups) * (1 + asked.whitened)
        probe = _Probe(loaded, answers, packing.pack(answers, examples), progress, passes)
        return [one for group in groups for one in _effects(probe, group, asked)]

    found = with_room(packing, read)
    num_tokens = sum(answer.longest - 1 for answer in answers.values())
    return DirectionEffects(split, len(examples), num_tokens, whitened, tuple(found))


# ------------------------------------------------------------------------------------------------------ the machinery


@dataclass(frozen=True)
class _Asked:
    """How to read: the number of heads per matrix or None, and the options of `directions_effects`."""

    cuts: Mapping[Site, int | None]
    squares: bool
    whitened: bool
    under: Plan | None
    bases: Mapping[Site, np.ndarray]
    decompose: Decompose


def _effects(probe: _Probe, group: Sequence[Matrix], asked: _Asked) -> list[MatrixEffects]:
    """Of the matrices of one group, whose directions have room together."""
    loaded = probe.loaded
    seen = probe.run(group, second=True) if asked.whitened else {}
    sums = [_Sums(loaded, matrix, asked, seen.get(matrix.module)) for matrix in group]
    plan = asked.under or Plan(loaded.fingerprint)
    operations = resolve(plan, loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, operations, asked.decompose):
        for one in sums if plan.edits else ():
            one.read_again()
        inputs = probe.run(group, sums)
    return [e for one in sums for e in one.effects(inputs[one.matrix.module], len(probe.answers))]


class _Probe:
    """The batches of one reading. Each `run` is a pass over all of them."""

    def __init__(
        self,
        loaded: Loaded,
        answers: Mapping[int, Encoded],
        batches: Sequence[Batch],
        progress: Progress,
        passes: int,
    ) -> None:
        self.loaded, self.answers = loaded, answers
        self._batches, self._progress = batches, progress
        self._done, self._total = 0, passes * len(batches)

    def run(
        self, matrices: Sequence[Matrix], sums: Sequence[_Sums] = (), *, second: bool = False
    ) -> dict[str, Moments]:
        """The moments of what each layer reads, by its path; to `sums` is added what a backward pass gives."""
        inputs: dict[str, Moments] = {}
        paths = dict.fromkeys(matrix.module for matrix in matrices)

        def arrived(path: str, x: Tensor, g: Tensor) -> None:
            for one in sums:
                if one.matrix.module == path:
                    one.add(x - inputs[path].near, one.matrix.of_output(g))

        for batch in self._batches:
            real = real_tokens(batch, self.answers).to(self.loaded.device)

            def entered(path: str, first: str, x: Tensor, real: Tensor = real) -> None:
                if path not in inputs:
                    inputs[path] = Moments(second=second) if path == first else inputs[first]
                if path == first:
                    inputs[path].add(x[real.to(x.device)])

            read_taps(self.loaded, batch, paths, entered, arrived if sums else None)
            self._done += 1
            self._progress("directions", self._done, self._total)
        return inputs


class _Sums:
    """What one matrix's effects come from: sums over examples in float64, no larger than its singular values."""

    def __init__(self, loaded: Loaded, matrix: Matrix, asked: _Asked, inputs: Moments | None) -> None:
        self.matrix, self._heads = matrix, asked.cuts[matrix.site]
        self._num = self._heads or 1
        self._of_inputs = matrix.site.part == "o"  # whose heads lie side by side in what it reads
        self._loaded = loaded
        self._keeps_u = asked.whitened
        if matrix.site in asked.bases:
            self._parts, self._keeps_u = self._based_on(asked.bases[matrix.site]), True
        else:
            self._parts = self._own(inputs, asked.decompose)
        shape = self._parts.sigma.shape
        self._sums = torch.zeros(5 if asked.squares else 2, *shape, dtype=torch.float64)

    def _own(self, inputs: Moments | None, decompose: Decompose) -> Directions:
        if inputs is not None:
            return directions(self._pieces(), self._moment(inputs.second))
        if self._heads is not None:
            return directions(self._pieces())
        found = decompose(self.matrix, self._loaded.parameter(self.matrix.weight))
        return Directions(found.u[None], found.sigma[None], (found.sigma[:, None] * found.vh)[None])

    def _pieces(self) -> Float[Tensor, "heads out in"]:
        weight = self._loaded.parameter(self.matrix.weight)
        return pieces(self.matrix.read(weight), self._num, columns=self._of_inputs)

    def _based_on(self, u: np.ndarray) -> Directions:
        whole = self._pieces()
        basis = torch.from_numpy(u).to(whole.device)
        rows = basis.mT @ whole.to(basis.dtype)
        return Directions(basis, torch.linalg.norm(rows, dim=-1), rows)

    def read_again(self) -> None:
        """The directions stay; what they read is that of the weights as they are now."""
        u = self._parts.u
        self._parts = replace(self._parts, rows=u.mT @ self._pieces().to(u.dtype))

    def _moment(self, second: Tensor) -> Float[Tensor, "heads in in"]:
        if not self._of_inputs:
            return second[None]
        width = len(second) // self._num
        return torch.stack([h.split(width, dim=1)[n] for n, h in enumerate(second.split(width))])

    def add(self, x: Float[Tensor, "rows t in"], g: Float[Tensor, "rows t out"]) -> None:
        """One batch, of which each row is an example; `x` is what the input is beyond `Moments.near`."""
        x, g = (self._split(x), g[None]) if self._of_inputs else (x[None], self._split(g))
        a, b = (found.double().cpu() for found in self._parts.along(x, g))
        found = (a, b, a * a, a * b, b * b)[: len(self._sums)]
        self._sums += torch.stack([one.sum(dim=1) for one in found])

    def _split(self, values: Tensor) -> Tensor:
        """(..., width) → (heads, ..., width of a head)."""
        return values.unflatten(-1, (self._num, -1)).movedim(-2, 0)

    def effects(self, inputs: Moments, n: int) -> Iterator[MatrixEffects]:
        """One example's e = b · (row · x̄) − a, and so are the sums over examples; squares likewise."""
        offset, mean = (
            self._split(v) if self._of_inputs else v.expand(self._num, -1)
            for v in (inputs.offset, inputs.mean)
        )
        m = (self._parts.rows.double() @ offset[..., None])[..., 0].cpu()
        a, b, *squares = self._sums / n
        effect, curvature = b * m - a, None
        if squares:
            aa, ab, bb = squares
            curvature = (bb * m * m - 2 * ab * m + aa) / 2
        for head in range(self._num):
            yield MatrixEffects(
                self.matrix.site,
                None if self._heads is None else head,
                self._parts.sigma[head].double().cpu().numpy(),
                effect[head].numpy(),
                None if curvature is None else curvature[head].numpy(),
                mean[head].cpu().numpy(),
                self._parts.u[head].cpu().numpy() if self._keeps_u else None,
            )
