"""Edits of every kind compete for one budget: step by step those go that cost the least loss for what they save.

A screen on `probe` predicts what each edit costs under the current plan. Each kind proposes its cheapest edits for
about one step, and all kinds together a mixture; the proposals are measured on the first examples of `select`, to
which nothing was fitted, and the cheapest is taken, with those of other blocks that are nearly as cheap. Neurons also
go from all networks at once, the same share of each. Edits near the top are predicted again before every step, and
neurons ranked again every few, since effects do not add up. A proposal that meets
the budget at once, such as a block beside little else, is remembered: the end is the best of those. Then moves are
given back where others, or none, do better.
Knows a judge and readings, no model. `test` is not touched.
Source: ours; loss for each parameter saved is the order of greedy knapsacks.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Drop, Edit, Linearize, Plan, Truncate, blocks_of
from secateur.core.score import METRICS, loss_or_worst
from secateur.core.site import Site
from secateur.errors import PlanError, SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.methods.budget.latency import measured_table, time_left
from secateur.methods.budget.method import BudgetConfig
from secateur.methods.budget.readings import Candidate
from secateur.methods.budget.records import (
    MOVE_NAMES,
    BudgetAnalysis,
    BudgetPoint,
    BudgetRecord,
    BudgetSearchRecord,
    LatencyRecord,
    LatencyTable,
    MoveRecord,
)
from secateur.methods.method import CountingJudge, Proposal
from secateur.methods.removal import carriers_of, experts_left, heads_of, run_with
from secateur.options import layers_of
from secateur.probes.maps import BlockRun
from secateur.records import base_record
from secateur.search.race import Judge
from secateur.search.removal import Goal, RemovalPoint
from secateur.session import Session, decided_by_choices
from secateur.surgery.operations import droppable, keeps_blocks, keeps_enough_experts
from secateur.surgery.shape import shape_of

LOG = logging.getLogger("secateur")
STEPS = 10  # to the budget; where only the loss bounds, a step is LOSS_STEP of the parameters
LOSS_STEP = 0.02
CHUNKS = 8  # groups that the neurons of a network go in
CLOSE = 48  # candidates whose prediction is read again before each step: the best by their last one
FAR = 4  # steps after which neurons are ranked anew and every kind is offered, also to the budget at once
MAPPED = 3  # blocks, of those that are dropped most cheaply, that maps are fitted for, every `FAR` steps
SPREAD = 4.0  # times the price of its first edit that a later one of the same move may have, once half a step is full
ALONG = 3.0  # times the price of the cheapest offer that others have which go in the same step
OFTEN = ("mixed", "neurons")  # kinds of offers that are measured at every step, the others every `FAR`
MEASURED = 2  # times as many examples as `probe` has measure a move: the least of many losses flatters itself
FREE = 1e-5  # nats; what costs less counts as this much, so that of two free edits the larger goes first
ENDS = 3  # plans that meet the budget, the best by loss, of which what they can do without is given back
GIVEN_BACK = 8  # candidates that are tried for it, those that were predicted to cost most
SWAPS = 2
CORRECTIONS = 3  # times that a walk goes on because the measured time is not the predicted one
ENOUGH = 80  # forward passes over `select`, after which no move is given back any more
FORMS = {"folds": "fold", "maps": "linear"}
LOSS_ALONE = {"params": 0.0}  # the target where only the loss bounds


class EditReadings(Protocol):
    """Readings of a model that the budget needs beside outcomes of plans, all made on `probe`."""

    def effects(self, plan: Plan, candidates: Sequence[Candidate]) -> list[float]:
        """Return the expected rise of the loss with each candidate beside `plan`, nats."""

    def neurons(self, plan: Plan, examples: Sequence[int]) -> Mapping[int, list[int]]:
        """Return the neurons of each block, those first that add least to the stream under `plan`."""

    def maps(
        self, plan: Plan, runs: Sequence[BlockRun], examples: Sequence[int]
    ) -> Mapping[BlockRun, Linearize]:
        """Return a map for each of `runs`, fitted in the model that `plan` leaves."""

    def time(self, plan: Plan) -> float:
        """Return the time of a generation with a plan, as a share of the original's."""


