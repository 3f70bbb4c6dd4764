"""Types of what removing directions writes into analysis.json and verdict.json, and of its reading. No torch."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import ChoiceRecord

Tokens = list[tuple[str, float]]  # tokens with their logits


class DirectionsSearchRecord(Record):
    """The course of the search: `search` in verdict.json."""

    method: str = Field(description="`directions`")
    protocol: str = Field(description="`search`, `removal`, `threshold` or `paper`")
    exhaustive: bool = Field(description="no race")
    proposed: int = Field(description="different plans that were judged, the original not counted")
    rounds: int = Field(description="rounds of a search that were taken, or steps of a removal")
    choice: ChoiceRecord | None = Field(
        default=None,
        description="of a search: what the half of `select` that no round has seen says of the best round; left out where nothing helped",
    )


class MatrixDirections(Record):
    """A matrix, or a head of one. Effects are what the loss (nats per answer token) is predicted to do when one direction alone goes and its mean effect stays as a bias; negative is good."""

    site: str = Field(description="the matrix, such as `b2.gate`")
    matrix: str = Field(description="its kind")
    block: int = Field(description="its block")
    head: int | None = Field(description="the head; null: all of the matrix")
    of: int = Field(description="directions it has")
    harmful: int = Field(description="those of a negative effect")
    harm: Number = Field(description="the sum of these effects, without the sign")
    index: list[int] = Field(
        description="directions that are listed: 256 evenly, the 32 of the strongest effect, and all that went"
    )
    sigma: list[Number] = Field(description="singular value of each")
    effect: list[Number] = Field(description="effect of each")
    removed: list[int] = Field(description="directions of it that went")

    @property
    def name(self) -> str:
        """The site, with the head where each head has its own directions: `b2.o`, or `b2.o, head 3`."""
        return self.site if self.head is None else f"{self.site}, head {self.head}"


class DirectionsStep(Record):
    """A plan that adds directions to the plan before, and how the model did with it."""

    round: int = Field(description="of the search, or step of the removal, from 0")
    pool: str = Field(
        description="what it takes directions from: `all`, a kind such as `k`, a matrix such as `b3.k`, or `share` of each"
    )
    added: int = Field(description="directions it adds to the plan before")
    predicted: Number = Field(description="sum of their effects, nats, as read under the plan before")
    value: Number = Field(description="the metric on `select`")
    value_before: Number = Field(description="of the plan before, on the same examples")
    loss: Number = Field(description="nats per token")
    loss_before: Number = Field(description="of the plan before, on the same examples")
    removed: int = Field(description="directions that the plan removes in all")
    n: int = Field(description="examples it was judged on")
    complete: bool = Field(description="all of `select`; false where it left the race early")

    @property
    def measured(self) -> float:
        """The measured change of the loss, nats per token."""
        return self.loss - self.loss_before


class DirectionWords(Record):
    """Tokens that a removed direction raises and lowers."""

    site: str = Field(description="the matrix")
    direction: int = Field(description="its number, as in Edit")
    effect: Number = Field(description="as above")
    more: Tokens = Field(description="tokens that the direction raises most, with their logits")
    less: Tokens = Field(
        description="and where it points the other way, which is as good: the sign of a singular direction is arbitrary"
    )


class DirectionsRecord(Record):
    """Effects of all directions, every plan that was judged, and what the removed directions say."""

    protocol: str = Field(description="as in DirectionsSearchRecord")
    order: str = Field(
        description="`signed`: the most harmful go first; `weakest`: those of the least effect"
    )
    split: str = Field(description="what effects were read on")
    n: int = Field(description="examples read")
    num_tokens: int = Field(description="tokens that the mean inputs are over")
    per_head: bool = Field(description="each attention head has its own directions")
    second_order: bool = Field(description="effects have a second-order term")
    whitened: bool = Field(
        description="directions of the matrix whitened by the second moments of its inputs"
    )
    metric: str = Field(description="what decides, as in the verdict")
    metric_unit: str = Field(description="`share` or `nats/token`")
    higher_is_better: bool = Field(description="direction of the metric")
    max_loss: float | None = Field(
        description="how much worse than the original a step of `removal` may be; null in other protocols, or where there is no bound"
    )
    total: int = Field(description="directions of all matrices")
    matrices: list[MatrixDirections] = Field(description="effects before anything was removed")
    path: list[DirectionsStep] = Field(description="every plan that was judged")
    chosen: list[DirectionsStep] = Field(description="those of them that lead to the plan")
    words: list[DirectionWords] = Field(
        description="what removed directions of o, down and (through o) v say, the most harmful 24 of all removed at most"
    )


class DirectionsAnalysis(Record):
    """The part of analysis.json that the report shows."""

    base: BaseRecord | None = Field(default=None, description="the original on `select`")
    directions: DirectionsRecord | None = Field(
        default=None,
        description="what every direction is worth, every plan that was judged, what the removed ones say",
    )


class EffectsRecord(Record):
    """Effects of the directions of one matrix or head, all of them, in descending order of singular values."""

    site: str = Field(description="the matrix")
    head: int | None = Field(description="the head; null: all of the matrix")
    sigma: list[float] = Field(description="singular values")
    effect: list[float] = Field(
        description="first-order change of the loss when that direction alone goes, nats"
    )
    curvature: list[float] | None = Field(description="the second-order term; null where it was not read")
    mean_input: list[float] = Field(description="what removed directions read instead of their input")


class DirectionsReading(Record):
    """A row of `probe --what directions`: a matrix or head. Directions count from 0, the largest singular value."""

    site: str = Field(description="the matrix, with its head where heads have their own directions")
    of: int = Field(description="directions it has")
    harmful: int = Field(description="those whose removal is predicted to lower the loss")
    their_sum: Number = Field(description="sum of their effects, nats")
    most_harmful: dict[str, Number] = Field(description="effects of the two most harmful, by number")
    most_useful: dict[str, Number] = Field(description="effects of the two most useful, by number")
    values: EffectsRecord = Field(description="all effects")
