"""Summaries of a run: cuts in words, measured values, facts by frequency, paraphrases, changed answers, the verdict.

Knows no model.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, assert_never

import numpy as np

from secateur import __version__
from secateur.core import stats
from secateur.core.comparison import ALPHA, IMPROVES, WORSE
from secateur.core.noninferiority import NOT_WORSE, bound_text, margin_text
from secateur.core.plan import DROPPED, Drop, Linearize, Plan, RemoveDirections, Truncate
from secateur.core.records.analysis import BaseRecord, ChangedExample, FrequencyBin, ParaphrasesRecord
from secateur.core.records.verdict import MemberRecord, VerdictRecord
from secateur.core.score import METRICS, few_groups
from secateur.core.site import Site
from secateur.tasks.example import Task


class BlockSizes(Protocol):
    """The numbers of parts that one block has."""

    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def num_cross(self) -> int: ...


Kind = tuple[str, str]  # part and unit of a site


def cut_summary(plan: Plan, counts: Mapping[Kind, int]) -> str:
    """Return what a plan removes: `29 of 48 heads, 1 of 6 feed-forward networks`, of a model that has `counts`."""
    gone: Counter[Kind] = Counter()
    mapped: Counter[str] = Counter()  # blocks by the form of their map
    truncated, directions = 0, Counter[Site]()
    for edit in plan.edits:
        match edit:
            case Drop():
                gone[edit.site.part, edit.site.unit] += 1
            case Truncate():
                truncated += 1
            case RemoveDirections():
                directions[edit.matrix] += len(edit.directions)
            case Linearize():
                mapped[edit.form] += len(edit.blocks)
            case _:
                assert_never(edit)
    words = [f"{gone[kind]:,} of {counts[kind]:,} {word}" for kind, word in DROPPED.items() if gone[kind]]
    words += [f"{_matrices(truncated)} of lower rank"] if truncated else []
    if removed := directions.total():
        words.append(f"{removed} singular direction{'s' * (removed > 1)} of {_matrices(len(directions))}")
    for form, how in (("fold", "folded into those before"), ("linear", "as linear maps")):
        if mapped[form]:
            words.append(f"{mapped[form]} of {counts['', '']} blocks {how}")
    return ", ".join(words) or "nothing"


def _matrices(count: int) -> str:
    return "1 matrix" if count == 1 else f"{count} matrices"


def num_parts(widths: Iterable[BlockSizes]) -> dict[Kind, int]:
    """Return how many parts of each kind a model has, from the widths of its blocks."""
    blocks = list(widths)
    return {
        ("", ""): len(blocks),
        ("attn", ""): sum(block.num_heads > 0 for block in blocks),
        ("attn", "g"): sum(block.num_kv_heads for block in blocks),
        ("attn", "h"): sum(block.num_heads for block in blocks),
        ("cross", ""): sum(block.num_cross > 0 for block in blocks),
        ("cross", "g"): sum(block.num_cross for block in blocks),
        ("cross", "h"): sum(block.num_cross for block in blocks),
        ("mlp", ""): sum(block.d_ff > 0 for block in blocks),
        ("mlp", "n"): sum(block.d_ff for block in blocks),
        ("mlp", "e"): sum(block.num_experts for block in blocks),
    }


def base_record(outcomes: np.ndarray) -> BaseRecord:
    """Return the mean accuracy and loss of some outcomes, as analysis.json has them of the original.

    Accuracy is None where the task has none.
    """
    accuracy = METRICS["accuracy"].mean(outcomes)
    only_text = np.isnan(outcomes["correct"]).all()
    return BaseRecord(
        accuracy=None if np.isnan(accuracy) else accuracy,
        loss=METRICS["text_loss" if only_text else "loss"].mean(outcomes),
        n=len(outcomes),
    )


MOST_FREQUENT = 2**53  # what float64 counts exactly


def frequency_bins(
    task: Task, examples: Sequence[int], before: np.ndarray, after: np.ndarray, *, bins: int = 5
) -> list[FrequencyBin]:
    """Return accuracy before and after by how often training text had the fact; nothing where that is unknown.

    The task says how often in `meta["frequency"]`. Bins hold equally many examples, the rarest first.

    Source: LASER (Sharma, Ash, Misra 2023, arXiv 2312.13558), Fig. 3.
    """
    counts = _frequencies(task, examples)
    if counts is None:
        return []
    edges = np.unique(np.quantile(counts, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, counts, side="right") - 1, 0, len(edges) - 2)
    return [
        _frequency_bin(counts[place == b], before[place == b], after[place == b])
        for b in range(len(edges) - 1)
    ]


def knows_frequency(task: Task, examples: Sequence[int]) -> bool:
    """Tell whether `frequency_bins` has rows for these examples."""
    return _frequencies(task, examples) is not None


def _frequencies(task: Task, examples: Sequence[int]) -> np.ndarray | None:
    """Return None where some example lacks a number, for `meta` may hold anything, and where all have the same."""
    counts = [task.examples[i].meta.get("frequency") for i in examples]
    known = all(isinstance(count, int | float) and abs(count) <= MOST_FREQUENT for count in counts)
    if not known or len(set(counts)) < 2 or task.kind == "text":
        return None
    return np.array(counts, dtype=np.float64)


def _frequency_bin(counts: np.ndarray, before: np.ndarray, after: np.ndarray) -> FrequencyBin:
    low, high, n = int(counts.min()), int(counts.max()), len(counts)
    right = [float(outcomes["correct"].sum()) for outcomes in (before, after)]
    bounded = n >= stats.FEWEST_GROUPS
    intervals = [list(stats.wilson(count, n)) if bounded else None for count in right]
    return FrequencyBin(
        bin=f"{low}" if low == high else f"{low}–{high}",
        n=n,
        before=right[0] / n,
        before_ci=intervals[0],
        after=right[1] / n,
        after_ci=intervals[1],
    )


def paraphrase_record(task: Task, before: np.ndarray, after: np.ndarray) -> ParaphrasesRecord:
    """Return the share of facts right in *all* of their other phrasings, before and after.

    Source: LASER (Sharma, Ash, Misra 2023, arXiv 2312.13558), section 4.
    """
    groups = task.groups(task.split("test"))
    all_right = [
        float(np.mean(np.bincount(groups, weights=1 - outcomes["correct"]) == 0))
        for outcomes in (before, after)
    ]
    return ParaphrasesRecord(
        n=len(np.unique(groups)),
        per_fact=len(groups) / len(np.unique(groups)),
        all_right_before=all_right[0],
        all_right_after=all_right[1],
        mean_before=float(before["correct"].mean()),
        mean_after=float(after["correct"].mean()),
    )


def changed_examples(
    task: Task,
    before: np.ndarray,
    after: np.ndarray,
    labels_before: Sequence[str],
    labels_after: Sequence[str],
) -> list[ChangedExample]:
    """Return the examples whose answer changed: recovered, lost, or wrong in another way."""
    kinds = {(0.0, 1.0): "recovered", (1.0, 0.0): "lost"}
    changed = []
    for was, now, old, new in zip(before, after, labels_before, labels_after, strict=True):
        kind = kinds.get((float(was["correct"]), float(now["correct"])), "changed" if old != new else "")
        if kind:
            example = task.examples[was["example"]]
            changed.append(
                ChangedExample(
                    id=example.id,
                    prompt=example.prompt,
                    answer=example.answer,
                    before=old,
                    after=new,
                    kind=kind,
                )
            )
    return changed


def versions() -> dict[str, str]:
    """Return the versions of secateur, Python and the libraries that decide the numbers."""
    libraries = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"secateur": __version__, "python": platform.python_version()} | installed


# --------------------------------------------------------------------------------------------------------- the sentence


def sentence(verdict: VerdictRecord) -> str:
    """Return the verdict in one plain sentence. The `sentence` of the record itself is not read."""
    scale, unit = (100, " %") if verdict.unit == "share" else (1, f" {verdict.unit}")
    digits, step = (".1f", " points") if verdict.unit == "share" else (".3f", "")
    before, after, difference = (
        part.value * scale for part in (verdict.before, verdict.after, verdict.difference)
    )
    metric = verdict.metric.replace("_", " ")
    several = ", as many of " + " as of ".join(member.name for member in verdict.tasks)
    n = f"{verdict.n} test examples{several if verdict.tasks else ''}"
    if not verdict.cut:
        return (
            f"{_why_nothing(verdict)}, so the model is unchanged: {metric} {before:{digits}}{unit} on {n}."
            f"{_what_it_holds(verdict)}"
        )
    ci, p, openings = verdict.difference.ci, verdict.p_value, verdict.openings
    ends = ", ".join(f"{end * scale:+{digits}}" for end in ci) if ci else few_groups(verdict.groups)
    test = verdict.test + (f", p corrected for {openings} openings of this split" if openings > 1 else "")
    bounded = verdict.non_inferiority
    bound = f"; {bound_text(bounded)}" if bounded else ""
    members = f" Task by task: {', '.join(map(_member, verdict.tasks))}." if verdict.tasks else ""
    return (
        f"On {n}{',' if verdict.tasks else ''} that nothing was chosen by, {metric} went from "
        f"{before:{digits}}{unit} to {after:{digits}}{unit}: {difference:+{digits}}{step} [{ends}], "
        f"p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'} ({test}){bound}.{members}{_what_it_holds(verdict)}"
        f"{_quantization(verdict)}"
    )


def _quantization(verdict: VerdictRecord) -> str:
    """Say of a gain on weights that were rounded what else it may be."""
    file = verdict.model.gguf if verdict.verdict == IMPROVES else None
    if file is None or not file.quantized:
        return ""
    return f" The weights were rounded to {file.type} before: part of the gain may be quantization noise that is gone."


def _why_nothing(verdict: VerdictRecord) -> str:
    """Say why the search took nothing."""
    choice = verdict.search.choice
    if choice is None:
        gainless = verdict.search.protocol in ("threshold", "paper")
        return (
            "No direction is predicted to hurt"
            if gainless
            else "Nothing could go within the bound (--max-loss)"
        )
    if not choice.better:
        return f"None of {choice.tried} cuts did better on the validation split"
    return (
        f"The validation split does not show that a cut helps (the best of {choice.tried}: "
        f"p = {choice.p_value:.2g}, corrected for all of them)"
    )


def _what_it_holds(verdict: VerdictRecord) -> str:
    """Say what the checkpoint holds, where that is not what one would expect from the word."""
    handed = verdict.handed_over
    if handed.unproven:
        which = "the cut plan" if verdict.cut else "the best plan that was tried"
        also = "" if verdict.cut else " (not measured on test)"
        return (
            f" The checkpoint holds the unchanged model; {which} lies in {handed.unproven}{also}, and "
            "--keep-unproven writes the cut model."
        )
    fine = verdict.verdict == IMPROVES or verdict.verdict.startswith(NOT_WORSE)
    if fine or handed.holds == "original":
        return ""
    if verdict.verdict == WORSE and verdict.non_inferiority:
        bounded = verdict.non_inferiority
        margin = margin_text(bounded.margin if bounded.decides is None else bounded.decides, bounded.unit)
        return f" THE CHECKPOINT HOLDS THE CUT MODEL, worse than the margin of {margin} allows."
    choice = verdict.search.choice
    unshown = ""
    if choice is not None and not choice.shown:  # the cut was kept on request
        unshown = f", though the validation split did not show a gain either (p = {choice.p_value:.2g})"
    return f" The checkpoint holds the cut model all the same{unshown}."


def _member(member: MemberRecord) -> str:
    """Say whether one of several tasks got better or worse on all of its own test examples."""
    scale, unit, digits = (100, " %", ".1f") if member.unit == "share" else (1, "", ".3f")
    was, now = (f"{score.value * scale:{digits}}" for score in (member.before, member.after))
    shown = "no difference shown" if member.p_value >= ALPHA else "better" if member.gained else "worse"
    return f"{member.name} {was} → {now}{unit} ({shown})"
