"""What a calibration runs: plans such as a method makes, and the readings it will ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Plan, RemoveDirections, Truncate
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator
from secateur.forecast.work import Plans, Read
from secateur.hf.anatomy import Anatomy
from secateur.methods.depth.readings import block_similarity
from secateur.methods.depth.steps import carriers_of
from secateur.methods.directions.probe import directions_effects
from secateur.methods.laser.probe import truncation_effects
from secateur.methods.laser.search import candidates
from secateur.probes.heads import head_importance
from secateur.probes.maps import BlockRun, fit_maps
from secateur.probes.neurons import neuron_importance
from secateur.session import Session


def realized(session: Session, group: Plans, base: Plan, turn: int) -> Plan:
    """A plan such as the method makes: number `turn` of some that differ where it can."""
    anatomy, method = session.loaded.anatomy, session.options.method
    if not group.edited:
        return base + Drop(Site(group.block)) if group.block else base
    edits = []
    for site in group.edited:
        matrix = anatomy.matrix(site)
        full = min(matrix.shape)
        if method == "laser":
            edits.append(Truncate(site, max(0, min(full - 1, round(group.rank)) - turn)))
        elif method == "directions":
            mean = Fitted.of({"mean": np.zeros(matrix.shape[1], np.float32)})
            gone = tuple(range(max(1, full // 2 - turn)))
            edits.append(RemoveDirections(site, gone, False, mean))
        elif site.part == "o":
            edits.append(Drop(_head(anatomy, site.block, turn)))
        else:
            edits.append(Drop(Site(site.block, "mlp")))
    return Plan(base.model, tuple(edits))


def _head(anatomy: Anatomy, block: int, turn: int) -> Site:
    own = anatomy.widths[block]
    unit = "g" if own.num_heads != own.num_kv_heads else "h"
    return Site(block, "attn", unit, turn % own.num_kv_heads)


Reader = Callable[[Session, Evaluator, Read], object]


def _truncation(session: Session, judge: Evaluator, work: Read) -> object:
    edits = [e for e in candidates(session.loaded.anatomy, session.options) if e.matrix in set(work.parts)]
    contrast = session.task.kind == "choice" and session.objective.metric.column == "correct"
    how = {"spectra": judge.spectra, "packing": judge.packing, "contrast": contrast}
    return truncation_effects(session.loaded, session.encoded, _asked(session, work), edits, **how)


def _directions(session: Session, judge: Evaluator, work: Read) -> object:
    options = session.options
    group = Plans(1, work.parts[0].block, work.parts)
    how = {name: vars(options.config)[name] for name in ("per_head", "second_order", "whitened")}
    how |= {"under": realized(session, group, session.empty, 0)} if work.under else {}
    examples = _asked(session, work)
    how |= {"packing": judge.packing, "decompose": judge.spectra}
    return directions_effects(session.loaded, session.encoded, examples, work.parts, **how)


def _importance(importance: Callable) -> Reader:
    return lambda session, judge, work: importance(
        session.loaded, session.encoded, _asked(session, work), packing=judge.packing
    )


def _maps(session: Session, judge: Evaluator, work: Read) -> object:
    carriers, forms = carriers_of(session.loaded.anatomy), (session.options.config.form, "linear", "fold")
    can = [[f for f in forms if f != "drop" and carriers.carry((site.block,), f)] for site in work.parts]
    runs = [BlockRun((site.block,), forms[0]) for site, forms in zip(work.parts, can, strict=True) if forms]
    examples = _asked(session, work)
    how = {"groups": session.task.groups(examples), "under": session.empty, "packing": judge.packing}
    return fit_maps(session.loaded, session.encoded, examples, runs, **how)


def _similarity(session: Session, judge: Evaluator, work: Read) -> object:
    blocks = [site.block for site in work.parts]
    how = {"under": session.empty, "packing": judge.packing}
    return block_similarity(session.loaded, session.encoded, _asked(session, work), blocks, **how)


def _asked(session: Session, work: Read) -> Sequence[int]:
    return session.task.split(work.place)[: work.examples]


READINGS: dict[str, Reader] = {
    "truncation effects": _truncation,
    "direction effects": _directions,
    "head importance": _importance(head_importance),
    "neuron importance": _importance(neuron_importance),
    "maps": _maps,
    "similarity": _similarity,
}
