"""The verbs that search and prove, and write the report: `prune`, `run`, `demo`, `report`; the options of a cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from secateur.core.records.comparison import ComparisonRecord
from secateur.core.records.verdict import VerdictRecord
from secateur.errors import OutputError, SecateurError
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

SaveRecipe = Annotated[
    Path | None,
    typer.Option(
        "--save-recipe", metavar="FILE", help="Write this command as a recipe for `secateur run`, first."
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
    from secateur.recipe.steps import Step, StepResult
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
    push: Push = None,
    save_recipe: SaveRecipe = None,
    log: LogTo = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Find what MODEL does not need for TASK, or for several, cut it, prove it.

    The examples of TASK are split by group: `probe` (10%) is for gradients and fits, `select` (40%) chooses the plan,
    `test` (50%) is opened once, for the verdict. Checkpoint, verdict and report are written to OUT. Killed at any
    moment, the same command goes on where it was.
    """
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
    if save_recipe is not None:
        beside: dict[str, Path | str | int | float | None] = {
            "each": each or None,
            "ledger": ledger,
            "ray": ray,
            "workers": workers,
            "push": push,
        }
        beside |= {"cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker}
        _save_recipe(
            save_recipe,
            model,
            task,
            out,
            given(options, method=method, goal=goal),
            beside,
            overwrite=overwrite,
        )
    if dry_run:
        from secateur.cli.cost import print_forecast

        print_forecast(model, task, given(options, method=method, goal=goal), as_json=as_json, quiet=quiet)
        return
    from secateur.recipe.steps import workers_on

    workers_asked = workers_on(ray, workers, cpus_per_worker, gpus_per_worker)
    how = {"ledger": ledger, "overwrite": overwrite, "workers": workers_asked} | ({"log": log} if log else {})
    _prune(
        model,
        task,
        out,
        given(options, method=method, goal=goal),
        each=each,
        as_json=as_json,
        quiet=quiet,
        push=push,
        **how,
    )


with_options(prune)


def _save_recipe(
    file: Path,
    model: str,
    tasks: list[str],
    out: Path,
    options: Mapping[str, Any],
    beside: Mapping[str, object],
    *,
    overwrite: bool,
) -> None:
    """Write the recipe of a command. Raises: `OutputError` for a file that is there and says something else."""
    from secateur.core.reading import check_file
    from secateur.core.recipe_file import recipe_text
    from secateur.core.writing import write_text
    from secateur.methods.registry import read_options

    keys = read_options(model, *tasks, **options).recipe(speed=True) | {"out": str(out)}
    keys |= {
        key: str(value) if isinstance(value, Path) else value
        for key, value in beside.items()
        if value is not None
    }
    text = recipe_text(keys, file.parent)
    if os.path.lexists(file) and not overwrite:
        check_file(file, OutputError)
        if file.read_bytes() != text.encode():
            raise OutputError(
                f"--save-recipe {file} is there and says something else. Give another, or --overwrite."
            )
    write_text(file, text, "--save-recipe")


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
    from secateur.cli.apply import print_pushed
    from secateur.cli.progress import bars

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        words: dict[str, Any] = {**how, **options, "progress": progress}
        results = (
            api.prune_each(model, tasks, out, **words) if each else [api.prune(model, tasks, out, **words)]
        )
    pushed = None if push is None else api.push_cut(results[0].out, push)
    show_pruned(results, each=each, as_json=as_json, more={} if push is None else {"push": pushed})
    if pushed is not None and not as_json:
        print_pushed(pushed)


def show_pruned(
    results: Sequence[Result],
    *,
    each: bool = False,
    as_json: bool = False,
    more: Mapping[str, object] | None = None,
) -> None:
    """Print what `prune` found.

    Args:
        each: The results are of several tasks.
        as_json: Print JSON.
        more: Keys to add there.
    """
    from secateur.cli.tables import print_each, print_places, print_verdict
    from secateur.cli.terminal import terminal

    already = [result.out for result in results if result.already]

    def show() -> None:
        told = [told_of(result) for result in results]
        if as_json:
            print_json(told if each else told[0] | dict(more or {}))
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
            print_places(terminal(), records[0], results[0].out)

    print_made(show, *already)


def told_of(result: Result) -> dict[str, Any]:
    """Return the verdict of a result as `prune --json` prints it. Raises: `ValueError` where there is none."""
    if result.verdict is None:
        raise ValueError("it has no verdict.json")
    return result.verdict | {"out": str(result.out), "already": result.already}


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; docs/cli.md has its keys.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="Write here instead; of a recipe of one step."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what each step would run, and of a prune what it would take; write nothing.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run the steps of a recipe in order, such as prune, heal, export.

    All of them are checked before the first is run. Killed at any moment, the same command goes on where it was; a
    step that is done is not run again.
    """
    from secateur.cli.progress import bars
    from secateur.recipe.steps import read_recipe

    steps = read_recipe(recipe, out, overwrite=overwrite)
    told: list[dict[str, object]] = []
    for number, step in enumerate(steps, 1):
        if not as_json:
            print(f"{'' if number == 1 else chr(10)}step {number} of {len(steps)}: {step.command_line}")
        if dry_run:
            forecast = _forecast(step, first=number == 1, as_json=as_json, quiet=quiet)
            told.append({"step": step.verb, "command": step.command_line, "forecast": forecast})
            continue
        with bars(quiet=quiet or as_json) as progress:
            progress("load", 0, 1)
            result = step.run(progress)
        if as_json:
            told.append({"step": step.verb, "command": step.command_line, "result": told_of_step(result)})
        else:
            _show_step(result)
    if as_json:
        print_json({"recipe": str(recipe), "steps": told})


def _forecast(step: Step, *, first: bool, as_json: bool, quiet: bool) -> dict[str, Any] | None:
    """Return what a prune would take, and print it without `as_json`; of a later step its model is not there yet."""
    from secateur import api
    from secateur.cli.cost import print_cost
    from secateur.cli.progress import bars
    from secateur.recipe.steps import prune_options

    if step.verb != "prune" or not first:
        return None
    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        found: dict[str, Any] = api.plan_cost(
            step.values["model"], step.values["task"], progress=progress, **prune_options(step)
        )
    if not as_json:
        print_cost(found)
    return found


def told_of_step(result: StepResult) -> object:
    """Return the result of a step of a recipe as JSON, as its verb prints it with --json."""
    from secateur.cli.apply import told_of_applied
    from secateur.result import Result

    if isinstance(result, list):
        return [told_of(one) for one in result]
    if isinstance(result, dict):
        return result
    if isinstance(result, Result):
        return told_of(result) if result.verdict is not None else told_of_applied(result)
    return result.record | {"out": str(result.out), "already": result.already}


def _show_step(result: StepResult) -> None:
    """Print the result of a step of a recipe as its verb prints it."""
    from secateur.cli.apply import print_applied, print_exported, print_pushed
    from secateur.cli.finetune import print_training, print_tuned
    from secateur.cli.heal import print_healed
    from secateur.result import Result
    from secateur.training.records.finetune import FinetuneRecord
    from secateur.training.records.heal import HealRecord

    if isinstance(result, list):
        show_pruned(result, each=True)
    elif isinstance(result, dict):
        if "file" in result:
            print_exported(result)
        elif result["files"]:
            print_pushed(result)
    elif isinstance(result, Result):
        show_pruned([result]) if result.verdict is not None else print_applied(result)
    elif (result.out / "heal.json").exists():
        print_training(result, HealRecord, print_healed, as_json=False, page="report.html")
    else:
        print_training(result, FinetuneRecord, print_tuned, as_json=False)


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
                "secateur prune gpt2 --task q.jsonl --method components --params 60% -o out",
                "secateur prune gpt2 --task questions.csv --log tensorboard:runs -o out",
                "secateur prune ./llama --task q.jsonl --goal smaller --params 80% -o out",
                "secateur prune ./llama --task q.jsonl --kv-bytes 50% --kinds heads -o out",
            ),
        },
    ),
    (
        run,
        {
            "epilog": examples(
                "secateur run recipe.yaml --dry-run",
                "secateur run recipe.yaml",
                "secateur run out/recipe.yaml -o again",
            )
        },
    ),
    (demo, {"epilog": examples("secateur demo -o demo-out")}),
    (report, {"epilog": examples("secateur report out", "secateur report a b c -o comparison.html")}),
)
