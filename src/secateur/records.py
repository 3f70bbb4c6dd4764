"""What a run found out, as plain records for the report and for `--json`. Numpy and core only, no model."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from secateur import __version__
from secateur.core import stats
from secateur.core.plan import Plan, Truncate
from secateur.core.readings import Readings
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.tasks.example import Task


def _about(edit: Truncate, full_rank: int) -> dict[str, Any]:
    site = edit.matrix
    return {
        "site": str(site),
        "matrix": site.part,
        "block": site.block,
        "rank": edit.rank,
        "full_rank": full_rank,
        "kept": edit.rank / full_rank,
    }


Kind = tuple[str, str]  # part and unit of a site

_KINDS: Mapping[Kind, str] = {
    ("", ""): "blocks",
    ("attn", ""): "attentions",
    ("attn", "g"): "KV groups",
    ("attn", "h"): "heads",
    ("mlp", ""): "feed-forward networks",
    ("mlp", "n"): "neurons",
}


def cut_summary(plan: Plan, counts: Mapping[Kind, int]) -> str:
    """What goes, counted: `29 of 48 heads, 1 of 6 feed-forward networks`, of a model that has `counts`."""
    gone = Counter((site.part, site.unit) for site in plan.dropped)
    words = [f"{gone[kind]} of {counts[kind]} {word}" for kind, word in _KINDS.items() if gone[kind]]
    matrices = len(plan.truncated)
    if matrices:
        words.append(f"{matrices} {'matrix' if matrices == 1 else 'matrices'} of lower rank")
    removed = sum(len(edit.directions) for edit in plan.removed)
    if removed:
        where = "1 matrix" if len(plan.removed) == 1 else f"{len(plan.removed)} matrices"
        words.append(f"{removed} singular direction{'s' * (removed > 1)} of {where}")
    for form, told in (("fold", "folded into those before"), ("linear", "as linear maps")):
        count = sum(len(edit.blocks) for edit in plan.linearized if edit.form == form)
        if count:
            words.append(f"{count} of {counts['', '']} blocks {told}")
    return ", ".join(words) or "nothing"


def counted(widths: Iterable[Any]) -> dict[Kind, int]:
    """How many parts of each kind a model has, from the widths of its blocks."""
    widths = list(widths)
    return {
        ("", ""): len(widths),
        ("attn", ""): sum(own.num_heads > 0 for own in widths),
        ("attn", "g"): sum(own.num_kv_heads for own in widths),
        ("attn", "h"): sum(own.num_heads for own in widths),
        ("mlp", ""): sum(own.d_ff > 0 for own in widths),
        ("mlp", "n"): sum(own.d_ff for own in widths),
    }


def measured(outcomes: np.ndarray) -> dict[str, Any]:
    """Accuracy is None where the task has none."""
    accuracy = METRICS["accuracy"].mean(outcomes)
    only_text = np.isnan(outcomes["correct"]).all()
    loss = METRICS["text_loss" if only_text else "loss"].mean(outcomes)
    return {"accuracy": None if np.isnan(accuracy) else accuracy, "loss": loss, "n": len(outcomes)}


def base_record(outcomes: np.ndarray) -> dict[str, Any]:
    return measured(outcomes)


def sweep_records(
    standing: Mapping[Plan, np.ndarray], full_ranks: Mapping[Site, int], num_examples: int
) -> list[dict[str, Any]]:
    """One record for every plan with a single edit; `complete` is False where the race ended early for it."""
    records = []
    for plan, outcomes in standing.items():
        if len(plan.edits) == 1 and plan.edits[0].side == "top":
            edit = plan.edits[0]
            values = measured(outcomes) | {"complete": len(outcomes) == num_examples}
            records.append(_about(edit, full_ranks[edit.matrix]) | values)
    return sorted(records, key=lambda r: (r["block"], r["matrix"], r["rank"]))


def screen_records(
    readings: Readings, edits: Iterable[Truncate], full_ranks: Mapping[Site, int]
) -> list[dict[str, Any]]:
    """The predicted change of loss of every candidate, nats."""
    scored = ((edit, readings.values[str(edit)]) for edit in edits)
    return [_about(edit, full_ranks[edit.matrix]) | {"score": score} for edit, score in scored]


def curve_records(
    judged: Mapping[Plan, np.ndarray], full_ranks: Mapping[Site, int], base: np.ndarray
) -> list[dict[str, Any]]:
    """Loss and accuracy against the share of components removed, one curve per matrix (LASER, Fig. 2)."""
    by_site: dict[Site, list[tuple[float, dict[str, Any]]]] = {}
    for plan, outcomes in judged.items():
        (edit,) = plan.edits
        removed = 100 * (1 - edit.rank / full_ranks[edit.matrix])
        by_site.setdefault(edit.matrix, [(0.0, measured(base))]).append((removed, measured(outcomes)))
    curves = []
    for site, points in sorted(by_site.items()):
        points.sort(key=lambda point: point[0])
        curves.append(
            {
                "site": str(site),
                "matrix": site.part,
                "block": site.block,
                "removed": [removed for removed, _ in points],
                "loss": [measured["loss"] for _, measured in points],
                "accuracy": [measured["accuracy"] for _, measured in points],
            }
        )
    return curves


MOST_FREQUENT = 2**53  # what float64 counts exactly


def frequency_records(
    task: Task, examples: Sequence[int], before: np.ndarray, after: np.ndarray, *, bins: int = 5
) -> list[dict[str, Any]]:
    """Accuracy before and after by how often training text had the fact (LASER, Fig. 3); [] where unknown.

    The task says how often in `meta["frequency"]`. Bins hold equally many examples, the rarest first.
    """
    counts = _frequencies(task, examples)
    if counts is None:
        return []
    edges = np.unique(np.quantile(counts, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, counts, side="right") - 1, 0, len(edges) - 2)
    return [_bin(counts[place == b], before[place == b], after[place == b]) for b in range(len(edges) - 1)]


def knows_frequency(task: Task, examples: Sequence[int]) -> bool:
    """Says whether `frequency_records` has rows for these examples."""
    return _frequencies(task, examples) is not None


def _frequencies(task: Task, examples: Sequence[int]) -> np.ndarray | None:
    """None where some example lacks a number, for `meta` may hold anything, and where all have the same."""
    found = [task.examples[i].meta.get("frequency") for i in examples]
    known = all(isinstance(count, int | float) and abs(count) <= MOST_FREQUENT for count in found)
    return (
        np.array(found, dtype=np.float64) if known and len(set(found)) > 1 and task.kind != "text" else None
    )


def _bin(counts: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    low, high, n = int(counts.min()), int(counts.max()), len(counts)
    record: dict[str, Any] = {"bin": f"{low}" if low == high else f"{low}–{high}", "n": n}
    for name, outcomes in (("before", before), ("after", after)):
        right = float(outcomes["correct"].sum())
        ci = list(stats.wilson(right, n)) if n >= stats.FEWEST_GROUPS else None
        record |= {name: right / n, f"{name}_ci": ci}
    return record


def paraphrase_record(task: Task, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Robustness: the share of facts right in *all* of their other phrasings, before and after (LASER, section 4)."""
    groups = task.groups(task.split("test"))
    record: dict[str, Any] = {"n": len(np.unique(groups)), "per_fact": len(groups) / len(np.unique(groups))}
    for name, outcomes in (("before", before), ("after", after)):
        wrong = np.bincount(groups, weights=1 - outcomes["correct"])
        record |= {
            f"all_right_{name}": float(np.mean(wrong == 0)),
            f"mean_{name}": float(outcomes["correct"].mean()),
        }
    return record


def changed_records(
    task: Task,
    before: np.ndarray,
    after: np.ndarray,
    labels_before: Sequence[str],
    labels_after: Sequence[str],
) -> list[dict[str, Any]]:
    """The examples whose answer changed: recovered, lost, or wrong in another way."""
    records = []
    for was, now, old, new in zip(before, after, labels_before, labels_after, strict=True):
        kinds = {(0.0, 1.0): "recovered", (1.0, 0.0): "lost"}
        kind = kinds.get((float(was["correct"]), float(now["correct"])), "changed" if old != new else "")
        if kind:
            example = task.examples[was["example"]]
            told = {"id": example.id, "prompt": example.prompt, "answer": example.answer}
            records.append({**told, "before": old, "after": new, "kind": kind})
    return records


def versions() -> dict[str, str]:
    """What computed the numbers: secateur, Python and the libraries that decide them."""
    names = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"secateur": __version__, "python": platform.python_version()} | found
