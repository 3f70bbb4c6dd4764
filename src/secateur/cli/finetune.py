"""The verb `finetune`, and the options and the output that the training verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from secateur.cli.generated import with_options
from secateur.cli.options import (
    AsJson,
    Commands,
    Model,
    Out,
    Overwrite,
    Quiet,
    TaskSpec,
    already_told,
    examples,
    print_json,
    print_made,
)
from secateur.training.options import FINETUNE_DEFAULTS, task_options, tuning_options

if TYPE_CHECKING:
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import ScoreRecord
    from secateur.training.records.finetune import FinetuneRecord, TrainingSplitsRecord
    from secateur.training.state import Tuned

R = TypeVar("R", bound="Record")


def finetune(
    model: Model,
    task: TaskSpec,
    out: Out,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Train all weights of MODEL on the answers of TASK.

    OUT loads like any other checkpoint and can be pruned: the test split stays unseen. Killed at any moment, the same
    command goes on where it was.
    """
    from secateur.cli.progress import bars
    from secateur.training.records.finetune import FinetuneRecord

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur.training import verbs

        tuned = verbs.finetune(model, task, out, overwrite=overwrite, progress=progress, **stated(options))
    print_training(tuned, FinetuneRecord, print_tuned, as_json=as_json)


with_options(finetune, described=[*tuning_options(FINETUNE_DEFAULTS), *task_options("max_tokens")])


def stated(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that have a value: what is left out has the default of the Python function."""
    return {name: value for name, value in options.items() if value is not None}


def print_training(
    tuned: Tuned,
    kind: type[R],
    show: Callable[[R], None],
    *,
    as_json: bool,
    page: str | None = None,
) -> None:
    """Print the record of a training, as JSON or with `show`, and where the checkpoint is.

    Args:
        tuned: The result.
        kind: The type of its record.
        show: Prints such a record.
        as_json: Print the record as JSON.
        page: The name of a report beside the checkpoint.
    """

    def print_all() -> None:
        if as_json:
            print_json(tuned.record | {"out": str(tuned.out), "already": tuned.already})
            return
        if tuned.already:
            print(already_told(tuned.out))
        show(kind.model_validate(tuned.record))
        print(f"\ncheckpoint  {tuned.out}")
        if page is not None:
            print(f"report      {tuned.out / page}")

    print_made(print_all, *([tuned.out] if tuned.already else []))


def print_tuned(record: FinetuneRecord) -> None:
    """Print the metrics on select before and after, then the losses by epoch."""
    from secateur.cli.tables import print_rows

    learned = record.trained_on
    scores = [
        (f"{row.metric} on validation", *(score_cell(score, row.unit) for score in (row.before, row.after)))
        for row in record.scores
    ]
    title = f"learned {learned.examples} examples of {record.task.name} ({', '.join(learned.splits)})"
    print_rows(("measured", "before", "after"), scores, title=title, whole=("before", "after"))
    print()
    epochs = [
        (f"{row.epoch:g}", row.step, row.train_loss, row.select_loss, "written" if row.kept else "")
        for row in record.epochs
    ]
    print_rows(("epoch", "step", "loss on learned", "loss on validation", ""), epochs)
    if record.task.kind != "text":
        print("Epochs count every answer token alike; the loss before and after counts every example alike.")
    warn_of_learned_select(learned)


def score_cell(score: ScoreRecord, unit: str) -> str:
    """Return a score with its interval as a cell of a table."""
    from secateur.cli.tables import with_interval

    return with_interval(score.to_json(), unit)


def warn_of_learned_select(learned: TrainingSplitsRecord) -> None:
    """Print a warning where select was trained on, so that its numbers prove nothing."""
    if learned.select_was_trained_on:
        print("Select was learned too: its numbers say nothing about new examples.")


VERBS: Commands = (
    (
        finetune,
        {
            "epilog": examples(
                "secateur finetune gpt2 --task cb:train.jsonl --test-task cb:val.jsonl -o gpt2-cb",
                "secateur finetune ./my-llama --task q.jsonl --split probe,select --lr 2e-5 -o tuned",
                "secateur finetune ./my-llama --task q.jsonl --lora 8 --lora-targets q,v --lr 2e-4 -o tuned",
            )
        },
    ),
)
