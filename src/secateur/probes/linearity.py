"""How near every block comes to a linear map: of the stream, of what it adds to the stream, and of its parts.

One streaming pass over all tokens, with second moments in float64; memory does not depend on the number of tokens. What
a block reads and gives comes from hooks on the very module that stands in its place. Changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core.progress import Progress, silent
from secateur.errors import ModelError, TaskError
from secateur.hf.readable import Readable
from secateur.judge.rows import Packing, with_room
from secateur.linalg.dimension import intrinsic_dimension
from secateur.linalg.least_squares import CONDITION, PairMoments
from secateur.probes.passing import Ids, Name, Tap, batches, names, run, sampled, taps

ROOM = 4 * 2**30  # bytes of moments held at once; what has no room is read in passes of its own
CHUNK = 4096  # tokens in float64 at a time
POINTS = 1000  # tokens whose distances give the intrinsic dimension
FEW = 10  # tokens a dimension: with fewer, noise alone scores above 1/10 in-sample


@dataclass(frozen=True)
class Score:
    """`in_sample` is the paper's, of the map fitted to all tokens; `held_out` of one fitted to other sequences."""

    in_sample: float
    held_out: float


@dataclass(frozen=True)
class Linearity:
    """Of a block or a part of one. None: not defined there.

    `stream` is the score of what enters → what leaves, `added` of what enters → what is added. `cosine` is the mean
    over tokens between what enters and what leaves. `condition` (of X), `rank` and `num_fit` are of what held-out maps
    are fitted to; `anisotropy` and `intrinsic_dimension` are of what enters.
    """

    site: str
    stream: Score | None
    added: Score | None
    cosine: float | None
    num_tokens: int
    num_fit: int
    d: int
    condition: float
    rank: int
    anisotropy: float
    intrinsic_dimension: float | None
    trusted: bool
    reason: str


@dataclass(frozen=True)
class Profile:
    """All blocks of one model in order, each followed by its parts where those were read; `norms` and `last` (what
    leaves the last block: anisotropy, intrinsic dimension) by the prefix of the stack."""

    rows: tuple[Linearity, ...]
    norms: Mapping[str, str]
    last: Mapping[str, tuple[float, float | None]]


def linearity(
    readable: Readable,
    sequences: Sequence[Ids],
    held_out: Sequence[bool],
    *,
    blocks: range | None = None,
    parts: bool = False,
    max_tokens: int = 4096,
    seed: int = 0,
    room: int = ROOM,
    progress: Progress = silent,
) -> Profile:
    """The linearity of every block (or of `blocks` of every stack) over all tokens of `sequences`.

    The score of X → Y, both centered, is 1 − min_A ‖XA − Y‖²_F / ‖Y‖²_F. Held out, A and the means are those of the
    sequences not `held_out`, error and ‖Y‖ of the others. With Y what leaves a block it is the paper's score with the
    residual; without, Y is what leaves less what enters, which is not defined where the norm sits on the stream.
    Parts (from what they read to what they add) are read there, where norms follow them, in encoder-decoders, and with
    `parts` everywhere.

    Source: Razzhigaev et al. 2024 (arXiv 2405.12250), section 3, and their toolkit LLM-Microscope; held-out is ours.
    Differs: true outputs of blocks; `hidden_states[-1]`, which they take, is behind the final norm.
    Raises: `TaskError` where no sequence is left on one side; `ModelError` where a module never runs, or a value is not
    finite.
    """
    if len(set(held_out)) < 2:
        raise TaskError("linearity fits on one part of the sequences and scores on another: give at least 2.")
    groups = list(_fitting(taps(readable, blocks, parts=parts), readable.d_model, room))
    sample = sampled(readable, sequences, POINTS, seed)

    def read(packing: Packing) -> list[_Sums]:
        planned = list(batches(sequences, held_out, packing))
        found: list[_Sums] = []
        for number, group in enumerate(groups):
            sums = {tap: _Sums(tap, sample[tap.stack]) for tap in group}
            for done, batch in enumerate(planned, start=1):
                shown = names(readable, batch)

                def seen(tap: Tap, x: Tensor, y: Tensor, sums=sums, batch=batch, shown=shown) -> None:
                    sums[tap].add(x, y, shown[tap.stack], batch.held_out)

                run(readable, batch, group, seen)
                progress("linearity", number * len(planned) + done, len(groups) * len(planned))
            found.extend(one.solved() for one in sums.values())
        return found

    sums = with_room(Packing(max_tokens, max_tokens, readable.pad), read)
    norms = {stack.prefix: stack.norm for stack in readable.stacks}
    last = {one.tap.stack: one.cloud for one in sums if one.tap.kind == "last"}
    return Profile(tuple(one.row for one in sums if one.row is not None), norms, last)


