"""Types of probe.json, and of what `secateur probe` prints."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue

from secateur.core.records.record import Number, Record


class OverlapRecord(Record):
    """Agreement of several readings on the order of the same sites."""

    names: list[str] = Field(description="what is compared")
    rho: list[list[float | None]] = Field(
        description="Spearman's rank correlation of every pair; null where one of them is the same everywhere"
    )
    n: int = Field(description="sites")


class AgreementRecord(Record):
    """Agreement of one reading with the truth on the order of some parts."""

    rho: float | None = Field(description="Spearman's rank correlation; null where one side is constant")
    ci: list[float] | None = Field(description="95 % interval; null as above")


class RemovalCheckRecord(Record):
    """Readings of parts beside what taking some of them out really does: of heads and experts by `probe` one from each equal part of the order, of `map` the top, middle and bottom of every reading's order."""

    n: int = Field(description="parts taken out, one at a time")
    examples: int = Field(description="examples that the loss was measured on")
    unit: str = Field(description="of `rise`: `nats` or `nats/token`")
    rise: dict[str, Number] = Field(description="of the loss without each of them")
    agreement: dict[str, AgreementRecord] = Field(
        description="by reading, of `probe` `expected_rise` and `importance`: of the order with that of `rise`"
    )


class ReadingRecord(Record):
    """The importance of every part, read on one task at one number of shots."""

    name: str = Field(description="such as `hellaswag, 0-shot`")
    task: str = Field(description="its task")
    shots: int = Field(description="solved examples before every prompt")
    n: int = Field(description="examples read")
    of: int | None = Field(
        default=None, description="examples of the split; more than `n` where some did not fit the context"
    )
    values: dict[str, Number] = Field(description="by site")
    intervals: dict[str, list[float]] | None = Field(
        default=None, description="95 % of each value, over groups of examples (only: by ablation)"
    )
    expected_rise: dict[str, Number] | None = Field(
        default=None,
        description="of the loss without each head or expert; below 0 it hurts (only: heads, experts)",
    )
    check: RemovalCheckRecord | None = Field(
        default=None,
        description="whether the orders of heads or experts are true (only: heads, experts, of `probe`)",
    )


class ImportanceRecord(Record):
    """The importance of all parts of one kind."""

    unit: str = Field(description="`nats/token` or `share`")
    readings: list[ReadingRecord] = Field(description="one for each task and number of shots")
    mean: dict[str, Number] = Field(description="over the readings, by site")
    overlap: OverlapRecord | None = Field(
        description="how far the readings agree; null where there is but one"
    )


class ComponentsRecord(Record):
    """Importance and behavior of a model's parts. Sites are addresses as in plan.json: `b3.attn.h2` a head, `b3.mlp` a feed-forward network, `b3.mlp.n7` a neuron, `b3.mlp.e7` an expert of a mixture, `b3.attn` an attention, `b3` a block. What was not read is left out."""

    heads: ImportanceRecord | None = Field(
        default=None,
        description="by gradient: the mean over tokens of output × gradient, without its sign (only: heads read)",
    )
    ffns: ImportanceRecord | None = Field(
        default=None, description="by ablation: what the metric loses without it (only: networks read)"
    )
    attentions: ImportanceRecord | None = Field(default=None, description="by ablation (only: networks read)")
    blocks: ImportanceRecord | None = Field(default=None, description="by ablation (only: networks read)")
    neurons: ImportanceRecord | None = Field(default=None, description="by gradient (only: neurons read)")
    experts: ImportanceRecord | None = Field(
        default=None,
        description="of mixtures: the share of its router's weights that an expert gets (only: experts read)",
    )
    prefix_matching: dict[str, Number] | None = Field(
        default=None, description="of every query head, 0 to 1 (only: behavior read)"
    )
    copying: dict[str, Number] | None = Field(
        default=None, description="of every query head, 0 to 1 (only: behavior read)"
    )
    copying_beyond_sink: dict[str, Number] | None = Field(
        default=None,
        description="copying over the positions at which a head attends most neither to position 0 nor to itself; 0 where it has none (only: behavior read)",
    )
    attention_sink: dict[str, Number] | None = Field(
        default=None,
        description="share of the positions at which a head attends most to position 0 or to itself (only: behavior read)",
    )
    induction_overlap: OverlapRecord | None = Field(
        default=None,
        description="correlation of importance, prefix matching, copying and copying beyond the sink; null where importance was not read (only: behavior read)",
    )

    @property
    def kinds(self) -> Mapping[str, ImportanceRecord]:
        """Return the kinds of parts whose importance was read, by name."""
        found = {
            "heads": self.heads,
            "ffns": self.ffns,
            "attentions": self.attentions,
            "blocks": self.blocks,
            "neurons": self.neurons,
            "experts": self.experts,
        }
        return {name: importance for name, importance in found.items() if importance is not None}


