"""`secateur` and its verbs. Options are the same words everywhere; `--json` prints what the tables show."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur import __version__
from secateur.errors import SecateurError

app = typer.Typer(
    name="secateur",
    help="Find what a trained transformer does not need for a task, take it out, and prove what was gained and lost.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub name, or builtin:facts, builtin:recall.")
]
TaskSpec = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="TASK",
        help="FILE.jsonl, text:FILE, builtin:NAME, a preset (see `secateur tasks`), or lm_eval:NAME.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The checkpoint folder to write.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
TestTask = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="Take the test split from here; probe and select from --task."),
]
Matrices = Annotated[
    str,
    typer.Option(
        metavar="NAMES", help="Which matrices: q,k,v,o,gate,up,down, or attn, mlp, all; LASER's names too."
    ),
]
Layers = Annotated[
    str | None, typer.Option(metavar="FROM:TO", help="Which blocks, half open, from 0: 2:3 is block 2 alone.")
]
Seed = Annotated[int, typer.Option(help="Seed of the search's order and of resampling; never of the splits.")]
SplitSeed = Annotated[int, typer.Option(help="Seed of the splits into probe, select and test.")]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Use at most N examples.")]
Seqlen = Annotated[int, typer.Option(min=2, help="Tokens per chunk of text.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap prompts in the model's chat template.")]
AllowSmall = Annotated[
    bool, typer.Option("--allow-small", help="Warn instead of refusing when a split has under 50 groups.")
]
Dtype = Annotated[
    str, typer.Option(help="auto (as stored), float32, bfloat16, float16 or float64; also what is written.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
BatchSize = Annotated[
    str,
    typer.Option(
        metavar="auto|TOKENS", help="Padded tokens per forward pass; auto halves when memory runs out."
    ),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code a checkpoint brings along.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars.")]
LedgerPath = Annotated[
    Path | None,
    typer.Option("--ledger", metavar="FILE", help="Share this ledger instead of OUT.run/ledger.sqlite."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="plan.json, or a checkpoint folder that holds one."),
]
Edits = Annotated[
    list[str] | None,
    typer.Option("--edit", metavar="SITE=RANK", help="An edit such as b2.gate=5; may be repeated."),
]


def _options(**given: Any) -> dict[str, Any]:
    """Command-line values as the API wants them."""
    options = dict(given)
    if "matrices" in options:
        options["matrices"] = tuple(word.strip() for word in options["matrices"].split(",") if word.strip())
    if "layers" in options:
        options["layers"] = _layers(options["layers"])
    if "batch_size" in options:
        options["max_tokens"] = _tokens(options.pop("batch_size"))
    return options


def _layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not (low.isdigit() and (high.isdigit() or not colon)):
        raise SecateurError(
            f"--layers {text!r}: write FROM:TO, half open, such as 2:4 for blocks 2 and 3; or one block, 2."
        )
    return int(low), int(high) if colon else int(low) + 1


def _tokens(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise SecateurError(f"--batch-size {text!r}: write auto, or a number of tokens such as 2048.")
    return int(text)


def _plan(plan: Path | None, edits: list[str] | None) -> Any:
    if plan is not None and edits:
        raise SecateurError("give --plan or --edit, not both.")
    return plan if plan is not None else (edits or None)


@app.command(
    epilog="Examples:  [bold]secateur prune builtin:facts --task builtin:facts -o out[/bold]   ·   "
    "[bold]secateur prune ./my-llama --task questions.jsonl --matrices mlp --layers 20:32 -o out[/bold]   ·   "
    "[bold]secateur prune gpt2 --task text:book.txt --side questions.jsonl -o out[/bold]"
)
def prune(
    model: Model,
    task: TaskSpec,
    out: Out,
    method: Annotated[
        str, typer.Option(help="laser: low-rank truncation of single matrices, and several composed.")
    ] = "laser",
    test_task: TestTask = None,
    side: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Watch this task as a side effect; may be repeated."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="What is chosen by and decides: accuracy, accuracy_norm, loss, top5, top10, text_loss."
        ),
    ] = None,
    matrices: Matrices = "all",
    layers: Layers = None,
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Judge every candidate on all of select: no screening, no racing."),
    ] = False,
    compose: Annotated[bool, typer.Option(help="Also compose several cuts greedily.")] = True,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    limit: Limit = None,
    seqlen: Seqlen = 256,
    chat: Chat = False,
    allow_small: AllowSmall = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    trust_remote_code: Trust = False,
    ledger: LedgerPath = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find what MODEL does not need for TASK, cut it, prove on held-out data what changed, write checkpoint and report.

    Killed at any moment, the same command goes on where it was.
    """
    options = _options(
        method=method, test_task=test_task, side=tuple(side or ()), objective=objective, matrices=matrices, layers=layers,
        exhaustive=exhaustive, compose=compose, seed=seed, split_seed=split_seed, limit=limit, seqlen=seqlen, chat=chat,
        allow_small=allow_small, revision=revision, dtype=dtype, device=device, batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    _prune(model, task, out, options, ledger=ledger, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _prune(
    model: str,
    task: str,
    out: Path,
    options: dict[str, Any],
    *,
    ledger: Path | None = None,
    overwrite: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> None:
    from rich.console import Console

    from secateur import api
    from secateur.cli.progress import bars
    from secateur.cli.tables import print_verdict

    with bars(quiet=quiet or as_json) as progress:
        result = api.prune(model, task, out, ledger=ledger, overwrite=overwrite, progress=progress, **options)
    if as_json:
        print(json.dumps(result.verdict | {"out": str(result.out), "already": result.already}, indent=2))
        return
    console = Console()
    if result.already:
        console.print(
            f"{result.out} already holds the result of this command (--overwrite runs it again).",
            markup=False,
        )
    print_verdict(console, result.verdict)
    console.print(
        f"\ncheckpoint  {result.out}\nreport      {result.out / 'report.html'}", markup=False, highlight=False
    )


@app.command(epilog="Example:  [bold]secateur demo -o demo-out[/bold]")
def demo(
    out: Out = Path("demo-out"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The main job on the embedded model: 600 facts it half knows, and the cut that lets it say them."""
    _prune(
        "builtin:facts",
        "builtin:facts",
        out,
        {"seed": seed},
        overwrite=overwrite,
        as_json=as_json,
        quiet=quiet,
    )
    if not as_json:
        print(
            f"\nLook at {out / 'report.html'} in a browser. Next, a model and a task of your own:\n"
            "  secateur prune MODEL --task FILE.jsonl -o OUT     (the file's format: docs/tasks.md)\n"
            "or the second embedded example:\n"
            "  secateur prune builtin:recall --task builtin:recall -o recall-out"
        )


@app.command(
    "eval",
    epilog="Examples:  [bold]secateur eval gpt2 --task questions.jsonl[/bold]   ·   "
    "[bold]secateur eval builtin:facts --task builtin:facts --edit b2.gate=3[/bold]",
)
def evaluate(
    model: Model,
    task: TaskSpec,
    split: Annotated[
        str, typer.Option(help="probe, select or test; test counts as an opening and needs --ledger.")
    ] = "select",
    plan: PlanFile = None,
    edit: Edits = None,
    test_task: TestTask = None,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    limit: Limit = None,
    seqlen: Seqlen = 256,
    chat: Chat = False,
    allow_small: AllowSmall = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    trust_remote_code: Trust = False,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", metavar="FILE", help="Where an opening of test is written down."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Every metric of a model on one split of a task, with intervals; with a plan, of the model as if cut."""
    from rich.console import Console

    from secateur import api
    from secateur.cli.progress import bars
    from secateur.cli.tables import table

    options = _options(
        test_task=test_task, seed=seed, split_seed=split_seed, limit=limit, seqlen=seqlen, chat=chat, allow_small=allow_small,
        revision=revision, dtype=dtype, device=device, batch_size=batch_size, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    with bars(quiet=quiet or as_json) as progress:
        found = api.evaluate(
            model, task, split=split, plan=_plan(plan, edit), ledger=ledger, progress=progress, **options
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = [(s["metric"], s["value"], *s["ci"], s["n"], s["groups"], s["unit"]) for s in found["scores"]]
    title = f"{found['model']} on {found['task']} ({found['split']}), {found['plan']}"
    Console().print(table(("metric", "value", "95 % low", "high", "n", "groups", "unit"), rows, title=title))


@app.command(
    epilog="Examples:  [bold]secateur probe gpt2 --task questions.jsonl --what spectrum[/bold]   ·   "
    "[bold]secateur probe builtin:facts --task builtin:facts --what tail --edit b2.gate=3[/bold]"
)
def probe(
    model: Model,
    task: TaskSpec,
    what: Annotated[str, typer.Option(help="spectrum, curves, tail, frequency or paraphrases.")] = "spectrum",
    split: Annotated[str, typer.Option(help="probe or select.")] = "select",
    plan: PlanFile = None,
    edit: Edits = None,
    matrices: Matrices = "all",
    layers: Layers = None,
    seed: Seed = 0,
    split_seed: SplitSeed = 0,
    limit: Limit = None,
    seqlen: Seqlen = 256,
    chat: Chat = False,
    allow_small: AllowSmall = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read a model without changing it: spectra with predicted changes, loss against rank, what the tail answers,
    which facts a plan recovers by frequency, robustness to paraphrases."""
    from rich.console import Console

    from secateur import api
    from secateur.cli.progress import bars
    from secateur.cli.tables import table

    options = _options(
        matrices=matrices, layers=layers, seed=seed, split_seed=split_seed, limit=limit, seqlen=seqlen, chat=chat,
        allow_small=allow_small, revision=revision, dtype=dtype, device=device, batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    with bars(quiet=quiet or as_json) as progress:
        found = api.probe(
            model, task, what=what, split=split, plan=_plan(plan, edit), progress=progress, **options
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    columns = [name for name in found["rows"][0] if name != "values"]
    rows = [[_short(row[name]) for name in columns] for row in found["rows"]]
    Console().print(table(columns, rows, title=f"{what} of {model} on {found['task']} ({split})"))


def _short(value: Any) -> Any:
    """Lists as a short text."""
    if isinstance(value, list):
        return " ".join(_short_item(item) for item in value)
    return value


def _short_item(item: Any) -> str:
    if isinstance(item, list):
        return "{}×{}".format(item[1], str(item[0]).strip())
    return f"{item:.3g}" if isinstance(item, float) else str(item)


@app.command(epilog="Example:  [bold]secateur apply gpt2 --edit b10.down=20 -o gpt2-cut[/bold]")
def apply(
    model: Model,
    out: Out,
    plan: PlanFile = None,
    edit: Edits = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
) -> None:
    """Carry out a plan, or edits given by hand, without search and without verdict."""
    from secateur import api

    chosen = _plan(plan, edit)
    if chosen is None:
        raise SecateurError("nothing to apply: give --plan plan.json, or --edit b10.down=20.")
    made = api.apply(
        model,
        chosen,
        out,
        overwrite=overwrite,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    print(f"checkpoint  {made}   (nothing was verified: secateur eval {made} --task TASK)")


@app.command(epilog="Example:  [bold]secateur report out[/bold]")
def report(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A checkpoint that secateur prune wrote.")],
) -> None:
    """Write report.html of a checkpoint again, from its records."""
    from secateur import api

    print(api.report(folder))


@app.command(epilog="Example:  [bold]secateur runs experiments/[/bold]")
def runs(
    place: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to look for OUT.run folders, or a ledger file.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """List runs: what was asked, how far they came, what the verdict was."""
    from rich.console import Console

    from secateur.cli.runs import runs_in
    from secateur.cli.tables import table

    found = runs_in(place)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    columns = ("run", "model", "task", "created", "status", "plans judged")
    rows = [[run[name] for name in ("run", "model", "task", "created", "status", "plans")] for run in found]
    Console().print(table(columns, rows) if rows else f"no runs under {place}")


@app.command(epilog="Example:  [bold]secateur show out[/bold]")
def show(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A checkpoint folder OUT, its OUT.run, or a ledger file.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many of the judged plans to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Print one run: its verdict where it has one, and the plans it judged, best first."""
    from rich.console import Console

    from secateur.cli.runs import run_record
    from secateur.cli.tables import print_verdict, table

    found = run_record(run, top)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    if found["verdict"] is not None:
        print_verdict(console, found["verdict"])
        console.print()
    rows = [(t["plan"], t["n"], t["accuracy"], t["loss"], t["seconds"]) for t in found["trials"]]
    console.print(
        table(("plan", "n", "accuracy", "loss", "seconds"), rows, title=f"{found['judged']} plans judged")
    )


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks that have a name."""
    from rich.console import Console

    from secateur.cli.tables import table
    from secateur.tasks.load import list_tasks

    found = list_tasks()
    if as_json:
        print(json.dumps([info._asdict() for info in found], indent=2))
        return
    Console().print(table(("task", "kind", "what", "needs"), [tuple(info) for info in found]))


def _version(asked: bool) -> None:
    if asked:
        print(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors of users become one message and exit code 2; Ctrl-C says how to go on and exits with 130."""
    logging.basicConfig(format="secateur: %(message)s", level=logging.WARNING)
    try:
        app()
    except SecateurError as error:
        print(f"secateur: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            "secateur: interrupted. What was judged is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(130)