def _fitting(places: Sequence[Tap], width: int, room: int) -> Iterator[Sequence[Tap]]:
    """As many at a time as have room: XᵀX and XᵀY of both sides, in float64."""
    count = max(1, room // (4 * 8 * width * width))
    yield from (places[start : start + count] for start in range(0, len(places), count))


# ---------------------------------------------------------------------------------------------------------------- sums


class _Sums:
    """What one tap's scores come from, in float64: no larger than XᵀX and XᵀY of both sides, and the sampled tokens.

    Of a block Y is what it adds: X → X + Y has the same errors, and no digits are lost where Y is small.
    """

    def __init__(self, tap: Tap, sample: set[Name]) -> None:
        self.tap, self._sample = tap, sample
        self._sides: dict[bool, PairMoments] = {}
        self._points: dict[Name, Tensor] = {}
        self._cosine = self._energy = self._eps = 0.0
        self.cloud: tuple[float, float | None] = (math.nan, None)  # anisotropy and intrinsic dimension of X
        self.row: Linearity | None = None

    def add(self, x: Tensor, y: Tensor, shown: Sequence[Name], held_out: bool) -> None:
        self._eps = torch.finfo(y.dtype).eps
        kept = [place for place, name in enumerate(shown) if name in self._sample]
        self._points |= dict(zip((shown[place] for place in kept), x[kept].cpu(), strict=True))
        for start in range(0, len(x), CHUNK):
            self._add(_wide(x[start : start + CHUNK]), _wide(y[start : start + CHUNK]), held_out)

    def _add(self, x: Tensor, y: Tensor, held_out: bool) -> None:
        self._energy += float((y * y).sum())
        if self.tap.kind == "block":
            self._cosine += float(nn.functional.cosine_similarity(x, y, dim=-1).sum())
            y = y - x
        elif self.tap.kind == "last":
            y = y[:, :0]
        if not self._sides:
            near = x.mean(dim=0), y.mean(dim=0)
            self._sides = {side: PairMoments(near) for side in (False, True)}
        self._sides[held_out].add(x, y)

    def solved(self) -> _Sums:
        """Scores out, moments gone."""
        fit, out = self._sides.pop(False), self._sides.pop(True)
        both = fit + out
        if not (math.isfinite(both.spread_x) and math.isfinite(both.spread_y)):
            raise ModelError(
                f"{self.tap.site}: what passes there is not finite. In float16 it may have overflown: try --dtype "
                "bfloat16 or float32."
            )
        points = torch.stack([self._points.pop(name) for name in sorted(self._points)])
        self.cloud = both.largest_share, intrinsic_dimension(points)
        if self.tap.kind != "last":
            self.row = self._row(fit, out, both)
        return self

    def _row(self, fit: PairMoments, out: PairMoments, both: PairMoments) -> Linearity:
        errors = both.error(both.fit()), out.error(fit.fit())
        block, d = self.tap.kind == "block", len(both.mean_x)
        scores = {"stream": None, "added": None}
        if block:
            scores["stream"] = self._score(errors, [_leaving(both), _leaving(out)], both, out)
        if self.tap.comparable:
            scores["added"] = self._score(errors, [both.spread_y, out.spread_y], both, out)
        trusted, notes = _trust(fit, d)
        if scores["added"] is None:
            notes.append(_CONSTANT if self.tap.comparable else _POST)
        anisotropy, dimension = self.cloud
        return Linearity(
            site=self.tap.site,
            **scores,
            cosine=self._cosine / both.count if block else None,
            num_tokens=both.count,
            num_fit=fit.count,
            d=d,
            condition=math.sqrt(fit.condition),
            rank=fit.rank,
            anisotropy=anisotropy,
            intrinsic_dimension=dimension,
            trusted=trusted,
            reason="; ".join(notes),
        )

    def _score(self, errors: Sequence[float], spreads: Sequence[float], *of: PairMoments) -> Score | None:
        """None where Y varies no more than rounding makes it, in the precision that the model ran in."""
        rounding = self._eps**2 * self._energy / of[0].count
        if min(spread / moments.count for spread, moments in zip(spreads, of, strict=True)) <= rounding:
            return None
        return Score(*(1 - error / spread for error, spread in zip(errors, spreads, strict=True)))


_CONSTANT = "what it adds varies no more than rounding"
_POST = "the norm sits on the stream: what leaves less what enters is not what the block adds (see its parts)"


def _wide(values: Tensor) -> Tensor:
    """In float64, where there is one: on Apple's GPUs there is none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _leaving(moments: PairMoments) -> float:
    """‖X + Y‖²_F, centered: of what leaves a block, from what enters and what is added."""
    return moments.spread_x + 2 * float(moments.centered_xy.trace()) + moments.spread_y


def _trust(fit: PairMoments, d: int) -> tuple[bool, list[str]]:
    """Whether the scores say something about the block, and what stands against it."""
    notes = []
    if fit.count < FEW * d:
        noise = min(1.0, d / fit.count)
        notes.append(
            f"{fit.count:,} tokens to fit {d} dimensions: noise alone would score {noise:.2f} in-sample, and held-out "
            "scores are too low"
        )
    if fit.condition > CONDITION:
        notes.append(
            f"X has condition {math.sqrt(fit.condition):.0e}, beyond what float64 moments can tell (1e6)"
        )
    trusted = not notes
    if fit.rank < min(d, fit.count - 1):
        notes.append(
            f"X spans {fit.rank} of {d} directions beyond rounding, and only from those is Y explained"
        )
    return trusted, notes
