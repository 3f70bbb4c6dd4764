"""The reading of `probe --what directions`: what each singular direction of a matrix is worth."""

from __future__ import annotations

from secateur.core.plan import Plan
from secateur.methods.directions.effects import directions_effects
from secateur.methods.directions.method import DirectionsConfig
from secateur.methods.directions.records import DirectionsReading
from secateur.options import matrices_of
from secateur.session import Session

ENDS = 2  # the most harmful and the most useful directions of a matrix that a table shows


def read_directions(session: Session, split: str, plan: Plan) -> list[DirectionsReading]:
    """Return per matrix or head the predicted change of the loss without each direction, in the model of `plan`."""
    config, judge = session.config(DirectionsConfig), session.judge()
    effects = directions_effects(
        session.loaded,
        session.encoded,
        session.task.split(split),
        matrices_of(session.loaded.anatomy, session.options),
        packing=judge.packing,
        per_head=config.per_head,
        second_order=config.second_order,
        whitened=config.whitened,
        under=plan,
        decompose=judge.spectra,
        split=split,
        progress=session.progress,
    )
    rows = []
    for piece in effects.matrices:
        change = piece.predicted
        order, harmful = change.argsort(kind="stable").tolist(), change[change < 0]
        rows.append(
            DirectionsReading(
                site=str(piece.site) if piece.head is None else f"{piece.site} head {piece.head}",
                of=len(order),
                harmful=len(harmful),
                their_sum=float(harmful.sum()),
                most_harmful={str(i): float(change[i]) for i in order[:ENDS]},
                most_useful={str(i): float(change[i]) for i in order[::-1][:ENDS]},
                values=piece.record(),
            )
        )
    return rows
