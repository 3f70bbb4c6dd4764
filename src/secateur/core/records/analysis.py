"""Types of analysis.json, but for what one method alone writes there."""

from __future__ import annotations

from pydantic import ConfigDict, Field, field_validator

from secateur.core.records.record import Number, Record


class BaseRecord(Record):
    """The original on `select`."""

    accuracy: float | None = Field(description="null for text")
    loss: Number = Field(description="nats per token")
    n: int = Field(description="examples")


class FrequencyBin(Record):
    """Accuracy on facts that the training text holds about equally often."""

    bin: str = Field(description="frequencies it covers")
    n: int = Field(description="examples")
    before: Number = Field(description="accuracy before")
    before_ci: list[Number] | None = Field(description="Wilson; null under 10 examples")
    after: Number = Field(description="accuracy after")
    after_ci: list[Number] | None = Field(description="Wilson; null under 10 examples")


class ParaphrasesRecord(Record):
    """Accuracy over other phrasings of the test questions."""

    n: int = Field(description="groups (facts)")
    per_fact: Number = Field(description="mean number of other phrasings")
    all_right_before: Number = Field(description="share of facts right in all other phrasings")
    all_right_after: Number = Field(description="and after")
    mean_before: Number = Field(description="accuracy over all other phrasings")
    mean_after: Number = Field(description="and after")


class ChangedExample(Record):
    """An example whose answer changed."""

    id: str = Field(description="the example")
    prompt: str = Field(description="its prompt")
    answer: str = Field(description="the right answer")
    before: str = Field(description="the answer before: a choice, or the first token")
    after: str = Field(description="and after")
    kind: str = Field(description="`recovered`, `lost`, or `changed` (wrong both times)")


class AnalysisRecord(Record):
    """The content of analysis.json that every method has."""

    model_config = ConfigDict(extra="allow")  # a method writes what it alone has

    base: BaseRecord | None = Field(default=None, description="the original on `select`")
    frequency: list[FrequencyBin] | None = Field(
        default=None,
        description="accuracy by frequency, on `test` (only: not for text; empty where frequencies are unknown)",
    )
    paraphrases: ParaphrasesRecord | None = Field(
        default=None, description="other phrasings, on `test` (only: examples with paraphrases)"
    )
    changed: list[ChangedExample] | None = Field(
        default=None, description="examples of `test` whose answer changed (only: not for text)"
    )

    @field_validator("paraphrases", mode="before")
    @classmethod
    def _none_where_empty(cls, value: object) -> object:
        """Read a block that is there and empty as one that is not there."""
        return None if value == {} else value
