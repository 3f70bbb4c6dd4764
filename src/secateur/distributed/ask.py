"""Ask for workers on a Ray cluster: read and check the request, and see that the cluster answers, before torch is
imported; the workers start later."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ray._private.services import canonicalize_bootstrap_address

from secateur.core.ranges import check_ranges, real, whole, whole_number
from secateur.errors import ClusterError

LOG = logging.getLogger("secateur")
CONNECT_SECONDS = 10.0
LAST_PORT = 2**16 - 1
HOW_TO_BEGIN = "Begin a cluster with `ray start --head`, or use local:N."
TINY = 1e-6  # Ray counts resources in ten-thousandths
MOST_WORKERS = 10_000


@dataclass(frozen=True)
class Ask:
    """The number of workers, and the resources of each: CPUs are its threads too, a share of a GPU puts several on one.

    `workers` is None for as many as the cluster has room for.
    """

    workers: int | None = whole(None, high=MOST_WORKERS)
    cpus: float = real(1.0, above=True, high=MOST_WORKERS, flag="--cpus-per-worker")
    gpus: float = real(0.0, high=MOST_WORKERS, flag="--gpus-per-worker")

    def __post_init__(self) -> None:
        check_ranges(self, ClusterError)

    def room_on(self, resources: Mapping[str, float]) -> int:
        """Return how many workers fit on a node with these resources."""
        room = [resources.get("CPU", 0.0) / self.cpus]
        if self.gpus:
            sharing = max(1, math.floor(1 / self.gpus + TINY))  # a share of a GPU lies on one
            room.append(resources.get("GPU", 0.0) * sharing / max(1.0, self.gpus))
        return math.floor(min(room) + TINY)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def local_count(address: str) -> int | None:
    """Return N of `local:N`; None for the address of a running cluster. Raises: `ClusterError`."""
    name, _, count = address.partition(":")
    if name != "local":
        return None
    number = whole_number(count)
    if not number:
        raise ClusterError(f"--ray {address}: write local:N for N workers on this machine, such as local:2.")
    return number


def check_here(address: str, workers: int, cpus: float) -> None:
    """Raise `ClusterError` for a worker with more CPUs than this machine has; Ray would believe any number."""
    num_cpus = os.cpu_count() or 1
    if cpus > num_cpus:
        raise ClusterError(f"--cpus-per-worker {cpus:g}: this machine has {num_cpus}.")
    if workers * cpus > num_cpus:
        LOG.warning(
            "--ray %s: %d workers of %g CPUs share %d; more than %d are no faster here.",
            address,
            workers,
            cpus,
            num_cpus,
            max(1, int(num_cpus / cpus)),
        )


def knock(address: str) -> None:
    """Connect to the address of a cluster once. Ray itself retries for minutes where nobody answers, for example where
    the address file of a stopped cluster is still there.

    Raises: `ClusterError`.
    """
    resolved = (os.environ.get("RAY_ADDRESS") or _last_address()) if address == "auto" else address
    which = address if resolved == address else f"{address} ({resolved})"
    if resolved.startswith("ray://"):
        raise ClusterError(f"--ray {which}: the driver holds the model; run it on a node of the cluster.")
    host, _, port = resolved.rpartition(":")
    number = whole_number(port)
    if not host or number is None or number > LAST_PORT:
        raise ClusterError(f"--ray {which}: write auto, HOST:PORT of a cluster (often 6379), or local:N.")
    try:
        socket.create_connection((host.strip("[]"), number), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:  # the latter for a text that cannot be the name of a host
        raise ClusterError(f"--ray {which}: nobody answers there ({error}). {HOW_TO_BEGIN}") from error


def _last_address() -> str:
    """Return the address of the cluster that was started on this machine last. Raises: `ClusterError`."""
    try:
        return canonicalize_bootstrap_address("auto") or ""
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"--ray auto: there is no cluster on this machine. {HOW_TO_BEGIN}") from error
