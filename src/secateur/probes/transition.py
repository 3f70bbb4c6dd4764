"""What one place in a model tells of linearity: sums over the tokens that pass there, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.linalg.dimension import intrinsic_dimension
from secateur.linalg.least_squares import CONDITION, JointMoments, PairMoments
from secateur.probes.hooks import Tap, Token, Unit, wide
from secateur.probes.outliers import Count, Outliers, norms

CHUNK = 4096  # tokens in float64 at a time
FEW = 10  # tokens a dimension: with fewer, noise alone scores above 1/10 in-sample


@dataclass(frozen=True)
class Score:
    """`in_sample` is the paper's, of the map fitted to all tokens; `held_out` of one fitted to other sequences."""

    in_sample: float
    held_out: float


@dataclass(frozen=True)
class Linearity:
    """Of a block, a part of one, a head or a matrix. None: not defined there.

    `stream` is the score of what enters → what leaves, `added` of what enters → what is added, or what a matrix gives.
    `cosine` is the mean over tokens between what enters and what leaves. `condition` (of X), `rank` and `num_fit` are
    of what held-out maps are fitted to; `anisotropy` and `intrinsic_dimension` are of what enters. Where `outliers`
    pass, `without` is the same over all other tokens.
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
    outliers: Outliers | None = None
    without: Linearity | None = None


@dataclass(frozen=True)
class Cloud:
    """The shape of what passes a place. Where `outliers` pass, `without` is that of all other tokens."""

    anisotropy: float
    intrinsic_dimension: float | None
    outliers: Outliers | None = None
    without: Cloud | None = None


class _Tally:
    """Sums over some of the tokens that pass a tap: moments on both sides of the split, cosines, and ‖Y‖² without
    centering."""

    def __init__(self, kind: type[PairMoments], near: tuple[Tensor, Tensor]) -> None:
        self.fit, self.out = kind(near), kind(near)
        self.cosine = self.energy = 0.0

    def add(self, x: Tensor, y: Tensor, cosine: Tensor, energy: Tensor, *, held_out: bool) -> None:
        """`cosine` and `energy` are of every token."""
        (self.out if held_out else self.fit).add(x, y)
        self.cosine += float(cosine.sum())
        self.energy += float(energy.sum())

    def __add__(self, other: _Tally) -> _Tally:
        both = copy(self)
        both.fit, both.out = self.fit + other.fit, self.out + other.out
        both.cosine, both.energy = self.cosine + other.cosine, self.energy + other.energy
        return both

    def through(self, weight: Tensor, columns: slice) -> _Tally:
        """The same with `weight` times those columns of Y in the place of Y."""
        unit = copy(self)
        unit.fit, unit.out = (m.through(weight.to(m.mean_y.device), columns) for m in (self.fit, self.out))
        both = unit.fit + unit.out
        unit.energy = both.spread_y + both.count * float(both.mean_y @ both.mean_y)
        return unit


class Sums:
    """What one tap's scores come from, in float64: no larger than XᵀX and XᵀY of both sides (YᵀY for units), where
    outlier tokens pass twice that, and the sampled tokens.

    Of a block Y is what it adds: X → X + Y has the same errors, and no digits are lost where Y is small.
    """

    def __init__(self, tap: Tap, sample: set[Token], count: Count) -> None:
        self.tap, self._sample, self._count = tap, sample, count
        self._near: tuple[Tensor, Tensor] | None = None
        self._tallies: dict[bool, _Tally] = {}  # by whether the tokens are outliers
        self._points: dict[bool, dict[Token, Tensor]] = {False: {}, True: {}}
        self._eps = 0.0
        self.cloud: Cloud | None = None  # of X
        self.rows: tuple[Linearity, ...] = ()

    def add(self, x: Tensor, y: Tensor, shown: Sequence[Token], held_out: bool) -> None:
        self._eps = torch.finfo(y.dtype).eps
        far: list[bool] = []
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            far += self._add(wide(x[part]), wide(y[part]), shown[part], held_out)
        kept = [place for place, token in enumerate(shown) if token in self._sample]
        for place, vector in zip(kept, x[kept].cpu(), strict=True):
            self._points[far[place]][shown[place]] = vector

    def _add(self, x: Tensor, y: Tensor, shown: Sequence[Token], held_out: bool) -> list[bool]:
        """Returns which tokens are outliers."""
        far = self._count.outlying(norms(self.tap, x, y), shown)
        energy, cosine = (y * y).sum(dim=1), x.new_zeros(len(x))
        if self.tap.kind == "block":
            cosine = nn.functional.cosine_similarity(x, y, dim=-1)
            y = y - x
        elif self.tap.kind == "last":
            y = y[:, :0]
        for is_far in (False, True):
            chosen = far == is_far
            if chosen.any():
                own = (values if chosen.all() else values[chosen] for values in (x, y, cosine, energy))
                self._tally(is_far, x, y).add(*own, held_out=held_out)
        return far.tolist()

    def _tally(self, is_far: bool, x: Tensor, y: Tensor) -> _Tally:
        if self._near is None:
            self._near = x.mean(dim=0), y.mean(dim=0)
        if is_far not in self._tallies:
            self._tallies[is_far] = _Tally(JointMoments if self.tap.units else PairMoments, self._near)
        return self._tallies[is_far]

    def solved(self, runs: nn.Module) -> Sums:
        """Scores out, moments gone. `runs` is the model, whose matrices are asked for."""
        usual, far = (self._tallies.pop(is_far, None) for is_far in (False, True))
        whole = usual + far if usual and far else usual or far
        both = whole.fit + whole.out
        if not (math.isfinite(both.spread_x) and math.isfinite(both.spread_y)):
            raise ModelError(
                f"{self.tap.site}: what passes there is not finite. In float16 it may have overflown: try --dtype "
                "bfloat16 or float32."
            )
        others, points = self._points.pop(False), self._points.pop(True)
        self.cloud, self.rows = self._read(whole, others | points, runs)
        if far:
            self._beside(usual, others, runs)
        return self

    def _beside(self, usual: _Tally | None, points: Mapping[Token, Tensor], runs: nn.Module) -> None:
        """Reads all again without the outlier tokens, unless those are all that there is on one side."""
        found = self._count.found
        enough = usual is not None and usual.fit.count and usual.out.count and points
        cloud, rows = self._read(usual, points, runs) if enough else (None, (None,) * len(self.rows))
        self.cloud = replace(self.cloud, outliers=found, without=cloud)
        self.rows = tuple(
            replace(row, outliers=found, without=without)
            for row, without in zip(self.rows, rows, strict=True)
        )

    def _read(
        self, tally: _Tally, points: Mapping[Token, Tensor], runs: nn.Module
    ) -> tuple[Cloud, tuple[Linearity, ...]]:
        drawn = torch.stack([points[token] for token in sorted(points)])
        cloud = Cloud((tally.fit + tally.out).largest_share, intrinsic_dimension(drawn))
        if self.tap.kind == "last":
            return cloud, ()
        if not self.tap.units:
            return cloud, (self._row(self.tap.site, tally, cloud),)
        return cloud, tuple(self._of_unit(unit, tally, cloud, runs) for unit in self.tap.units)

    def _of_unit(self, unit: Unit, tally: _Tally, cloud: Cloud, runs: nn.Module) -> Linearity:
        """Of what the unit gives, whose moments follow from those of what it reads."""
        weight, columns = wide(unit.weight.read(runs)), unit.weight.columns(len(tally.fit.mean_y))
        return self._row(unit.site, tally.through(weight, columns), cloud)

    def _row(self, site: str, tally: _Tally, cloud: Cloud) -> Linearity:
        fit, out = tally.fit, tally.out
        both = fit + out
        errors = both.error(both.fit()), out.error(fit.fit())
        block, d = self.tap.kind == "block", len(both.mean_x)
        rounding = self._eps**2 * tally.energy / both.count
        scores = {"stream": None, "added": None}
        if block:
            scores["stream"] = _score(errors, [_leaving(both), _leaving(out)], (both, out), rounding)
        if self.tap.comparable:
            scores["added"] = _score(errors, [both.spread_y, out.spread_y], (both, out), rounding)
        trusted, notes = _trust(fit, d)
        if scores["added"] is None:
            notes.append(_CONSTANT if self.tap.comparable else _POST)
        elif self.tap.units and self.tap.reads == self.tap.writes:
            notes.append(_ITSELF)
        return Linearity(
            site=site,
            **scores,
            cosine=tally.cosine / both.count if block else None,
            num_tokens=both.count,
            num_fit=fit.count,
            d=d,
            condition=math.sqrt(fit.condition),
            rank=fit.rank,
            anisotropy=cloud.anisotropy,
            intrinsic_dimension=cloud.intrinsic_dimension,
            trusted=trusted,
            reason="; ".join(notes),
        )


def _score(
    errors: Sequence[float], spreads: Sequence[float], of: Sequence[PairMoments], rounding: float
) -> Score | None:
    """None where Y varies no more than rounding makes it, in the precision that the model ran in."""
    if min(spread / moments.count for spread, moments in zip(spreads, of, strict=True)) <= rounding:
        return None
    return Score(*(1 - error / spread for error, spread in zip(errors, spreads, strict=True)))


_CONSTANT = "what it adds varies no more than rounding"
_POST = "the norm sits on the stream: what leaves less what enters is not what the block adds (see its parts)"
_ITSELF = "it reads the stream itself, with no norm between, and so is linear by construction"


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
