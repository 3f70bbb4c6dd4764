"""Types of heal.json."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import GuardRecord, IntervalRecord, NonInferiorityRecord, ScoreRecord
from secateur.methods.depth.records import DepthRecord
from secateur.training.records.command import HealCommandRecord
from secateur.training.records.finetune import (
    AdaptersRecord,
    EpochRecord,
    ModelIdentityRecord,
    TrainedModelRecord,
    TrainedTaskRecord,
    TrainingSplitsRecord,
)


class RemovedBlocksRecord(Record):
    """Name the blocks that the cut does not have."""

    blocks: list[int] = Field(description="numbers in the original")
    form: str | None = Field(
        description="what stands for all of them, as in Form; null: nothing is gone, or different things stand for them"
    )


class HealedScoreRecord(Record):
    """Compare one metric of the original, the cut and the healed model."""

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

    @property
    def three(self) -> dict[str, ScoreRecord]:
        """Return the scores by model: teacher, unhealed, healed."""
        return {"teacher": self.teacher, "unhealed": self.unhealed, "healed": self.healed}


class HealedSideRecord(HealedScoreRecord):
    """Compare the primary metric of a side task, on all of its examples."""

    name: str = Field(description="of the side task")
    n: int = Field(description="examples of the side task, all of them")


class HealedTestRecord(Record):
    """Compare the healed model to the original on `test`; keys mean what they do in Verdict."""

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
    scores: list[HealedScoreRecord] = Field(description="every metric, of all three models")
    sentence: str = Field(description="all that in one")


class HealedTextsRecord(Record):
    """Hold what each model writes after the same beginning."""

    prompt: str = Field(description="the beginning: of a chunk of text, or a question")
    teacher: str = Field(description="what the original says")
    unhealed: str = Field(description="the cut")
    healed: str = Field(description="the checkpoint as written")

    @property
    def three(self) -> dict[str, str]:
        """Return the texts by model: teacher, unhealed, healed."""
        return {"teacher": self.teacher, "unhealed": self.unhealed, "healed": self.healed}


class HealStageRecord(Record):
    """Hold what one stage of a healing trained, and its losses."""

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

    @property
    def kept_loss(self) -> float:
        """Return the loss on select of the weights that the stage ended with, nats per token."""
        return next(row.select_loss for row in self.epochs if row.kept)


class JudgedRecord(Record):
    """Hold what healing reads of a cut's verdict.json: the task that the cut was judged on."""

    task: TrainedTaskRecord = Field(description="the task")


class HealProvenanceRecord(Record):
    """Say by which options and with which versions a cut was healed."""

    command: HealCommandRecord = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )


class HealRecord(Record):
    """Hold everything that heal.json says."""

    cut: TrainedModelRecord = Field(description="the model that was healed")
    teacher: ModelIdentityRecord = Field(description="the model that it was cut from")
    fingerprint: str = Field(description="of the weights as written")
    gone: RemovedBlocksRecord = Field(description="the blocks that the cut has not")
    task: TrainedTaskRecord = Field(description="the task")
    trained_on: TrainingSplitsRecord = Field(description="what was learned, and how epochs were chosen")
    stages: list[HealStageRecord] = Field(description="what was trained, in order")
    tokens: int = Field(description="tokens read in training, each as often as it was")
    seconds: Number = Field(
        description="wall clock of the training, over all sittings; what was lost by a kill and done again counts once"
    )
    dtype: str = Field(description="of the weights as written")
    scores: list[HealedScoreRecord] = Field(
        description="every metric of the task on `select`, of all three models; the primary first"
    )
    sides: list[HealedSideRecord] = Field(
        description="the primary metric of each task of `--side`, else of plain English"
    )
    samples: list[HealedTextsRecord] = Field(
        description="what each of the three says greedily after the same beginnings"
    )
    depth: DepthRecord | None = Field(
        description="of the cut's own analysis.json; null: no depth cut, or of another task"
    )
    test: HealedTestRecord | None = Field(description="the verdict on `test`; null without `--ledger`")
    command: str = Field(description="the command as a line, without `-o`")
    provenance: HealProvenanceRecord = Field(description="what makes the run recognizable")
    sentence: str = Field(description="what came back and what it cost")

    @property
    def sentences(self) -> list[str]:
        """Return what came back, and what test says where it was opened."""
        return [self.sentence, *([self.test.sentence] if self.test else [])]

    @property
    def test_scores(self) -> list[HealedScoreRecord]:
        """Return every metric on test; none where test was not opened."""
        return self.test.scores if self.test else []

    @property
    def loss_score(self) -> HealedScoreRecord:
        """Return the comparison of the loss on select, which every kind of task has."""
        return next(row for row in self.scores if row.metric in ("loss", "text_loss"))
