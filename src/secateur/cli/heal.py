"""The verb `heal`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.finetune import (
    Bf16,
    Decay,
    Epochs,
    Learned,
    Lora,
    LoraAlpha,
    LoraTargets,
    MaxSteps,
    PerStep,
    Rate,
    TrainSeed,
    Warmup,
    print_training,
    score_cell,
    warn_of_learned_select,
)
from secateur.cli.options import (
    AllowSmall,
    AsJson,
    Chat,
    Device,
    Dtype,
    Limit,
    Out,
    Overwrite,
    Quiet,
    Seqlen,
    Shots,
    SkipLong,
    SplitSeed,
    TaskSpec,
    TestTask,
    Trust,
    examples,
)

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
    stage: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="layers (what stands for blocks, by the streams there), end (everything), or both in turn.",
        ),
    ] = "both",
    temperature: Annotated[
        float, typer.Option(metavar="T", help="end: of both models' probabilities.")
    ] = 1.0,
    hidden: Annotated[
        float,
        typer.Option(metavar="WEIGHT", help="end: weight of the streams' error beside the divergence."),
    ] = 1.0,
    side: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A task to watch; may be repeated. Left out: plain English."),
    ] = None,
    split: Learned = "probe",
    epochs: Epochs = 3,
    lr: Rate = 1e-4,
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
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare to the original on test too; the opening is noted here."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
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
            cut, task, out, teacher=teacher, stage=stage, temperature=temperature, hidden=hidden, side=side or (),
            ledger=ledger, split=split, epochs=epochs, lr=lr, batch_size=batch_size, weight_decay=weight_decay,
            warmup=warmup, max_steps=max_steps, bf16=bf16, lora=lora, lora_alpha=lora_alpha,
            lora_targets=lora_targets, test_task=test_task, seed=seed, split_seed=split_seed, limit=limit, shots=shots,
            seqlen=seqlen, chat=chat, allow_small=allow_small, skip_long=skip_long, dtype=dtype,
            device=device, trust_remote_code=trust_remote_code, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    print_training(healed, HealRecord, print_healed, as_json=as_json, page="report.html")


def print_healed(record: HealRecord) -> None:
    """Print the metrics of all three models, then the losses stage by stage."""
    from secateur.cli.tables import print_rows
    from secateur.cli.terminal import terminal

    models, learned = ("teacher", "unhealed", "healed"), record.trained_on
    measured = [("select", row) for row in record.scores] + [(row.name, row) for row in record.sides]
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
    print_rows(("stage", "epoch", "step", "loss on learned", "loss on select", ""), epochs)
    print(f"{record.tokens:,} tokens read in {record.seconds:.1f} s")
    for sentence in record.sentences:
        print(sentence)
    warn_of_learned_select(learned)


VERBS: tuple[tuple[Any, dict[str, Any]], ...] = (
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
