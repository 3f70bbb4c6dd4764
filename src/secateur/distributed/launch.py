"""`secateur.on_ray`: a request for workers is checked before torch is imported; the workers start later."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import ray

from secateur.distributed.ask import Ask, check_here, knock, local_count
from secateur.errors import ClusterError

if TYPE_CHECKING:
    from secateur.evaluation.workers import WorkerLauncher, Workers
    from secateur.hf.load import Loaded


def on_ray(
    address: str,
    *,
    workers: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float | None = None,
) -> WorkerLauncher:
    """Return a launcher of workers for `prune(..., workers=...)`.

    Args:
        address: `local:N` for N workers on this machine, the address of a cluster, or `auto` to find one.
        workers: By default as many as the cluster has room for.
        cpus_per_worker: A worker computes with as many threads as it has CPUs.
        gpus_per_worker: By default 1 where the model is on a GPU, else none; 0.5 puts two workers on one.

    Raises: `ClusterError` for a request that cannot be read, and later for a cluster that cannot be reached or is lost.
    """
    local = local_count(address)
    if local is not None and workers not in (None, local):
        raise ClusterError(f"--ray {address} says how many workers, and --workers {workers} another number.")
    ask = Ask(local or workers, cpus_per_worker, 0.0 if gpus_per_worker is None else gpus_per_worker)
    if local is not None:
        check_here(address, local, cpus_per_worker)
    elif not (address == "auto" and ray.is_initialized()):
        knock(address)

    def launch(loaded: Loaded) -> AbstractContextManager[Workers]:
        from secateur.distributed.pool import launched

        on_gpu = loaded.device.type == "cuda" and gpus_per_worker is None
        return launched(loaded, address, Ask(ask.workers, ask.cpus, 1.0) if on_gpu else ask)

    return launch
