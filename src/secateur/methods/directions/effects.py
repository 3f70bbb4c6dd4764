"""Effects of singular directions under a plan, read on `probe` and remembered in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from secateur.core.fitted import Fitted
from secateur.core.plan import Plan
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator
from secateur.methods.directions.pools import Direction, Folds
from secateur.methods.directions.probe import DirectionEffects, MatrixEffects, directions_effects
from secateur.session import Session, digest

MAX_PROBED = 256  # as for the gradients of LASER's screen


@dataclass(frozen=True)
class Reading:
    """What was read under one plan: every direction's effect, and what a matrix's directions are folded with."""

    found: DirectionEffects

    @property
    def directions(self) -> list[Direction]:
        """Numbered as `RemoveDirections` numbers them."""
        return [
            Direction(one.site, (one.head or 0) * len(one.effect) + index, float(change))
            for one in self.found.matrices
            for index, change in enumerate(one.predicted)
        ]

    @cached_property
    def folds(self) -> Folds:
        pieces = groupby(self.found.matrices, key=lambda one: one.site)
        return {site: _fold(list(own)) for site, own in pieces}


def _fold(pieces: Sequence[MatrixEffects]) -> Fitted:
    """The mean input of a matrix, whose heads lie side by side in that of an o; and its directions if they are
    fitted too."""
    beside = len(pieces) > 1 and pieces[0].site.part == "o"
    mean = np.concatenate([one.mean_input for one in pieces]) if beside else pieces[0].mean_input
    arrays = {"mean": mean.astype(np.float32)}
    if pieces[0].u is not None:
        arrays["u"] = np.stack([one.u for one in pieces])
    return Fitted.of(arrays)


class Effects:
    """Reads `sites`. With whitened directions those of the first reading, which is of the whole model, stay; nothing
    goes to the ledger, since they are as large as the weights."""

    def __init__(self, session: Session, judge: Evaluator, sites: Sequence[Site]) -> None:
        self._session, self._judge, self._sites = session, judge, sites
        self._probe = session.task.split("probe")[:MAX_PROBED]
        self._bases: dict[Site, np.ndarray] = {}
        self._known: dict[Plan, Reading] = {}

    def read(self, plan: Plan) -> Reading:
        """Of all directions; those that are gone under `plan` have no effect any more. Kept for the whole model and
        the plan that was read last."""
        if plan not in self._known:
            found = self._read(plan)
            self._known = {old: known for old, known in self._known.items() if not old.edits} | {plan: found}
        return self._known[plan]

    def _read(self, plan: Plan) -> Reading:
        session, options = self._session, self._session.options
        how = [options.config.per_head, options.config.second_order, len(self._probe), *map(str, self._sites)]
        key = f"directions {digest([plan.identity, how])}"
        ledger = None if options.config.whitened else session.ledger
        known = ledger.recall(session.scope, key, DirectionEffects.from_json) if ledger else None
        if known is not None:
            return Reading(known)
        found = self._compute(plan)
        if ledger:
            ledger.remember(session.scope, key, found.to_json())
        return Reading(found)

    def _compute(self, plan: Plan) -> DirectionEffects:
        session, options = self._session, self._session.options
        found = directions_effects(
            session.loaded,
            session.encoded,
            self._probe,
            self._sites,
            packing=self._judge.packing,
            per_head=options.config.per_head,
            second_order=options.config.second_order,
            whitened=options.config.whitened,
            under=plan,
            bases=self._bases,
            decompose=self._judge.spectra,
            progress=session.progress,
        )
        if options.config.whitened and not self._bases:
            pieces = groupby(found.matrices, key=lambda one: one.site)
            self._bases = {site: np.stack([one.u for one in own]) for site, own in pieces}
        return found
