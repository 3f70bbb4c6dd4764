"""Start workers on a Ray cluster, or on one started on this machine, for the length of a search, and hand them work:
which worker has the model, which portions it was given, which one died and is replaced."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from secateur.core.fitted import Fitted
from secateur.core.plan import Plan
from secateur.distributed.ask import HOW_TO_BEGIN, Ask, local_count
from secateur.distributed.worker import Arrays, Shipped, Worker, num_bytes
from secateur.errors import ClusterError, SecateurError
from secateur.evaluation.workers import EvaluationContext, Judged, Portion, Portions, Work
from secateur.hf.load import Loaded
from secateur.hf.weights import is_offloaded

T = TypeVar("T")
Results: TypeAlias = list[tuple[np.ndarray, float]]  # outcomes and seconds of each plan
Answers: TypeAlias = "ObjectRef[Results]"  # of a portion
LOG = logging.getLogger("secateur")
STORE = 1.25  # the object store of a local cluster, in sizes of the model: what is fitted for plans lies there too
SMALLEST_STORE = 256 * 2**20
SECONDS = 0.25  # of work in one portion: so much is lost with a worker, and one request takes 1 ms
PORTIONS_AHEAD = 2  # portions given to a worker at a time, so that it need not wait for the driver
DEATHS = 3  # of workers over one plan; more, for each worker there should be, in a row without a result
PATIENCE = 300.0  # seconds until a first worker answers: a cluster may grow, a machine be busy, and loading takes time
LOST = (  # a worker died, or its node did, where a result lay that was not fetched yet
    RayActorError,
    OutOfMemoryError,
    NodeDiedError,
    ObjectLostError,
)
KEPT = "What was judged is kept: the same command goes on from there."


@dataclass(eq=False)
class WorkerHandle:
    """One worker as the driver sees it.

    Attributes:
        starting: References to the answers that it still owes before it can judge: that it runs, that it has the model.
        given: The portions that it was given, which it takes one after another.
    """

    number: int
    actor: ActorHandle[Any]
    starting: list[ObjectRef[object]]
    given: list[Portion] = field(default_factory=list)


Running = dict[Answers, tuple[WorkerHandle, Portion]]


class RayWorkers:
    """Judge plans on Ray; see `Workers`. The portions of a worker that dies go to another, and a new one is started."""

    def __init__(self, loaded: Loaded, count: int, *, cpus: float, gpus: float) -> None:
        self._load_arguments = ray.put(Shipped.of(loaded)), "cuda" if gpus else "cpu", max(1, int(cpus))
        self._worker: Any = ray.remote(Worker).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD"
        )
        self._count, self._launched, self._deaths, self._any_ready = count, 0, 0, False
        self._unready = 0  # workers in a row that failed before they had the model
        self._lost: Counter[Plan] = Counter()
        self._contexts: list[tuple[EvaluationContext, ObjectRef[EvaluationContext]]] = []
        self._fitted: dict[str, ObjectRef[Arrays]] = {}
        self._handles = [self._launch() for _ in range(count)]

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            ray.kill(handle.actor)

    def compute(self, context: EvaluationContext, work: Sequence[Work]) -> Iterator[Judged]:
        """Yield outcomes as they arrive. Raises: `ClusterError` where no worker is left; whatever a worker raises."""
        portions = Portions(work, self._count, SECONDS)
        running: Running = {}
        context_ref = self._put_context(context)
        self._put_fitted(plan for piece in work for plan in piece.plans)
        while portions or running:
            self._hand_out(portions, running, context_ref)
            for ref in self._wait(running):
                handle, portion = running.pop(ref)
                results = self._result(ref, handle)
                if results is None:
                    portions.again(portion)
                    continue
                handle.given.remove(portion)
                portions.took(portion, sum(seconds for _, seconds in results))
                for plan, (outcomes, seconds) in zip(portion.work.plans, results, strict=True):
                    yield plan, outcomes, seconds

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the workers, once all have the model."""
        pids: list[int] = ray.get([handle.actor.pid.remote() for handle in self._handles])
        return pids

    # ------------------------------------------------------------------------------------------------ giving and taking

    def _hand_out(
        self,
        portions: Portions,
        running: Running,
        context_ref: ObjectRef[EvaluationContext],
    ) -> None:
        for busy in range(PORTIONS_AHEAD):  # every worker gets a first portion before any gets a second
            for handle in self._handles:
                if not handle.starting and len(handle.given) <= busy and portions:
                    portion = portions.next(handle.number)
                    plans = [_bare(plan) for plan in portion.work.plans]
                    fitted = {f.digest: self._fitted[f.digest] for plan in plans for f in plan.fitted}
                    ref: Answers = handle.actor.judge.remote(
                        [context_ref], plans, fitted, portion.work.examples
                    )
                    running[ref] = handle, portion
                    handle.given.append(portion)

    def _wait(self, running: Mapping[Answers, object]) -> list[Answers]:
        """Wait for portions that are done or lost; workers may become ready meanwhile. Raises: `ClusterError`."""
        starting: dict[ObjectRef[Any], WorkerHandle] = {
            handle.starting[0]: handle for handle in self._handles if handle.starting
        }
        nobody = not running and all(len(handle.starting) == 2 for handle in self._handles)
        waiting: list[ObjectRef[Any]] = [*running, *starting]
        done, _ = ray.wait(waiting, timeout=PATIENCE if nobody else None)
        if not done:
            raise ClusterError(f"no worker for {PATIENCE:g} s: the cluster has no room for one. {KEPT}")
        for ref in done:
            if ref in starting:
                self._begin(starting[ref])
        return [ref for ref in done if ref in running]

    def _begin(self, handle: WorkerHandle) -> None:
        """Take the next answer of a starting worker, or replace it where it failed. Raises: as `_answer`;
        `ClusterError`."""
        try:
            _answer(handle.starting.pop(0))
        except (*LOST, RayTaskError) as error:
            self._unready += 1
            self._replace(handle, error, gives_up=self._unready >= DEATHS)
            return
        if not handle.starting:
            self._any_ready, self._unready = True, 0

    def _result(self, ref: Answers, handle: WorkerHandle) -> Results | None:
        """Return the outcomes of a portion, or None where the worker is lost. Raises: whatever was raised there."""
        try:
            results = _answer(ref)
        except LOST as error:
            self._replace(handle, error)
            return None
        self._deaths = 0
        return results

    # ---------------------------------------------------------------------------------------------- starting and losing

    def _launch(self) -> WorkerHandle:
        actor = self._worker.remote()
        self._launched += 1
        return WorkerHandle(
            self._launched - 1, actor, [actor.pid.remote(), actor.load.remote(*self._load_arguments)]
        )

    def _replace(self, handle: WorkerHandle, error: RayError, *, gives_up: bool = False) -> None:
        """Start a worker in the place of a lost one, once: each portion that it was given fails by itself. With
        `gives_up` go on with the others, where there are some.

        Raises: `ClusterError`.
        """
        if handle not in self._handles:
            return
        self._handles.remove(handle)
        ray.kill(handle.actor)  # it may still run, where it could not load or only a result is lost
        if handle.given:
            self._blame(handle.given[0].work.plans, error)
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
        if gives_up and self._handles:
            LOG.warning("a worker could not begin. %s Going on with %d.", reason(error), len(self._handles))
            return
        LOG.warning("a worker was lost; what it had in hand is done again. %s", reason(error))
        self._handles.append(self._launch())

    def _blame(self, plans: Sequence[Plan], error: RayError) -> None:
        """Count a death against a plan. Raises: `ClusterError` for a plan that no worker survives, which would be
        handed out for ever."""
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

    def _put_context(self, context: EvaluationContext) -> ObjectRef[EvaluationContext]:
        """Return a reference to task and tokens, which are put into the store once."""
        for known, ref in self._contexts:
            if known.same(context):
                return ref
        self._contexts.append((context, ray.put(context)))
        return self._contexts[-1][1]

    def _put_fitted(self, plans: Iterable[Plan]) -> None:
        """Put the arrays fitted for these plans into the store, by digest; release those that no plan here has."""
        known, self._fitted = self._fitted, {}
        for fitted in (fitted for plan in plans for fitted in plan.fitted):
            if fitted.digest in self._fitted:
                continue
            if fitted.digest not in known:
                assert fitted.arrays is not None, "the driver has the arrays"
                known[fitted.digest] = ray.put(dict(fitted.arrays))
            self._fitted[fitted.digest] = known[fitted.digest]


