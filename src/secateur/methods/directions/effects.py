"""Effects of singular directions: the predicted change of the loss without each, from one backward pass per batch.

Removed under mean ablation: where the direction read the input, it reads the input's mean, so that its mean effect
stays. That part is one vector for all positions, which a bias can hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.core.readings import check_finite
from secateur.core.site import Site
from secateur.evaluation.batching import Batch, Packing, with_room
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.linalg.directions import Directions, directions
from secateur.linalg.directions import pieces as pieces_of
from secateur.linalg.least_squares import Moments
from secateur.methods.directions.records import EffectsRecord
from secateur.probes.gradient_hooks import read_linear_layers
from secateur.probes.residual_stream import real_tokens
from secateur.surgery.mask import masked
from secateur.surgery.operations import Decompose, decompose, resolve
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Encoded

ROOM = 2**30  # bytes of float32 directions held at once; matrices beyond are read in further passes


@dataclass(frozen=True, eq=False)
class MatrixEffects:
    """Effects of the directions of one matrix, or of one head of it, in descending order of σ. Numpy float64.

    Args:
        effect: First-order change of the mean loss when that direction alone goes, nats: positive where removing hurts.
        curvature: The second-order term, or None.
        mean_input: What removed directions read instead of their input.
        u: Left vectors, where the directions are not those of the weights alone.
    """

    site: Site
    head: int | None
    sigma: Float[np.ndarray, " k"]
    effect: Float[np.ndarray, " k"]
    curvature: Float[np.ndarray, " k"] | None
    mean_input: Float[np.ndarray, " in"]
    u: Float[np.ndarray, "out k"] | None = None

    def __post_init__(self) -> None:
        total = float(np.sum(self.predicted)) + float(np.sum(self.mean_input))  # not finite where one is not
        check_finite("effects of directions", {str(self.site): total})

    @property
    def predicted(self) -> Float[np.ndarray, " k"]:
        """The predicted change of the loss: `effect`, with the `curvature` where that was read."""
        return self.effect if self.curvature is None else self.effect + self.curvature

    def record(self) -> EffectsRecord:
        """Return all but `u`."""
        return EffectsRecord(
            site=str(self.site),
            head=self.head,
            sigma=self.sigma.tolist(),
            effect=self.effect.tolist(),
            curvature=None if self.curvature is None else self.curvature.tolist(),
            mean_input=self.mean_input.tolist(),
        )

    @classmethod
    def from_record(cls, record: EffectsRecord) -> MatrixEffects:
        """Return what `record` holds, without `u`."""
        curvature = None if record.curvature is None else np.array(record.curvature, np.float64)
        return cls(
            Site.parse(record.site),
            record.head,
            np.array(record.sigma, np.float64),
            np.array(record.effect, np.float64),
            curvature,
            np.array(record.mean_input, np.float64),
        )


@dataclass(frozen=True, eq=False)
class DirectionEffects:
    """Effects read on `n` examples; `num_tokens` are those that the mean inputs are over."""

    split: str
    n: int
    num_tokens: int
    whitened: bool
    matrices: tuple[MatrixEffects, ...]

    def of(self, site: Site, head: int | None = None) -> MatrixEffects:
        """Return the effects of one matrix, or of one head of it."""
        return next(piece for piece in self.matrices if (piece.site, piece.head) == (site, head))

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain values for the ledger."""
        return vars(self) | {"matrices": [piece.record().to_json() for piece in self.matrices]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DirectionEffects:
        """Return what `to_json` wrote, which leaves out `u`."""
        records = (EffectsRecord.model_validate(record) for record in data["matrices"])
        pieces = tuple(MatrixEffects.from_record(record) for record in records)
        return cls(**dict(data) | {"matrices": pieces})


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
    """Return the effect on the loss of removing each singular direction of each matrix in `sites`, nats.

    effectᵢ = meanₙ eₙᵢ with eₙᵢ = Σ_t ⟨g_t, σᵢ uᵢ (vᵢ · (x̄ − x_t))⟩, g_t = dLₙ/dy_t at the matrix's part of its
    layer's output, x_t the layer's true input, x̄ its mean over all tokens of all examples that are run (prompt and
    answer but its last token; padding is not among them). Lₙ is the mean log-loss of example n's gold answer. Of an
    expert's matrix x̄ is 0, and t are the tokens that it is sent.

    Args:
        encoded: The task's examples in tokens.
        examples: Numbers of those that are read.
        per_head: Each head's rows of q, k and v (key/value heads for k and v) and columns of o have directions of
            their own; other matrices are read whole.
        second_order: Also read ½ meanₙ eₙᵢ², the Fisher approximation of the curvature.
        whitened: Read the directions of W C^½, C the input's second moment over the same tokens.
        under: Read the same directions of the original weights in the model that this plan leaves.
        bases: Left vectors that were read before, in place of those of the weights.
        split: The name that the result has of the split.
        room: Bytes of directions held at once.
        decompose: Gives plain directions of whole matrices, and those of the plan.

    Raises: `ModelError` where a layer never runs as a module, `UnknownName` for a site that is no matrix.

    Source: Vergara-Browne et al. 2024 (arXiv 2404.03147); curvature and whitening are ours.
    Differs: their reference is another example of the batch, so that a batch of one has no effects, and their hooks of
    q, k and v sit before the norm.

    Cost: one forward and one backward pass, with `whitened` one more forward pass, for as many matrices as have
    directions within `room` bytes. Memory does not grow with the examples.
    """
    assert examples, "a mean over no examples"
    answers = {e: encoded[e].gold_alone for e in examples}
    matrices = [loaded.anatomy.matrix(site) for site in dict.fromkeys(sites)]
    groups = Spectra(room).fitting(matrices)
    num_heads = {m.site: loaded.anatomy.heads_in(m.site) if per_head else None for m in matrices}
    how = _How(num_heads, second_order, whitened and not bases, under, bases or {}, decompose)

    def read(packing: Packing) -> list[MatrixEffects]:
        num_passes = len(groups) * (1 + how.whitened)
        batches = _Batches(loaded, answers, packing.pack(answers, examples), progress, num_passes)
        return [piece for group in groups for piece in _effects(batches, group, how)]

    num_tokens = sum(len(answer.read(0)) for answer in answers.values())
    return DirectionEffects(split, len(examples), num_tokens, whitened, tuple(with_room(packing, read)))


# --------------------------------------------------------------------------------------------------- how they are read


@dataclass(frozen=True)
class _How:
    """The options of `directions_effects`; `num_heads` is the number of heads of each matrix, or None: it is whole."""

    num_heads: Mapping[Site, int | None]
    second_order: bool
    whitened: bool
    under: Plan | None
    bases: Mapping[Site, np.ndarray]
    decompose: Decompose


def _effects(batches: _Batches, group: Sequence[Matrix], how: _How) -> list[MatrixEffects]:
    """Return the effects of the matrices of one group, whose directions have room together."""
    loaded = batches.loaded
    moments = batches.run(group, second=True) if how.whitened else {}
    sums: list[_MatrixSums | _ExpertSums] = [
        _MatrixSums(loaded, matrix, how, moments.get(matrix.module))
        if matrix.expert is None
        else _ExpertSums(loaded, matrix, how)
        for matrix in group
    ]
    plan = how.under or Plan(loaded.fingerprint)
    operations = resolve(plan, loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, operations, how.decompose):
        for matrix_sums in sums if plan.edits else ():
            matrix_sums.read_again()
        inputs = batches.run(group, sums)
    n = len(batches.answers)
    return [piece for own in sums for piece in own.effects(inputs.get(own.matrix.module), n)]


class _Batches:
    """The batches of one reading. Each `run` is a pass over all of them."""

    def __init__(
        self,
        loaded: Loaded,
        answers: Mapping[int, Encoded],
        batches: Sequence[Batch],
        progress: Progress,
        num_passes: int,
    ) -> None:
        self.loaded, self.answers = loaded, answers
        self._batches, self._progress = batches, progress
        self._done, self._total = 0, num_passes * len(batches)

    def run(
        self,
        matrices: Sequence[Matrix],
        sums: Sequence[_MatrixSums | _ExpertSums] = (),
        *,
        second: bool = False,
    ) -> dict[str, Moments]:
        """Return the moments of what each layer reads, by its path; add to `sums` what a backward pass gives."""
        inputs: dict[str, Moments] = {}
        paths = dict.fromkeys(matrix.module for matrix in matrices if matrix.expert is None)
        of_experts = list(dict.fromkeys(one.matrix.weight for one in sums if isinstance(one, _ExpertSums)))
        anatomy = self.loaded.anatomy
        sourced = {one.module for one in matrices if anatomy.reads_source(one)}  # where nothing is padded

        def on_gradient(path: str, x: Tensor, g: Tensor) -> None:
            for matrix_sums in sums:
                if isinstance(matrix_sums, _MatrixSums) and matrix_sums.matrix.module == path:
                    matrix_sums.add(x - inputs[path].near, matrix_sums.matrix.of_output(g))

        def on_parameter(name: str, gradient: Tensor) -> None:
            for expert_sums in sums:
                if isinstance(expert_sums, _ExpertSums) and expert_sums.matrix.weight == name:
                    expert_sums.add(expert_sums.matrix.read(gradient))

        for batch in self._batches:
            real = real_tokens(batch, self.answers).to(self.loaded.device)

            def on_input(path: str, first: str, x: Tensor, real: Tensor = real) -> None:
                """Layers that read one tensor share the moments of the `first` of them."""
                if path not in inputs:
                    inputs[path] = Moments(second=second) if path == first else inputs[first]
                if path == first:
                    inputs[path].add(x.flatten(0, 1) if path in sourced else x[real.to(x.device)])

            read_linear_layers(
                self.loaded, batch, paths, on_input, on_gradient if sums else None, of_experts, on_parameter
            )
            self._done += 1
            self._progress("directions", self._done, self._total)
        return inputs


class _MatrixSums:
    """The sums over examples that one matrix's effects come from: float64, no larger than its singular values."""

    def __init__(self, loaded: Loaded, matrix: Matrix, how: _How, inputs: Moments | None) -> None:
        self.matrix, self._loaded = matrix, loaded
        self._heads = how.num_heads[matrix.site]
        self._num = self._heads or 1
        self._of_inputs = matrix.site.kind == "o"  # whose heads lie side by side in what it reads
        self._keeps_u = how.whitened or matrix.site in how.bases
        self._parts = self._directions(how, inputs)
        shape = self._parts.sigma.shape
        self._sums = torch.zeros(5 if how.second_order else 2, *shape, dtype=torch.float64)

    def _directions(self, how: _How, inputs: Moments | None) -> Directions:
        """Return directions on a basis that was read before, or whitened, or those of the weights."""
        if self.matrix.site in how.bases:
            pieces = self._pieces()
            basis = torch.from_numpy(how.bases[self.matrix.site]).to(pieces.device)
            rows = basis.mT @ pieces.to(basis.dtype)
            return Directions(basis, torch.linalg.norm(rows, dim=-1), rows)
        if inputs is not None:
            second = inputs.second[None]
            if self._of_inputs:  # the block of each head
                blocks = torch.unflatten(inputs.second, 0, (self._num, -1))
                blocks = torch.unflatten(blocks, 2, (self._num, -1))
                second = torch.stack([blocks[n, :, n] for n in range(self._num)])
            return directions(self._pieces(), second)
        if self._heads is not None:
            return directions(self._pieces())
        spectrum = how.decompose(self.matrix, self._loaded.parameter(self.matrix.weight))
        rows = spectrum.sigma[:, None] * spectrum.vh
        return Directions(spectrum.u[None], spectrum.sigma[None], rows[None])

    def _pieces(self) -> Float[Tensor, "heads out in"]:
        weight = self._loaded.parameter(self.matrix.weight)
        return pieces_of(self.matrix.read(weight), self._num, columns=self._of_inputs)

    def read_again(self) -> None:
        """Keep the directions, and take what they read from the weights as they are now."""
        u = self._parts.u
        self._parts = replace(self._parts, rows=u.mT @ self._pieces().to(u.dtype))

    def add(self, x: Float[Tensor, "rows t in"], g: Float[Tensor, "rows t out"]) -> None:
        """Add one batch, of which each row is an example; `x` is the input less `Moments.near`."""
        x, g = (self._split(x), g[None]) if self._of_inputs else (x[None], self._split(g))
        a, b = (along.double().cpu() for along in self._parts.along(x, g))
        products = (a, b, a * a, a * b, b * b)[: len(self._sums)]
        self._sums += torch.stack([product.sum(dim=1) for product in products])

    def _split(self, values: Tensor) -> Tensor:
        """Return (..., width) as (heads, ..., width of a head)."""
        return torch.unflatten(values, -1, (self._num, -1)).movedim(-2, 0)

    def effects(self, inputs: Moments | None, n: int) -> Iterator[MatrixEffects]:
        """Return effects: of one example e = b · (row · x̄) − a, and so are the sums over `n`; squares likewise."""
        assert inputs is not None, f"{self.matrix.module} ran"
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


class _ExpertSums:
    """The sums over examples that the effects of an expert's matrix come from.

    Where its directions are removed nothing stands in for them, since no bias could hold the mean of those tokens alone
    that are sent to the expert. So the effect is −σᵢ uᵢᵀ G vᵢ, G the gradient with respect to the matrix.
    """

    def __init__(self, loaded: Loaded, matrix: Matrix, how: _How) -> None:
        self.matrix, self._loaded = matrix, loaded
        spectrum = how.decompose(matrix, loaded.parameter(matrix.weight))
        self._sigma, self._u = spectrum.sigma, spectrum.u
        self._rows = spectrum.sigma[:, None] * spectrum.vh
        self._sums = torch.zeros(len(spectrum.sigma), dtype=torch.float64)

    def read_again(self) -> None:
        """Keep the directions, and take what they read from the weights as they are now."""
        weight = self.matrix.read(self._loaded.parameter(self.matrix.weight))
        self._rows = self._u.mT @ weight.to(self._u.dtype)

    def add(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add one batch."""
        along = (self._u.mT @ gradient.to(self._u.dtype)) * self._rows
        self._sums += along.sum(dim=1).double().cpu()

    def effects(self, _: Moments | None, n: int) -> Iterator[MatrixEffects]:
        """Return the effects, the mean over `n` examples; zeros are read instead of the input."""
        effect, nothing = (-self._sums / n).numpy(), np.zeros(self.matrix.shape[1])
        yield MatrixEffects(self.matrix.site, None, self._sigma.double().cpu().numpy(), effect, None, nothing)
