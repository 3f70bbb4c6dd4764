"""Model cards (README.md) and sentences about trained models, written from their records alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from secateur.checkpoint.card import front_matter
from secateur.core.records.verdict import IntervalRecord, ScoreRecord
from secateur.training.records.finetune import FinetuneRecord, ModelIdentityRecord, TrainedModelRecord
from secateur.training.records.heal import HealedScoreRecord, HealedSideRecord, HealRecord
from secateur.training.records.train import TrainRecord

# ------------------------------------------------------------------------------------------------------------ sentences


def healing_sentence(
    scores: Sequence[HealedScoreRecord], sides: Iterable[HealedSideRecord], tokens: int, seconds: float
) -> str:
    """Return in words what came back, what that cost, and which side tasks got worse.

    Args:
        scores: Every metric on select; the sentence is about the first one that the cut is shown to have lost.
        sides: The side tasks.
        tokens: Tokens that were read in training.
        seconds: Wall clock of the training.
    """
    cost = f"{tokens:,} tokens read in {seconds:.0f} s."
    worse = [
        f" Worse for it: {row.name}, {_words(row.metric)} {_change(row.gain, row.unit)}."
        for row in sides
        if (ci := row.gain.ci) and (ci[1] < 0 if row.higher_is_better else ci[0] > 0)
    ]
    lost = next((row for row in scores if row.recovered), None)
    if lost is None:
        start = f"On the validation split the cut is not shown to have cost any {_words(scores[0].metric)}; {cost}"
    else:
        amount = _amount(abs(lost.teacher.value - lost.unhealed.value), lost.unit)
        start = (
            f"The cut cost {amount} of {_words(lost.metric)} on the validation split; healing brought back "
            f"{share_recovered(lost.recovered)} of that: {cost}"
        )
    return start + "".join(worse)


def test_sentence(n: int, verdict: str, score: HealedScoreRecord) -> str:
    """Return in words what `n` test examples say; `score` is the primary metric on them."""
    gap, gain = _change(score.gap, score.unit), _change(score.gain, score.unit)
    return (
        f"On {n} test examples that nothing was chosen by, the healed model against the original: "
        f"{verdict}, {gap}; against the unhealed {gain}."
    )


def share_recovered(recovered: IntervalRecord | None) -> str:
    """Return `61 % [50, 70]`, or nothing where no loss was shown."""
    if recovered is None:
        return ""
    ends = ", ".join(f"{100 * end:.0f}" for end in recovered.ci or ())
    return f"{100 * recovered.value:.0f} % [{ends}]"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _change(difference: IntervalRecord, unit: str) -> str:
    ends = ", ".join(_number(end, unit) for end in difference.ci or ())
    return _amount(difference.value, unit, "+") + (f" [{ends}]" if ends else " (no interval: too few groups)")


def _amount(value: float, unit: str, sign: str = "") -> str:
    return _number(value, unit, sign) + (" points" if unit == "share" else f" {unit}")


def _number(value: float, unit: str, sign: str = "+") -> str:
    return f"{100 * value:{sign}.1f}" if unit == "share" else f"{value:{sign}.3f}"


# ---------------------------------------------------------------------------------------------------------------- cards


def finetuning_card(record: FinetuneRecord) -> str:
    """Return README.md of a fine-tuned checkpoint."""
    model, learned = record.model, record.trained_on
    what = "All parameters"
    if record.lora:
        what = (
            f"Low-rank adapters of rank {record.lora.rank} of {record.lora.layers} linear layers, merged at the end, "
            f"{record.trained_parameters:,} parameters in all,"
        )
    caution = "The epoch was chosen by its loss on the validation split, so the numbers below are a little too good."
    if learned.select_was_trained_on:
        caution = "Select was learned too: its numbers below say nothing about new examples."
    scores = _table(
        (f"{row.metric} ({row.unit})", _with_interval(row.before), _with_interval(row.after))
        for row in record.scores
    )
    epochs = _table(
        (
            f"{row.epoch:g}", str(row.step), f"{row.train_loss:.4f}", f"{row.select_loss:.4f}",
            "written" if row.kept else "",
        )
        for row in record.epochs
    )  # fmt: skip
    return f"""{_head("fine-tuned", model)}# {_short(model)}, fine-tuned on {record.task.name}

{what} were trained on the answers of {learned.examples} examples ({" and ".join(learned.splits)}); no
other text, and nothing of the test split, was learned. {caution}

| on the validation split (n = {learned.select_examples}) | before | after |
|---|---|---|
{scores}