def _answer(ref: ObjectRef[T]) -> T:
    """Return what a worker returned. Raises: a `SecateurError` that was raised there as it was, others as Ray's."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, SecateurError):
            raise error.cause from error
        raise


def _bare(plan: Plan) -> Plan:
    """Return the plan with the digests of its fitted arrays, without the arrays."""
    names = {fitted.digest: Fitted(fitted.digest) for fitted in plan.fitted}
    return plan.with_fitted(names) if names else plan


def reason(error: RayError) -> str:
    """Return the line of Ray's report that says why."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("The actor")]
    return (causes or lines)[-1].partition(" Some common causes")[0][:300]


# ---------------------------------------------------------------------------------------------------- the cluster


@contextmanager
def launched(loaded: Loaded, address: str, ask: Ask) -> Iterator[RayWorkers]:
    """Start workers with this model; on exit end them, and with them a Ray that was started here.

    Raises: `ClusterError`.
    """
    _refuse(loaded)
    started_here = not ray.is_initialized()
    if started_here:
        _start_ray(address, ask, loaded)
    else:  # a process has one Ray at a time
        running = ray.get_runtime_context().gcs_address
        if address not in ("auto", running):
            raise ClusterError(
                f"--ray {address}: this process is on the Ray at {running} already; auto means that one."
            )
    try:
        with RayWorkers(loaded, _count(address, ask), cpus=ask.cpus, gpus=ask.gpus) as workers:
            yield workers
    except ObjectStoreFullError as error:
        raise ClusterError(
            "Ray's object store has no room for the weights: start Ray with a larger --object-store-memory."
        ) from error
    finally:
        if started_here:
            ray.shutdown()


