"""Write the model card from the records: what was cut from what, what it gained and cost, how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from huggingface_hub import EvalResult, ModelCardData

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
    ProvedRecord,
    ScoreRecord,
    SecondaryRecord,
    SideEffect,
    VerdictRecord,
)
from secateur.core.score import few_groups, metric_name
from secateur.core.site import in_words
from secateur.hf.families import ARCHITECTURES
from secateur.hf.family import CAUSAL


def model_card(verdict: VerdictRecord, plan: Plan) -> str:
    """Return README.md of a checkpoint, with the hub's front matter.

    Args:
        plan: The plan of the checkpoint; empty where it holds the unchanged model.
    """
    model, task = verdict.model, verdict.task
    cut = verdict.handed_over.holds == "cut"
    warning = "> **WORSE THAN THE ORIGINAL.** Do not use it in its place.\n\n"
    title = f"cut for {task.name}" if cut else f"unchanged: no cut for {task.name} is shown to help"
    does = pipeline_of(model.architecture)
    tags, results = [verdict.search.method], eval_results(verdict)
    return f"""{front_matter(_short(model.name), tags, model.base_model, model.license, results, does)}
# {_short(model.name)}, {title}

{warning if cut and verdict.verdict == WORSE else ""}**{verdict.verdict}** — {verdict.sentence}

| on {verdict.n:,} test examples that nothing was chosen by, with 95 % intervals | before | after |
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

{verdict.candidates_tried:,} candidates tried. Model fingerprint `{model.fingerprint}`, task hash `{task.hash}`,
seed {verdict.seed}, split seed {verdict.split_seed}. `plan.json` holds the cut, `verdict.json` every number,
`report.html` the pictures.
{_proved(verdict.structure)}{_read_from(model.gguf)}"""


def pipeline_of(architecture: str) -> str:
    """Return what a model of this class does, by the hub's names."""
    known = ARCHITECTURES.get(architecture)
    return (CAUSAL if known is None else known.head).pipeline


def _what_was_cut(verdict: VerdictRecord, plan: Plan) -> str:
    saved, aside = verdict.parameters, verdict.handed_over
    edits = _edits(plan)
    if edits:
        counted = f"{saved.before:,} parameters before, {saved.after:,} stored now"
        return f"{edits}\n\nIn all {verdict.cut_summary}; {counted}."
    if not aside.unproven:
        return "Nothing."
    return f"Nothing in this checkpoint. Tried and set aside, in `{aside.unproven}`: {in_words(aside.edits or '')}."


def _edits(plan: Plan) -> str:
    """Return a line for each edit, in words and as plan.json has it."""
    return "\n".join(f"- {in_words(words)} (`{words}`)" for words in plan.descriptions)


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
        f"- p = {verdict.p_value:.2g} ({verdict.test}); test split opened {_times(verdict.openings)}",
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
            lines.append(
                f"- instead of cutting, {other.name} ({other.detail}): {_value(other, verdict.unit)}"
            )
    return "\n".join(lines)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def unverified_card(
    model: str,
    hub: bool,
    plan: Plan,
    provenance: ProvenanceRecord,
    license: str | None = None,
    does: str = "text-generation",
) -> str:
    """Return README.md of a checkpoint that `apply` wrote: what was cut, and that nobody has measured what it did.

    Args:
        license: As the card of `model` states.
        does: As for `front_matter`.
    """
    edits = _edits(plan)
    base = None if not hub else model if provenance.gguf is None else "/".join(model.split("/")[:2])
    return f"""{front_matter(_short(model), ["apply"], base, license, does=does)}
# {_short(model)}, cut by hand

**Nothing was verified.** `secateur eval FOLDER --task TASK` measures what this model can do.

## What was cut

{edits or "Nothing: the plan is empty."}

Model fingerprint `{plan.model}`. `plan.json` holds the cut.

{_made(provenance)}
{_proved(provenance.structure)}{_read_from(provenance.gguf)}
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


def _proved(structure: ProvedRecord | None) -> str:
    """Return a line about what was proved of the original's structure; nothing of a checkpoint that cuts nothing."""
    told = structure is not None and (structure.proved or structure.not_proved or structure.why)
    return f"\n{structure.sentence}\n" if structure is not None and told else ""


