"""Types of what `secateur tasks --check` says."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Record
from secateur.core.records.verdict import AnswerRecord


class LengthsRecord(Record):
    """The least, the median and the greatest number of tokens."""

    least: int = Field(description="tokens of the shortest")
    median: float = Field(description="tokens, half have at most so many")
    most: int = Field(description="tokens of the longest")


class RenderedRecord(Record):
    """An example as the model reads it."""

    id: str = Field(description="of the example")
    split: str = Field(description="probe, select or test")
    prompt: str = Field(description="what stands before the answer, from its tokens")
    answer: list[str] = Field(description="of the right answer, one text a token")
    choices: list[str] | None = Field(description="null where the answer is free")


class TaskCheckRecord(Record):
    """The understanding of a task, in the tokens of one model where one is given."""

    task: str = Field(description="as it was named")
    format: str = Field(description="in words: what holds the rows, and what a row is")
    kind: str = Field(description="choice, generation or text")
    metric: str = Field(description="what decides")
    model: str | None = Field(description="whose tokens are counted; null without one")
    examples: int = Field(description="of all splits")
    splits: dict[str, int] = Field(description="split → examples")
    groups: dict[str, int] = Field(description="split → groups of examples")
    prompt_tokens: LengthsRecord | None = Field(description="of prompts; null without a model")
    answer_tokens: LengthsRecord | None = Field(description="of right answers; null without a model")
    max_new_tokens: int = Field(
        description="tokens that the model writes, in which the answer is looked for; 0: the answer itself is scored"
    )
    context: int | None = Field(
        description="tokens, the longest sequence of the model; null: no bound, or no model"
    )
    chance: float | None = Field(description="mean of 1 / choices on select; null without choices")
    majority: AnswerRecord | None = Field(
        description="most frequent right answer on select; null where choices differ"
    )
    unread: list[str] = Field(
        description="what is kept beside questions and never read by the model, by its name"
    )
    rendered: list[RenderedRecord] = Field(description="one of each split; none without a model")
    problems: list[str] = Field(description="what would stop a search or make its numbers doubtful")
