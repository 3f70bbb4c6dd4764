"""The verbs that only look: `eval`, `transfer`, `probe`, `map`, `runs`, `show`, `tasks`, `models`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.finetune import stated
from secateur.cli.generated import given, with_options
from secateur.cli.options import (
    Also,
    AsJson,
    Commands,
    Edits,
    Finer,
    GgufFile,
    Model,
    Opened,
    Parts,
    PlanFile,
    Quiet,
    Readout,
    Revision,
    Revisions,
    ShotsList,
    TaskSpec,
    TaskSpecs,
    Trust,
    examples,
    given_plan,
    numbers_of,
    print_json,
    print_made,
)
from secateur.core.config import words_of
from secateur.core.site import CHECKS, MAPPED

READ = (
    "seed", "split_seed", "limit", "seqlen", "chat", "join", "skip_long", "revision", "gguf_file", "dtype", "device",
    "device_map", "offload_folder", "max_memory", "spectra", "max_tokens", "trust_remote_code",
)  # fmt: skip


def evaluate(
    model: Model,
    task: TaskSpec,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="probe, select or test; test counts as an opening and needs --ledger."
        ),
    ] = "select",
    plan: PlanFile = None,
    edit: Edits = None,
    ledger: Opened = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Every metric of a model on one split of a task, with intervals.

    With --plan or --edit, of the model as if cut; nothing is written.
    """
    from secateur.cli.progress import bars
    from secateur.cli.tables import print_scores

    chosen = given_plan(plan, edit)
    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.evaluate(
            model, task, split=split, plan=chosen, ledger=ledger, progress=progress, **given(options)
        )
    if as_json:
        print_json(found)
    else:
        print_scores(found)


with_options(evaluate, only=(*READ, "test_task", "shots", "allow_small", "extract", "max_new_tokens"))


def transfer(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="plan.json, or a checkpoint folder that holds one.")
    ],
    task: TaskSpec,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="A model of the same shapes. [default: the one that PLAN is of]"
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            "--ledger", metavar="FILE", help="Count the opening of test here. [default: PLAN.run's]"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Measure a plan on the test split of another task, or in a model of other weights.

    The whole model against the same as if cut, paired, with the words of a verdict. In another model linear maps are
    fitted anew; nothing is written but the count of openings.
    """
    from secateur.cli.progress import bars
    from secateur.cli.tables import print_transfer

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.transfer(plan, model, task=task, ledger=ledger, progress=progress, **given(options))
    print_json(found) if as_json else print_transfer(found)


with_options(
    transfer, only=(*READ, "objective", "test_task", "shots", "allow_small", "extract", "max_new_tokens")
)


def probe(
    model: Model,
    task: TaskSpecs = None,
    what: Annotated[
        str, typer.Option(metavar="NAME", help="One of the readings above; of the first four, several: a,b.")
    ] = "spectrum",
    split: Annotated[str, typer.Option(metavar="NAME", help="probe or select.")] = "select",
    shots: ShotsList = "0",
    top: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Print the N most and N least important (10 of neurons, else all); --json has all.",
        ),
    ] = None,
    plan: PlanFile = None,
    edit: Edits = None,
    revisions: Revisions = None,
    also: Also = None,
    parts: Parts = False,
    finer: Finer = None,
    out: Readout = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Read a model without changing it.

    \b
    heads        importance of every attention head, from gradients
    ffns         worth of every FFN, attention and block, by ablation
    neurons      importance of every feed-forward neuron, from gradients
    experts      use of every expert of a mixture, and what is lost without it
    induction    prefix matching and copying: what every head does, not its worth
    linearity    how near every block is to a linear map; of encoders too
    spectrum     singular values, and what truncating is predicted to change
    directions   what removing each singular direction is predicted to change
    curves       loss and accuracy against rank
    tail         what the kept and the removed components answer
    frequency    which facts a plan recovers, by how often training had them
    paraphrases  robustness to other phrasings
    """
    from secateur.cli.probe_tables import print_readings
    from secateur.cli.progress import bars

    readings, numbers, chosen = words_of(what), numbers_of(shots), given_plan(plan, edit)
    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.probe(
            model, task or (), what=readings, split=split, shots=numbers, plan=chosen, out=out, progress=progress,
            revisions=words_of(revisions or ""), also=also or (), parts=parts, finer=words_of(finer or ""),
            **stated(options),
        )  # fmt: skip
    if as_json:
        print_json(found)
        return
    print_readings(found, top)
    if out is not None:
        print("\n" + "\n".join(f"written  {path}" for path in found["written"]))


