"""Tables and lists of the page: changed examples, measurements before and after, the origin of the numbers.

Every string from data is escaped here or in the templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from secateur.core.records.analysis import ChangedExample
from secateur.core.records.plan import PlanRecord
from secateur.core.records.verdict import MemberRecord, VerdictRecord
from secateur.report.interval_plot import Compared
from secateur.report.markup import MISSING, change, folded, interval, number, p_value, table, text
from secateur.report.templating import fragment

MAX_CHANGED = 200
KINDS = ("recovered", "lost", "changed")


def changed(examples: Sequence[ChangedExample]) -> str:
    """Return a table of at most `MAX_CHANGED` examples whose answer changed, with buttons that filter it by kind."""
    shown = _fair(examples, MAX_CHANGED)
    kinds = dict.fromkeys([*KINDS, *(example.kind for example in examples)])
    counts = {kind: sum(example.kind == kind for example in examples) for kind in kinds}
    return fragment(
        "tables",
        "changed",
        counts={kind: count for kind, count in counts.items() if count},
        examples=shown,
        styled=KINDS,
        more=len(examples) - len(shown),
    )


def _fair(examples: Sequence[ChangedExample], most: int) -> list[ChangedExample]:
    """Return at most `most` examples in their own order, so that a frequent kind does not crowd out a rare one."""
    if len(examples) <= most:
        return list(examples)
    turn: dict[str, int] = {}
    order = []
    for index, example in enumerate(examples):
        turn[example.kind] = turn.get(example.kind, -1) + 1
        order.append((turn[example.kind], index))
    return [examples[index] for index in sorted(index for _, index in sorted(order)[:most])]


def measures(items: Sequence[tuple[str, Compared]]) -> str:
    """Return a folded table of before, after, difference and p-value of each measurement, which comes with its name."""
    return folded(measure_table(items)) if items else ""


def measure_table(items: Sequence[tuple[str, Compared]]) -> str:
    """Return the table that `measures` folds."""
    head = ("", "before", "interval", "after", "interval", "difference", "interval", "")
    return table(head, [_measure(name, item) for name, item in items])


def _measure(name: str, item: Compared) -> list[str]:
    gap, p = item.difference, item.p_value if isinstance(item, VerdictRecord | MemberRecord) else None
    sides = [
        text(cell)
        for side in (item.before, item.after)
        for cell in (
            number(side.value if side else None, item.unit),
            interval(side.ci if side else None, item.unit),
        )
    ]
    ends = [
        text(change(gap.value if gap else None, item.unit)),
        text(interval(gap.ci if gap else None, item.unit, signed=True)),
    ]
    return [text(name), *sides, *ends, p_value(p)]


def provenance(verdict: VerdictRecord, plan: PlanRecord) -> str:
    """Return where the numbers come from, down to the hashes, as one folded block."""
    model, task = verdict.model, verdict.task
    edits = json.dumps([edit.to_json() for edit in plan.edits], ensure_ascii=False)
    facts = {
        "command": f"<code>{text(verdict.command)}</code>",
        "model": joined(model.name, model.architecture, model.family),
        "model fingerprint": f"<code>{text(model.fingerprint)}</code>",
        "task": joined(task.name, task.kind),
        "task hash": f"<code>{text(task.hash)}</code>",
        "examples": joined(*(f"{name} {n}" for name, n in task.splits.items())),
        "seed": f"{verdict.seed}, splits {verdict.split_seed}",
        "evaluations": f"{verdict.evaluations:,} (candidate, example) pairs",
        "time": joined(*(f"{name} {value:,.1f} s" for name, value in verdict.seconds.items())),
        "versions": joined(*(f"{name} {value}" for name, value in verdict.versions.items())),
        **({} if verdict.structure is None else {"structure": text(verdict.structure.sentence)}),
        "plan": f"<code>{text(edits)}</code>",
    }
    return folded_facts(facts)


def folded_facts(facts: Mapping[str, str]) -> str:
    """Return a folded block of facts about where numbers come from.

    Args:
        facts: Escaped HTML by name; names are written as they are, so they may not come from data.
    """
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    summary = "<summary>Where these numbers come from</summary>"
    return f'<details class="provenance">{summary}<dl>{body}</dl></details>'


def joined(*parts: object) -> str:
    """Return what is there of `parts`, with commas between, escaped."""
    return text(", ".join(str(part) for part in parts if part) or MISSING)
