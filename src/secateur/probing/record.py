"""Readings of components as records: rows for one reading, and for several the `components` that reports draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import write_json
from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings, mean_readings, spearman_overlap
from secateur.core.site import Site
from secateur.options import Options
from secateur.probing.components import Components, Reading, read_components
from secateur.records import versions
from secateur.report import write_probe_report

Record = dict[str, Any]


def read_record(
    what: Sequence[str],
    options: Options,
    tasks: Sequence[str],
    shots: Sequence[int],
    split: str,
    *,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Record:
    """`rows` of one thing read once, else `components`; with `out` those are written either way (see `write_probe`).

    Raises: as `read_components`; `OutputError` where nothing can be written.
    """
    found = read_components(what, options, tasks, shots, split, progress)
    record: Record = {"what": list(what), "model": options.model, "split": split}
    record["tasks"] = list(dict.fromkeys(reading.task for reading in found.readings))
    record["shots"] = list(dict.fromkeys(reading.shots for reading in found.readings))
    record["components"] = components_record(found)
    one = len(what) == 1 and len(found.readings) < 2
    told = _single(what[0], options, split, found) if one else dict(record)
    if out is not None:
        layers = None if options.layers is None else list(options.layers)
        full = record | {"layers": layers, "versions": versions()}
        told["written"] = [str(path) for path in write_probe(full, Path(out))]
    return told


def write_probe(record: Record, out: Path) -> list[Path]:
    """`out`/probe.json and, of what can be drawn, `out`/probe.html; older ones are replaced."""
    write_json(out / "probe.json", record)
    if not set(record["components"]) - {"neurons"}:  # thousands of them make no picture
        return [out / "probe.json"]
    return [out / "probe.json", write_probe_report(record, out / "probe.html")]


def _single(what: str, options: Options, split: str, found: Components) -> Record:
    """As the readings of matrices are told. Random tokens are of no task."""
    told: Record = {"what": what, "model": options.model, "task": None, "split": split}
    for reading in found.readings:
        told |= {"task": reading.shown, "n": reading.n, "of": reading.of}
    told["rows"] = rows(what, found)
    if what == "induction":
        told["overlap"] = _induction_overlap(found)
    return told


def components_record(found: Components) -> Record:
    """Every kind that was read, with its readings, their mean over tasks and shots, and how far their orders agree."""
    kinds = dict.fromkeys(kind for reading in found.readings for kind in reading.found)
    record: Record = {kind: _kind(kind, found.readings) for kind in kinds}
    record |= {name: dict(readings.values) for name, readings in found.behavior.items()}
    if found.behavior:
        record["induction_overlap"] = _induction_overlap(found)
    return record


def _kind(kind: str, readings: Sequence[Reading]) -> Record:
    named = {reading.name: _leading(reading.found[kind]) for reading in readings}
    return {
        "unit": next(iter(named.values())).unit,
        "readings": [
            {"name": one.name, "task": one.task, "shots": one.shots, "n": one.n, "of": one.of}
            | {"values": dict(named[one.name].values)}
            for one in readings
        ],
        "mean": dict(mean_readings(list(named.values())).values),
        "overlap": _overlap(named) if len(named) > 1 else None,
    }


def _leading(by_metric: Mapping[str, Readings]) -> Readings:
    return next(iter(by_metric.values()))


def _overlap(named: Mapping[str, Readings]) -> Record | None:
    """None where there is but one part, which has no order."""
    alone = len(_leading(named).values) < 2
    return None if alone else spearman_overlap(named).to_json()


def _induction_overlap(found: Components) -> Record | None:
    """Behavior beside importance; None where importance was not read."""
    heads = [_leading(reading.found["heads"]) for reading in found.readings if "heads" in reading.found]
    if not heads:
        return None
    named = {name.replace("_", " "): readings for name, readings in found.behavior.items()}
    return _overlap({"importance": mean_readings(heads)} | named)


# ---------------------------------------------------------------------------------------------------------------- rows


def rows(what: str, found: Components) -> list[Record]:
    """One row for each part, of one kind of reading on at most one task."""
    by_kind = found.readings[0].found if found.readings else {}
    if what == "induction":
        importance = {"importance": _leading(by_kind["heads"])} if by_kind else {}
        return _columns(dict(found.behavior) | importance)
    if what == "ffns":
        return [_with_part(row) for metrics in by_kind.values() for row in _columns(metrics)]
    ranked = _ranks(_leading(by_kind[what]))
    return [row | {"rank": ranked[row["site"]]} for row in _columns(by_kind[what])]


def _columns(named: Mapping[str, Readings]) -> list[Record]:
    sites = _leading(named).values
    return [{"site": site} | {name: one.values[site] for name, one in named.items()} for site in sites]


def _with_part(row: Record) -> Record:
    return {"site": row["site"], "part": Site.parse(row["site"]).part or "block"} | row


def _ranks(readings: Readings) -> dict[str, int]:
    """From the most important one, which has rank 1; equal values in the order of their addresses."""
    order = sorted(readings.values, key=lambda site: (-readings.values[site], site))
    return {site: number for number, site in enumerate(order, start=1)}
