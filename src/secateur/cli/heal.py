"""The verb `heal`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.finetune import print_training, score_cell, stated, warn_of_learned_select
from secateur.cli.generated import with_options
from secateur.cli.options import AsJson, Commands, Out, Overwrite, Quiet, TaskSpec, examples
from secateur.core.config import options_of
from secateur.training.options import HEAL_DEFAULTS, Healing, task_options, tuning_options

if TYPE_CHECKING:
    from secateur.training.records.heal import HealRecord


def heal(
    cut: Annotated[str, typer.Argument(metavar="CUT", help="A folder that prune or apply wrote.")],
    task: TaskSpec,
    out: Out,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that CUT was cut from, where it is not where it was."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare to the original on test too; the opening is noted here."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Teach a cut model what its original computes on TASK.

    OUT has the form that CUT has, and loads where CUT loads; its report.html shows the original, the cut and the healed
    side by side. Killed at any moment, the same command goes on where it was.
    """
    from secateur.cli.progress import bars
    from secateur.training.records.heal import HealRecord

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur.training import verbs

        healed = verbs.heal(
            cut, task, out, teacher=teacher, ledger=ledger, overwrite=overwrite, progress=progress, **stated(options)
        )  # fmt: skip
    print_training(healed, HealRecord, print_healed, as_json=as_json, page="report.html")


with_options(
    heal,
    described=[
        *options_of(Healing),
        *tuning_options(HEAL_DEFAULTS),
        *task_options("revision", "gguf_file", "max_tokens"),
    ],
)


def print_healed(record: HealRecord) -> None:
    """Print the metrics of all three models, then the losses stage by stage."""
    from secateur.cli.tables import print_rows
    from secateur.cli.terminal import terminal

    models, learned = ("teacher", "unhealed", "healed"), record.trained_on
    measured = [("validation", row) for row in record.scores] + [(row.name, row) for row in record.sides]
    measured += [("test", row) for row in record.test_scores]
    scores = [
        (f"{row.metric} on {where}", *(score_cell(score, row.unit) for score in row.three.values()))
        for where, row in measured
    ]
    if terminal().width < 100:  # intervals below their values
        scores = [tuple(cell.replace(" [", "\n[") for cell in row) for row in scores]
    title = f"healed on {learned.examples} examples of {record.task.name} ({', '.join(learned.splits)})"
    print_rows(("measured", *models), scores, title=title, whole=models)
    print()
    epochs = [
        (
            stage.stage, f"{row.epoch:g}", row.step, row.train_loss, row.select_loss, "kept" if row.kept else "",
        )
        for stage in record.stages
        for row in stage.epochs
    ]  # fmt: skip
    print_rows(("stage", "epoch", "step", "loss on learned", "loss on validation", ""), epochs)
    print(f"{record.tokens:,} tokens read in {record.seconds:.1f} s")
    for sentence in record.sentences:
        print(sentence)
    warn_of_learned_select(learned)


VERBS: Commands = (
    (
        heal,
        {
            "epilog": examples(
                "secateur heal my-llama-cut --task text:book.txt -o my-llama-healed",
                "secateur heal my-llama-cut --task text:book.txt --stage layers --lr 1e-3 -o healed",
            )
        },
    ),
)
