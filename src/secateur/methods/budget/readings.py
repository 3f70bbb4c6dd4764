"""Readings for the budget: the predicted cost of any edit under a plan, ranked neurons, fitted maps.

Costs are read on `probe`, the others on what they are asked for; what is not fitted is remembered in the ledger.
At the end those of a forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from secateur.core.fitted import Fitted
from secateur.core.plan import Edit, Linearize, Plan, blocks_of
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator
from secateur.gains.length import Length
from secateur.gains.record import time_kept
from secateur.hf.anatomy import anatomy
from secateur.methods.budget.method import BudgetConfig
from secateur.methods.forecasting import DryRun, ReadingCost
from secateur.methods.removal import fitted_maps
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects
from secateur.probes.heads import weighted_inputs
from secateur.probes.maps import BlockRun
from secateur.session import Session, decided_by_choices, digest
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import droppable, resolve
from secateur.surgery.shape import shape_of

REPEATS = 5  # turns of a timing, of which the median counts


@dataclass(frozen=True)
class Candidate:
    """Edits that go together: one, or the drops of a group of neurons; all in one block but for maps."""

    kind: str
    edits: tuple[Edit, ...]

    @property
    def blocks(self) -> frozenset[int]:
        """Return the blocks that are changed."""
        return frozenset(site.block for site in blocks_of(self.edits[0]))


class EditReader:
    """The readings of a real model; see `search.EditReadings`."""

    def __init__(self, session: Session, judge: Evaluator) -> None:
        self._session, self._judge = session, judge
        self._probe = session.probed

    def effects(self, plan: Plan, candidates: Sequence[Candidate]) -> list[float]:
        """Return the expected rise of the loss with each candidate beside `plan`, nats."""
        session, contrast = self._session, decided_by_choices(self._session)
        plans = [Plan(plan.model, candidate.edits) for candidate in candidates]
        asked = [contrast, len(self._probe), plan.identity, *(one.identity for one in plans)]
        known: list[float] | None = session.recall(f"edit effects {digest(asked)}", list)
        if known is not None:
            return known
        effects = block_effects(
            AnswerMargin.of(session.loaded, session.encoded, self._probe, contrast),
            self._probe,
            plans,
            spectra=self._judge.spectra,
            packing=self._judge.packing,
            under=plan,
            room=self._judge.limits.cache_bytes,
            progress=session.progress,
        )
        found = [effects.loss(one) for one in plans]
        session.remember(f"edit effects {digest(asked)}", found)
        return found

    def neurons(self, plan: Plan, examples: Sequence[int]) -> Mapping[int, list[int]]:
        """Return the neurons of each block that `plan` leaves, those first that add least to the stream."""
        session, loaded = self._session, self._session.loaded
        networks_gone = (site for site in plan.dropped if site == Site(site.block, "mlp"))
        gone = {site.block for site in (*plan.blocks_gone, *networks_gone)}
        networks = [
            block
            for block in range(loaded.anatomy.num_blocks)
            if block not in gone and droppable(Site(block, "mlp"), loaded.anatomy)
        ]
        key = f"neurons by weights times inputs {digest([plan.identity, *examples])}"
        order: dict[int, list[int]] | None = session.recall(
            key, lambda rows: {block: [*neurons] for block, neurons in rows}
        )
        if order is None:
            with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
                values = weighted_inputs(
                    loaded,
                    session.encoded,
                    examples,
                    networks,
                    packing=self._judge.packing,
                    progress=session.progress,
                )
            order = {block: np.argsort(own, kind="stable").tolist() for block, own in values.items()}
            session.remember(key, [*order.items()])
        return order

    def maps(
        self, plan: Plan, runs: Sequence[BlockRun], examples: Sequence[int]
    ) -> Mapping[BlockRun, Linearize]:
        """Return a map for each of `runs`, fitted in the model that `plan` leaves."""
        return fitted_maps(self._session, plan, runs, self._judge.packing, examples)

    def time(self, plan: Plan) -> float:
        """Return the time of a generation with a plan, as a share of the original's: measured here, each in turn."""
        session, config = self._session, self._session.config(BudgetConfig)
        whole, asked = session.loaded, Length(config.prompt, config.new, repeats=REPEATS)
        key = f"latency {digest([plan.identity, asked.prompt, asked.new, torch.get_num_threads()])}"
        known = session.recall(key, float)
        if known is None:
            model = cut(whole, plan, factorize=session.options.written_as.factorize)
            left = replace(whole, model=model, anatomy=anatomy(model))
            known = time_kept(whole, left, asked, progress=session.progress)
            session.remember(key, known)
        return known


# ------------------------------------------------------------------------------------------------------------- forecast


class DryEditReadings:
    """In the place of `EditReader`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry

    def effects(self, plan: Plan, candidates: Sequence[Candidate]) -> list[float]:
        """Note a pass with gradients, and one through the block of each candidate."""
        sites = tuple(Site(min(candidate.blocks)) for candidate in candidates)
        n, choices = len(self._session.probed), decided_by_choices(self._session)
        self._dry.read(
            ReadingCost("edit effects", "probe", n, sites, passes=2.0, blocks=1.0, choices=choices)
        )
        return [self._dry.draw() for _ in candidates]

    def neurons(self, plan: Plan, examples: Sequence[int]) -> Mapping[int, list[int]]:
        """Note a forward pass."""
        self._dry.read(ReadingCost("weights times inputs", "select", len(examples), (), passes=1.0))
        widths = self._session.loaded.anatomy.widths
        return {block: list(range(width.d_ff)) for block, width in enumerate(widths)}

    def maps(
        self, plan: Plan, runs: Sequence[BlockRun], examples: Sequence[int]
    ) -> Mapping[BlockRun, Linearize]:
        """Note the fit of these maps; each is a map of its own, of no size."""
        parts = tuple(Site(run.blocks[0]) for run in runs)
        self._dry.read(ReadingCost("maps", "probe", len(examples), parts, passes=2.0, fits=True))
        drawn = [Fitted.of({"drawn": np.array([self._dry.draw()], np.float32)}) for _ in runs]
        return {run: Linearize(run.blocks, run.form, drawn[number]) for number, run in enumerate(runs)}

    def time(self, plan: Plan) -> float:
        """Return the share of the parameters that a plan leaves, in the place of that of the time."""
        parts = self._session.loaded.anatomy
        return shape_of(plan, parts, factorize=False).num_parameters(parts) / parts.num_parameters
