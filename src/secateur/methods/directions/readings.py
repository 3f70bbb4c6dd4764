"""Readings of a model for the search: effects of directions under a plan, and the tokens that they raise.

Tokens can be told only of directions that reach the residual stream by linear maps alone: those of o and down, and of v
through its o. What q and k do is to choose where to look, what gate and up do goes through a nonlinearity.
At the end the readings of a forecast, which are drawn and noted instead of made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.fitted import Fitted
from secateur.core.plan import Plan, RemoveDirections
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator
from secateur.hf.load import Loaded
from secateur.methods.directions.effects import ROOM, DirectionEffects, MatrixEffects, directions_effects
from secateur.methods.directions.method import DirectionsConfig
from secateur.methods.directions.pools import Direction, Folds
from secateur.methods.forecasting import DryRun, ReadingCost
from secateur.options import matrices_of
from secateur.session import Session, digest
from secateur.surgery.operations import Decompose, RemoveComponents, decompose, resolve

MOST = 6  # tokens on each side
HARMLESS = {"least": 0.1, "expected": 0.7, "most": 1.0}  # share of a pool, by the prediction
MOST_DIRECTIONS = 20_000  # that are drawn; of larger models each matrix has fewer, in proportion

Tokens = tuple[tuple[str, float], ...]


# ------------------------------------------------------------------------------------------------- effects under a plan


@dataclass(frozen=True)
class EffectsUnderPlan:
    """Effects of all directions in the model that one plan leaves, and what a matrix's directions are folded with."""

    effects: DirectionEffects

    @property
    def directions(self) -> list[Direction]:
        """All directions, numbered as `RemoveDirections` numbers them."""
        return [
            Direction(piece.site, (piece.head or 0) * len(piece.effect) + index, float(change))
            for piece in self.effects.matrices
            for index, change in enumerate(piece.predicted)
        ]

    @cached_property
    def folds(self) -> Folds:
        """By matrix: its mean input, and its directions if they are fitted too; None of an expert."""
        by_site = groupby(self.effects.matrices, key=lambda piece: piece.site)
        return {site: _fold(list(pieces)) for site, pieces in by_site}


def _fold(pieces: Sequence[MatrixEffects]) -> Fitted | None:
    if pieces[0].site.unit:
        return None
    side_by_side = len(pieces) > 1 and pieces[0].site.kind == "o"  # heads, in what an o reads
    mean = np.concatenate([piece.mean_input for piece in pieces]) if side_by_side else pieces[0].mean_input
    arrays = {"mean": mean.astype(np.float32)}
    fitted = [piece.u for piece in pieces if piece.u is not None]
    if fitted:
        arrays["u"] = np.stack(fitted)
    return Fitted.of(arrays)


class DirectionsReader:
    """The readings of the search (`search.DirectionReadings`), taken from the model of a session.

    With whitened directions those of the first reading, which is of the whole model, stay; nothing goes to the ledger,
    since they are as large as the weights.

    Args:
        session: Model and task; its ledger remembers effects.
        judge: Gives decompositions and the packing of batches.
        sites: Matrices whose directions are read.
    """

    def __init__(self, session: Session, judge: Evaluator, sites: Sequence[Site]) -> None:
        self._session, self._judge, self._sites = session, judge, sites
        self._config = session.config(DirectionsConfig)
        self._examples = session.probed
        self._bases: dict[Site, np.ndarray] = {}
        self._known: dict[Plan, EffectsUnderPlan] = {}

    def effects(self, plan: Plan) -> EffectsUnderPlan:
        """Return the effects of all directions; those that are gone under `plan` have none any more.

        Kept for the whole model and for the plan that was read last.
        """
        if plan not in self._known:
            effects = EffectsUnderPlan(self._recall(plan))
            self._known = {old: known for old, known in self._known.items() if not old.edits} | {
                plan: effects
            }
        return self._known[plan]

    def _recall(self, plan: Plan) -> DirectionEffects:
        """Return effects from the ledger, or read them and remember them there."""
        session, config = self._session, self._config
        how = [config.per_head, config.second_order, len(self._examples), *map(str, self._sites)]
        key = f"directions {digest([plan.identity, how])}"
        known = None if config.whitened else session.recall(key, DirectionEffects.from_json)
        if known is not None:
            return known
        effects = directions_effects(
            session.loaded,
            session.encoded,
            self._examples,
            self._sites,
            packing=self._judge.packing,
            per_head=config.per_head,
            second_order=config.second_order,
            whitened=config.whitened,
            under=plan,
            bases=self._bases,
            decompose=self._judge.spectra,
            progress=session.progress,
        )
        if config.whitened and not self._bases:
            by_site = groupby(effects.matrices, key=lambda piece: piece.site)
            self._bases = {
                site: np.stack([p.u for p in pieces if p.u is not None]) for site, pieces in by_site
            }
        if not config.whitened:
            session.remember(key, effects.to_json())
        return effects

    def words(self, edit: RemoveDirections, numbers: Sequence[int]) -> list[Words]:
        """Return what some of the directions that `edit` removes say; empty where they cannot be told."""
        return direction_words(self._session.loaded, edit, numbers, self._judge.spectra)


# ----------------------------------------------------------------------------------------------- tokens of directions


