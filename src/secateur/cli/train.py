"""The verb `train`, which trains from random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.finetune import print_training, stated
from secateur.cli.generated import with_options
from secateur.cli.options import AsJson, Commands, Out, Overwrite, Quiet, examples
from secateur.core.config import options_of
from secateur.training.options import TRAIN_DEFAULTS, Recipe, task_options, tuning_options

if TYPE_CHECKING:
    from secateur.training.records.train import TrainRecord


def train(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="text:FILE, .txt or .jsonl with one document a line.")
    ],
    out: Out,
    tokenizer: Annotated[
        str, typer.Option(metavar="FOLDER", help="A folder with a tokenizer, such as any model's.")
    ],
    layers: Annotated[int, typer.Option(metavar="N", help="Blocks.")] = 4,
    d_model: Annotated[int, typer.Option("--d-model", metavar="N", help="Width of the stream.")] = 128,
    heads: Annotated[int, typer.Option(metavar="N", help="Query heads.")] = 4,
    kv_heads: Annotated[
        int | None, typer.Option(metavar="N", help="Key/value heads (as many as --heads).")
    ] = None,
    d_ff: Annotated[
        int | None, typer.Option("--d-ff", metavar="N", help="Neurons of a network (8/3 of --d-model).")
    ] = None,
    context: Annotated[int, typer.Option(metavar="N", help="Positions the model has.")] = 512,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **options: object,
) -> None:
    """Train a Mistral of any size from nothing on a text.

    With checkpoints at chosen steps, to read how linear they are. Killed at any moment, the same command goes on where
    it was.
    """
    from secateur.cli.progress import bars
    from secateur.training.records.train import TrainRecord

    with bars(quiet=quiet or as_json) as progress:
        progress("load", 0, 1)
        from secateur.training import verbs

        made = verbs.train(
            text, tokenizer, out, overwrite=overwrite, progress=progress, layers=layers, d_model=d_model, heads=heads,
            kv_heads=kv_heads, d_ff=d_ff, context=context, **stated(options),
        )  # fmt: skip
    print_training(made, TrainRecord, print_trained, as_json=as_json)


OF_TUNING = tuning_options(
    TRAIN_DEFAULTS, "split", "epochs", "max_steps", "lora", "lora_alpha", "lora_targets"
)
OF_TASK = [one for one in task_options() if one.name in ("seed", "seqlen", "device")]
with_options(train, described=[*options_of(Recipe), *OF_TUNING, *OF_TASK])


def print_trained(record: TrainRecord) -> None:
    """Print the held-out loss at the steps that were kept."""
    from secateur.cli.tables import print_rows

    spent = f"{record.tokens:,} tokens in {record.seconds:.1f} s"
    title = f"a Mistral of {record.parameters:,} parameters, {spent}"
    rows = [(row.step, row.held_out_loss) for row in record.losses]
    print_rows(("step", "loss on held-out text"), rows, title=title)


VERBS: Commands = (
    (
        train,
        {
            "epilog": examples(
                "secateur train text:stories.txt --tokenizer ./my-llama --save-steps 0,100,1000 -o plain",
                "secateur train text:stories.txt --tokenizer ./my-llama --regulariser cosine -o pulled",
            )
        },
    ),
)
