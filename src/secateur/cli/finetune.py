"""The verb `finetune`, and the options and the output that the training verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from secateur.cli.options import (
    AllowSmall,
    AsJson,
    Chat,
    Device,
    Dtype,
    Limit,
    Model,
    Out,
    Overwrite,
    Quiet,
    Revision,
    Seqlen,
    Shots,
    SkipLong,
    SplitSeed,
    TaskSpec,
    TestTask,
    Trust,
    already_told,
    examples,
    print_json,
    print_made,
)

if TYPE_CHECKING:
    from secateur.core.records.record import Record
    from secateur.core.records.verdict import ScoreRecord
    from secateur.training.records.finetune import FinetuneRecord, TrainingSplitsRecord
    from secateur.training.state import Tuned

R = TypeVar("R", bound="Record")

Learned = Annotated[
    str,
    typer.Option(
        "--split",
        metavar="NAMES",
        help="What to learn: probe, select, or probe,select. Test is never trained on.",
    ),
]
Epochs = Annotated[int, typer.Option(metavar="N", help="How often every example is learned.")]
Rate = Annotated[float, typer.Option(metavar="RATE", help="Learning rate at its peak.")]
PerStep = Annotated[int, typer.Option("--batch-size", metavar="N", help="Examples per step.")]
Decay = Annotated[float, typer.Option("--weight-decay", metavar="RATE", help="AdamW's weight decay.")]
Warmup = Annotated[
    float, typer.Option(metavar="SHARE", help="Share of the steps in which the rate rises, such as 0.06.")
]
MaxSteps = Annotated[int | None, typer.Option(metavar="N", help="Exactly N steps, whatever --epochs says.")]
Bf16 = Annotated[
    bool, typer.Option("--bf16", help="Mixed precision: weights in float32, arithmetic in bfloat16.")
]
Lora = Annotated[
    int | None,
    typer.Option(metavar="RANK", help="Train low-rank adapters of this rank instead, and merge them (peft)."),
]
LoraAlpha = Annotated[
    float | None, typer.Option(metavar="A", help="What adapters add is scaled by A/RANK; default 2 · RANK.")
]
LoraTargets = Annotated[
    str, typer.Option(metavar="NAMES", help="Matrices that get adapters, such as q,v or o,down, attn, mlp.")
]
TrainSeed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed of the order of examples and of dropout.")
]


def finetune(
    model: Model,
    task: TaskSpec,
    out: Out,
    split: Learned = "probe",
    epochs: Epochs = 3,
    lr: Rate = 5e-5,
    batch_size: PerStep = 8,
    weight_decay: Decay = 0.0,
    warmup: Warmup = 0.0,
    max_steps: MaxSteps = None,
    bf16: Bf16 = False,
    lora: Lora = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "all",
    test_task: TestTask = None,
    seed: TrainSeed = 0,
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
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
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

        tuned = verbs.finetune(
            model, task, out, split=split, epochs=epochs, lr=lr, batch_size=batch_size, weight_decay=weight_decay,
            warmup=warmup, max_steps=max_steps, bf16=bf16, lora=lora, lora_alpha=lora_alpha, lora_targets=lora_targets,
            test_task=test_task, seed=seed, split_seed=split_seed, limit=limit, shots=shots, seqlen=seqlen, chat=chat,
            allow_small=allow_small, skip_long=skip_long,
            revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    print_training(tuned, FinetuneRecord, print_tuned, as_json=as_json)


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
        (f"{row.metric} on select", *(score_cell(score, row.unit) for score in (row.before, row.after)))
        for row in record.scores
    ]
    title = f"learned {learned.examples} examples of {record.task.name} ({', '.join(learned.splits)})"
    print_rows(("measured", "before", "after"), scores, title=title, whole=("before", "after"))
    print()
    epochs = [
        (f"{row.epoch:g}", row.step, row.train_loss, row.select_loss, "written" if row.kept else "")
        for row in record.epochs
    ]
    print_rows(("epoch", "step", "loss on learned", "loss on select", ""), epochs)
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


VERBS: tuple[tuple[Any, dict[str, Any]], ...] = (
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