MATRICES = ("matrices", "layers", "small_ranks", "per_head", "second_order", "whitened")
with_options(probe, only=(*READ, *MATRICES))


def need_map(
    model: Model,
    task: TaskSpec,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="Write map.json and map.html to this folder.")
    ],
    what: Annotated[
        str, typer.Option(metavar="NAMES", help="Which kinds of components, such as heads,ffns.")
    ] = ",".join(MAPPED),
    split: Annotated[str, typer.Option(metavar="NAME", help="probe or select.")] = "select",
    checks: Annotated[
        int, typer.Option(metavar="N", help="Take N components of each kind out in truth; 0 for none.")
    ] = CHECKS,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", metavar="FILE", help="Keep what is done here instead of OUT/ledger.sqlite."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Map what every component of a model is worth for a task, and say which reading of that is true.

    Each reading is checked by taking components out and measuring the loss again. Stopped at any moment, the same
    command goes on from there.

    \b
    blocks, attentions, ffns   what goes whole
    groups, heads              KV groups and query heads
    neurons                    eighths of a feed-forward network, by importance
    matrices                   at a half, a quarter and a tenth of their rank
    """
    from secateur.cli.probe_tables import print_map
    from secateur.cli.progress import bars

    kinds = words_of(what)
    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur import api

        found = api.need_map(
            model, task, out, what=kinds, split=split, checks=checks, ledger=ledger, progress=progress,
            **given(options),
        )  # fmt: skip
    print_json(found) if as_json else print_map(found)


with_options(need_map, only=(*READ, "layers", "shots", "objective"))


def runs(
    place: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to look for OUT.run folders, or a ledger file.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """List runs of prune, apply, finetune, heal and train: what was asked, how far they came, the verdict."""
    from secateur.cli.runs import runs_in
    from secateur.cli.tables import print_rows

    found = runs_in(place)
    if as_json:
        print_json(found)
    elif not found:
        print(f"no runs under {place}")
    else:
        names = ("run", "verb", "model", "task", "created", "status", "plans")
        rows = [[run[name] for name in names] for run in found]
        for row in rows:  # of a path the last part: the others would break the table; --json has all
            row[2] = Path(row[2]).name if os.path.isabs(row[2]) else row[2]
        print_rows(names, rows, whole=("verb", "created", "plans"))


def show(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A checkpoint folder OUT, its OUT.run, or a ledger file.")
    ],
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many of the judged plans to list.")] = 20,
    optuna: Annotated[
        Path | None,
        typer.Option(metavar="FILE.db", help="Write the judged plans as an optuna study, for its dashboard."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print one run: its verdict, and the plans it judged, best first. Of a trained checkpoint, what was gained."""
    from secateur.cli.finetune import print_tuned
    from secateur.cli.heal import print_healed
    from secateur.cli.runs import run_record, trained_record, write_optuna
    from secateur.cli.tables import print_run
    from secateur.cli.train import print_trained
    from secateur.training.records.finetune import FinetuneRecord
    from secateur.training.records.heal import HealRecord
    from secateur.training.records.train import TrainRecord

    printers: dict[str, Callable[[Mapping[str, object]], None]] = {
        "heal": lambda found: print_healed(HealRecord.model_validate(found)),
        "finetune": lambda found: print_tuned(FinetuneRecord.model_validate(found)),
        "train": lambda found: print_trained(TrainRecord.model_validate(found)),
        "prune": print_run,
    }
    if optuna is not None:
        count = write_optuna(run, optuna)
        made = {"optuna": str(optuna), "trials": count}
        print_json(made) if as_json else print(
            f"{optuna}  {count} trials: optuna-dashboard sqlite:///{optuna}"
        )
        return
    verb, found = trained_record(run) or ("prune", run_record(run, top))
    if as_json:
        print_json(found)
    else:
        print_made(lambda: printers[verb](found), run)


