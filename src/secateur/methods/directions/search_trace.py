"""What was seen while directions were removed, as records: every plan that was judged, and every direction's effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.core.plan import Plan, RemoveDirections
from secateur.core.score import Metric
from secateur.core.site import Site
from secateur.methods.directions.effects import Reading
from secateur.methods.directions.probe import MatrixEffects
from secateur.methods.directions.words import direction_words
from secateur.records import measured
from secateur.search.race import Choice
from secateur.session import Session
from secateur.surgery.operations import Decompose

SHOWN = 256  # directions of one matrix or head, evenly along the spectrum; those that went are all there
STRONGEST = 32  # of them by effect are there too
WORDED = 24  # removed directions of which the record says what they do, the most harmful first


@dataclass(frozen=True)
class SearchStep:
    """A plan that adds `added` directions of a pool to another plan: what that was predicted to do to the loss (nats),
    its outcomes as far as they were judged, and those of the plan before."""

    round: int
    pool: str
    added: int
    predicted: float
    plan: Plan
    outcomes: np.ndarray
    before: np.ndarray

    def record(self, metric: Metric) -> dict[str, Any]:
        """Both on the examples that both were judged on."""
        n = len(self.outcomes)
        told = {"round": self.round, "pool": self.pool, "added": self.added, "predicted": self.predicted}
        values = {"value": metric.mean(self.outcomes), "value_before": metric.mean(self.before[:n])}
        losses = {
            "loss": measured(self.outcomes)["loss"],
            "loss_before": measured(self.before[:n])["loss"],
        }
        state = {"removed": num_removed(self.plan), "n": n, "complete": n == len(self.before)}
        return told | values | losses | state


@dataclass
class SearchTrace:
    """Where a walk came to, all steps that were judged, and those that were taken; of a search for gain what the
    other half of `select` said."""

    plan: Plan
    steps: list[SearchStep] = field(default_factory=list)
    chosen: list[SearchStep] = field(default_factory=list)
    choice: Choice | None = None

    def took(self, step: SearchStep) -> None:
        self.plan = step.plan
        self.chosen.append(step)


def num_removed(plan: Plan) -> int:
    return sum(len(edit.directions) for edit in plan.removed)


def trail_record(
    session: Session,
    protocol: str,
    order: str,
    max_loss: float | None,
    reading: Reading,
    trail: SearchTrace,
    decompose: Decompose,
) -> dict[str, Any]:
    """For the report. `reading` is that of the whole model."""
    found, metric, options = reading.found, session.objective.metric, session.options
    edits = {edit.matrix: edit for edit in trail.plan.removed}
    return {
        "protocol": protocol,
        "order": order,
        "split": found.split,
        "n": found.n,
        "num_tokens": found.num_tokens,
        "per_head": options.config.per_head,
        "second_order": options.config.second_order,
        "whitened": found.whitened,
        "metric": metric.name,
        "metric_unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "max_loss": max_loss,
        "total": len(reading.directions),
        "matrices": [_matrix_record(one, edits.get(one.site)) for one in found.matrices],
        "path": [step.record(metric) for step in trail.steps],
        "chosen": [step.record(metric) for step in trail.chosen],
        "words": _words(session, reading, edits, decompose),
    }


def _matrix_record(one: MatrixEffects, edit: RemoveDirections | None) -> dict[str, Any]:
    """One matrix or head; directions count from its own largest singular value."""
    count = len(one.effect)
    offset = (one.head or 0) * count
    gone = () if edit is None else (number - offset for number in edit.directions)
    removed = sorted(number for number in gone if 0 <= number < count)
    even = np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist()
    strongest = np.argsort(-np.abs(one.predicted), kind="stable")[:STRONGEST].tolist()
    shown = sorted({*even, *strongest, *removed})
    return {
        "site": str(one.site),
        "matrix": one.site.part,
        "block": one.site.block,
        "head": one.head,
        "of": count,
        "harmful": int((one.predicted < 0).sum()),
        "harm": float(np.abs(one.predicted.clip(max=0)).sum()),
        "index": shown,
        "sigma": one.sigma[shown].tolist(),
        "effect": one.predicted[shown].tolist(),
        "removed": removed,
    }


def _words(
    session: Session, reading: Reading, edits: Mapping[Site, RemoveDirections], decompose: Decompose
) -> list[dict[str, Any]]:
    """What the removed directions write, the most harmful first."""
    gone = {(site, number) for site, edit in edits.items() for number in edit.directions}
    worst = sorted(
        (one for one in reading.directions if (one.matrix, one.index) in gone), key=lambda one: one.change
    )
    found = []
    for site, edit in edits.items():
        ours = [one for one in worst[:WORDED] if one.matrix == site]
        words = direction_words(session.loaded, edit, [one.index for one in ours], decompose)
        for one, said in zip(ours, words, strict=bool(words)):
            found.append({"site": str(site), "direction": one.index, "effect": one.change} | said.to_json())
    return sorted(found, key=lambda record: record["effect"])