class ProbeRecord(Record):
    """The content of `OUT/probe.json` of `secateur probe`; printed where several things were read, or one of them on several tasks."""

    what: list[str] = Field(
        description="what was asked for: `heads`, `ffns`, `neurons`, `experts`, `induction`"
    )
    model: str = Field(description="MODEL as it was given")
    split: str | None = Field(default=None, description="`probe` or `select`")
    tasks: list[str] = Field(description="names of the tasks; empty where none was given")
    shots: list[int] | None = Field(
        default=None, description="numbers of solved examples before every prompt"
    )
    components: ComponentsRecord = Field(description="what was read")
    layers: list[int] | None = Field(
        default=None, description="`--layers` as first and last + 1; null: all (only: in probe.json)"
    )
    versions: dict[str, str] | None = Field(
        default=None, description="as in the verdict (only: in probe.json)"
    )
    written: list[str] | None = Field(default=None, description="the files (only: printed, with `-o`)")


class RowsRecord(Record):
    """One reading on at most one task, as `secateur probe` prints it."""

    what: str = Field(description="what was asked for")
    model: str = Field(description="MODEL as it was given")
    task: str | None = Field(description="name of the task, with its shots; null where none was given")
    split: str = Field(description="`probe` or `select`")
    n: int | None = Field(default=None, description="examples read (only: parts of a model, on a task)")
    of: int | None = Field(
        default=None,
        description="examples of the split; more than `n` where some did not fit the context (only: as above)",
    )
    rows: list[dict[str, JsonValue]] = Field(
        description="one for each site, edit or curve; keys by what was read"
    )
    overlap: OverlapRecord | None = Field(
        default=None, description="as `induction_overlap` of Components (only: induction)"
    )
    check: RemovalCheckRecord | None = Field(
        default=None, description="whether the orders of heads or experts are true (only: heads, experts)"
    )
    written: list[str] | None = Field(default=None, description="the files (only: with `-o`)")


class OutlierPosition(Record):
    """A position in the sequences, and how many of its tokens are outliers."""

    position: int = Field(description="in its sequence, from 0")
    count: int = Field(description="outlier tokens there")
    of: int = Field(description="tokens there: sequences that are so long")


class OutlierToken(Record):
    """A token of the vocabulary, and how often it is an outlier."""

    id: int = Field(description="of the token")
    text: str = Field(description="the token as text")
    count: int = Field(description="how often it is an outlier")
    of: int = Field(description="how often it occurs")


class OutliersRecord(Record):
    """Outlier tokens of one place: the norm of what enters, leaves or (of a block) is added is above `outlier_norm` times the median."""

    count: int = Field(description="how many")
    largest: Number = Field(description="the largest norm, in median norms")
    positions: list[OutlierPosition] = Field(description="the ten positions at which most of them stand")
    tokens: list[OutlierToken] = Field(description="the ten tokens that most of them are")
    matter: bool | None = Field(
        default=None, description="a score is another without them by more than .01 (only: of a Transition)"
    )


class TransitionWithoutOutliers(Record):
    """Scores of a place over all tokens but the outliers: the keys of Transition that depend on the tokens."""

    stream: list[Number] | None = Field(description="as above")
    added: list[Number] | None = Field(description="as above")
    cosine: float | None = Field(description="as above")
    num_tokens: int = Field(description="as above")
    num_fit: int = Field(description="as above")
    condition: Number = Field(description="as above")
    rank: int = Field(description="as above")
    anisotropy: Number = Field(description="as above")
    intrinsic_dimension: float | None = Field(description="as above")
    trusted: bool = Field(description="as above")
    reason: str = Field(description="as above")


