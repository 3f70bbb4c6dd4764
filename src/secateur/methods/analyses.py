"""Readings of matrices and of what edits do, on one task: singular values, and LASER's four analyses. Rows out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secateur import records
from secateur.core.plan import Plan
from secateur.core.readings import ANALYSES as NAMES
from secateur.errors import TaskError
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.measurement import paraphrase_task
from secateur.methods.directions.probe import MatrixEffects, directions_effects
from secateur.methods.laser.answers import split_answers
from secateur.methods.laser.search import candidates, full_ranks, screen
from secateur.options import matrices_of
from secateur.session import Session

Rows = list[dict[str, Any]]
ENDS = 2  # the most harmful and the most useful directions of a matrix that a table shows
Reader = Callable[[Session, Evaluator, str, Plan], Rows]


def _spectrum(session: Session, judge: Evaluator, split: str, plan: Plan) -> Rows:
    """Per matrix: how its singular values fall, and what truncation is predicted to do to the loss."""
    edits = candidates(session.loaded.anatomy, session.options)
    readings = screen(session, judge, edits)[-1]
    rows = []
    for site in dict.fromkeys(edit.matrix for edit in edits):
        matrix = session.loaded.anatomy.matrix(site)
        sigma = judge.spectra(matrix, session.loaded.parameter(matrix.weight)).sigma.double()
        energy = (sigma**2).cumsum(0) / (sigma**2).sum().clamp_min(1e-300)
        best = min((e for e in edits if e.matrix == site), key=lambda e: (readings.values[str(e)], e))
        rows.append(
            {
                "site": str(site),
                "shape": list(matrix.shape),
                "largest": float(sigma[0]),
                "stable_rank": float((sigma**2).sum() / (sigma[0] ** 2).clamp_min(1e-300)),
                "rank_of_90_percent": int((energy < 0.9).sum()) + 1,
                "best_rank": best.rank,
                "predicted_change": readings.values[str(best)],
                "values": sigma.tolist(),
            }
        )
    return rows


def _directions(session: Session, judge: Evaluator, split: str, plan: Plan) -> Rows:
    """Per matrix or head: what removing each of its singular directions is predicted to do to the loss,
    in the model that the plan leaves."""
    options = session.options
    found = directions_effects(
        session.loaded,
        session.encoded,
        session.task.split(split),
        matrices_of(session.loaded.anatomy, session.options),
        packing=judge.packing,
        per_head=options.config.per_head,
        second_order=options.config.second_order,
        whitened=options.config.whitened,
        under=plan,
        decompose=judge.spectra,
        split=split,
        progress=session.progress,
    )
    return [_direction_row(one) for one in found.matrices]


def _direction_row(one: MatrixEffects) -> dict[str, Any]:
    """Directions count from 0, that of the largest singular value. Harmful are those whose removal lowers the loss."""
    effect = one.predicted
    order = effect.argsort(kind="stable").tolist()
    helps = effect[effect < 0]
    return {
        "site": str(one.site) if one.head is None else f"{one.site} head {one.head}",
        "of": len(order),
        "harmful": len(helps),
        "their_sum": float(helps.sum()),
        "most_harmful": {str(i): float(effect[i]) for i in order[:ENDS]},
        "most_useful": {str(i): float(effect[i]) for i in order[::-1][:ENDS]},
        "values": one.to_json(),
    }


def _curves(session: Session, judge: Evaluator, split: str, plan: Plan) -> Rows:
    """(a) Loss and accuracy against the share of components removed, per matrix."""
    edits = candidates(session.loaded.anatomy, session.options)
    judged = judge(
        [session.empty, *(session.empty + edit for edit in edits)], session.task.split(split), "curves"
    )
    base = judged.pop(session.empty)
    return records.curve_records(judged, full_ranks(session), base)


def _tail(session: Session, judge: Evaluator, split: str, plan: Plan) -> Rows:
    """(c) What all, the kept, and the removed components of each edited matrix answer."""
    return split_answers(judge, plan, session.task.split(split))


def _frequency(session: Session, judge: Evaluator, split: str, plan: Plan) -> Rows:
    """(b) Accuracy before and after the plan, by how often training text had the fact."""
    examples = session.task.split(split)
    judged = judge([session.empty, plan], examples, "frequency")
    return [
        row.to_json()
        for row in records.frequency_bins(session.task, examples, judged[session.empty], judged[plan])
    ]


def _paraphrases(session: Session, judge: Evaluator, split: str, plan: Plan) -> Rows:
    """(d) Accuracy over all phrasings, and the share of facts right in every one of them."""
    others = paraphrase_task(session.task, split)
    assert others is not None, "see check_analysis"
    asked = session.on(others)
    judged = asked.judge()([session.empty, plan], range(len(asked.task.examples)), "paraphrases")
    return [records.paraphrase_record(asked.task, judged[session.empty], judged[plan]).to_json()]


ANALYSES: dict[str, Reader] = {
    "spectrum": _spectrum,
    "directions": _directions,
    "curves": _curves,
    "tail": _tail,
    "frequency": _frequency,
    "paraphrases": _paraphrases,
}
assert tuple(ANALYSES) == NAMES, "what may be asked for is what there is"


def check_analysis(what: str, session: Session, split: str) -> None:
    """Before there are weights. Raises `TaskError` where the task lacks what is read, `UnknownName` for matrices and
    layers."""
    matrices_of(session.loaded.anatomy, session.options)
    if what == "tail" and session.task.kind == "text":
        raise TaskError("--what tail looks at answers, and text has none. Take a task of questions.")
    if what == "frequency" and not records.knows_frequency(session.task, session.task.split(split)):
        raise TaskError("this task does not know how often its facts occur: examples need meta.frequency.")
    if what == "paraphrases" and paraphrase_task(session.task, split) is None:
        raise TaskError("this task has no paraphrases.")
