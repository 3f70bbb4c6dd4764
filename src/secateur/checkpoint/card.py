"""Write the model card from the records: what was cut from what, what it gained and cost, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from secateur.core.baseline import baseline_text
from secateur.core.comparison import WORSE
from secateur.core.loading import evidence_text
from secateur.core.noninferiority import bound_text
from secateur.core.plan import Plan
from secateur.core.records.plan import ProvenanceRecord
from secateur.core.records.verdict import (
    AlternativeRecord,
    GgufRecord,
    IntervalRecord,
    LoadsRecord,
    ScoreRecord,
    SecondaryRecord,
    SideEffect,
    VerdictRecord,
)
from secateur.core.score import few_groups


def model_card(verdict: VerdictRecord, plan: Plan) -> str:
    """Return README.md of a checkpoint, with the hub's front matter.

    Args:
        plan: The plan of the checkpoint; empty where it holds the unchanged model.
    """
    model, task = verdict.model, verdict.task
    cut = verdict.handed_over.holds == "cut"
    warning = "> **WORSE THAN THE ORIGINAL.** Do not use it in its place.\n\n"
    title = f"cut for {task.name}" if cut else f"unchanged: no cut for {task.name} is shown to help"
    return f"""{_front_matter(model.name, model.hub, verdict.search.method, model.gguf)}
# {_short(model.name)}, {title}

{warning if cut and verdict.verdict == WORSE else ""}**{verdict.verdict}** — {verdict.sentence}

| on held-out test examples (n = {verdict.n}) | before | after |
|---|---|---|
{_rows(verdict)}

## What was cut

{_what_was_cut(verdict, plan)}

## How to load it

{loads_markdown(verdict.loads) if verdict.loads else ""}

{_by_task(verdict)}## What it cost elsewhere

{_effects(verdict.side_effects)}

## How far to trust it

{_trust(verdict)}

## How it was made

`{verdict.command}`

Model fingerprint `{model.fingerprint}`, task hash `{task.hash}`, seed {verdict.seed},
split seed {verdict.split_seed}, {verdict.candidates_tried} candidates tried. `plan.json` holds the cut,
`verdict.json` every number, `report.html` the pictures.
{_read_from(model.gguf)}"""


def _what_was_cut(verdict: VerdictRecord, plan: Plan) -> str:
    saved, aside = verdict.parameters, verdict.handed_over
    edits = "\n".join(f"- {words}" for words in plan.descriptions)
    if edits:
        counted = f"{saved.before:,} parameters before, {saved.after:,} stored now"
        return f"{edits}\n\nIn all {verdict.cut_summary}; {counted}."
    if not aside.unproven:
        return "Nothing."
    return f"Nothing in this checkpoint. Tried and set aside, in `{aside.unproven}`: {aside.edits}."


def loads_markdown(loads: LoadsRecord) -> str:
    """Return the list of programs that load the checkpoint, or do not."""
    lines = []
    for place in loads.where:
        evidence = evidence_text(place)
        how = f"`{place.how}`" + (f", {evidence}" if evidence else "") if place.loads else f"no, {place.how}"
        lines.append(f"- {place.place}: {how}")
    why = [f"\nNot a stock checkpoint, because {loads.why}."] if loads.why else []
    return "\n".join([*lines, *why])


def _trust(verdict: VerdictRecord) -> str:
    lines = [
        f"- p = {verdict.p_value:.2g} ({verdict.test}); test split opened {verdict.openings} time(s)",
    ]
    if verdict.baseline:
        lines.append(f"- at the start: {baseline_text(verdict.baseline)}")
    if verdict.before.ci is None:
        lines.append(f"- {few_groups(verdict.groups)}")
    if margin := verdict.non_inferiority:
        lines.append(f"- {margin.method}: {bound_text(margin)}")
    lines += [f"- {guard.name}: {guard.detail}" for guard in verdict.guards]
    for other in verdict.alternatives:
        if other.applicable:
            lines.append(f"- instead of cutting, {other.name} ({other.detail}): {_value(other)}")
    return "\n".join(lines)


def unverified_card(model: str, hub: bool, plan: Plan, provenance: ProvenanceRecord) -> str:
    """Return README.md of a checkpoint that `apply` wrote: what was cut, and that nobody has measured what it did."""
    edits = "\n".join(f"- {words}" for words in plan.descriptions)
    return f"""{_front_matter(model, hub, "apply", provenance.gguf)}
# {_short(model)}, cut by hand

**Nothing was verified.** `secateur eval FOLDER --task TASK` measures what this model can do.

## What was cut

{edits or "Nothing: the plan is empty."}

Model fingerprint `{plan.model}`. `plan.json` holds the cut.

{_made(provenance)}
{_read_from(provenance.gguf)}
## How to load it

{loads_markdown(provenance.loads) if provenance.loads else ""}
"""


_CHECKED = {
    "logits": "The files were read back and compute what the cut model in memory computes.",
    "digests": "The files were read back and hold, bit for bit, what was written; nothing was computed with them.",
}


def _made(provenance: ProvenanceRecord) -> str:
    """Return which matrices were not decomposed exactly, and what the files were held to."""
    lines = []
    for matrix in provenance.svd or ():
        if matrix.svd == "randomized":
            bounded = f"at most {matrix.excess:.2g} of that more"
            more = bounded if isfinite(matrix.excess) else "how much more is not bounded"
            lines.append(
                f"- {matrix.matrix}, rank {matrix.rank}: by the randomized method, seeded. It leaves "
                f"{matrix.residual:.4f} of the matrix's norm; {more} than the exact decomposition would."
            )
    return "\n".join([*lines, *([""] if lines else []), _CHECKED[str(provenance.check)]])


def _read_from(gguf: GgufRecord | None) -> str:
    """Return a line about the GGUF file that the original was read from; nothing for another."""
    return "" if gguf is None else f"\n{gguf.sentence}\n"


def _front_matter(model: str, hub: bool, method: str, gguf: GgufRecord | None) -> str:
    named = model if gguf is None else "/".join(model.split("/")[:2])  # what follows is the file
    base = f"base_model: {named}\n" if hub else ""
    return f"---\nlibrary_name: transformers\n{base}tags:\n- secateur\n- pruning\n- {method}\n---\n"


def _short(model: str) -> str:
    return model.rstrip("/").split("/")[-1]


def _rows(verdict: VerdictRecord) -> str:
    rows: list[VerdictRecord | SecondaryRecord] = [verdict, *verdict.secondary]
    return "\n".join(
        f"| {row.metric} ({row.unit}) | {_value(row.before)} | {_value(row.after)} |" for row in rows
    )


def _value(score: ScoreRecord | IntervalRecord | AlternativeRecord | None) -> str:
    if score is None:
        return ""
    ends = f" [{score.ci[0]:.4g}, {score.ci[1]:.4g}]" if score.ci else ""
    return f"{score.value:.4g}{ends}"


def _by_task(verdict: VerdictRecord) -> str:
    """Return a table of several tasks, each by itself; nothing for one."""
    lines = [
        f"| {row.name} (n = {row.n}) | {row.metric} | {_value(row.before)} | {_value(row.after)} | {row.p_value:.2g} |"
        for row in verdict.tasks
    ]
    head = "## Task by task\n\n| all test examples of | metric | before | after | p |\n|---|---|---|---|---|"
    return "\n".join([head, *lines, "", ""]) if lines else ""


def _effects(effects: Sequence[SideEffect]) -> str:
    lines = [f"- {e.name} ({e.unit}): {_value(e.before)} → {_value(e.after)}" for e in effects]
    return "\n".join(lines) or "No side effect was measured."
