"""Types of what removal of heads, networks and experts writes into analysis.json and verdict.json. No torch."""

from __future__ import annotations

from pydantic import Field

from secateur.core.records.analysis import BaseRecord
from secateur.core.records.probe import ComponentsRecord
from secateur.core.records.record import Number, Record


class RemovalSearchRecord(Record):
    """The search of heads or networks, in verdict.json."""

    method: str = Field(description="`heads`, `ffns`, `components` or `experts`")
    proposed: int = Field(
        description="different plans among the points of all orders, the original not counted"
    )
    orders: list[str] = Field(description="the order of each series, as in Series")
    step: Number = Field(description="`--step`")


class PointRecord(Record):
    """A point of one order of removal: what is gone, and what is left of the quality."""

    heads_removed: Number = Field(description="share of all query heads")
    ffns_removed: Number = Field(
        description="share of the feed-forward networks; one that loses a third of its neurons counts as a third"
    )
    experts_removed: Number = Field(default=0, description="share of the experts of mixtures")
    parameters: Number = Field(description="fraction kept")
    value: Number = Field(description="the metric on `select`")
    loss: Number = Field(description="nats per token on `select`")
    sides: dict[str, Number] = Field(description="each side's metric, by its name; empty in random orders")
    prefix_matching: Number | None = Field(
        default=None,
        description="share of all heads' score that the remaining ones have (only: context and vocabulary have room for random repeats)",
    )
    copying: Number | None = Field(default=None, description="the same of copying (only: as above)")
    complete: bool = Field(description="judged on all of `select`")


class SeriesRecord(Record):
    """The points of one order of removal."""

    order: str = Field(
        description="`re-scored` at each step, `ranks once`, `voted` (by `--vote`) or `random`"
    )
    seed: int | None = Field(description="of a random order")
    points: list[PointRecord] = Field(description="from the original on")


class ChosenRecord(Record):
    """The point that was taken."""

    order: str = Field(description="of the series without a seed")
    point: int = Field(description="its index among the points")


class VoteRecord(Record):
    """Ranks that several readings gave together, beside those of one reading, at the same size; both on `select`."""

    readings: int = Field(description="pieces of `probe` that were read by themselves")
    voted: Number = Field(description="the metric at the chosen point")
    single: Number = Field(description="the metric where one reading of all of `probe` gave the ranks")
    difference: Number = Field(description="voted less single")
    ci: list[Number] | None = Field(description="its 95 % interval, paired by example")
    shown: bool = Field(description="voting is shown to be better, at p < .05")


class PruningRecord(Record):
    """Quality at every step, in every order of removal."""

    what: str = Field(description="`heads`, `ffns`, `components` (both) or `experts`")
    unit: str = Field(description="what leaves at a time: `head`, `KV group` or `expert`")
    step: Number = Field(description="share removed in a step")
    metric: str = Field(description="what decides, as in the verdict")
    metric_unit: str = Field(description="`share` or `nats/token`")
    higher_is_better: bool = Field(description="direction of the metric")
    max_loss: float | None = Field(
        description="how much worse than the original a point may be, in the metric's unit"
    )
    target: float | None = Field(
        description="share of heads, networks or experts to remove (of neurons with `--portable`)"
    )
    params: float | None = Field(description="fraction of the parameters to keep")
    series: list[SeriesRecord] = Field(
        description="one for each order of removal; several seeds of the random one"
    )
    chosen: ChosenRecord | None = Field(
        default=None,
        description="the point that was verified; 0, nothing removed, where no other held the bound",
    )
    snapped: str | None = Field(
        description="what shares had to be rounded to; null: whole heads and networks"
    )
    side_units: dict[str, str] = Field(description="unit of each side, by its name")
    vote: VoteRecord | None = Field(default=None, description="what voting gave (only: with `--vote`)")


class ComponentsAnalysis(Record):
    """The search as the report shows it, in analysis.json."""

    base: BaseRecord | None = Field(default=None, description="the original on `select`")
    components: ComponentsRecord | None = Field(
        default=None, description="what heads and networks are worth, and what heads do"
    )
    pruning: PruningRecord | None = Field(
        default=None, description="quality at every step, in every order of removal, on `select`"
    )
