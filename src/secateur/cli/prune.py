"""The verbs that search and prove, and write the report: `prune`, `demo`, `report`; the options of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.generated import GOAL_HELP, PanelCommand, given, method_help, with_options
from secateur.cli.options import (
    AsJson,
    Commands,
    Each,
    LedgerPath,
    Model,
    Out,
    Overwrite,
    PruneTasks,
    Quiet,
    Seed,
    already_told,
    examples,
    print_json,
    print_made,
)
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


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only say what the model can do, and what the search would take; write nothing."
    ),
]

if TYPE_CHECKING:
    from secateur.result import Result


def prune(
    model: Model,
    task: PruneTasks,
    out: Out,
    each: Each = False,
    goal: Annotated[str | None, typer.Option(metavar="NAME", help=GOAL_HELP)] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help=method_help())] = None,
    ray: OnRay = None,
    workers: NumWorkers = None,
    cpus_per_worker: Cpus = None,
    gpus_per_worker: Gpus = None,
    ledger: LedgerPath = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Find what MODEL does not need for TASK, or for several, cut it, prove it.

    The proof is on held-out data; checkpoint, verdict and report are written to OUT. Killed at any moment, the same
    command goes on where it was.
    """
    if dry_run:
        from secateur.cli.cost import print_forecast

        print_forecast(model, task, given(options, method=method, goal=goal), as_json=as_json, quiet=quiet)
        return
    workers_asked = hire(ray, workers, cpus_per_worker, gpus_per_worker)
    how = {"ledger": ledger, "overwrite": overwrite, "workers": workers_asked}
    _prune(
        model,
        task,
        out,
        given(options, method=method, goal=goal),
        each=each,
        as_json=as_json,
        quiet=quiet,
        **how,
    )


with_options(prune)


def _prune(
    model: str,
    tasks: list[str],
    out: Path,
    options: Mapping[str, object],
    *,
    each: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    **how: object,
) -> None:
    from secateur.cli.progress import bars
    from secateur.cli.tables import print_each, print_places, print_verdict
    from secateur.cli.terminal import terminal
    from secateur.core.records.verdict import VerdictRecord

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        words: dict[str, Any] = {**how, **options, "progress": progress}
        results = (
            api.prune_each(model, tasks, out, **words) if each else [api.prune(model, tasks, out, **words)]
        )
    already = [result.out for result in results if result.already]

    def show() -> None:
        told = [_told(result) for result in results]
        if as_json:
            print_json(told if each else told[0])
            return
        for place in already:
            print(already_told(place))
        records = [VerdictRecord.model_validate(verdict) for verdict in told]
        if each:
            print_each(
                terminal(), [(verdict, result.out) for verdict, result in zip(records, results, strict=True)]
            )
        else:
            print_verdict(terminal(), records[0])
            print_places(terminal(), records[0], out)

    print_made(show, *already)


def _told(result: Result) -> dict[str, Any]:
    if result.verdict is None:
        raise ValueError("it has no verdict.json")
    return result.verdict | {"out": str(result.out), "already": result.already}


def demo(
    out: Out = Path("demo-out"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The main job on the embedded model, which half knows 600 facts."""
    facts = "builtin:facts"
    _prune(facts, [facts], out, {"seed": seed}, overwrite=overwrite, as_json=as_json, quiet=quiet)
    if not as_json:
        print(
            f"\nLook at {out / 'report.html'} in a browser. Next, a model and a task of your own:\n"
            "  secateur prune MODEL --task FILE.jsonl -o OUT     (the file's format: docs/tasks.md)\n"
            "or the second embedded example:\n"
            "  secateur prune builtin:recall --task builtin:recall -o recall-out"
        )


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="A checkpoint that secateur prune or heal wrote.")
    ],
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Of a healed cut: another of the same original, on its curves over depth."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write report.html of a checkpoint again, from its records."""
    from secateur import api

    written = api.report(folder, also or ())
    if as_json:
        print_json({"report": str(written)})
    else:
        print(written)


VERBS: Commands = (
    (
        prune,
        {
            "cls": PanelCommand,
            "epilog": examples(
                "secateur prune builtin:facts --task builtin:facts -o out",
                "secateur prune ./my-llama --task questions.jsonl --layers 20:32 -o out",
                "secateur prune gpt2 --task text:book.txt --side questions.jsonl -o out",
                "secateur prune gpt2 --task a.jsonl --task b.jsonl -o out",
                "secateur prune gpt2 --task builtin:int-mult --method directions -o out",
                "secateur prune ./llama --task text:book.txt --method depth --blocks 4 -o out",
                "secateur prune ./my-opt --task q.jsonl --method heads --max-loss 0.01 -o out",
                "secateur prune gpt2 --task q.jsonl --method components --params 0.6 -o out",
                "secateur prune ./llama --task text:book.txt --goal smaller --params 0.8 -o out",
                "secateur prune ./llama --task q.jsonl --kv-bytes 0.5 --kinds heads,attentions -o out",
            ),
        },
    ),
    (demo, {"epilog": examples("secateur demo -o demo-out")}),
    (report, {"epilog": examples("secateur report out")}),
)