# ---------------------------------------------------------------------------------------------------------- the budget


@dataclass
class PlanSizes:
    """The sizes that plans leave: shares of the parameters (`params`), of the KV cache (`kv_bytes`), and with a table
    of the time of a generation (`latency`).

    Args:
        targets: Shares to keep, by the same names; one at least.
        table: What parts take of the time.
    """

    session: Session
    targets: Mapping[str, float]
    table: LatencyTable | None = None
    corrections: list[float] = field(default_factory=list)  # measured savings by predicted ones
    _known: dict[Plan, dict[str, float]] = field(default_factory=dict)

    def kept(self, plan: Plan) -> Mapping[str, float]:
        """Return the shares that a plan keeps."""
        if plan not in self._known:
            anatomy = self.session.loaded.anatomy
            shape = shape_of(plan, anatomy, factorize=self.session.options.written_as.factorize)
            widths = anatomy.widths
            cached = sum(widths[block.number].head.cached(len(block.groups or ())) for block in shape.blocks)
            held = sum(width.head.cached(width.num_kv_heads) for width in widths)
            share = shape.num_parameters(anatomy) / anatomy.num_parameters
            self._known[plan] = {"params": share, "kv_bytes": cached / held}
            if self.table is not None:
                saved = (1 - time_left(self.table, shape, anatomy)) * math.prod(self.corrections)
                self._known[plan]["latency"] = 1 - saved
        return self._known[plan]

    def correct(self, plan: Plan, measured: float) -> None:
        """Scale what the table predicts so that it is right of a plan, whose share of the time was measured.

        Raises: `SecateurError` where that is no faster.
        """
        if measured >= 1:
            raise SecateurError(
                f"--latency: a cut that was predicted to take {self.kept(plan)['latency']:.1%} of the time took "
                f"{measured:.1%}. Make sure that nothing else computes here, or take --params."
            )
        self.corrections.append((1 - measured) / (1 - self.kept(plan)["latency"]))
        self._known.clear()

    def progress(self, plan: Plan) -> float:
        """Return the share of the way to the targets, 1 where all are met."""
        kept = self.kept(plan)
        shares = [min(1.0, (1 - kept[name]) / (1 - target)) for name, target in self.targets.items()]
        return 1.0 if min(shares) > 1 - 1e-9 else sum(shares) / len(shares)

    def saved(self, plan: Plan, candidates: Iterable[Candidate]) -> dict[Candidate, float]:
        """Return how much further each candidate brings `plan` to targets that it does not meet; those that do not
        are left out, as those that conflict with it. Only the blocks of a candidate are looked at."""
        kept = self.kept(plan)
        open_ = {name: target for name, target in self.targets.items() if kept[name] > target}
        near: dict[int, list[Edit]] = {}
        for edit in plan.edits:
            for block in blocks_of(edit):
                near.setdefault(block.block, []).append(edit)
        found = {}
        for one in candidates:
            edits = dict.fromkeys(edit for block in one.blocks for edit in near.get(block, ()))
            local = Plan(plan.model, tuple(edits))
            after = joined(local, one.edits, self.session.loaded.anatomy)
            if after is not None:
                was, now = self.kept(local), self.kept(after)
                ways = [(was[name] - now[name]) / (1 - target) for name, target in open_.items()]
                found[one] = sum(ways) / len(self.targets)
        return {one: gain for one, gain in found.items() if gain > 1e-9}


def joined(plan: Plan, edits: Sequence[Edit], anatomy: Anatomy | None = None) -> Plan | None:
    """Return `plan` with more edits, in place of those on parts of what they take; None where they conflict, or in the
    model with this anatomy too few blocks or experts would stay."""
    runs = {block for edit in edits if isinstance(edit, Linearize) for block in edit.blocks}
    sites = {edit.site for edit in edits if not isinstance(edit, Linearize)}
    blocks = {site.block for site in sites}
    kept: list[Edit] = []
    for old in plan.edits:
        if isinstance(old, Linearize):
            taken = runs.issuperset(old.blocks)
        elif old.site.block not in blocks:
            taken = old.site.block in runs
        else:
            taken = old.site.block in runs or not sites.isdisjoint((old.site, *old.site.wholes))
        kept += [] if taken else [old]
    try:
        wider = Plan(plan.model, (*kept, *edits))
    except PlanError:
        return None
    if anatomy is not None and not keeps_blocks(anatomy.numbers(wider.blocks_gone), anatomy):
        return None
    return wider if anatomy is None or keeps_enough_experts(wider.dropped, anatomy) else None


