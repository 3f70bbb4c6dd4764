"""Workers as the driver sees them: who has the model, who has what in hand, who died and is replaced."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from secateur.core.fitted import Fitted
from secateur.core.plan import Plan
from secateur.distributed.worker import Shipped, Worker
from secateur.errors import ClusterError, SecateurError
from secateur.evaluation.workers import EvaluationContext, Judged, Portion, Portions, Work
from secateur.hf.load import Loaded

LOG = logging.getLogger("secateur")
SECONDS = 0.25  # of work in one portion: so much is lost with a worker, and asking takes 1 ms
IN_HAND = 2  # portions at a worker, so that it need not wait for the driver
DEATHS = 3  # of workers over one plan; more, for each worker there should be, in a row without a result
PATIENCE = 300.0  # seconds until a first worker answers: a cluster may grow, a machine be busy. Loading takes its time
LOST = (  # a worker died, or its node did, where a result lay that was not fetched yet
    RayActorError,
    OutOfMemoryError,
    NodeDiedError,
    ObjectLostError,
)
KEPT = "What was judged is kept: the same command goes on from there."


@dataclass(eq=False)
class WorkerHandle:
    """One worker. `starting` is what it has still to answer before it can judge: that it is there, that it has the
    model. It takes the portions in `given` one after another."""

    number: int
    actor: Any
    starting: list[Any]
    given: list[Portion] = field(default_factory=list)


class Pool:
    """See `Workers`. What was with a worker that dies is given to another, and a new one is asked for."""

    def __init__(self, loaded: Loaded, count: int, *, cpus: float, gpus: float) -> None:
        self._start = ray.put(Shipped.of(loaded)), "cuda" if gpus else "cpu", max(1, int(cpus))
        self._worker = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        self._count, self._hired, self._deaths, self._any_ready = count, 0, 0, False
        self._unready = 0  # workers in a row that failed before they had the model
        self._lost: Counter[Plan] = Counter()
        self._questions: list[tuple[EvaluationContext, Any]] = []
        self._fitted: dict[str, Any] = {}
        self._hands = [self._hire() for _ in range(count)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for hand in self._hands:
            ray.kill(hand.actor)

    def compute(self, question: EvaluationContext, work: Sequence[Work]) -> Iterator[Judged]:
        """Outcomes as they come. Raises `ClusterError` where no worker is left, and what a worker raises."""
        portions = Portions(work, self._count, SECONDS)
        asked: dict[Any, tuple[WorkerHandle, Portion]] = {}
        about = self._sent(question)
        self._ship(plan for piece in work for plan in piece.plans)
        while portions or asked:
            self._hand_out(portions, asked, about)
            for ref in self._wait(asked):
                hand, portion = asked.pop(ref)
                found = self._result(ref, hand)
                if found is None:
                    portions.again(portion)
                    continue
                hand.given.remove(portion)
                portions.took(portion, sum(seconds for _, seconds in found))
                for plan, (outcomes, seconds) in zip(portion.work.plans, found, strict=True):
                    yield plan, outcomes, seconds

    @property
    def pids(self) -> list[int]:
        """The processes of the workers, once all have the model."""
        return ray.get([hand.actor.pid.remote() for hand in self._hands])

    # ------------------------------------------------------------------------------------------------ giving and taking

    def _hand_out(
        self, portions: Portions, asked: dict[Any, tuple[WorkerHandle, Portion]], about: Any
    ) -> None:
        for busy in range(IN_HAND):  # everybody gets a first portion before anybody gets a second
            for hand in self._hands:
                if not hand.starting and len(hand.given) <= busy and portions:
                    portion = portions.next(hand.number)
                    plans = [_bare(plan) for plan in portion.work.plans]
                    fitted = {f.digest: self._fitted[f.digest] for plan in plans for f in plan.fitted}
                    ref = hand.actor.judge.remote([about], plans, fitted, portion.work.examples)
                    asked[ref] = hand, portion
                    hand.given.append(portion)

    def _wait(self, asked: Mapping[Any, Any]) -> list[Any]:
        """Portions that are done or lost; meanwhile workers may have become ready. Raises `ClusterError`."""
        starting = {hand.starting[0]: hand for hand in self._hands if hand.starting}
        nobody = not asked and all(len(hand.starting) == 2 for hand in self._hands)
        done, _ = ray.wait([*asked, *starting], timeout=PATIENCE if nobody else None)
        if not done:
            raise ClusterError(f"no worker for {PATIENCE:g} s: the cluster has no room for one. {KEPT}")
        for ref in done:
            if ref in starting:
                self._begin(starting[ref])
        return [ref for ref in done if ref in asked]

    def _begin(self, hand: WorkerHandle) -> None:
        """A worker is there, or has the model, or failed on the way. Raises as `_answer`, and `ClusterError`."""
        try:
            _answer(hand.starting.pop(0))
        except (*LOST, RayTaskError) as error:
            self._unready += 1
            self._replace(hand, error, gives_up=self._unready >= DEATHS)
            return
        if not hand.starting:
            self._any_ready, self._unready = True, 0

    def _result(self, ref: Any, hand: WorkerHandle) -> list[tuple[np.ndarray, float]] | None:
        """What a worker found, or None where it is lost. Raises what was raised there."""
        try:
            found = _answer(ref)
        except LOST as error:
            self._replace(hand, error)
            return None
        self._deaths = 0
        return found

    # ------------------------------------------------------------------------------------------------ hiring and losing

    def _hire(self) -> WorkerHandle:
        actor = self._worker.remote()
        self._hired += 1
        return WorkerHandle(self._hired - 1, actor, [actor.pid.remote(), actor.load.remote(*self._start)])

    def _replace(self, hand: WorkerHandle, error: RayError, *, gives_up: bool = False) -> None:
        """A lost worker's place is filled, once: each portion it had in hand fails by itself. Unless that is given up,
        and others are there. Raises `ClusterError`."""
        if hand not in self._hands:
            return
        self._hands.remove(hand)
        ray.kill(hand.actor)  # it may live: where it could not load, or only a result is lost
        if hand.given:
            self._blame(hand.given[0].work.plans, error)
        self._deaths += 1
        if self._deaths >= DEATHS and not self._any_ready:
            raise ClusterError(
                f"{self._deaths} workers failed before they had the model. {reason(error)} Every node needs "
                "secateur in this version, and memory for the model of each worker."
            ) from error
        if self._deaths > DEATHS * self._count:
            raise ClusterError(
                f"{self._deaths} workers died in a row without a result. {reason(error)} {KEPT}"
            ) from error
        if gives_up and self._hands:
            LOG.warning("a worker could not begin. %s Going on with %d.", reason(error), len(self._hands))
            return
        LOG.warning("a worker was lost; what it had in hand is done again. %s", reason(error))
        self._hands.append(self._hire())

    def _blame(self, plans: Sequence[Plan], error: RayError) -> None:
        """A plan that no worker survives would go round for ever. Raises `ClusterError`."""
        if len(plans) > 1:
            return  # they go one by one from here on
        [plan] = plans
        self._lost[plan] += 1
        if self._lost[plan] >= DEATHS:
            raise ClusterError(
                f"{DEATHS} workers died over “{plan}”. {reason(error)} Perhaps it needs more memory: "
                f"put fewer workers on a node. {KEPT}"
            ) from error

    # ------------------------------------------------------------------------------------------------ what travels once

    def _sent(self, question: EvaluationContext) -> Any:
        """A reference to task and tokens."""
        for known, ref in self._questions:
            if known.same(question):
                return ref
        self._questions.append((question, ray.put(question)))
        return self._questions[-1][1]

    def _ship(self, plans: Iterable[Plan]) -> None:
        """What was fitted for these plans, by its digest; what no plan here has is let go."""
        needed = {fitted.digest: fitted for plan in plans for fitted in plan.fitted}
        known = self._fitted
        self._fitted = {d: known[d] if d in known else ray.put(dict(f.arrays)) for d, f in needed.items()}


def _answer(ref: Any) -> Any:
    """What a worker gave back. Raises what was raised there: ours as it was, else as Ray's."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, SecateurError):
            raise error.cause from error
        raise


def _bare(plan: Plan) -> Plan:
    """The plan with the names of what was fitted, without the arrays."""
    names = {fitted.digest: Fitted(fitted.digest) for fitted in plan.fitted}
    return plan.with_fitted(names) if names else plan


def reason(error: RayError) -> str:
    """The line of Ray's report that says why."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("The actor")]
    return (said or lines)[-1].partition(" Some common causes")[0][:300]
