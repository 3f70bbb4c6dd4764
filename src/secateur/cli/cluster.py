"""The options of a search on a cluster. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secateur.errors import ClusterError

OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="auto|ADDRESS|local:N",
        help="Judge candidates on a Ray cluster: the one found here, one at ADDRESS, or N workers of this machine.",
    ),
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", help="With --ray: so many workers. [default: all there is room for]"
    ),
]
Cpus = Annotated[
    float | None,
    typer.Option(
        "--cpus-per-worker",
        metavar="N",
        help="With --ray: what a worker takes, and its threads. [default: 1]",
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="N",
        help="With --ray: 0.5 puts two workers on one GPU. [default: 1 where the model is on one, else 0]",
    ),
]


def hire(address: str | None, workers: int | None, cpus: float | None, gpus: float | None) -> Any:
    """The workers asked for, or None. Raises `ClusterError`, before a model is read."""
    if address is None:
        if (workers, cpus, gpus) != (None, None, None):
            raise ClusterError("--workers, --cpus-per-worker and --gpus-per-worker are for --ray.")
        return None
    from secateur.distributed.launch import on_ray

    cpus = 1.0 if cpus is None else cpus
    return on_ray(address, workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
