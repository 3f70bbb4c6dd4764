"""What one place in a model tells of linearity: sums over the tokens that pass there, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.linalg.dimension import intrinsic_dimension
from secateur.linalg.least_squares import CONDITION, JointMoments, PairMoments
from secateur.probes.passing import Name, Tap, Unit

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
    `cosine` is the mean
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


class Sums:
    """What one tap's scores come from, in float64: no larger than XᵀX and XᵀY of both sides (YᵀY for units), and the
    sampled tokens.

    Of a block Y is what it adds: X → X + Y has the same errors, and no digits are lost where Y is small.
    """

    def __init__(self, tap: Tap, sample: set[Name]) -> None:
        self.tap, self._sample = tap, sample
        self._sides: dict[bool, PairMoments] = {}
        self._points: dict[Name, Tensor] = {}
        self._cosine = self._energy = self._eps = 0.0
        self.cloud: tuple[float, float | None] = (math.nan, None)  # anisotropy and intrinsic dimension of X
        self.rows: tuple[Linearity, ...] = ()

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
            near, moments = (x.mean(dim=0), y.mean(dim=0)), JointMoments if self.tap.units else PairMoments
            self._sides = {side: moments(near) for side in (False, True)}
        self._sides[held_out].add(x, y)

    def solved(self, runs: nn.Module) -> Sums:
        """Scores out, moments gone. `runs` is the model, whose matrices are asked for."""
        fit, out = self._sides.pop(False), self._sides.pop(True)
        both = fit + out
        if not (math.isfinite(both.spread_x) and math.isfinite(both.spread_y)):
            raise ModelError(
                f"{self.tap.site}: what passes there is not finite. In float16 it may have overflown: try --dtype "
                "bfloat16 or float32."
            )
        points = torch.stack([self._points.pop(name) for name in sorted(self._points)])
        self.cloud = both.largest_share, intrinsic_dimension(points)
        if self.tap.units:
            self.rows = tuple(self._of_unit(unit, runs, fit, out, both) for unit in self.tap.units)
        elif self.tap.kind != "last":
            self.rows = (self._row(self.tap.site, fit, out, both),)
        return self

    def _of_unit(self, unit: Unit, runs: nn.Module, *sides: JointMoments) -> Linearity:
        """Of what the unit gives, whose moments follow from those of what it reads."""
        weight, columns = _wide(unit.weight.read(runs)), unit.weight.columns(len(sides[0].mean_y))
        fit, out, both = (one.through(weight.to(one.mean_y.device), columns) for one in sides)
        self._energy = both.spread_y + both.count * float(both.mean_y @ both.mean_y)
        return self._row(unit.site, fit, out, both)

    def _row(self, site: str, fit: PairMoments, out: PairMoments, both: PairMoments) -> Linearity:
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
        elif self.tap.units and self.tap.reads == self.tap.writes:
            notes.append(_ITSELF)
        anisotropy, dimension = self.cloud
        return Linearity(
            site=site,
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
_ITSELF = "it reads the stream itself, with no norm between, and so is linear by construction"


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
