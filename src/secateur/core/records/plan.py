"""Types of plan.json."""

from __future__ import annotations

from pydantic import Field, JsonValue

from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import GgufRecord, LoadsRecord, ProvedRecord


class PlanRecord(Record):
    """The content of plan.json."""

    version: int = Field(description="1")
    model: str = Field(description="fingerprint of the model the plan is for; any other model is refused")
    edits: list[EditRecord] = Field(description="what is cut, in canonical order; empty: nothing")
    provenance: ProvenanceRecord = Field(
        description="where the plan comes from; not part of the plan's identity"
    )


class EditRecord(Record):
    """One edit: what kind, where, and how much."""

    kind: str = Field(description="`truncate`, `remove_directions`, `drop` or `linearize`")
    site: str | None = Field(
        default=None,
        description="what goes: `b3` a block, `b3.attn`, `b3.mlp`, `b3.attn.h2` a query head, `b3.attn.g1` a KV group, `b3.mlp.n7` a neuron, `b3.mlp.e7` an expert (only: drop)",
    )
    matrix: str | None = Field(
        default=None, description="the site, such as `b2.gate` (only: truncate, remove_directions)"
    )
    rank: int | None = Field(default=None, description="components kept (only: truncate)")
    side: str | None = Field(
        default=None, description="`top`: the largest are kept; `tail`: the smallest (only: truncate)"
    )
    directions: list[int] | None = Field(
        default=None,
        description="singular directions that go, counted from 0, the largest; with `per_head`, direction i of head h is number h·k + i, of k that a head has (only: remove_directions)",
    )
    per_head: bool | None = Field(default=None, description="each head has its own (only: remove_directions)")
    fold: str | None = Field(
        default=None,
        description="digest of what is folded into the bias, or of the map, `tensors/DIGEST.safetensors`; null: nothing is (only: remove_directions, linearize)",
    )
    blocks: list[int] | None = Field(
        default=None, description="a run of blocks, one after the other (only: linearize)"
    )
    form: str | None = Field(
        default=None,
        description="`linear`: one linear map in their place; `fold`: the map is folded into the network before them (only: linearize)",
    )


class ProvenanceRecord(Record):
    """The run that made the plan."""

    command: dict[str, JsonValue] = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them. Of `apply`: `apply`, the edits in words, `model`, `revision`, `dtype`, `portable`, `zeroed`, `factorize`, `shard_size` and `svd`"
    )
    command_line: str | None = Field(
        default=None, description="the command as a line, as in `command` of verdict.json (only: prune)"
    )
    created: str | None = Field(default=None, description="ISO 8601, UTC (only: prune)")
    task: str | None = Field(default=None, description="hash of the task's content and splits (only: prune)")
    seed: int | None = Field(default=None, description="`--seed` (only: prune)")
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )
    structure: ProvedRecord | None = Field(
        default=None, description="what was proved of the model's structure (only: prune, apply)"
    )
    verified: bool | None = Field(
        default=None, description="whether a verdict was given on the plan (only: apply, and in unproven/)"
    )
    loads: LoadsRecord | None = Field(default=None, description="where the checkpoint loads (only: apply)")
    gguf: GgufRecord | None = Field(
        default=None, description="the GGUF file that the model was read from (only: GGUF)"
    )
    check: str | None = Field(
        default=None, description="what the files were held to: `logits` or `digests` (only: apply)"
    )
    svd: list[DecompositionRecord] | None = Field(
        default=None, description="each matrix that was decomposed (only: apply)"
    )


class DecompositionRecord(Record):
    """The decomposition of one matrix while a checkpoint was streamed, and its error."""

    matrix: str = Field(description="its site")
    shape: list[int] = Field(description="out, in")
    rank: int | None = Field(description="components kept; null: not a truncation to the largest")
    svd: str = Field(description="`exact` or `randomized`")
    residual: float | None = Field(description="‖W − W'‖ / ‖W‖; null without rank")
    excess: Number = Field(
        description="by what share at most the best matrix of this rank would leave less; null: not known"
    )
