"""A map of what every component of a model is worth for a task, by every reading, and how far each of them is true.

Components are heads, KV groups, attentions, feed-forward networks, neurons (in eighths of a network), blocks, and
matrices by the rank that is kept. Some of each kind are taken out in truth. Changes no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from secateur.checkpoint.folder import write_json
from secateur.core.ledger import Ledger
from secateur.core.plan import Drop, Plan, Truncate, proved_kinds
from secateur.core.progress import Progress
from secateur.core.readings import Readings, spearman_overlap
from secateur.core.records.map import MapKindRecord, MapRecord
from secateur.core.records.probe import OverlapRecord, RemovalCheckRecord
from secateur.core.site import Site
from secateur.errors import ModelError, PlanError, SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.hf.readable import readable_of
from secateur.options import Options, layers_of
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import effects_both_ways
from secateur.probes.heads import head_importance, neuron_importance
from secateur.probes.linearity import linearity
from secateur.probes.proved import check_proved
from secateur.probing.components import behavior, checked_against
from secateur.probing.map_page import BEHAVIOR, UNITS, write_map_page
from secateur.records import versions
from secateur.session import MAX_PROBED, Session, decided_by_choices, digest, open_session
from secateur.surgery.operations import droppable, group_of

SHARES = (0.5, 0.25, 0.1)  # of a matrix' components that are kept
PARTS = 8  # that the neurons of a network are divided into
QUARTERS = 4  # of the blocks: read together, and kept when stopped
HELD_OUT = 4  # every so many groups of examples, linearity is scored on one and fitted to the others
TOKENS = 2048  # of a batch that linearity is read from
SEQUENCES = 25  # of random tokens, that heads are watched on: the shortest quarter of those of `probe`

Values = Mapping[str, float]  # by component
ByReading = Mapping[str, Values]
Components = Mapping[str, Mapping[str, Plan]]  # by kind, by name: what takes it out
_KNOWN = TypeAdapter(dict[str, dict[str, float]])


def read_map(
    options: Options,
    kinds: Sequence[str],
    split: str,
    out: Path,
    *,
    checks: int,
    ledger: Path,
    progress: Progress,
    expect: Callable[[Session], Mapping[str, float]] | None = None,
) -> MapRecord:
    """Read and check the worth of every component, and write map.json and map.html to the folder `out`.

    Args:
        kinds: Names in `MAPPED`.
        checks: Components of each kind that are taken out in truth, one at a time; 0 for none.
        ledger: Where what is read and measured is kept.
        expect: Gives the seconds that its stages will take.

    Raises: as loading a model and a task does; `PlanError` where nothing of these kinds can be taken out.
    """

    def check(early: Session) -> None:
        parts = early.loaded.anatomy
        parts.refuse_pairs("the map of all components")
        layers_of(parts, options)
        check_proved(early.loaded, proved_kinds(kinds, parts.matrix_kinds, parts.foldable))

    session = open_session(options, None, progress, check, needs={split: 1})
    with Ledger.open(ledger) as journal:
        session = replace(session, ledger=journal)
        examples = list(session.task.split(split))[:MAX_PROBED]
        notes: list[str] = []
        if expect is not None:
            session.expect(expect(session))
        with session.timed("readings"):
            components = _components(session, kinds, examples, split)
            readings = _readings(session, components, examples, split, notes)
        with session.timed("removals"):
            removed = {
                kind: checked_against(session, plans, examples, found, random.Random(options.seed))
                for kind, found in readings.items()
                if (plans := {name: components[kind][name] for name in checked_components(found, checks)})
            }
    record = MapRecord(
        model=options.named,
        task=session.task.name,
        split=split,
        n=len(examples),
        seed=options.seed,
        units={name: UNITS[name] for found in readings.values() for name in found},
        kinds=[_kind_record(kind, found, removed.get(kind)) for kind, found in readings.items()],
        notes=notes,
        seconds=session.seconds,
        layers=None if options.layers is None else list(options.layers),
        versions=versions(),
    )
    write_json(out / "map.json", record.to_json())
    page = write_map_page(record, out / "map.html")
    return record.model_copy(update={"written": [str(out / "map.json"), str(page)]})


# ----------------------------------------------------------------------------------------------------------- components


def _components(session: Session, kinds: Sequence[str], examples: Sequence[int], split: str) -> Components:
    """Return the components of these kinds, of the blocks asked for. Raises: `PlanError` where there are none."""
    found = dict(components_of(session, kinds))
    if "neurons" in kinds and (parts := _neuron_parts(session, examples, split)):
        found["neurons"] = parts
    if not found:
        raise PlanError(f"this model has no {', '.join(kinds)} there that could be taken out.")
    return {kind: found[kind] for kind in kinds if kind in found}


def components_of(session: Session, kinds: Sequence[str]) -> Components:
    """Return the components of these kinds that are known without a reading: all but neurons. Kinds of which there is
    none are left out."""
    anatomy, empty = session.loaded.anatomy, session.empty
    blocks = layers_of(anatomy, session.options)
    sites: dict[str, list[Site]] = {
        "blocks": [Site(block) for block in blocks],
        "attentions": [Site(block, "attn") for block in blocks],
        "ffns": [Site(block, "mlp") for block in blocks],
        "groups": list(_units(anatomy, blocks, "g")),
        "heads": list(_units(anatomy, blocks, "h")),
    }
    found: dict[str, dict[str, Plan]] = {
        kind: {str(site): empty + Drop(site) for site in sites.get(kind, ()) if droppable(site, anatomy)}
        for kind in kinds
    }
    if "matrices" in kinds:
        found["matrices"] = {
            f"{site}={rank}": empty + Truncate(site, rank)
            for site in sorted(anatomy.matrices)
            if site.block in blocks
            for rank in dict.fromkeys(
                max(1, round(share * min(anatomy.matrix(site).shape))) for share in SHARES
            )
        }
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def _units(anatomy: Anatomy, blocks: range, unit: str) -> Iterator[Site]:
    """Yield the heads (`h`) of some blocks, or their KV groups (`g`) where these are not the heads themselves."""
    for block in blocks:
        width = anatomy.widths[block]
        count = (
            width.num_heads if unit == "h" else width.num_kv_heads * (width.num_kv_heads < width.num_heads)
        )
        yield from (Site(block, "attn", unit, index) for index in range(count))


def networks_of(session: Session) -> list[int]:
    """Return the blocks, of those asked for, whose feed-forward network can go."""
    anatomy = session.loaded.anatomy
    return [block for block in layers_of(anatomy, session.options) if droppable(Site(block, "mlp"), anatomy)]


def _neuron_parts(session: Session, examples: Sequence[int], split: str) -> dict[str, Plan]:
    """Return parts of equal size of the neurons of each network, the least important first: `b3.mlp.n1/8`."""
    by_block: dict[int, list[str]] = {}
    for name, _ in _importance(session, "neurons", examples, split).ranked():
        by_block.setdefault(Site.parse(name).block, []).append(name)
    return {
        f"b{block}.mlp.n{number}/{min(PARTS, len(names))}": Plan(
            session.loaded.fingerprint, tuple(Drop(Site.parse(names[i])) for i in part)
        )
        for block in networks_of(session)
        if (names := by_block.get(block, []))
        for number, part in enumerate(np.array_split(np.arange(len(names)), min(PARTS, len(names))), start=1)
    }


# ------------------------------------------------------------------------------------------------------------- readings


def _importance(session: Session, kind: str, examples: Sequence[int], split: str) -> Readings:
    """Return E|A · dL/dA| of all heads or neurons, remembered in the ledger."""
    key = f"map importance {digest([kind, split, list(examples)])}"
    known = session.recall(key, Readings.from_json)
    if known is None:
        read = head_importance if kind == "heads" else neuron_importance
        packing = session.judge().packing
        known = read(
            session.loaded, session.encoded, examples, packing=packing, split=split, progress=session.progress
        )
        session.remember(key, known.to_json())
    return known


def _readings(
    session: Session, components: Components, examples: Sequence[int], split: str, notes: list[str]
) -> dict[str, ByReading]:
    """Return every reading of every component, by kind; what could not be read is added to `notes`."""
    blocks = layers_of(session.loaded.anatomy, session.options)
    effects = _by_gradients(session, components, blocks, examples)
    totals = {} if set(components) == {"matrices"} else _summed_importance(session, examples, split)
    readings: dict[str, ByReading] = {}
    for kind, plans in components.items():
        found = {reading: {name: values[name] for name in plans} for reading, values in effects.items()}
        if kind != "matrices":
            found["importance"] = {
                name: sum(totals.get(site, 0.0) for site in plan.dropped) for name, plan in plans.items()
            }
        if kind in BESIDE:
            found |= _beside(session, kind, list(plans), examples, notes)
        readings[kind] = found
    return readings


def _beside(
    session: Session, kind: str, names: Sequence[str], examples: Sequence[int], notes: list[str]
) -> dict[str, dict[str, float]]:
    """Return what is read of this kind alone, from the ledger where it has it."""
    key = f"map beside {digest([kind, *names, list(examples), session.options.seed, SEQUENCES])}"
    found = session.recall(key, _KNOWN.validate_python)
    if found is None:
        said = len(notes)
        found = BESIDE[kind](session, names, examples, notes)
        if len(notes) == said:  # what could not be read is said again
            session.remember(key, found)
    return found


def _by_gradients(
    session: Session, components: Components, blocks: range, examples: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return what gradients say of each component, by reading.

    The ledger remembers it a quarter of the blocks at a time: each costs passes of its own.
    """
    every = {name: plan for of_kind in components.values() for name, plan in of_kind.items()}
    size = -(-len(blocks) // QUARTERS)
    found: dict[str, dict[str, float]] = {}
    for start in range(blocks.start, blocks.stop, size):
        some = {
            name: plan
            for name, plan in every.items()
            if plan.edits and session.loaded.anatomy.lowest_block(plan) in range(start, start + size)
        }
        for reading, values in _known_effects(session, some, examples).items():
            found.setdefault(reading, {}).update(values)
    return found


def _known_effects(
    session: Session, some: Mapping[str, Plan], examples: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return the effects of some plans by their names, from the ledger where it has them."""
    contrast, plans = decided_by_choices(session), list(some.values())
    key = f"map {digest([list(examples), contrast, *(plan.identity for plan in plans)])}"
    found = session.recall(key, _KNOWN.validate_python)
    if found is None:
        judge = session.judge()
        margin = AnswerMargin.of(session.loaded, session.encoded, examples, contrast)
        exact, first = effects_both_ways(
            margin, examples, plans, spectra=judge.spectra, packing=judge.packing, room=judge.limits.cache_bytes,
            progress=session.progress, stage="in block",
        )  # fmt: skip
        found = {
            "in_block": {name: exact.loss(plan) for name, plan in some.items()},
            "first_order": {name: first.first_order(plan) for name, plan in some.items()},
            "second_order": {name: first.second_order(plan) for name, plan in some.items()},
        }
        session.remember(key, found)
    return found


def _summed_importance(session: Session, examples: Sequence[int], split: str) -> dict[Site, float]:
    """Return the published importance of each site: the sum over the heads and neurons that go with it."""
    anatomy = session.loaded.anatomy
    totals: dict[Site, float] = {}
    for kind in ("heads", "neurons"):
        has = any(width.num_heads if kind == "heads" else width.d_ff for width in anatomy.widths)
        for name, value in _importance(session, kind, examples, split).values.items() if has else ():
            site = Site.parse(name)
            wholes = {site, Site(site.block, site.part), Site(site.block)}
            for whole in wholes | ({group_of(site, anatomy)} if kind == "heads" else set()):
                totals[whole] = totals.get(whole, 0.0) + value
    return totals


def _behavior(
    session: Session, names: Sequence[str], examples: Sequence[int], notes: list[str]
) -> dict[str, dict[str, float]]:
    """Return what heads do; nothing, and a note, where that cannot be read."""
    try:
        blocks = layers_of(session.loaded.anatomy, session.options)
        found = behavior(session.loaded, blocks, session.progress, SEQUENCES)
    except ModelError as error:
        notes.append(f"Prefix matching and copying were not read: {error}")
        return {}
    return {name: {site: found[name].values[site] for site in names} for name in BEHAVIOR}


def _linearity(
    session: Session, names: Sequence[str], examples: Sequence[int], notes: list[str]
) -> dict[str, dict[str, float]]:
    """Return how far blocks are from the identity and from a linear map, without outlier tokens.

    Every fourth group of examples is held out. Nothing, and a note, where there are too few to hold some out.
    """
    groups = sorted({session.task.examples[number].group for number in examples})
    out = set(groups[::HELD_OUT])
    try:
        profile = linearity(
            readable_of(session.loaded),
            [session.encoded[number].gold_alone.whole(0) for number in examples],
            [session.task.examples[number].group in out for number in examples],
            types=[session.encoded[number].types for number in examples],
            blocks=layers_of(session.loaded.anatomy, session.options),
            max_tokens=session.options.max_tokens or TOKENS,
            seed=session.options.seed,
            progress=session.progress,
        )
    except SecateurError as error:
        notes.append(f"Cosine and linearity of blocks were not read: {error}")
        return {}
    rows = {row.site: row.without or row for row in profile.rows if row.site in names}
    found = {
        "cosine": {site: 1 - row.cosine for site, row in rows.items() if row.cosine is not None},
        "nonlinearity": {site: 1 - row.added.held_out for site, row in rows.items() if row.added is not None},
    }
    for name, values in found.items():
        if len(values) < len(names):
            notes.append(f"The {name} of {len(names) - len(values)} of {len(names)} blocks is not defined.")
    return {name: values for name, values in found.items() if len(values) == len(names)}


BESIDE = {"heads": _behavior, "blocks": _linearity}


# -------------------------------------------------------------------------------------------------------------- removal


def checked_components(readings: ByReading, count: int) -> list[str]:
    """Return components from the top, the middle and the bottom of the order of every reading.

    Readings and places take turns until there are `count`, so that no reading decides alone which are looked at.
    """
    turns = []
    for name, values in readings.items():
        if name not in BEHAVIOR:
            order = sorted(values, key=lambda site: (values[site], site))
            middle = sorted(range(len(order)), key=lambda place: abs(2 * place - len(order) + 1))
            turns += [iter(order[::-1]), iter([order[place] for place in middle]), iter(order)]
    chosen: dict[str, None] = {}
    most = len(next(iter(readings.values())))
    while len(chosen) < min(count, most):
        for turn in turns:
            new = next((site for site in turn if site not in chosen), None)
            if new is not None and len(chosen) < count:
                chosen[new] = None
    return list(chosen)


def _trusted(check: RemovalCheckRecord | None) -> str | None:
    """Return the reading of worth that agrees best with the truth, where that is more than none."""
    found = {
        name: agreed.rho
        for name, agreed in (check.agreement if check else {}).items()
        if name not in BEHAVIOR and agreed.rho is not None and agreed.ci and agreed.ci[0] > 0
    }
    return max(found, key=lambda name: found[name], default=None)


def _kind_record(kind: str, readings: ByReading, check: RemovalCheckRecord | None) -> MapKindRecord:
    """Return the record of one kind of component."""
    named = {
        name: Readings(name, UNITS[name], "", 0, low_is_removable=True, source="", values=values)
        for name, values in readings.items()
    }
    several = len(next(iter(readings.values()))) > 1
    return MapKindRecord(
        kind=kind,
        readings={name: dict(values) for name, values in readings.items()},
        overlap=OverlapRecord.model_validate(spearman_overlap(named).to_json()) if several else None,
        check=check,
        trusted=_trusted(check),
    )
