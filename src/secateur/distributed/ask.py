"""Reads the words that ask for workers, and checks that a Ray cluster answers. Imports no torch."""

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
KNOCK = 10.0  # seconds
LAST_PORT = 2**16 - 1
OTHERWISE = "Begin a cluster with `ray start --head`, or use local:N."
TINY = 1e-6  # Ray counts resources in ten-thousandths
MOST_WORKERS = 10_000


@dataclass(frozen=True)
class Ask:
    """The number of workers, and what each takes: processors are its threads too, parts of a GPU put several on one."""

    workers: int | None = whole(None, high=MOST_WORKERS)
    cpus: float = real(1.0, above=True, high=MOST_WORKERS, flag="--cpus-per-worker")
    gpus: float = real(0.0, high=MOST_WORKERS, flag="--gpus-per-worker")

    def __post_init__(self) -> None:
        check_ranges(self, ClusterError)

    def room_on(self, resources: Mapping[str, float]) -> int:
        """Workers on a node with these resources."""
        room = [resources.get("CPU", 0.0) / self.cpus]
        if self.gpus:
            sharing = max(1, math.floor(1 / self.gpus + TINY))  # a part of a GPU is never of two
            room.append(resources.get("GPU", 0.0) * sharing / max(1.0, self.gpus))
        return math.floor(min(room) + TINY)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def local_count(address: str) -> int | None:
    """N of `local:N`; None for a cluster that is there already. Raises `ClusterError`."""
    name, _, count = address.partition(":")
    if name != "local":
        return None
    found = whole_number(count)
    if not found:
        raise ClusterError(f"--ray {address}: write local:N for N workers on this machine, such as local:2.")
    return found


def check_here(address: str, workers: int, cpus: float) -> None:
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


def knock(address: str) -> None:
    """Ray itself asks for minutes where nobody answers, as where the address file of a cluster that is gone still lies.
    Raises `ClusterError`."""
    found = (os.environ.get("RAY_ADDRESS") or _last()) if address == "auto" else address
    which = address if found == address else f"{address} ({found})"
    if found.startswith("ray://"):
        raise ClusterError(f"--ray {which}: the driver holds the model; run it on a node of the cluster.")
    host, _, port = found.rpartition(":")
    number = whole_number(port)
    if not host or number is None or number > LAST_PORT:
        raise ClusterError(f"--ray {which}: write auto, HOST:PORT of a cluster (often 6379), or local:N.")
    try:
        socket.create_connection((host.strip("[]"), number), timeout=KNOCK).close()
    except (OSError, UnicodeError) as error:  # the latter for what no host can be called
        raise ClusterError(f"--ray {which}: nobody answers there ({error}). {OTHERWISE}") from error


def _last() -> str:
    """The address of the cluster that was begun on this machine last. Raises `ClusterError`."""
    try:
        return canonicalize_bootstrap_address("auto") or ""
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"--ray auto: there is no cluster on this machine. {OTHERWISE}") from error