def tasks(
    check: Annotated[
        str | None, typer.Option("--check", metavar="TASK", help="Say what is understood of this task.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="With --check: also say lengths in its tokens; no weights are read.",
        ),
    ] = None,
    as_json: AsJson = False,
    **options: object,
) -> None:
    """List the tasks that have a name; with --check, say what is understood of a task of your own.

    Its form, splits, lengths in tokens, chance, and three examples as the model reads them.
    """
    from secateur.cli.tables import print_check, print_rows

    if check is not None:
        from secateur import api

        found = api.check_task(model, check, **stated(options))
        print_json(found) if as_json else print_check(found)
        return
    from secateur.tasks.load import list_tasks

    listed = list_tasks()
    if as_json:
        print_json([info._asdict() for info in listed])
    else:
        print_rows(("task", "kind", "what", "needs"), [tuple(info) for info in listed])


CHECKED = (
    "test_task", "split_seed", "limit", "shots", "seqlen", "chat", "join", "extract", "max_new_tokens", "revision",
    "gguf_file", "trust_remote_code",
)  # fmt: skip
with_options(tasks, only=CHECKED)


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Prove what is read of this one's structure; no weights are read."
        ),
    ] = None,
    revision: Revision = None,
    gguf_file: GgufFile = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """List the families of models that can be cut, and what each of them does not allow; or prove one MODEL.

    The test suite proves each on tiny random models: masked and cut they compute the same, with a cache and without.
    With MODEL that is done here, on a tiny random copy of its config, with the transformers that are installed: exit
    code 1 where an edit is not proved.
    """
    if model is not None:
        from secateur import api

        found = api.check_structure(
            model, revision=revision, gguf_file=gguf_file, trust_remote_code=trust_remote_code
        )
        if as_json:
            print_json(found)
        else:
            from secateur.cli.probe_tables import print_structure

            print_structure(found)
        if not all(edit["proved"] or edit["refused"] for edit in found["edits"]):
            raise typer.Exit(1)
        return
    from secateur.cli.tables import print_rows
    from secateur.hf.families import TOWERS
    from secateur.hf.recognize import list_families

    listed = list_families()
    if as_json:
        print_json({"families": [info._asdict() for info in listed], "multimodal": [*TOWERS]})
    else:
        rows = [(one.family, one.architecture, "yes" if one.classifier else "", one.limits) for one in listed]
        print_rows(("family", "class", "classifier", "limits"), rows)
        print_rows(
            ("multimodal: cut is the language model, of a family above",), [(name,) for name in TOWERS]
        )


VERBS: Commands = (
    (
        evaluate,
        {
            "name": "eval",
            "epilog": examples(
                "secateur eval gpt2 --task questions.jsonl",
                "secateur eval builtin:facts --task builtin:facts --edit b2.gate=3",
            ),
        },
    ),
    (
        transfer,
        {
            "epilog": examples(
                "secateur transfer out --task other.jsonl",
                "secateur transfer out ./my-llama-instruct --task questions.jsonl --ledger siblings.sqlite",
            ),
        },
    ),
    (
        probe,
        {
            "epilog": examples(
                "secateur probe gpt2 --task questions.jsonl --what spectrum",
                "secateur probe gpt2 --task a.jsonl --task b.jsonl --shots 0,5 --what heads",
                "secateur probe gpt2 --task questions.jsonl --what tail --edit b10.down=20",
            )
        },
    ),
    (
        need_map,
        {
            "name": "map",
            "epilog": examples(
                "secateur map gpt2 --task questions.jsonl -o map",
                "secateur map ./my-llama --task text:book.txt --what heads,ffns --limit 200 -o map",
            ),
        },
    ),
    (runs, {"epilog": examples("secateur runs experiments/")}),
    (show, {"epilog": examples("secateur show out")}),
    (
        tasks,
        {"epilog": examples("secateur tasks", "secateur tasks --check questions.csv --model gpt2")},
    ),
    (models, {"epilog": examples("secateur models", "secateur models ./my-llama", "secateur models --json")}),
)
