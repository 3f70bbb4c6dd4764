"""Types of analysis.json, but for what one method alone writes there."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from secateur.core.records.record import Number, Record


class BaseRecord(Record):
    """Base."""

    accuracy: float | None = Field(description="null for text")
    loss: Number = Field(description="nats per token")
    n: int = Field(description="examples")


class FrequencyBin(Record):
    """Bin."""

    bin: str = Field(description="frequencies it covers")
    n: int = Field(description="examples")
    before: Number = Field(description="accuracy before")
    before_ci: list[Number] = Field(description="Wilson")
    after: Number = Field(description="accuracy after")
    after_ci: list[Number] = Field(description="Wilson")


class ParaphrasesRecord(Record):
    """Paraphrases."""

    n: int = Field(description="groups (facts)")
    per_fact: Number = Field(description="mean number of other phrasings")
    all_right_before: Number = Field(description="share of facts right in all other phrasings")
    all_right_after: Number = Field(description="and after")
    mean_before: Number = Field(description="accuracy over all other phrasings")
    mean_after: Number = Field(description="and after")


class ChangedExample(Record):
    """Changed."""

    id: str = Field(description="the example")
    prompt: str = Field(description="its prompt")
    answer: str = Field(description="the right answer")
    before: str = Field(description="the answer before: a choice, or the first token")
    after: str = Field(description="and after")
    kind: str = Field(description="`recovered`, `lost`, or `changed` (wrong both times)")


class AnalysisRecord(Record):
    """Analysis."""

    model_config = ConfigDict(extra="allow")  # a method writes what it alone has

    base: BaseRecord = Field(description="the original on `select`")
    frequency: list[FrequencyBin] | None = Field(
        None,
        description="accuracy by frequency, on `test` (only: not for text; empty where frequencies are unknown)",
    )
    paraphrases: ParaphrasesRecord | None = Field(
        None, description="other phrasings, on `test` (only: examples with paraphrases)"
    )
    changed: list[ChangedExample] | None = Field(
        None, description="examples of `test` whose answer changed (only: not for text)"
    )
