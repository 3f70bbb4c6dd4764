"""Types of map.json, and of what `secateur map` prints."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.probe import OverlapRecord, RemovalCheckRecord
from secateur.core.records.record import Number, Record


class MapKindRecord(Record):
    """All components of one kind: what each reading says they are worth, and what taking some of them out did."""

    kind: str = Field(
        description="`heads`, `groups` (KV groups), `attentions`, `ffns`, `neurons` (eighths of a network, the least important first), `blocks` or `matrices` (by the rank that is kept)"
    )
    readings: dict[str, dict[str, Number]] = Field(
        description="by reading, by component: `b3.attn.h2`, `b3.attn.g1`, `b3.attn`, `b3.mlp`, `b3.mlp.n1/8`, `b3`, `b3.down=144`; larger is worth more"
    )
    overlap: OverlapRecord | None = Field(
        description="how far the readings agree on the order; null where there is but one component"
    )
    check: RemovalCheckRecord | None = Field(
        description="what taking some of them out did, and how far each reading agrees with it; null without `--checks`"
    )
    trusted: str | None = Field(
        description="the reading whose order agrees best with the truth, if its interval lies above 0; null where none does"
    )


class MapRecord(Record):
    """The content of `OUT/map.json` of `secateur map`, and what it prints with `--json`."""

    model: str = Field(description="MODEL as it was given")
    task: str = Field(description="name of the task")
    split: str = Field(description="`probe` or `select`")
    n: int = Field(description="examples that the readings are of")
    seed: int = Field(description="`--seed`: which examples the removals are measured on")
    units: dict[str, str] = Field(description="of each reading")
    kinds: list[MapKindRecord] = Field(description="one for each kind of component, the largest first")
    notes: list[str] = Field(description="what could not be read, and why")
    seconds: dict[str, float] = Field(description="by stage, as far as this run did it")
    layers: list[int] | None = Field(default=None, description="`--layers` as first and last + 1; null: all")
    versions: dict[str, str] | None = Field(default=None, description="as in the verdict")
    written: list[str] | None = Field(default=None, description="the files (only: printed)")