def _refuse(loaded: Loaded) -> None:
    """Raise `ClusterError` for models that workers cannot hold."""
    if is_offloaded(loaded.model):
        raise ClusterError("a model that is offloaded has no room for workers beside it; leave out --ray.")
    if len({parameter.device for parameter in loaded.model.parameters()}) > 1:
        raise ClusterError(
            "the model lies on several devices, and a worker has one; leave out --ray, or --device-map."
        )
    modules = type(loaded.model).__module__, type(loaded.tokenizer).__module__
    if any(module.startswith("transformers_modules.") for module in modules):
        raise ClusterError(f"{loaded.name} brings code of its own, which workers lack; leave out --ray.")


def _count(address: str, ask: Ask) -> int:
    """Return how many workers to ask for.

    Raises: `ClusterError` where there is room for none, or on this machine for fewer than asked for: a cluster may
        grow, this machine does not.
    """
    room = sum(ask.room_on(node["Resources"]) for node in ray.nodes() if node["Alive"])
    local = local_count(address)
    if local is not None and room < local:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        advice = "Ray finds no GPU on this machine: leave out --gpus-per-worker."
        if gpus:
            share = math.floor(100 / math.ceil(local / gpus)) / 100
            advice = f"--gpus-per-worker {share:g} lets them share."
        raise ClusterError(f"--ray {address}: a worker takes {ask}, and here is room for {room}. {advice}")
    if not (ask.workers or room):
        total = ray.cluster_resources()
        resources = ", ".join(f"{total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise ClusterError(f"no node of the cluster has {ask}, which one worker takes. All: {resources}.")
    return ask.workers or room


def _start_ray(address: str, ask: Ask, loaded: Loaded) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local_count(address) is None:
        options["address"] = address
    else:
        cpus = math.ceil((ask.workers or 0) * ask.cpus)
        store = max(SMALLEST_STORE, int(STORE * num_bytes(loaded.model)))
        options |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": store,
            # Ray's own 15 starves the workers where anything else runs: one took over four minutes to import torch
            "_system_config": {"worker_niceness": 0},
        }
    # Ray would report a lost worker on stdout, which belongs to --json
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"--ray {address}: {reason.rstrip('.')}. {HOW_TO_BEGIN}") from error