def _read_from(gguf: GgufRecord | None) -> str:
    """Return a line about the GGUF file that the original was read from; nothing for another."""
    return "" if gguf is None else f"\n{gguf.sentence}\n"


def front_matter(
    name: str,
    tags: Sequence[str],
    base_model: str | None,
    license: str | None = None,
    results: Sequence[EvalResult] = (),
    does: str = "text-generation",
) -> str:
    """Return the metadata of a card as the hub reads it.

    Args:
        does: What the model does, by the hub's names.
        tags: What made the checkpoint, such as a method.
        base_model: Its name on the hub; None for a model that did not come from there.
        license: None: not known, and left out.
    """
    data = ModelCardData(
        model_name=f"{name}-secateur" if results else None,
        base_model=base_model,
        library_name="transformers",
        license=license,
        pipeline_tag=does,
        tags=["secateur", "pruning", *tags],
        eval_results=list(results) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


_METRICS = {"share": "accuracy", "nats/token": "loss", "nats": "loss", "perplexity": "perplexity"}


def eval_results(verdict: VerdictRecord) -> list[EvalResult]:
    """Return what the checkpoint itself measured on the test split and the side tasks, in the hub's format.

    Nothing of a cut that was set aside: the numbers after it are not those of the checkpoint.
    """
    cut, does = verdict.handed_over.holds == "cut", pipeline_of(verdict.model.architecture)
    rows: list[VerdictRecord | SecondaryRecord] = [verdict, *verdict.secondary]
    found = []
    for row in rows:
        words = f"{metric_name(row.metric)}, {verdict.n:,} test examples"
        score = row.after if cut else row.before
        found.append(_result(verdict.task.name, row.metric, words, score, does))
    for side in verdict.side_effects:
        if side.unit in _METRICS:
            words = f"{side.name}, {side.counted}"
            task = side.name.partition(" on ")[2] or side.name
            found.append(_result(task, _METRICS[side.unit], words, side.after if cut else side.before, does))
    return [result for result in found if result is not None]


def _result(
    task: str, metric: str, words: str, score: ScoreRecord | IntervalRecord | None, does: str
) -> EvalResult | None:
    if score is None or not isfinite(score.value):
        return None
    return EvalResult(
        task_type=does,
        dataset_type=task,
        dataset_name=task,
        dataset_split="test",
        metric_type=metric,
        metric_name=words,
        metric_value=round(score.value, 6),
    )


def _short(model: str) -> str:
    return model.rstrip("/").split("/")[-1].removeprefix("builtin:")


def _rows(verdict: VerdictRecord) -> str:
    rows: list[VerdictRecord | SecondaryRecord] = [verdict, *verdict.secondary]
    return "\n".join(
        f"| {metric_name(row.metric)} | {_value(row.before, row.unit)} | {_value(row.after, row.unit)} |"
        for row in rows
    )


def _value(score: ScoreRecord | IntervalRecord | AlternativeRecord | None, unit: str) -> str:
    """Return a value with its interval and unit: `93.7 % [90.3, 95.9]`, `0.500 nats/token [0.423, 0.592]`."""
    if score is None or score.value is None:
        return ""
    scale, digits, named = (100, ".1f", "%") if unit == "share" else (1, ".4g", unit)
    named = f" {named}" if unit in ("share", "nats", "nats/token") else ""
    ends = f" [{score.ci[0] * scale:{digits}}, {score.ci[1] * scale:{digits}}]" if score.ci else ""
    return f"{score.value * scale:{digits}}{named}{ends}"


def _by_task(verdict: VerdictRecord) -> str:
    """Return a table of several tasks, each by itself; nothing for one."""
    lines = []
    for row in verdict.tasks:
        before, after = (_value(score, row.unit) for score in (row.before, row.after))
        lines.append(
            f"| {row.name}, {row.n:,} | {metric_name(row.metric)} | {before} | {after} | {row.p_value:.2g} |"
        )
    head = "## Task by task\n\n| task, test examples | metric | before | after | p |\n|---|---|---|---|---|"
    return "\n".join([head, *lines, "", ""]) if lines else ""


def _effects(effects: Sequence[SideEffect]) -> str:
    lines = []
    for effect in effects:
        before, after = (_value(score, effect.unit) for score in (effect.before, effect.after))
        lines.append(f"- {effect.name}: {before} → {after}, {effect.counted}")
    return "\n".join(lines) or "No side effect was measured."
