"""A Ray cluster that is there already, or one begun on this machine: how many workers it has room for."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import ObjectStoreFullError

from secateur.distributed.pool import Pool
from secateur.distributed.worker import num_bytes
from secateur.errors import ClusterError
from secateur.hf.load import Loaded
from secateur.hf.weights import is_offloaded
from secateur.judge.workers import Hire

LOG = logging.getLogger("secateur")
STORE = 1.25  # the object store of a local cluster, in sizes of the model: what is fitted for plans lies there too
SMALLEST_STORE = 256 * 2**20
KNOCK = 10.0  # seconds
OTHERWISE = "Begin a cluster with `ray start --head`, or use local:N."
TINY = 1e-6  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Ask:
    """How many workers, and what one takes: processors are its threads too, parts of a GPU put several on one."""

    workers: int | None
    cpus: float
    gpus: float

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("cpus-per-worker", self.cpus)):
            if value is not None and value <= 0:
                raise ClusterError(f"--{name} {value:g}: more than 0, please.")
        if self.gpus < 0:
            raise ClusterError(f"--gpus-per-worker {self.gpus:g}: 0 or more, please.")

    def room_on(self, resources: Mapping[str, float]) -> int:
        """Workers on a node with these resources."""
        room = [resources.get("CPU", 0.0) / self.cpus]
        if self.gpus:
            sharing = max(1, math.floor(1 / self.gpus + TINY))  # a part of a GPU is never of two
            room.append(resources.get("GPU", 0.0) * sharing / max(1.0, self.gpus))
        return math.floor(min(room) + TINY)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def on_ray(
    address: str,
    *,
    workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float | None = None,
) -> Hire:
    """Workers for `prune(..., workers=...)`: `local:N` on this machine, or a cluster, by its address or found (`auto`).

    `workers`: as many as the cluster has room for, by default. `gpus_per_worker`: 1 where the model is on a GPU, else
    none; 0.5 puts two workers on one. A worker computes with as many threads as it has CPUs.

    Raises: `ClusterError` for what cannot be read here, and later for a cluster that cannot be reached or is lost.
    """
    local = _local(address)
    if local is not None and workers not in (None, local):
        raise ClusterError(f"--ray {address} says how many workers, and --workers {workers} another number.")
    asked = Ask(local or workers, cpus_per_worker, gpus_per_worker or 0.0)
    if local is not None:
        _check_here(address, local, cpus_per_worker)
    elif not (address == "auto" and ray.is_initialized()):
        _knock(address)

    def hire(loaded: Loaded) -> AbstractContextManager[Pool]:
        on_gpu = loaded.device.type == "cuda" and gpus_per_worker is None
        return _hired(loaded, address, Ask(asked.workers, asked.cpus, 1.0) if on_gpu else asked)

    return hire


def _local(address: str) -> int | None:
    """N of `local:N`; None for a cluster that is there already. Raises `ClusterError`."""
    name, _, count = address.partition(":")
    if name != "local":
        return None
    if not (count.isascii() and count.isdigit() and int(count)):
        raise ClusterError(f"--ray {address}: write local:N for N workers on this machine, such as local:2.")
    return int(count)


def _check_here(address: str, workers: int, cpus: float) -> None:
    """Ray would believe any number. Raises `ClusterError` for a worker with more CPUs than there are."""
    there = os.cpu_count() or 1
    if cpus > there:
        raise ClusterError(f"--cpus-per-worker {cpus:g}: this machine has {there}.")
    if workers * cpus > there:
        LOG.warning(
            "--ray %s: %d workers of %g CPUs share %d; more than %d are no faster here.",
            address,
            workers,
            cpus,
            there,
            max(1, int(there / cpus)),
        )


def _knock(address: str) -> None:
    """Ray itself asks for minutes where nobody answers, as where the address file of a cluster that is gone still lies.
    Raises `ClusterError`."""
    found = (os.environ.get("RAY_ADDRESS") or _last()) if address == "auto" else address
    which = address if found == address else f"{address} ({found})"
    if found.startswith("ray://"):
        raise ClusterError(f"--ray {which}: the driver holds the model; run it on a node of the cluster.")
    host, _, port = found.rpartition(":")
    if not (host and port.isdigit()):
        raise ClusterError(f"--ray {which}: write auto, HOST:PORT of a cluster (often 6379), or local:N.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
    except OSError as error:
        raise ClusterError(f"--ray {which}: nobody answers there ({error}). {OTHERWISE}") from error


def _last() -> str:
    """The address of the cluster that was begun on this machine last. Raises `ClusterError`."""
    try:
        return canonicalize_bootstrap_address("auto") or ""
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"--ray auto: there is no cluster on this machine. {OTHERWISE}") from error


@contextmanager
def _hired(loaded: Loaded, address: str, ask: Ask) -> Iterator[Pool]:
    """Workers with this model; ended with the context, and with them a Ray that was begun here."""
    _refuse(loaded)
    begun = not ray.is_initialized()
    if begun:
        _begin(address, ask, loaded)
    else:
        _refuse_another(address)
    try:
        with Pool(loaded, _count(address, ask), cpus=ask.cpus, gpus=ask.gpus) as pool:
            yield pool
    except ObjectStoreFullError as error:
        raise ClusterError(
            "Ray's object store has no room for the weights: start Ray with a larger --object-store-memory."
        ) from error
    finally:
        if begun:
            ray.shutdown()


def _refuse(loaded: Loaded) -> None:
    """Models that workers cannot hold. Raises `ClusterError`."""
    if is_offloaded(loaded.model):
        raise ClusterError("a model that is offloaded has no room for workers beside it; leave out --ray.")
    if len({parameter.device for parameter in loaded.model.parameters()}) > 1:
        raise ClusterError(
            "the model lies on several devices, and a worker has one; leave out --ray, or --device-map."
        )
    brought = type(loaded.model).__module__, type(loaded.tokenizer).__module__
    if any(module.startswith("transformers_modules.") for module in brought):
        raise ClusterError(f"{loaded.name} brings code of its own, which workers lack; leave out --ray.")


def _refuse_another(address: str) -> None:
    """A process has one Ray at a time, and this one has begun. Raises `ClusterError` where another is meant."""
    here = ray.get_runtime_context().gcs_address
    if address not in ("auto", here):
        raise ClusterError(
            f"--ray {address}: this process is on the Ray at {here} already; auto means that one."
        )


def _count(address: str, ask: Ask) -> int:
    """Workers to ask for. Raises `ClusterError` where there is room for none, or on this machine for fewer than asked:
    a cluster may grow, this machine does not."""
    room = sum(ask.room_on(node["Resources"]) for node in ray.nodes() if node["Alive"])
    local = _local(address)
    if local is not None and room < local:
        raise ClusterError(
            f"--ray {address}: a worker takes {ask}, and here is room for {room}. {_sharing(local)}"
        )
    if not (ask.workers or room):
        raise ClusterError(f"no node of the cluster has {ask}, which one worker takes. All: {_resources()}.")
    return ask.workers or room


def _sharing(workers: int) -> str:
    """How so many workers have room on the GPUs of this machine."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus:
        return "Ray finds no GPU on this machine: leave out --gpus-per-worker."
    share = math.floor(100 / math.ceil(workers / gpus)) / 100
    return f"--gpus-per-worker {share:g} lets them share."


def _begin(address: str, ask: Ask, loaded: Loaded) -> None:
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if _local(address) is None:
        how["address"] = address
    else:
        cpus = math.ceil(ask.workers * ask.cpus)
        store = max(SMALLEST_STORE, int(STORE * num_bytes(loaded.model)))
        how |= {
            "address": "local",
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": store,
        }
    ray._private.worker._worker_logs_enabled = (
        False  # of a lost worker Ray would tell on stdout, which is --json's
    )
    try:
        ray.init(**how)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"--ray {address}: {reason.rstrip('.')}. {OTHERWISE}") from error


def _resources() -> str:
    total = ray.cluster_resources()
    return ", ".join(f"{total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
