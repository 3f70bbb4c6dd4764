"""Importance of parts under a plan, read on `probe` and remembered in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from secateur.core.plan import Plan
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.evaluator import Evaluator
from secateur.hf.anatomy import Anatomy
from secateur.options import layers_of
from secateur.probes.ablation import ablation_importance
from secateur.probes.heads import group_importance, head_importance
from secateur.probes.neurons import neuron_importance
from secateur.probing.components import Components, Reading, behavior
from secateur.probing.record import components_record
from secateur.session import Session, digest
from secateur.surgery.mask import masked
from secateur.surgery.operations import droppable, resolve

LOG = logging.getLogger("secateur")
MAX_PROBED = 256  # as for the gradients of LASER's screen


def is_grouped(anatomy: Anatomy) -> bool:
    """Whether query heads share keys, so that only whole groups can leave."""
    return any(own.num_heads != own.num_kv_heads for own in anatomy.widths)


def whole_ffns(anatomy: Anatomy, blocks: range) -> tuple[Site, ...]:
    """The feed-forward networks of these blocks that can go."""
    return tuple(site for block in blocks if droppable(site := Site(block, "mlp"), anatomy))


class ImportanceReader:
    """Importance of parts under a plan, read on `probe` and remembered in the ledger."""

    def __init__(self, session: Session, judge: Evaluator) -> None:
        self._session, self._judge = session, judge
        self._probe = session.task.split("probe")[:MAX_PROBED]

    def read(self, plan: Plan, kind: str) -> Mapping[Site, float]:
        """How much the task hangs on each part that is left of a kind; parts that are gone have some number too."""
        if kind == "heads":
            heads = self._gradients("heads", plan)
            anatomy = self._session.loaded.anatomy
            values = (group_importance(heads, anatomy) if is_grouped(anatomy) else heads).values
        elif self._session.options.config.portable:
            values = self._gradients("neurons", plan).values
        else:
            values = self._ablation(plan).values
        return {Site.parse(site): value for site, value in values.items()}

    def _gradients(self, kind: str, plan: Plan) -> Readings:
        session = self._session
        key = f"{kind} {digest([plan.to_json()['edits'], len(self._probe)])}"
        known = session.ledger.recall(session.scope, key) if session.ledger else None
        if known is not None:
            return Readings.from_json(known)
        importance = {"heads": head_importance, "neurons": neuron_importance}[kind]
        loaded = session.loaded
        with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
            found = importance(
                loaded, session.encoded, self._probe, packing=self._judge.packing, progress=session.progress
            )
        if session.ledger:
            session.ledger.remember(session.scope, key, found.to_json())
        return found

    def _ablation(self, plan: Plan) -> Readings:
        """Of the feed-forward networks that are left. By loss: accuracy ties on few examples."""
        blocks = layers_of(self._session.loaded.anatomy, self._session.options)
        left = [s for s in whole_ffns(self._session.loaded.anatomy, blocks) if s not in set(plan.dropped)]
        found = ablation_importance(self._judge, left, self._probe, split="probe", base=plan)
        return next(readings for name, readings in found.items() if "loss" in name)

    def components(self) -> dict[str, Any]:
        """What is read of the whole model for the report: importance, and what heads do."""
        session, empty, found = self._session, self._session.empty, {}
        anatomy = session.loaded.anatomy
        if anatomy.attending:
            found["heads"] = {"importance": self._gradients("heads", empty)}
        if whole_ffns(anatomy, layers_of(anatomy, session.options)):
            found["ffns"] = {"loss": self._ablation(empty)}
        reading = Reading(session.task.name, session.options.shots, len(self._probe), len(self._probe), found)
        return components_record(Components((reading,), self._behavior()))

    def _behavior(self) -> dict[str, Readings]:
        """Nothing, and a word about it, where the model has too little context or vocabulary for random repeats, or
        heads that an earlier cut left two factors of."""
        loaded, progress = self._session.loaded, self._session.progress
        try:
            return behavior(loaded, range(loaded.anatomy.num_blocks), progress)
        except ModelError as error:
            LOG.warning("prefix matching and copying are left out of the report: %s", error)
            return {}
