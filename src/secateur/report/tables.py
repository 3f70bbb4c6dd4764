"""What is shown as HTML rather than drawn: tail answers, changed examples, tables of numbers, provenance.

Every string from data is escaped here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.report.markup import MISSING, change, interval, known, metric_name, number, p_value, table, text

MAX_CHANGED = 200
KINDS = ("recovered", "lost", "changed")

Record = Mapping[str, Any]

_TAIL_TITLES = {
    "full": "The whole matrix",
    "top": "Only the {rank} largest components",
    "tail": "Only the {rank} smallest components",
}


_TAIL_NOTES = {"full": ", as trained", "top": ", what stays", "tail": ", what was removed"}


def tail(rows: Sequence[Record]) -> str:
    """What the model answers with the whole matrix, its top, its tail: counts, cosine, accuracy."""
    most = max((count for row in rows for _, count in row["answers"]), default=1)
    return '<div class="cards">' + "".join(_tail_card(row, most) for row in rows) + "</div>"


def _tail_card(row: Record, most: float) -> str:
    title = _TAIL_TITLES.get(row["kind"], "Rank {rank}").format(rank=f"{row['rank']:,}")
    bars = "".join(
        f'<div class="bar"><code>{token(answer)}</code>'
        f'<span><i style="width:{100 * count / most:.1f}%"></i></span>'
        f"<small>{count:,}</small></div>"
        for answer, count in row["answers"][:8]
    )
    facts = [("cosine to the right answer", f"{row['cosine']:.2f}" if known(row.get("cosine")) else MISSING)]
    facts.append(("accuracy", number(row.get("accuracy"), "share")))
    said = "".join(f"<div><b>{text(value)}</b><small>{name}</small></div>" for name, value in facts)
    where = f"{row['site']}{_TAIL_NOTES.get(row['kind'], '')}"
    head = f"<h3>{text(title)}<small>{text(where)}</small></h3>"
    return f'<div class="card">{head}{bars}<div class="facts">{said}</div></div>'


def token(value: Any) -> str:
    """An answer without the space that joined it to its prompt; an empty one says that it is."""
    stripped = str(value).strip()
    return text(stripped) if stripped else "<em>nothing</em>"


def changed(rows: Sequence[Record]) -> str:
    """Examples whose answer changed, filtered by kind in the page; at most `MAX_CHANGED` of them."""
    shown = _fair(rows, MAX_CHANGED)
    kinds = list(dict.fromkeys([*KINDS, *(str(row["kind"]) for row in rows)]))
    counts = {kind: sum(str(row["kind"]) == kind for row in rows) for kind in kinds}
    buttons = '<button type="button" data-kind="" aria-pressed="true">all</button>' + "".join(
        f'<button type="button" data-kind="{text(kind)}" aria-pressed="false">{text(kind)} {count:,}</button>'
        for kind, count in counts.items()
        if count
    )
    body = "".join(_changed_row(row) for row in shown)
    more = len(rows) - len(shown)
    tail = f'<p class="note">{more:,} more are in analysis.json.</p>' if more else ""
    heads = "".join(
        f'<th scope="col">{name}</th>' for name in ("", "prompt", "right answer", "before", "after")
    )
    return (
        f'<div class="toggle" id="filter" role="group" aria-label="which changes">{buttons}</div>'
        f'<div class="scroll tall"><table class="changed"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{tail}"
    )


def _fair(rows: Sequence[Record], most: int) -> list[Record]:
    """At most `most` rows in their own order, no kind crowded out by a frequent one."""
    if len(rows) <= most:
        return list(rows)
    turn: dict[str, int] = {}
    places = []
    for index, row in enumerate(rows):
        turn[str(row["kind"])] = turn.get(str(row["kind"]), -1) + 1
        places.append((turn[str(row["kind"])], index))
    return [rows[index] for index in sorted(index for _, index in sorted(places)[:most])]


def _changed_row(row: Record) -> str:
    kind = str(row["kind"])
    known_kind = kind if kind in KINDS else "changed"
    cells = "".join(f"<td>{token(row[side])}</td>" for side in ("answer", "before", "after"))
    chip = f'<td><span class="chip {known_kind}">{text(kind)}</span></td>'
    prompt = f'<td class="prompt">{text(row["prompt"])}</td>'
    return f'<tr data-kind="{text(kind)}" title="{text(row["id"])}">{chip}{prompt}{cells}</tr>'


def measures(items: Iterable[Record], name: str) -> str:
    """Before, after, difference and p-value of each item as a table; `name` is the key that labels a row."""
    rows = [_measure(item, name) for item in items]
    head = ("", "before", "interval", "after", "interval", "difference", "interval", "")
    return table(head, rows) if rows else ""


def _measure(item: Record, name: str) -> list[str]:
    unit, gap = item.get("unit", "share"), item.get("difference") or {}
    label = metric_name(item[name]) if name == "metric" else item[name]
    sides = [
        text(cell)
        for side in (item.get("before") or {}, item.get("after") or {})
        for cell in (number(side.get("value"), unit), interval(side.get("ci"), unit))
    ]
    ends = [text(change(gap.get("value"), unit)), text(interval(gap.get("ci"), unit, signed=True))]
    return [text(label), *sides, *ends, p_value(item.get("p_value"))]


def provenance(verdict: Record, plan: Record) -> str:
    """Where the numbers come from, down to the hashes, as one folded block."""
    model, task = verdict.get("model") or {}, verdict.get("task") or {}
    facts = {
        "command": f"<code>{text(verdict.get('command', MISSING))}</code>",
        "model": _words(model.get("name"), model.get("architecture"), model.get("family")),
        "model fingerprint": f"<code>{text(model.get('fingerprint', MISSING))}</code>",
        "task": _words(task.get("name"), task.get("kind")),
        "task hash": f"<code>{text(task.get('hash', MISSING))}</code>",
        "examples": _words(*(f"{name} {n}" for name, n in (task.get("splits") or {}).items())),
        "seed": f"{text(verdict.get('seed', MISSING))}, splits {text(verdict.get('split_seed', MISSING))}",
        "evaluations": f"{verdict.get('evaluations') or 0:,} (candidate, example) pairs",
        "time": _words(*(f"{name} {value:,.1f} s" for name, value in (verdict.get("seconds") or {}).items())),
        "versions": _words(*(f"{name} {value}" for name, value in (verdict.get("versions") or {}).items())),
        "plan": f"<code>{text(json.dumps(plan.get('edits', []), ensure_ascii=False))}</code>",
    }
    return _folded(facts)


def probe_provenance(record: Record) -> str:
    """The same for the readings of a probe."""
    facts = {
        "model": text(record.get("model", MISSING)),
        "read": _words(*(record.get("what") or ())),
        "tasks": _words(*(record.get("tasks") or ())),
        "versions": _words(*(f"{name} {value}" for name, value in (record.get("versions") or {}).items())),
    }
    return _folded(facts)


def heal_provenance(record: Record) -> str:
    """The same for a healed cut."""
    cut, teacher, origin = record["cut"], record["teacher"], record["provenance"]
    facts = {
        "command": f"<code>{text(record['command'])}</code>",
        "cut": _words(cut["name"], cut["architecture"]),
        "fingerprint": f"<code>{text(cut['fingerprint'])}</code>",
        "original": _words(teacher["name"], teacher["architecture"]),
        "its fingerprint": f"<code>{text(teacher['fingerprint'])}</code>",
        "healed": f"<code>{text(record['fingerprint'])}</code>",
        "task": _words(record["task"]["name"], record["task"]["kind"]),
        "task hash": f"<code>{text(record['task']['hash'])}</code>",
        "learned": _words(*record["trained_on"]["splits"]),
        "versions": _words(*(f"{name} {value}" for name, value in origin["versions"].items())),
    }
    return _folded(facts)


def _folded(facts: Mapping[str, str]) -> str:
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    summary = "<summary>Where these numbers come from</summary>"
    return f'<details class="provenance">{summary}<dl>{body}</dl></details>'


def _words(*parts: Any) -> str:
    return text(", ".join(str(part) for part in parts if part) or MISSING)
