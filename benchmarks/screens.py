"""Predicted against true changes of the loss, for every kind of edit: rank correlation, and what a screen gives up.

Parts are drawn at random; each is taken out in truth by the evaluator, on the examples that the predictions are read
on and on as many others. Regret at a share: the loss of the truly best among the parts that the prediction puts into
that share, less that of the best of all, on the examples read.
    python benchmarks/screens.py [CASE ...]    writes screens-DATE.json beside this file
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from secateur.core.plan import Drop, Plan, RemoveDirections
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.core.stats import rank_correlation
from secateur.methods.components.readings import heads_of
from secateur.methods.directions.effects import DirectionEffects, directions_effects
from secateur.methods.directions.readings import EffectsUnderPlan
from secateur.methods.laser.readings import truncation_effects
from secateur.methods.laser.search import candidates
from secateur.methods.registry import read_options
from secateur.options import matrices_of
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects
from secateur.probes.heads import head_importance
from secateur.session import Session, decided_by_choices, open_session

HERE = Path(__file__).parent
MODEL = str(HERE.parent / "models" / "smollm2-135m")
SHARED = Path(__file__).parents[2] / "shared" / "data"
FACTS = str(SHARED / "counterfact.jsonl")
TEXT = f"text:{SHARED / 'text_tinystories_train.jsonl'}"
SHARES = (0.02, 0.05, 0.10, 0.33)
SEED = 0

Predictions = dict[str, dict[Plan, float]]


@dataclass(frozen=True)
class Case:
    """One kind of edit on one model and task: `drawn` parts at most, read on `n` examples."""

    kind: str
    model: str
    task: str
    n: int
    drawn: int = 120
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        model = "SmolLM2" if self.model == MODEL else self.model.removeprefix("builtin:")
        shots = f", {self.options['shots']} shots" if self.options.get("shots") else ""
        return f"{self.kind} of {model} on {Path(self.task.removeprefix('text:')).stem}{shots}"


CHUNKS = {"seqlen": 64, "limit": 600, "allow_small": True}
FACTS_ONLY = {"limit": 1000}
CASES = (
    Case("truncations", MODEL, FACTS, 60, options=FACTS_ONLY),
    Case("heads", MODEL, FACTS, 60, options=FACTS_ONLY),
    Case("heads", MODEL, "builtin:int-mult", 50, options={"shots": 5}),
    Case("heads", MODEL, TEXT, 24, options=CHUNKS),
    Case("networks", MODEL, FACTS, 60, options=FACTS_ONLY),
    Case("directions", MODEL, FACTS, 60, options=FACTS_ONLY | {"layers": (10, 20), "matrices": ("k", "v")}),
    Case("truncations", "builtin:facts", "builtin:facts", 100),
    Case("heads", "builtin:components", "builtin:components", 100),
    Case("heads", "builtin:recall", "builtin:recall", 100),
    Case("networks", "builtin:components", "builtin:components", 100),
    Case("directions", "builtin:arith", "builtin:int-mult", 100, options={"matrices": ("k", "v")}),
)


def opened(case: Case) -> Session:
    method = {"truncations": "laser", "heads": "heads", "networks": "ffns"}.get(case.kind, case.kind)
    return open_session(read_options(case.model, case.task, method=method, **case.options), None)


def drawn(case: Case, plans: Sequence[Plan]) -> list[Plan]:
    return random.Random(SEED).sample(list(plans), min(case.drawn, len(plans)))


def predictions(case: Case, session: Session, examples: Sequence[int]) -> Predictions:
    """Return by screen the predicted change of the loss under each plan that was drawn."""
    judge, loaded, empty = session.judge(), session.loaded, session.empty
    contrast = decided_by_choices(session)
    given = {"spectra": judge.spectra, "packing": judge.packing}
    margins = AnswerMargin.of(loaded, session.encoded, examples, contrast)
    found: Predictions = {}
    if case.kind == "truncations":
        edits = {empty + edit: edit for edit in candidates(loaded.anatomy, session.options)}
        plans = drawn(case, list(edits))
        read = truncation_effects(
            loaded, session.encoded, examples, [edits[plan] for plan in plans], contrast=contrast, **given
        )
        found["weights' gradients"] = {plan: read.values[str(edits[plan])] for plan in plans}
    elif case.kind == "directions":
        effects = directions_effects(
            loaded,
            session.encoded,
            examples,
            matrices_of(loaded.anatomy, session.options),
            packing=judge.packing,
            decompose=judge.spectra,
        )
        changes = dict(one_direction_each(session, effects))
        plans = drawn(case, list(changes))
        found["weights' gradients, first order"] = {plan: changes[plan] for plan in plans}
    else:
        sites = (
            heads_of(session)
            if case.kind == "heads"
            else [Site(b, "mlp") for b in range(loaded.anatomy.num_blocks)]
        )
        where = {empty + Drop(site): site for site in sites}
        plans = drawn(case, list(where))
        found["block number, the last first"] = {plan: -float(where[plan].block) for plan in plans}
        if case.kind == "heads":
            published = head_importance(loaded, session.encoded, examples, packing=judge.packing).values
            found["published importance"] = {
                plan: sum(published[str(head)] for head in heads_in(where[plan], session)) for plan in plans
            }
    block = block_effects(margins, examples, plans, room=judge.limits.cache_bytes, **given)
    found["block"] = {plan: block.loss(plan) for plan in plans}
    return found


def one_direction_each(session: Session, effects: DirectionEffects) -> list[tuple[Plan, float]]:
    """Return a plan for each direction that is read, with the predicted change of the loss."""
    under = EffectsUnderPlan(effects)
    return [
        (session.empty + RemoveDirections(d.matrix, (d.index,), fold=under.folds[d.matrix]), d.change)
        for d in under.directions
    ]


def heads_in(site: Site, session: Session) -> list[Site]:
    """Return the query heads of a KV group, or the head itself."""
    if site.unit == "h":
        return [site]
    width = session.loaded.anatomy.widths[site.block]
    queries = width.num_heads // width.num_kv_heads
    return [Site(site.block, "attn", "h", site.index * queries + number) for number in range(queries)]


def truths(session: Session, plans: Sequence[Plan], examples: Sequence[int]) -> dict[Plan, float]:
    """Return the true change of the loss under each plan."""
    name = (
        "choice_loss"
        if decided_by_choices(session)
        else "text_loss"
        if session.task.kind == "text"
        else "loss"
    )
    outcomes, metric = session.judge()([session.empty, *plans], examples), METRICS[name]
    return {plan: metric.mean(outcomes[plan]) - metric.mean(outcomes[session.empty]) for plan in plans}


def regret(predicted: Mapping[Plan, float], true: Mapping[Plan, float], share: float) -> float:
    kept = sorted(predicted, key=lambda plan: predicted[plan])[: math.ceil(share * len(predicted))]
    return min(true[plan] for plan in kept) - min(true.values())


def measured(case: Case) -> dict[str, Any]:
    session = opened(case)
    pool = session.shuffled("select")
    examples, others = pool[: case.n], pool[case.n : 2 * case.n]
    began = time.process_time()
    found = predictions(case, session, examples)
    screened = time.process_time() - began
    plans = list(found["block"])
    began = time.process_time()
    true = truths(session, plans, examples)
    judged = time.process_time() - began
    elsewhere = truths(session, plans, others)
    rows = {}
    for name, predicted in [*found.items(), ("truth on the examples read", true)]:
        rho = rank_correlation([predicted[p] for p in plans], [true[p] for p in plans])
        other = rank_correlation([predicted[p] for p in plans], [elsewhere[p] for p in plans])
        rows[name] = {
            "rho": rho,
            "rho_others": other,
            "regret": {str(share): regret(predicted, true, share) for share in SHARES},
        }
    return {
        "case": case.name,
        "parts": len(plans),
        "examples": len(examples),
        "lower_the_loss": sum(value < 0 for value in true.values()),
        "screens_seconds": screened,
        "truth_seconds": judged,
        "screens": rows,
    }


def line(found: Mapping[str, Any]) -> str:
    def pair(rho: Any) -> str:
        return "–" if rho is None else f"{rho[0]:.2f} [{rho[1][0]:.2f}, {rho[1][1]:.2f}]"

    rows = "".join(
        f"\n  {name:32} {pair(row['rho'])}  others {pair(row['rho_others'])}  regret "
        + " ".join(f"{value:.4f}" for value in row["regret"].values())
        for name, row in found["screens"].items()
    )
    return (
        f"{found['case']}: {found['parts']} parts, {found['examples']} examples, {found['lower_the_loss']} lower the "
        f"loss; screens {found['screens_seconds']:.0f} s, truth {found['truth_seconds']:.0f} s{rows}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    results = []
    for one in CASES:
        if not wanted or any(word in one.name for word in wanted):
            results.append(measured(one))
            print(line(results[-1]), flush=True)
    if not wanted:
        path = HERE / f"screens-{date.today()}.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
