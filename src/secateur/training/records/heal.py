"""Types of heal.json."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import GuardRecord, IntervalRecord, NonInferiorityRecord, ScoreRecord
from secateur.methods.depth.records import DepthRecord
from secateur.training.records.finetune import (
    AdaptersRecord,
    EpochRecord,
    LearnedTask,
    TrainingRecord,
    TunedModel,
)


class TeacherRecord(Record):
    """Teacher."""

    name: str = Field(description="where it was found")
    hub: bool = Field(description="whether it came from the hub")
    revision: str | None = Field(description="its commit there")
    architecture: str = Field(description="its class")
    parameters: int = Field(description="how many it has")
    fingerprint: str = Field(description="of its weights, which is the one in plan.json")


class RemovedBlocks(Record):
    """Gone."""

    blocks: list[int] = Field(description="numbers in the original")
    form: str | None = Field(
        description="what stands for all of them, as in Form; null: nothing is gone, or different things stand for them"
    )


class HealedScore(Record):
    """Healed."""

    name: str | None = Field(None, description="of the side task (only: in `sides`)")
    n: int | None = Field(None, description="examples of the side task, all of them (only: in `sides`)")
    metric: str = Field(description="its name")
    unit: str = Field(description="`share` or `nats/token`")
    higher_is_better: bool = Field(description="direction of the metric")
    teacher: ScoreRecord = Field(description="of the original")
    unhealed: ScoreRecord = Field(description="of the cut")
    healed: ScoreRecord = Field(description="of the checkpoint as written")
    gain: IntervalRecord = Field(description="healed − unhealed")
    gap: IntervalRecord = Field(description="healed − teacher")
    recovered: IntervalRecord | None = Field(
        description="share of what the cut lost that came back (1: all); null where it is not shown to have lost anything"
    )


class HealedTestRecord(Record):
    """The healed model against the original; keys mean what they do in Verdict."""

    verdict: str = Field(description="the word")
    metric: str = Field(description="what decides")
    n: int = Field(description="examples")
    groups: int = Field(description="independent groups among them")
    test: str = Field(description="the statistical test")
    p_value: Number = Field(description="corrected for `openings`")
    p_value_unadjusted: Number = Field(description="of this comparison alone")
    openings: int = Field(description="how often the ledger knows this split as opened, this time included")
    non_inferiority: NonInferiorityRecord | None = Field(
        description="whether it is shown to lose less than 0.02"
    )
    guards: list[GuardRecord] = Field(description="ways for a result to be hollow")
    scores: list[HealedScore] = Field(description="every metric, of all three models")
    sentence: str = Field(description="all that in one")


class HealedTexts(Record):
    """Texts."""

    prompt: str = Field(description="the beginning: of a chunk of text, or a question")
    teacher: str = Field(description="what the original says")
    unhealed: str = Field(description="the cut")
    healed: str = Field(description="the checkpoint as written")


class HealStage(Record):
    """Stage."""

    stage: str = Field(description="`layers` or `end`")
    trained_parameters: int = Field(description="how many were trained")
    lora: AdaptersRecord | None = Field(description="adapters that were among them; null: none")
    depths: int = Field(description="at how many places the streams of both were compared")
    tokens: int = Field(description="tokens read in this stage")
    seconds: Number = Field(
        description="wall clock of this stage, over all sittings; what was lost by a kill and done again counts once"
    )
    epochs: list[EpochRecord] = Field(
        description="losses before the stage (epoch 0) and after each epoch; `kept`: what the stage ended with"
    )


class HealCommandRecord(Record):
    """Options as Tuning has them, and those of healing."""

    heal: str = Field(description="the cut model")
    teacher: str | None = Field(description="`--teacher`")
    stage: str = Field(description="`layers`, `end` or `both`")
    temperature: Number = Field(description="of both models' probabilities")
    hidden: Number = Field(description="weight of the streams' error beside the divergence")
    side: list[str] = Field(description="tasks to watch; none given: plain English")
    ledger: str | None = Field(
        description="where the opening of test is written down; null: test was not opened"
    )
    task: str = Field(description="the task")
    test_task: str | None = Field(description="where the test split is from")
    split: str = Field(description="`probe`, `select` or `probe,select`")
    epochs: int = Field(description="how often every example is learned, where `max_steps` is null")
    max_steps: int | None = Field(description="how many steps")
    batch_size: int = Field(description="examples per step")
    lr: Number = Field(description="learning rate at its peak")
    weight_decay: Number = Field(description="AdamW's")
    warmup: Number = Field(description="share of the steps in which the rate rises")
    bf16: bool = Field(description="mixed precision")
    lora: int | None = Field(None, description="rank of adapters (only: `--lora`)")
    lora_alpha: float | None = Field(
        None, description="as it was asked for; null: twice the rank (only: `--lora`)"
    )
    lora_targets: str | None = Field(
        None, description="the matrices, as they were asked for (only: `--lora`)"
    )
    revision: str | None = Field(description="of the model, as it was asked for")
    seed: int = Field(description="of the order of examples and of dropout")
    split_seed: int = Field(description="of the splits")
    limit: int | None = Field(description="at most so many examples of each source")
    shots: int = Field(description="solved examples before every prompt")
    seqlen: int = Field(description="tokens per chunk of text")
    chat: bool = Field(description="prompts in the chat template")
    allow_small: bool = Field(description="small splits allowed")
    skip_long: bool = Field(description="examples that do not fit left out")
    trust_remote_code: bool = Field(description="code of the model run")
    dtype: str = Field(description="as it was asked for")


class HealOriginRecord(Record):
    """HealOrigin."""

    command: HealCommandRecord = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )


class HealRecord(Record):
    """Healing."""

    cut: TunedModel = Field(description="the model that was healed")
    teacher: TeacherRecord = Field(description="the model that it was cut from")
    fingerprint: str = Field(description="of the weights as written")
    gone: RemovedBlocks = Field(description="the blocks that the cut has not")
    task: LearnedTask = Field(description="the task")
    trained_on: TrainingRecord = Field(description="what was learned, and how epochs were chosen")
    scores: list[HealedScore] = Field(
        description="every metric of the task on `select`, of all three models; the primary first"
    )
    sides: list[HealedScore] = Field(
        description="the primary metric of each task of `--side`, else of plain English"
    )
    samples: list[HealedTexts] = Field(
        description="what each of the three says greedily after the same beginnings"
    )
    depth: DepthRecord | None = Field(
        description="of the cut's own analysis.json; null: no depth cut, or of another task"
    )
    test: HealedTestRecord | None = Field(description="the verdict on `test`; null without `--ledger`")
    sentence: str = Field(description="what came back and what it cost")
    stages: list[HealStage] = Field(description="what was trained, in order")
    tokens: int = Field(description="tokens read in training, each as often as it was")
    seconds: Number = Field(
        description="wall clock of the training, over all sittings; what was lost by a kill and done again counts once"
    )
    dtype: str = Field(description="of the weights as written")
    command: str = Field(description="the command as a line, without `-o`")
    provenance: HealOriginRecord = Field(description="what makes the run recognizable")
