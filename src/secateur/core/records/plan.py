"""Types of plan.json."""

from __future__ import annotations

from pydantic import Field, JsonValue

from secateur.core.records.record import Record


class PlanRecord(Record):
    """Plan."""

    version: int = Field(description="1")
    model: str = Field(description="fingerprint of the model the plan is for; any other model is refused")
    edits: list[EditRecord] = Field(description="what is cut, in canonical order; empty: nothing")
    provenance: ProvenanceRecord = Field(
        description="where the plan comes from; not part of the plan's identity"
    )


class EditRecord(Record):
    """Edit."""

    kind: str = Field(description="`truncate`, `remove_directions`, `drop` or `linearize`")
    site: str | None = Field(
        None,
        description="what goes: `b3` a block, `b3.attn`, `b3.mlp`, `b3.attn.h2` a query head, `b3.attn.g1` a KV group, `b3.mlp.n7` a neuron (only: drop)",
    )
    matrix: str | None = Field(
        None, description="the site, such as `b2.gate` (only: truncate, remove_directions)"
    )
    rank: int | None = Field(None, description="components kept (only: truncate)")
    side: str | None = Field(
        None, description="`top`: the largest are kept; `tail`: the smallest (only: truncate)"
    )
    directions: list[int] | None = Field(
        None,
        description="singular directions that go, counted from 0, the largest; with `per_head`, direction i of head h is number h·k + i, of k that a head has (only: remove_directions)",
    )
    per_head: bool | None = Field(None, description="each head has its own (only: remove_directions)")
    fold: str | None = Field(
        None,
        description="digest of what is folded into the bias, or of the map, `tensors/DIGEST.safetensors`; null: nothing is (only: remove_directions, linearize)",
    )
    blocks: list[int] | None = Field(
        None, description="a run of blocks, one after the other (only: linearize)"
    )
    form: str | None = Field(
        None,
        description="`linear`: one linear map in their place; `fold`: the map is folded into the network before them (only: linearize)",
    )


class ProvenanceRecord(Record):
    """`secateur apply` writes another one: `command` (with `apply`, the edits in words, `model`, `revision`, `dtype`, `portable`, `zeroed`, `factorize`, `shard_size` and `svd`), `verified` (false), `loads` (Loads), `versions`, `check` (`logits` or `digests`: what the files were held to) and `svd`, a record for each matrix that was decomposed: `matrix`, `shape`, `rank` (null: not a truncation to the largest), `svd` (`exact` or `randomized`), `residual` (‖W − W'‖ / ‖W‖; null without rank) and `excess` (by what share at most the best matrix of this rank would leave less; null: not known)."""

    command: dict[str, JsonValue] = Field(
        description="the options of the run; the same command on a finished OUT is recognized by them"
    )
    command_line: str = Field(description="the command as a line, as in `command` of verdict.json")
    created: str = Field(description="ISO 8601, UTC")
    task: str = Field(description="hash of the task's content and splits")
    seed: int = Field(description="`--seed`")
    versions: dict[str, str] = Field(
        description="secateur, Python and the libraries that computed the numbers"
    )
