"""The verbs that search and prove, and write the report: `prune`, `demo`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.cluster import Cpus, Gpus, NumWorkers, OnRay, hire
from secateur.cli.options import (
    AllowSmall,
    AsJson,
    BatchSize,
    Chat,
    Device,
    DeviceMap,
    Dtype,
    Each,
    Factorize,
    Grid,
    KeepUnproven,
    Layers,
    LedgerPath,
    Limit,
    Matrices,
    MaxMemory,
    Model,
    OffloadFolder,
    Out,
    Overwrite,
    PerHead,
    Portable,
    PruneTasks,
    Quiet,
    Revision,
    SecondOrder,
    Seed,
    Seqlen,
    Shots,
    SkipLong,
    SpectraFolder,
    SplitSeed,
    TestTask,
    Trust,
    Whitened,
    Zeroed,
    already_told,
    as_api,
    examples,
    print_json,
    print_made,
)

if TYPE_CHECKING:
    from secateur.checkpoint.result import Result


def prune(
    model: Model,
    task: PruneTasks,
    out: Out,
    each: Each = False,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="laser: low-rank truncation of single matrices, and several composed. directions: singular directions "
            "that hurt, folded into biases. depth: whole blocks, folded or linear. heads, ffns, components (both): "
            "taken out step by step as far as the task allows.",
        ),
    ] = "laser",
    test_task: TestTask = None,
    side: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Watch this task as a side effect; may be repeated."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="What is chosen by and decides: accuracy, accuracy_norm, choice_loss, loss, top5, top10, text_loss.",
        ),
    ] = None,
    matrices: Matrices = "all",
    layers: Layers = None,
    grid: Grid = "full",
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Judge every candidate on all of select: no screening, no racing."),
    ] = False,
    compose: Annotated[bool, typer.Option(help="Also compose several cuts greedily.")] = True,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="heads, ffns, components, directions: take out this share, such as 70%."
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="all but laser: lose at most M of the metric (share or nats) on select; also the margin of the "
            "verdict. [default: 0.02; directions: go for gain]",
        ),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="heads, ffns, components: go on until this share of the parameters is left."
        ),
    ] = None,
    step: Annotated[
        str,
        typer.Option(metavar="SHARE", help="heads, ffns, components, directions: how much goes at a time."),
    ] = "10%",
    rescore: Annotated[
        bool,
        typer.Option(
            "--rescore/--ranks-once",
            help="Choose from ranks taken again after each step, or once as the paper.",
        ),
    ] = True,
    random_orders: Annotated[
        int, typer.Option(metavar="N", help="Random orders to draw beside the curves.")
    ] = 3,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="directions: search (what helps most, by true evaluations), removal (as many as --max-loss allows), "
            "threshold (as many as the prediction allows), paper (a fixed --target of each matrix, 10% by default). "
            "[default: search, or removal with --max-loss or --target]",
        ),
    ] = None,
    per_head: PerHead = False,
    overall: Annotated[
        bool,
        typer.Option(
            "--overall", help="directions, protocol paper: the share of all in one list, not of each matrix."
        ),
    ] = False,
    dynamic: Annotated[
        bool,
        typer.Option(
            help="directions: also choose which kinds of matrices and which matrices, not only how many."
        ),
    ] = True,
    weakest: Annotated[
        bool | None,
        typer.Option(
            "--weakest/--signed",
            help="directions: those with the least effect go first, or those that hurt most. [default: signed; "
            "protocol removal: weakest]",
        ),
    ] = None,
    second_order: SecondOrder = False,
    whitened: Whitened = False,
    blocks: Annotated[
        int | None,
        typer.Option(metavar="N", help="depth: take this many blocks. [default: as --max-loss allows]"),
    ] = None,
    by: Annotated[
        str,
        typer.Option(metavar="NAME", help="depth: which go first: by measured loss, linearity, or cosine."),
    ] = "loss",
    form: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="depth: fold (a linear map in the network before them, no new parameters), linear (a map of its own), "
            "or drop.",
        ),
    ] = "fold",
    contiguous: Annotated[bool, typer.Option("--contiguous", help="depth: one run of blocks.")] = False,
    rank: Annotated[
        int | None,
        typer.Option(metavar="R", help="depth, form linear: maps of rank R beside the residual."),
    ] = None,
    portable: Portable = False,
    zeroed: Zeroed = False,
    factorize: Factorize = False,
    keep_unproven: KeepUnproven = False,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    limit: Limit = None,
    shots: Shots = 0,
    seqlen: Seqlen = 256,
    chat: Chat = False,
    allow_small: AllowSmall = False,
    skip_long: SkipLong = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    max_memory: MaxMemory = None,
    spectra: SpectraFolder = None,
    batch_size: BatchSize = "auto",
    ray: OnRay = None,
    workers: NumWorkers = None,
    cpus_per_worker: Cpus = None,
    gpus_per_worker: Gpus = None,
    trust_remote_code: Trust = False,
    ledger: LedgerPath = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find what MODEL does not need for TASK, or for several, cut it, prove it.

    The proof is on held-out data; checkpoint, verdict and report are written to OUT. Killed at any moment, the same
    command goes on where it was.
    """
    options = as_api(
        method=method, test_task=test_task, side=tuple(side or ()), objective=objective, matrices=matrices,
        layers=layers, grid=grid, exhaustive=exhaustive, compose=compose, target=target, max_loss=max_loss,
        params=params, step=step, rescore=rescore, random_orders=random_orders, portable=portable, zeroed=zeroed,
        factorize=factorize, protocol=protocol, per_head=per_head, overall=overall, dynamic=dynamic, weakest=weakest,
        blocks=blocks, by=by, form=form, contiguous=contiguous, rank=rank,
        second_order=second_order, whitened=whitened, keep_unproven=keep_unproven, seed=seed, split_seed=split_seed,
        limit=limit, shots=shots, seqlen=seqlen, chat=chat, allow_small=allow_small, skip_long=skip_long,
        revision=revision, dtype=dtype, device=device, device_map=device_map, offload_folder=offload_folder,
        max_memory=max_memory, spectra=spectra, batch_size=batch_size, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    hired = hire(ray, workers, cpus_per_worker, gpus_per_worker)
    how = {"ledger": ledger, "overwrite": overwrite, "workers": hired}
    _prune(model, task, out, options, each=each, as_json=as_json, quiet=quiet, **how)


def _prune(
    model: str,
    tasks: list[str],
    out: Path,
    options: dict[str, Any],
    *,
    each: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    **how: Any,
) -> None:

    from secateur.cli.progress import bars
    from secateur.cli.tables import print_each, print_places, print_verdict
    from secateur.cli.terminal import terminal

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        asked, how = (model, tasks, out), how | options | {"progress": progress}
        results = api.prune_each(*asked, **how) if each else [api.prune(*asked, **how)]
    already = [result.out for result in results if result.already]

    def show() -> None:
        told = [_told(result) for result in results]
        if as_json:
            print_json(told if each else told[0])
            return
        for place in already:
            print(already_told(place))
        if each:
            print_each(terminal(), told)
        else:
            print_verdict(terminal(), told[0])
            print_places(terminal(), told[0], out)

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


VERBS = (
    (
        prune,
        {
            "epilog": examples(
                "secateur prune builtin:facts --task builtin:facts -o out",
                "secateur prune ./my-llama --task questions.jsonl --layers 20:32 -o out",
                "secateur prune gpt2 --task text:book.txt --side questions.jsonl -o out",
                "secateur prune gpt2 --task a.jsonl --task b.jsonl -o out",
                "secateur prune gpt2 --task builtin:int-mult --method directions -o out",
                "secateur prune ./llama --task text:book.txt --method depth --blocks 4 -o out",
                "secateur prune ./my-opt --task q.jsonl --method heads --max-loss 0.01 -o out",
                "secateur prune gpt2 --task q.jsonl --method components --params 0.6 -o out",
            )
        },
    ),
    (demo, {"epilog": examples("secateur demo -o demo-out")}),
    (report, {"epilog": examples("secateur report out")}),
)
