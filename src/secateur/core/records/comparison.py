"""Types of what `secateur report A B C --json` prints, and `secateur transfer --json`."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.record import Record
from secateur.core.records.verdict import BeforeAfter, DecisionRecord, ScoreRecord, SideEffect


class ComparedRun(Record):
    """One run beside others."""

    run: str = Field(description="its folder, as short as tells it from the others")
    model: str = Field(description="MODEL as given")
    task: str = Field(description="name of the task")
    method: str = Field(description="`--method`")
    verdict: str = Field(description="as in the verdict")
    holds: str = Field(description="`cut` or `original`: the weights in the checkpoint")
    cut: str = Field(description="what was cut, counted")
    before: ScoreRecord = Field(description="the original on `test`")
    after: ScoreRecord = Field(description="the checkpoint on `test`")
    parameters: BeforeAfter = Field(description="tied ones once")
    bytes_on_disk: BeforeAfter | None = Field(description="of the weights; null where they were not weighed")
    speedup: float | None = Field(description="of decoding; null where it was not timed")
    side_effects: list[SideEffect] = Field(description="what else was watched")


class ComparisonRecord(Record):
    """Several runs side by side."""

    runs: list[ComparedRun] = Field(description="in the order of the folders")
    report: str = Field(description="the page that was written")


class TransferRecord(DecisionRecord):
    """A plan measured elsewhere: on another task, or in a sibling of its model. `after` is of the model as if cut."""

    plan: str = Field(description="what it cuts")
    made_for: str = Field(description="fingerprint of the model that the plan was made for")
    model: str = Field(description="MODEL, in which it was measured")
    sibling: bool = Field(description="that model has other weights than the one the plan was made for")
    refitted: list[str] = Field(description="edits whose linear maps were fitted anew to the sibling")
    task: str = Field(description="name of the task")
    versions: dict[str, str] = Field(description="as in the verdict")