| epoch | step | loss on what is learned | loss on the validation split | |
|---|---|---|---|---|
{epochs}

Losses are nats per answer token, without dropout, in the precision of training.

## How to load it

`AutoModelForCausalLM.from_pretrained(FOLDER)`{_remote_code(model)}

## How it was made

`{record.command}`

Fingerprint `{model.fingerprint}` before, `{record.fingerprint}` after; task hash `{record.task.hash}`.
`finetune.json` holds every number.{_read_from(model)}
"""


def healing_card(record: HealRecord) -> str:
    """Return README.md of a healed checkpoint."""
    cut, teacher, learned = record.cut, record.teacher, record.trained_on
    measured = [("on the validation split", row) for row in record.scores] + [
        ("on test", row) for row in record.test_scores
    ]
    measured += [(f"on {row.name}, on the side", row) for row in record.sides]
    scores = _table(
        (
            f"{row.metric} {where} ({row.unit})",
            *map(_with_interval, row.three.values()),
            share_recovered(row.recovered),
        )
        for where, row in measured
    )
    stages = _table(
        (
            stage.stage, f"{stage.trained_parameters:,}", str(stage.depths), f"{stage.tokens:,}",
            f"{stage.seconds:.1f}", f"{stage.epochs[0].select_loss:.4f}", f"{stage.kept_loss:.4f}",
        )
        for stage in record.stages
    )  # fmt: skip
    return f"""{_head("distilled", teacher)}# {_short(cut)}, healed on {record.task.name}

A cut model ({cut.parameters:,} parameters), taught by the model that it was cut from
({teacher.parameters:,}) on {learned.examples} examples ({" and ".join(learned.splits)}); nothing of the test
split was learned. The epoch of each stage was chosen by: {learned.chosen_by}.

{" ".join(record.sentences)}

| | teacher | cut, unhealed | healed | of what was lost came back |
|---|---|---|---|---|
{scores}

| stage | parameters trained | depths compared | tokens | seconds | loss on the validation split before | after |
|---|---|---|---|---|---|---|
{stages}

A token counts as often as it was read. Intervals are 95 %.

## How to load it

`AutoModelForCausalLM.from_pretrained(FOLDER)`{_remote_code(cut)}

## How it was made

`{record.command}`

Fingerprint `{teacher.fingerprint}` of the teacher, `{cut.fingerprint}` cut, `{record.fingerprint}` healed;
task hash `{record.task.hash}`. `heal.json` holds every number.
"""


def pretraining_card(record: TrainRecord) -> str:
    """Return README.md of a model that was trained from random weights."""
    recipe, extra = record.recipe, "no regulariser"
    if recipe.regulariser != "none":
        extra = f"the {recipe.regulariser} regulariser at weight {recipe.weight:g}"
    losses = _table((str(row.step), f"{row.held_out_loss:.4f}") for row in record.losses)
    return f"""---
library_name: transformers
tags:
- secateur
---
# A Mistral of {record.parameters:,} parameters, from nothing

{recipe.size.layers} blocks of width {recipe.size.d_model}, trained for {recipe.steps} steps on {record.tokens:,} tokens
of {Path(recipe.text).name}, with {extra}. {record.sequences.held_out} of its chunks were held out.

| step | loss on what was held out, nats a token |
|---|---|
{losses}

## How it was made

`{record.command}`

Fingerprint `{record.fingerprint}`. `train.json` holds every number.
"""


def _head(tag: str, base: ModelIdentityRecord) -> str:
    """Return the metadata of a card; the base model is named where the hub has it."""
    name = base.name if base.gguf is None else "/".join(base.name.split("/")[:2])  # what follows is the file
    return front_matter(name, [tag], name if base.hub else None)


def _read_from(model: ModelIdentityRecord) -> str:
    """Return a line about the GGUF file that a model was read from; nothing for another."""
    return "" if model.gguf is None else f"\n\n{model.gguf.sentence}"


def _short(model: ModelIdentityRecord) -> str:
    return model.name.rstrip("/").split("/")[-1]


def _remote_code(model: TrainedModelRecord) -> str:
    return ", with `trust_remote_code=True`: its shapes are no stock class's." if model.carved else ""


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _with_interval(score: ScoreRecord) -> str:
    """Return `0.51 [0.44, 0.58]`; the value alone where there are too few groups for an interval."""
    return f"{score.value:.4g}" + (f" [{score.ci[0]:.4g}, {score.ci[1]:.4g}]" if score.ci else "")