@dataclass(frozen=True)
class Words:
    """Tokens with their logit along a unit vector after the final norm.

    The sign of a singular direction is arbitrary: it says `more` where it points one way and `less` where it points the
    other.
    """

    more: Tokens
    less: Tokens


@torch.no_grad()
def direction_words(
    loaded: Loaded, edit: RemoveDirections, numbers: Sequence[int], decompose: Decompose = decompose
) -> list[Words]:
    """Return the tokens that some of the directions of `edit` raise and lower through the unembedding.

    Args:
        numbers: Of those directions.

    Returns: nothing of a model that writes no text, whose head is more than an unembedding; nor where directions do not
        reach the stream by linear maps, or where the unembedding does not read what the blocks add up to through one
        last norm: not where norms stand on the way, nor in OPT-350m, which norms the stream block by block and projects
        it.

    Source: weights read in the vocabulary, Dar et al. 2022 (arXiv 2209.02535).
    """
    anatomy = loaded.anatomy
    unembedding = loaded.parameter(f"{anatomy.unembedding}.weight")
    readable = anatomy.foldable and unembedding.shape[1] == anatomy.d_model and anatomy.writes_text
    if (
        not numbers
        or edit.matrix.part not in ("o", "down", "v")
        or not readable
        or anatomy.final_norm is None
    ):
        return []
    to_stream = _values_to_stream(loaded, edit.matrix.block) if edit.matrix.part == "v" else None
    if edit.matrix.part == "v" and to_stream is None:
        return []
    (operation,) = resolve(Plan(loaded.fingerprint, (edit,)), anatomy, loaded.fingerprint)
    assert isinstance(operation, RemoveComponents)
    basis = operation.basis(loaded.parameter(operation.parameter), decompose)
    norm = loaded.model.get_submodule(anatomy.final_norm)
    words = []
    for number in numbers:
        piece, index = divmod(number, basis.shape[2])
        vector = basis[piece, :, index]
        if to_stream is not None:  # the columns of the piece's head
            vector = torch.unflatten(to_stream, 1, (basis.shape[0], -1))[:, piece] @ vector
        vector = vector.to(loaded.model.dtype)
        # half the difference of both signs leaves out a norm's bias
        logits = unembedding.float() @ ((norm(vector) - norm(-vector)) / 2).float()
        words.append(Words(*(_extreme_tokens(loaded, logits, largest) for largest in (True, False))))
    return words


def _values_to_stream(loaded: Loaded, block: int) -> Float[Tensor, "d_model values"] | None:
    """Return what o makes of all values, as if every query head looked at one token; None where o is not whole."""
    anatomy = loaded.anatomy
    matrix, widths = anatomy.matrices.get(Site(block, "o")), anatomy.widths[block]
    if matrix is None:
        return None
    o = matrix.read(loaded.parameter(matrix.weight)).float()
    queries = widths.num_heads // widths.num_kv_heads
    return torch.unflatten(o, 1, (widths.num_kv_heads, queries, anatomy.d_head)).sum(2).flatten(1)


def _extreme_tokens(loaded: Loaded, logits: Float[Tensor, " vocab"], largest: bool) -> Tokens:
    top = logits.topk(min(MOST, len(logits) // 2), largest=largest)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return tuple((str(loaded.tokenizer.decode([token])), value) for token, value in pairs)


# ------------------------------------------------------------------------------------------------------------- forecast


class DryDirectionReadings:
    """In the place of `DirectionsReader`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry
        self._config = session.config(DirectionsConfig)
        self._sites = tuple(matrices_of(session.loaded.anatomy, session.options))
        self._known: dict[Plan, EffectsUnderPlan] = {}

    def effects(self, plan: Plan) -> EffectsUnderPlan:
        """Note the reading under a plan, once; of every pool the stated share is harmless together."""
        if plan not in self._known:
            probed = len(self._session.probed)
            not_cached = self._config.per_head or self._config.whitened
            self._dry.read(
                ReadingCost(
                    "direction effects", "probe", probed, self._sites,
                    passes=4.0, decomposes=True, under_plan=bool(plan.edits), not_cached=not_cached, spectra_bytes=ROOM,
                )
            )  # fmt: skip
            self._known[plan] = EffectsUnderPlan(self._drawn(probed))
        return self._known[plan]

    def _drawn(self, probed: int) -> DirectionEffects:
        anatomy = self._session.loaded.anatomy
        sizes = {site: min(anatomy.matrix(site).shape) for site in self._sites}
        share = min(1.0, MOST_DIRECTIONS / sum(sizes.values()))
        harmless = HARMLESS[self._dry.case]
        pieces = []
        for site, size in sizes.items():
            count = max(1, round(share * size))
            # Sums from the most harmful on are below 0 up to the harmless share: harm h, then as much help.
            place = (np.arange(count) + 0.5) / count
            effect = (
                np.where(place < harmless / 2, -1.0, 1.0) * 1e-6 if harmless < 1 else np.full(count, -1e-6)
            )
            mean = np.zeros(anatomy.matrix(site).shape[1])
            pieces.append(MatrixEffects(site, None, np.ones(count), effect, None, mean))
        return DirectionEffects("probe", probed, 1, False, tuple(pieces))

    def words(self, edit: RemoveDirections, numbers: Sequence[int]) -> Sequence[Words]:
        """Return none."""
        return []
