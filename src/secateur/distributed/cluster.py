"""Workers on a Ray cluster that is there already, or on one begun on this machine, for the length of a search."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError

from secateur.distributed.ask import OTHERWISE, Ask, local_count
from secateur.distributed.pool import Pool
from secateur.distributed.worker import num_bytes
from secateur.errors import ClusterError
from secateur.hf.load import Loaded
from secateur.hf.weights import is_offloaded

STORE = 1.25  # the object store of a local cluster, in sizes of the model: what is fitted for plans lies there too
SMALLEST_STORE = 256 * 2**20


@contextmanager
def hired(loaded: Loaded, address: str, ask: Ask) -> Iterator[Pool]:
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
    local = local_count(address)
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
    if local_count(address) is None:
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
