"""The verbs that search and prove, and write the report: `prune`, `demo`, `report`; the options of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.generated import PanelCommand, given, method_help, with_options
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
from secateur.core.records.comparison import ComparisonRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.errors import ClusterError, SecateurError
from secateur.tracking import TRACKERS

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

Push = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="USER/NAME",
        help="Upload OUT to the hub where it holds the cut; `secateur push` says more.",
    ),
]

LogTo = Annotated[
    str | None,
    typer.Option(
        "--log",
        metavar=TRACKERS,
        help="Show every plan that the search judges in a tracker, which has to be installed.",
    ),
]

if TYPE_CHECKING:
    from secateur.result import Result


def prune(
    model: Model,
    task: PruneTasks,
    out: Out,
    each: Each = False,
    method: Annotated[str, typer.Option(metavar="NAME", help=method_help())] = "laser",
    ray: OnRay = None,
    workers: NumWorkers = None,
    cpus_per_worker: Cpus = None,
    gpus_per_worker: Gpus = None,
    ledger: LedgerPath = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    push: Push = None,
    log: LogTo = None,
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

        print_forecast(model, task, given(method, options), as_json=as_json, quiet=quiet)
        return
    if push is not None:
        from secateur.checkpoint.push import check_repo

        check_repo(push)
        if each:
            raise SecateurError(
                "--push is of one checkpoint. Leave out --each, or push each by `secateur push`."
            )
    if log is not None and each:
        raise SecateurError(
            "--log is of one search. Leave out --each, or prune for one task after the other."
        )
    workers_asked = hire(ray, workers, cpus_per_worker, gpus_per_worker)
    how = {"ledger": ledger, "overwrite": overwrite, "workers": workers_asked} | ({"log": log} if log else {})
    _prune(
        model, task, out, given(method, options), each=each, as_json=as_json, quiet=quiet, push=push, **how
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
    push: str | None = None,
    **how: object,
) -> None:
    from secateur.cli.progress import bars
    from secateur.cli.tables import print_each, print_places, print_verdict
    from secateur.cli.terminal import terminal

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
    if push is not None:
        _push(results[0], push, as_json=as_json)


def _push(result: Result, repo: str, *, as_json: bool) -> None:
    """Upload a checkpoint that holds the cut; one that holds the unchanged model has nothing new for the hub."""
    from secateur import api
    from secateur.cli.apply import print_pushed

    record = VerdictRecord.model_validate(_told(result))
    if record.handed_over.holds != "cut":
        typer.echo(
            f"secateur: nothing was pushed, because {result.out} holds the unchanged model; secateur push {result.out} "
            f"{repo} pushes it all the same.",
            err=True,
        )
        return
    pushed = api.push(result.out, repo)
    if not as_json:
        print_pushed(pushed)


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
            "  secateur prune MODEL --task FILE.csv -o OUT     (the forms of a file: docs/tasks.md)\n"
            "or the second embedded example:\n"
            "  secateur prune builtin:recall --task builtin:recall -o recall-out"
        )


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="OUT...", help="What secateur prune or heal wrote; several are compared."),
    ],
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Of a healed cut: another of the same original, on its curves over depth."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The page that compares several.")
    ] = Path("comparison.html"),
    as_json: AsJson = False,
) -> None:
    """Write report.html of a checkpoint again, from its records; or one page that compares several."""
    from secateur import api
    from secateur.cli.tables import print_rows, with_interval

    if len(folders) > 1:
        if also:
            raise SecateurError("--also is of one healed cut. Leave it out to compare several folders.")
        compared = api.compare_runs(folders, out)
        if as_json:
            print_json(compared)
        else:
            runs = ComparisonRecord.model_validate(compared).runs
            rows = [
                [
                    run.run,
                    run.verdict,
                    f"{run.after.metric}, n = {run.after.n}",
                    with_interval(run.before, run.before.unit),
                    with_interval(run.after, run.after.unit),
                    run.parameters.after,
                ]
                for run in runs
            ]
            print_rows(("run", "verdict", "metric", "before [95 %]", "after [95 %]", "parameters"), rows)
            print(f"\n{compared['report']}")
        return
    written = api.report(folders[0], also or ())
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
                'secateur prune gpt2 --task questions.csv --join " " -o out',
                "secateur prune ./my-llama --task questions.jsonl --layers 20:32 -o out",
                "secateur prune gpt2 --task text:book.txt --side questions.jsonl -o out",
                "secateur prune gpt2 --task a.jsonl --task b.jsonl -o out",
                "secateur prune gpt2 --task builtin:int-mult --method directions -o out",
                "secateur prune ./llama --task text:book.txt --method depth --blocks 4 -o out",
                "secateur prune ./my-opt --task q.jsonl --method heads --max-loss 0.01 -o out",
                "secateur prune gpt2 --task q.jsonl --method components --params 0.6 -o out",
                "secateur prune gpt2 --task questions.csv --log tensorboard:runs -o out",
            ),
        },
    ),
    (demo, {"epilog": examples("secateur demo -o demo-out")}),
    (report, {"epilog": examples("secateur report out", "secateur report a b c -o comparison.html")}),
)
