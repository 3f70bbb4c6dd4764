"""`secateur.on_ray`: a cluster is asked for and knocked at before torch is imported; workers are hired later."""

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
    """Workers for `prune(..., workers=...)`: `local:N` on this machine, or a cluster, by its address or found (`auto`).

    `workers`: as many as the cluster has room for, by default. `gpus_per_worker`: 1 where the model is on a GPU, else
    none; 0.5 puts two workers on one. A worker computes with as many threads as it has CPUs.

    Raises: `ClusterError` for what cannot be read here, and later for a cluster that cannot be reached or is lost.
    """
    local = local_count(address)
    if local is not None and workers not in (None, local):
        raise ClusterError(f"--ray {address} says how many workers, and --workers {workers} another number.")
    asked = Ask(local or workers, cpus_per_worker, 0.0 if gpus_per_worker is None else gpus_per_worker)
    if local is not None:
        check_here(address, local, cpus_per_worker)
    elif not (address == "auto" and ray.is_initialized()):
        knock(address)

    def hire(loaded: Loaded) -> AbstractContextManager[Workers]:
        from secateur.distributed.cluster import hired

        on_gpu = loaded.device.type == "cuda" and gpus_per_worker is None
        return hired(loaded, address, Ask(asked.workers, asked.cpus, 1.0) if on_gpu else asked)

    return hire