def _without(plan: Plan, edits: Sequence[Edit]) -> Plan | None:
    """Return `plan` without these edits; None where it has not all of them, as later ones took some in."""
    back = set(edits)
    left = tuple(edit for edit in plan.edits if edit not in back)
    return Plan(plan.model, left) if len(left) == len(plan.edits) - len(back) else None


def price(loss: float, saved: float) -> float:
    """Return loss for what is saved; what is free is the cheaper the more it saves."""
    return max(loss, FREE) / saved if math.isfinite(loss) else math.inf


def candidates_of(session: Session, plan: Plan, neurons: Mapping[int, Sequence[int]]) -> Iterator[Candidate]:
    """Yield all candidates but maps; blocks also where they are only to carry maps."""
    anatomy, kinds = session.loaded.anatomy, session.config(BudgetConfig).competing
    blocks, gone = layers_of(anatomy, session.options), set(plan.dropped)
    wholes = {"attentions": "attn", "ffns": "mlp", "blocks": ""}
    sites = {kind: [Site(block, part) for block in blocks] for kind, part in wholes.items()}
    if {"blocks", *FORMS}.isdisjoint(kinds) or len(plan.blocks_gone) + 1 >= anatomy.num_blocks:
        del sites["blocks"]
    sites |= {"heads": [site for site in heads_of(session) if site not in gone]}
    sites |= {"experts": experts_left(session, plan)}
    for kind, some in sites.items():
        if kind in kinds or kind == "blocks":
            yield from (Candidate(kind, (Drop(s),)) for s in some if s.unit or droppable(s, anatomy))
    if "neurons" in kinds:
        for block in (b for b in blocks if droppable(Site(b, "mlp"), anatomy)):
            left = remaining(block, neurons, gone)
            if left:
                yield neurons_of(block, left[: max(1, anatomy.widths[block].d_ff // CHUNKS)])
    if "matrices" in kinds:
        yield from _truncations(session, plan, blocks)


def remaining(block: int, neurons: Mapping[int, Sequence[int]], gone: Collection[Site]) -> list[int]:
    """Return the ranked neurons of a block without those that are gone."""
    return [n for n in neurons.get(block, ()) if Site(block, "mlp", "n", n) not in gone]


def neurons_of(block: int, numbers: Sequence[int]) -> Candidate:
    """Return the drops of these neurons."""
    return Candidate("neurons", tuple(Drop(Site(block, "mlp", "n", n)) for n in sorted(numbers)))


def _truncations(session: Session, plan: Plan, blocks: Iterable[int]) -> Iterator[Candidate]:
    """Yield each matrix at half the rank that it has, at first that at which two factors are as large as it is.

    Not where parts of the block went: a truncation is read by itself, and would bring them back.
    """
    ranks, cut = {edit.matrix: edit.rank for edit in plan.truncated}, {site.block for site in plan.dropped}
    for site, matrix in session.loaded.anatomy.matrices.items():
        rows, columns = matrix.shape
        rank = ranks.get(site, rows * columns // (rows + columns)) // 2
        if site.block in blocks and site.block not in cut and rank:
            yield Candidate("matrices", (Truncate(site, rank),))


def check(session: Session) -> None:
    """Raise `PlanError` where nothing can go, `SecateurError` where the budget is out of reach."""
    config, anatomy = session.config(BudgetConfig), session.loaded.anatomy
    anatomy.refuse_pairs("--method budget")
    for name in ("kv_bytes", "latency"):
        if name in config.targets:
            anatomy.check_cached(f"--{name.replace('_', '-')}")
    every = {block: list(range(width.d_ff)) for block, width in enumerate(anatomy.widths)}
    found = list(candidates_of(session, session.empty, every))
    if not found:
        raise PlanError(
            f"nothing of these blocks can go by {', '.join(config.competing)}: earlier cuts took all."
        )
    sizes, least = PlanSizes(session, config.targets), session.empty
    for candidate in sorted(found, key=lambda one: one.kind == "blocks"):
        if candidate.kind == "neurons":
            candidate = Candidate("ffns", (Drop(Site(min(candidate.blocks), "mlp")),))
        if len(least.blocks_gone) + 2 <= anatomy.num_blocks or candidate.kind != "blocks":
            least = joined(least, candidate.edits, anatomy) or least
    for name, share in config.targets.items():
        if name == "latency":
            continue  # is measured first
        reach = sizes.kept(least)[name]
        if reach > share and "matrices" not in config.competing:
            flag = f"--{name.replace('_', '-')}"
            raise SecateurError(
                f"{flag} {share}: with all of that gone {reach:.1%} are left. Ask for more, or for more --kinds."
            )


# ---------------------------------------------------------------------------------------------------------- the search


@dataclass(frozen=True)
class Move:
    """Edits that would go in one step, and the plan with them. `predicted` and `measured` are rises of the loss."""

    kind: str
    plan: Plan
    candidates: tuple[Candidate, ...]
    predicted: float
    measured: float = math.nan

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Return its edits."""
        return tuple(edit for candidate in self.candidates for edit in candidate.edits)

    @property
    def blocks(self) -> frozenset[int]:
        """Return the blocks that are changed."""
        return frozenset(block for candidate in self.candidates for block in candidate.blocks)


Moves = tuple[Move, ...]  # the way to a point; none to the original


@dataclass
class Steps:
    """Moves one after another.

    Args:
        sizes: What is to be kept.
        step: How far one move goes, as a share of the way.
    """

    session: Session
    judge: Judge
    readings: EditReadings
    sizes: PlanSizes
    step: float
    screened: float = 0.0  # examples that were read, a pass with gradients as three
    landed: dict[Moves, float] = field(default_factory=dict)  # all that met the budget, with their losses
    _predicted: dict[Candidate, float] = field(default_factory=dict)
    _scale: dict[str, float] = field(default_factory=dict)  # measured to predicted, by kind
    _neurons: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        select, count = self.session.shuffled("select"), MEASURED * len(self.session.probed)
        probe = self.session.task.split("probe")
        self.examples, self._ranked_on = select[:count], [*probe, *select[count:]]
        bounded = (
            self.session.config(BudgetConfig).max_loss is not None
        )  # all of `select` tells where that is
        self._fitted_on = probe if bounded else self._ranked_on
        by_choices = decided_by_choices(self.session)
        self._metric = METRICS["choice_loss" if by_choices else self.session.loss_name]

    def plan(self, moves: Moves) -> Plan:
        """Return the plan that moves lead to."""
        return moves[-1].plan if moves else self.session.empty

    def losses(self, plans: Sequence[Plan]) -> dict[Plan, float]:
        """Return the loss that decides under each plan, on the examples that moves are measured on."""
        judged = self.judge(plans, self.examples, "choose")
        return {plan: loss_or_worst(rows, self._metric.name) for plan, rows in judged.items()}

    def walk(self, within: Callable[[Plan], bool], way: list[Moves]) -> list[Moves]:
        """Return the moves to each point, from those of `way` on: until the budget is met, two points in a row are not
        `within` the bound, or nothing is left."""
        plan, beyond = self.plan(way[-1]), 0
        while beyond < 2 and self.sizes.progress(plan) < 1:
            further = self.next(way[-1], plan)
            if further is None:
                break
            way.append(further)
            plan = further[-1].plan
            beyond = 0 if within(plan) else beyond + 1
        return way

    def next(self, moves: Moves, plan: Plan, *, every_kind: bool = False) -> Moves | None:
        """Return the moves to `plan` with the cheapest of those that are possible now; None where there is none.

        Args:
            every_kind: Also edits of each kind by itself, not of `OFTEN` alone.
        """
        far = len(moves) % FAR == 0
        if far and "neurons" in self.session.config(BudgetConfig).competing:
            self._neurons = self.readings.neurons(plan, self._ranked_on)
            self.screened += len(self._ranked_on)
        offers = list(self._offers(plan, far=far, every_kind=every_kind or far))
        if not offers:
            return None
        losses, way = self.losses([plan, *(offer.plan for offer in offers)]), self.sizes.progress(plan)
        offers = [replace(offer, measured=losses[offer.plan] - losses[plan]) for offer in offers]
        for offer in offers:
            self._scale[offer.kind] = min(10.0, max(0.1, offer.measured / max(offer.predicted, FREE)))
        ends = [offer for offer in offers if self.sizes.progress(offer.plan) >= 1]
        self.landed |= {(*moves, offer): losses[offer.plan] for offer in ends}
        best = min(offers, key=lambda one: price(one.measured, self.sizes.progress(one.plan) - way))
        if not math.isfinite(best.measured):
            return None
        taken = self._with_others(best, offers, plan)
        kept = self.sizes.kept(taken.plan)
        LOG.info(
            "goes next: %s, loss %+.4f nats; left are %.1f %% of the parameters, %.1f %% of the KV cache",
            MOVE_NAMES[taken.kind],
            taken.measured,
            100 * kept["params"],
            100 * kept["kv_bytes"],
        )
        return (*moves, taken)

    def _with_others(self, best: Move, offers: Sequence[Move], plan: Plan) -> Move:
        """Return `best` with offers of other blocks that are nearly as cheap, up to one step and short of the budget.

        Most offers are far smaller than a step, and each step costs passes; edits of different blocks add up well.
        """
        way, taken = self.sizes.progress(plan), best
        prices = {offer: price(offer.measured, self.sizes.progress(offer.plan) - way) for offer in offers}
        for offer in sorted(offers, key=prices.__getitem__):
            if prices[offer] > ALONG * prices[best] or not taken.blocks.isdisjoint(offer.blocks):
                continue
            wider = joined(taken.plan, offer.edits, self.session.loaded.anatomy)
            if wider is not None and self.sizes.progress(wider) < min(1.0, way + self.step):
                candidates = (*taken.candidates, *offer.candidates)
                sums = taken.predicted + offer.predicted, taken.measured + offer.measured
                taken = Move("mixed", wider, candidates, *sums)
        return taken

    def _offers(self, plan: Plan, *, far: bool, every_kind: bool) -> Iterator[Move]:
        """Yield the cheapest move of all kinds together, and of each that is offered by itself, each plan once.

        Args:
            far: Also one of each kind that goes all the way to the budget, and maps.
            every_kind: As for `next`.
        """
        saved, kinds = self._screened(plan), self.session.config(BudgetConfig).competing
        ranked = sorted(saved, key=lambda one: price(self._predicted[one], saved[one]))
        seen = {plan}
        for kind in ("mixed", *kinds):
            if kind in FORMS or not (every_kind or kind in OFTEN):
                continue
            some = [one for one in ranked if one.kind == kind or (kind == "mixed" and one.kind in kinds)]
            if kind == "mixed":
                some.sort(key=lambda one: price(self._scaled(one), saved[one]))
            moves = [self._bundle(kind, plan, some, saved)]
            to_the_end = far and kind != "mixed" and self.sizes.targets != LOSS_ALONE
            if to_the_end:
                moves.append(self._bundle(kind, plan, some, saved, far=True))
            if kind == "neurons" and some:
                moves += [self._even(plan, some, saved, far=way) for way in {False, to_the_end}]
            for move in moves:
                if move.plan not in seen:
                    seen.add(move.plan)
                    yield move
        if far:
            yield from self._mapped(plan, [one for one in ranked if one.kind == "blocks"][:MAPPED])

    def _scaled(self, candidate: Candidate) -> float:
        return self._predicted[candidate] * self._scale.get(candidate.kind, 1.0)

    def _screened(self, plan: Plan) -> dict[Candidate, float]:
        """Return what each candidate saves, with predictions: new ones, and those near the top, are read now."""
        saved = self.sizes.saved(plan, candidates_of(self.session, plan, self._neurons))
        known = [one for one in saved if one in self._predicted]
        known.sort(key=lambda one: price(self._scaled(one), saved[one]))
        asked = [one for one in saved if one not in self._predicted] + known[:CLOSE]
        if asked:
            self._predicted |= dict(zip(asked, self.readings.effects(plan, asked), strict=True))
            blocks = self.session.loaded.anatomy.num_blocks
            self.screened += (3 + len(asked) / blocks) * len(self.session.probed)
        return saved

    def _bundle(
        self,
        kind: str,
        plan: Plan,
        ranked: Sequence[Candidate],
        saved: Mapping[Candidate, float],
        *,
        far: bool = False,
    ) -> Move:
        """Return the cheapest edits of different blocks, up to one step, or to the budget where that is nearer.

        Args:
            far: To the budget in any case, and several of one block; for edits of one kind, which do not overlap.
        """
        left = min(1 - self.sizes.progress(plan), 1.0 if far else self.step)
        enough = left / 2
        taken: list[Candidate] = []
        best, most = plan, math.inf
        for candidate in ranked:
            cost = price(self._scaled(candidate), saved[candidate])
            if left <= 1e-9 or (cost > most and left < enough and not far):
                break
            if not far and any(candidate.blocks & other.blocks for other in taken):
                continue
            wider = joined(best, candidate.edits, self.session.loaded.anatomy)
            if wider is not None and len(wider.blocks_gone) < self.session.loaded.anatomy.num_blocks:
                best, most, left = wider, min(most, SPREAD * cost), left - saved[candidate]
                taken.append(candidate)
        return Move(kind, best, tuple(taken), sum(self._predicted[one] for one in taken))

    def _even(
        self, plan: Plan, chunks: Sequence[Candidate], saved: Mapping[Candidate, float], *, far: bool
    ) -> Move:
        """Return the move that takes the same share of the neurons of every network that has a chunk: one step, or
        `far`, to the budget."""
        gone, best, taken, predicted = set(plan.dropped), plan, list[Candidate](), 0.0
        left = {chunk: remaining(min(chunk.blocks), self._neurons, gone) for chunk in chunks}
        each = {chunk: saved[chunk] / len(chunk.edits) for chunk in chunks}  # that one neuron saves
        way = min(1 - self.sizes.progress(plan), 1.0 if far else self.step)
        share = min(1.0, way / sum(each[chunk] * len(left[chunk]) for chunk in chunks))
        for chunk in chunks:
            some = neurons_of(min(chunk.blocks), left[chunk][: math.ceil(share * len(left[chunk]))])
            wider = joined(best, some.edits)
            if wider is not None:
                best = wider
                taken.append(some)
                predicted += self._predicted[chunk] * len(some.edits) / len(chunk.edits)
        return Move("even", best, tuple(taken), predicted)

    def _mapped(self, plan: Plan, blocks: Sequence[Candidate]) -> Iterator[Move]:
        """Yield moves that replace each block, and those gone beside it, by a map of each form that competes."""
        kinds, carriers = (
            self.session.config(BudgetConfig).competing,
            carriers_of(self.session.loaded.anatomy),
        )
        bases: dict[Plan, dict[BlockRun, Move]] = {}
        for candidate in blocks:
            gone = {site.block for site in plan.blocks_gone}
            run = run_with(gone, min(candidate.blocks))
            old = {e for e in plan.edits if isinstance(e, Linearize) and set(e.blocks) <= set(run)}
            base = Plan(plan.model, tuple(edit for edit in plan.edits if edit not in old))
            for kind in (kind for kind in FORMS if kind in kinds and carriers.carry(run, FORMS[kind])):
                wanted = Move(kind, plan, (candidate,), self._predicted[candidate])
                bases.setdefault(base, {})[BlockRun(run, FORMS[kind])] = wanted
        for base, runs in bases.items():
            self.screened += 2 * len(self._fitted_on)
            for run_, edit in self.readings.maps(base, list(runs), self._fitted_on).items():
                mapped, move = joined(plan, (edit,)), runs[run_]
                if mapped is not None and self.sizes.progress(mapped) > self.sizes.progress(plan):
                    yield replace(move, plan=mapped, candidates=(Candidate(move.kind, (edit,)),))

    def trimmed(self, moves: Moves) -> Moves:
        """Return the moves without the candidates that the budget can do without, where that lowers the loss."""
        last, ways = moves[-1].plan, dict[Candidate, Plan]()
        for candidate in (candidate for move in moves for candidate in move.candidates):
            way = _without(last, candidate.edits)
            if way is not None and self.sizes.progress(way) >= 1:
                ways[candidate] = way
        dearest = sorted(ways, key=lambda one: self._predicted.get(one, 0.0), reverse=True)
        ways = {candidate: ways[candidate] for candidate in dearest[:GIVEN_BACK]}
        losses, plan, back = self.losses([last, *ways.values()]), last, set[Candidate]()
        for candidate in sorted(ways, key=lambda one: losses[ways[one]]):
            way = _without(plan, candidate.edits)
            if way is not None and self.sizes.progress(way) >= 1 and losses[ways[candidate]] < losses[last]:
                plan = way
                back.add(candidate)
        if not back or self.losses([plan])[plan] >= losses[last]:
            return moves
        kept = [replace(m, candidates=tuple(c for c in m.candidates if c not in back)) for m in moves]
        kept = [move for move in kept if move.candidates]
        return (*kept[:-1], replace(kept[-1], plan=plan))

    def swapped(self, moves: Moves) -> Moves:
        """Return moves that keep to the budget with one given back and others taken, where that lowers the loss."""
        last, ways = moves[-1].plan, dict[Move, Plan]()
        for move in moves[:-1]:
            way = _without(last, move.edits)
            if way is not None:
                ways[move] = way
        if not ways:
            return moves
        losses = self.losses([last, *ways.values()])
        freed = {move: max(1e-9, 1 - self.sizes.progress(plan)) for move, plan in ways.items()}
        dearest = max(ways, key=lambda move: (losses[last] - losses[ways[move]]) / freed[move])
        tried, plan = tuple(move for move in moves if move != dearest), ways[dearest]
        while self.sizes.progress(plan) < 1:
            further = self.next(tried, plan, every_kind=True)
            if further is None:
                return moves
            tried, plan = further, further[-1].plan
        return (
            (*tried[:-1], replace(tried[-1], plan=plan))
            if self.losses([plan])[plan] < losses[last]
            else moves
        )


def run(session: Session, judge: Judge, readings: EditReadings) -> Proposal:
    """Return the plan that meets the budget, or goes as far as the loss allows, and the front to it.

    Args:
        session: Its options, task and anatomy.
        judge: Gives the outcomes of plans.
        readings: Predicts, ranks and fits.
    """
    config, counting, select = session.config(BudgetConfig), CountingJudge(judge), session.shuffled("select")
    bounded = config.max_loss is not None or config.targets
    goal = Goal(session.objective.metric, config.max_loss if bounded else MARGIN)
    table = measured_table(session.loaded.anatomy, session.empty, readings.time) if config.latency else None
    sizes = PlanSizes(session, config.targets or LOSS_ALONE, table)
    steps = Steps(session, counting, readings, sizes, 1 / STEPS if config.targets else LOSS_STEP)

    def within(plan: Plan) -> bool:
        if goal.max_loss is None:
            return True
        points = [RemovalPoint(session.empty, {}), RemovalPoint(plan, {})]
        return goal.choose(points, counting([session.empty, plan], select, "choose"), [1.0, 0.0]) == 1

    def passes() -> float:
        return (counting.evaluations + steps.screened) / len(select)

    swaps = 0
    with session.timed("choose"):
        way = _measured_walk(steps, within)
        if steps.landed:
            ends = sorted(steps.landed, key=lambda moves: steps.landed[moves])[:ENDS]
            ends = [steps.trimmed(moves) for moves in ends]
            losses = steps.losses([steps.plan(moves) for moves in ends])
            way[-1] = min(ends, key=lambda moves: losses[steps.plan(moves)])
            while swaps < SWAPS and passes() < ENOUGH and (better := steps.swapped(way[-1])) != way[-1]:
                way[-1], swaps = better, swaps + 1
        elif config.targets and config.max_loss is None:
            kept = ", ".join(
                f"{share:.1%} of {name}" for name, share in sizes.kept(steps.plan(way[-1])).items()
            )
            raise SecateurError(
                f"nothing more can go, and {kept} are left. Ask for more, or for more --kinds."
            )
    with session.timed("analyze"):
        plans = {steps.plan(moves): moves for moves in way}
        outcomes = counting(list(plans), select, "choose")
    keys = [session.objective.key(outcomes[plan]) for plan in plans]
    last = len(plans) - 1
    front = [plan for n, plan in enumerate(plans) if n in (0, last) or keys[n] > max(keys[n + 1 :])]
    points = [RemovalPoint(plan, {}) for plan in front]
    chosen = goal.choose(points, outcomes, [1.0] * len(front))
    found = {plan: plans[plan] for plan in front}
    record = _record(steps, found, outcomes, goal.max_loss, chosen, swaps)
    if table is not None:
        record = record.model_copy(update={"latency": _latency(steps, front[chosen])})
    return Proposal(
        plan=front[chosen],
        tried=counting.tried,
        evaluations=counting.evaluations,
        search=BudgetSearchRecord(
            method="budget",
            proposed=counting.tried,
            kinds=list(config.competing),
            forward_passes=passes(),
        ),
        analysis=BudgetAnalysis(base=base_record(outcomes[session.empty]), budget=record),
        margin=MARGIN if config.max_loss is None else config.max_loss,
    )


def _measured_walk(steps: Steps, within: Callable[[Plan], bool]) -> list[Moves]:
    """Return the moves to each point; a time that is to be met is measured at the end, and missed, there are more."""
    way = steps.walk(within, [()])
    target = steps.sizes.targets.get("latency")
    while target is not None and steps.landed and len(steps.sizes.corrections) < CORRECTIONS:
        plan = steps.plan(min(steps.landed, key=lambda moves: steps.landed[moves]))
        measured = steps.readings.time(plan)
        LOG.info("measured: %.1f %% of the time, to be %.1f %%", 100 * measured, 100 * target)
        if measured <= target:
            break
        steps.sizes.correct(plan, measured)
        steps.landed.clear()
        way = steps.walk(within, way)
    return way


def _latency(steps: Steps, plan: Plan) -> LatencyRecord:
    """Return the time with the plan that is taken, measured once more where it changed in the end."""
    config, sizes = steps.session.config(BudgetConfig), steps.sizes
    assert sizes.table is not None
    measured = steps.readings.time(plan) if plan.edits else 1.0
    left = sizes.kept(plan)["latency"]
    LOG.info("a generation takes %.1f %% of its time, predicted %.1f %%", 100 * measured, 100 * left)
    if config.latency is not None and measured > config.latency:
        LOG.warning(
            "--latency %s: the cut model was measured at %.1f %% of the time, a little more than was asked for: times "
            "scatter. Ask for less, or measure again with `secateur bench`.",
            config.latency,
            100 * measured,
        )
    return LatencyRecord(
        prompt=config.prompt,
        new=config.new,
        table=sizes.table,
        corrections=sizes.corrections,
        predicted=left,
        measured=measured,
    )


def _record(
    steps: Steps,
    front: Mapping[Plan, Moves],
    outcomes: Mapping[Plan, np.ndarray],
    max_loss: float | None,
    chosen: int,
    swaps: int,
) -> BudgetRecord:
    """Return `budget` of analysis.json.

    Args:
        front: The moves that lead to each plan.
        outcomes: Of the plans, on `select`.
        chosen: Index of the plan that is taken.
    """
    metric, config = steps.session.objective.metric, steps.session.config(BudgetConfig)
    points = [
        BudgetPoint(
            parameters=steps.sizes.kept(plan)["params"],
            kv_bytes=steps.sizes.kept(plan)["kv_bytes"],
            latency=steps.sizes.kept(plan).get("latency"),
            value=metric.mean(outcomes[plan]),
            loss=base_record(outcomes[plan]).loss,
            predicted=sum(move.predicted for move in moves),
            edits=str(plan),
        )
        for plan, moves in front.items()
    ]
    moves = [
        MoveRecord(
            kind=move.kind,
            edits=Plan("", move.edits).descriptions,
            by_kind=Counter(candidate.kind for candidate in move.candidates),
            predicted=move.predicted,
            measured=move.measured,
        )
        for move in [*front.values()][chosen]
    ]
    return BudgetRecord(
        targets=dict(config.targets),
        max_loss=max_loss,
        measured_on=len(steps.examples),
        points=points,
        chosen=chosen,
        moves=moves,
        swaps=swaps,
    )
