"""The readings of `probe` that are LASER's: spectra with predicted truncations, and the four analyses of the paper.

Source: Sharma, Ash, Misra 2023 (arXiv 2312.13558): (a) curves, Fig. 2; (b) frequency, Fig. 3; (c) tail, Fig. 5;
(d) paraphrases, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from secateur.core.plan import Plan
from secateur.core.records.analysis import FrequencyBin, ParaphrasesRecord
from secateur.core.records.record import Record
from secateur.errors import TaskError
from secateur.evaluation.measurement import paraphrase_task
from secateur.methods.laser.readings import LaserReader
from secateur.methods.laser.records import CurveRecord, MatrixSpectrum, TailRecord
from secateur.methods.laser.search import candidates, curve_records, full_ranks, tail_records
from secateur.records import frequency_bins, knows_frequency, paraphrase_record
from secateur.session import Session


def check_reading(name: str, session: Session, split: str) -> None:
    """Raise `TaskError` where the task lacks what is read, before there are weights."""
    if name == "tail" and not session.task.answers:
        raise TaskError("--what tail looks at answers, and text has none. Take a task of questions.")
    if name == "frequency" and not knows_frequency(session.task, session.task.split(split)):
        raise TaskError("this task does not know how often its facts occur: examples need meta.frequency.")
    if name == "paraphrases" and paraphrase_task(session.task, split) is None:
        raise TaskError("this task has no paraphrases.")


def spectrum(session: Session, split: str, plan: Plan) -> list[MatrixSpectrum]:
    """Return per matrix how its singular values fall, and what truncation is predicted to do to the loss."""
    edits, reader = candidates(session.loaded.anatomy, session.options), LaserReader(session, session.judge())
    predicted = reader.screen(edits).values
    rows = []
    for site in dict.fromkeys(edit.matrix for edit in edits):
        best = min((e for e in edits if e.matrix == site), key=lambda edit: (predicted[str(edit)], edit))
        sigma = reader.sigma(site)
        energy = (sigma**2).cumsum(0) / (sigma**2).sum().clamp_min(1e-300)
        rows.append(
            MatrixSpectrum(
                site=str(site),
                shape=session.loaded.anatomy.matrix(site).shape,
                largest=float(sigma[0]),
                stable_rank=float((sigma**2).sum() / (sigma[0] ** 2).clamp_min(1e-300)),
                rank_of_90_percent=int((energy < 0.9).sum()) + 1,
                best_rank=best.rank,
                predicted_change=predicted[str(best)],
                values=sigma.tolist(),
            )
        )
    return rows


def curves(session: Session, split: str, plan: Plan) -> list[CurveRecord]:
    """Return loss and accuracy against the share of components removed, per matrix."""
    plans = [session.empty + edit for edit in candidates(session.loaded.anatomy, session.options)]
    judged = session.judge()([session.empty, *plans], session.task.split(split), "curves")
    return curve_records(judged, full_ranks(session))


def tail(session: Session, split: str, plan: Plan) -> list[TailRecord]:
    """Return what all, the kept, and the removed components of each edited matrix answer."""
    judge = session.judge()
    return tail_records(
        session, judge, LaserReader(session, judge), plan.truncated, session.task.split(split)
    )


def frequency(session: Session, split: str, plan: Plan) -> list[FrequencyBin]:
    """Return accuracy before and after the plan, by how often training text had the fact."""
    examples = session.task.split(split)
    judged = session.judge()([session.empty, plan], examples, "frequency")
    return frequency_bins(session.task, examples, judged[session.empty], judged[plan])


def paraphrases(session: Session, split: str, plan: Plan) -> list[ParaphrasesRecord]:
    """Return accuracy over all phrasings, and the share of facts right in every one of them."""
    other_phrasings = paraphrase_task(session.task, split)
    assert other_phrasings is not None, "see check_reading"
    beside = session.on(other_phrasings)
    judged = beside.judge()([session.empty, plan], range(len(beside.task.examples)), "paraphrases")
    return [paraphrase_record(beside.task, judged[session.empty], judged[plan])]


READINGS: Mapping[str, Callable[[Session, str, Plan], Sequence[Record]]] = {
    "spectrum": spectrum,
    "curves": curves,
    "tail": tail,
    "frequency": frequency,
    "paraphrases": paraphrases,
}