class TransitionRecord(Record):
    """Scores of one place over all tokens, and without its outlier tokens where there are any."""

    site: str = Field(
        description="`b3`, `enc.b3`, `dec.b3`, a part: `b3.attn`, `b3.mlp`, `dec.b3.cross`, a head: `dec.b3.cross.h7`, or a matrix: `b3.q`, `dec.b3.cross.q`"
    )
    d: int = Field(description="width of what enters")
    stream: list[Number] | None = Field(
        description="scores with the residual: in-sample, held out; null for all but blocks, and where nothing varies"
    )
    added: list[Number] | None = Field(
        description="scores without the residual, of a head's contribution, of what a matrix gives; null where the norm sits on the stream, and where it varies no more than rounding"
    )
    cosine: float | None = Field(
        description="mean cosine similarity of what enters and what leaves; null for all but blocks"
    )
    num_tokens: int = Field(description="tokens read")
    num_fit: int = Field(description="of those, the ones that held-out maps were fitted to")
    condition: Number = Field(
        description="of what enters (centered, of the tokens that were fitted to), among the directions that it has"
    )
    rank: int = Field(description="directions that it has beyond rounding")
    anisotropy: Number = Field(description="share of its variance along one direction")
    intrinsic_dimension: float | None = Field(
        description="TwoNN; null where fewer than 20 of the tokens that were drawn differ"
    )
    trusted: bool = Field(description="enough tokens, and a condition that float64 can bear")
    reason: str = Field(
        description="what stands against the scores, or is to be known about them; may be empty"
    )
    outliers: OutliersRecord | None = Field(
        description="the outlier tokens of this place; null: there are none"
    )
    without_outliers: TransitionWithoutOutliers | None = Field(
        description="what was read over all other tokens; null where there are no outliers, or nothing else on one side"
    )


class CloudWithoutOutliers(Record):
    """The shape of what leaves the last block, without outlier tokens."""

    anisotropy: Number = Field(description="without outlier tokens")
    intrinsic_dimension: float | None = Field(description="likewise")


class CloudRecord(Record):
    """The shape of what leaves the last block."""

    anisotropy: Number = Field(description="as in Transition")
    intrinsic_dimension: float | None = Field(description="likewise")
    outliers: OutliersRecord | None = Field(description="likewise")
    without_outliers: CloudWithoutOutliers | None = Field(description="likewise")


class ProfileRecord(Record):
    """Readings of one model: every block, and its parts where they were read."""

    name: str = Field(description="MODEL, or MODEL@REVISION")
    revision: str | None = Field(description="commit on the hub; null for a folder")
    kind: str = Field(description="`decoder`, `encoder` or `encoder-decoder`")
    norms: dict[str, str] = Field(
        description="by the beginning of the sites of a stack of blocks (nothing, `enc.` or `dec.`): `pre`, `sandwich` or `post`"
    )
    n: int = Field(description="sequences read")
    of: int = Field(description="sequences of the split; more than `n` where some did not fit the context")
    held_out: int = Field(description="of those read, the ones that held-out scores are on")
    rows: list[TransitionRecord] = Field(
        description="blocks in order, each followed by its parts where they were read, those by their heads and matrices"
    )
    last: dict[str, CloudRecord] = Field(
        description="what leaves the last block, by the beginning of the sites; without it where `--layers` leaves that out"
    )


class LinearityRecord(Record):
    """The result of `secateur probe --what linearity`; `OUT/probe.json` is the same."""

    what: str = Field(description="`linearity`")
    model: str = Field(description="MODEL as it was given")
    task: str = Field(description="name of the task")
    split: str = Field(description="`probe` or `select`")
    outlier_norm: Number = Field(description="an outlier token's norm is above so many median norms")
    models: list[ProfileRecord] = Field(description="MODEL or its `--revisions`, then those of `--also`")
    written: list[str] | None = Field(default=None, description="the files (only: printed, with `-o`)")
    versions: dict[str, str] | None = Field(
        default=None, description="as in the verdict (only: in probe.json)"
    )


class EditProofRecord(Record):
    """The proof of one kind of edit on a tiny random copy of a model."""

    edit: str = Field(description="kind of edit, in words")
    proved: bool = Field(description="all differences are below the tolerance")
    differences: dict[str, float] = Field(
        description="what the masked model is compared with → relative difference: `cut`, the model that is really cut; "
        "`parameters`, its number of parameters against the predicted one; `cache`, tokens one by one with a cache; "
        "`stream`, the same edit done to what leaves the blocks, or what a part adds there against what is read of it; "
        "`attention` and `activation`, the same edit done where torch's attention and the activation functions are "
        "called; `idle`, 1 where the edit changes nothing, else 0; `fails`, 1 where the edited copy does not run"
    )
    refused: str | None = Field(description="why such an edit is not made; null where it is")


class StructureRecord(Record):
    """The proof of a model's structure."""

    family: str = Field(description="as `secateur models` lists it")
    architecture: str = Field(description="class of the model")
    blocks: int = Field(description="of the tiny copy: one of each kind, three at least")
    tolerance: float = Field(
        description="of the differences, in float64; of `cache` 1e-5, for some classes round there"
    )
    edits: list[EditProofRecord]
    versions: dict[str, str] = Field(description="of transformers and torch")
