"""Tables of what `secateur probe` read. What is cut short here is whole in --json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue
from rich.text import Text

from secateur.cli.tables import print_rows, show
from secateur.cli.terminal import terminal
from secateur.core.records.map import MapRecord
from secateur.core.records.probe import (
    ImportanceRecord,
    LinearityRecord,
    OutliersRecord,
    OverlapRecord,
    ProbeRecord,
    ProfileRecord,
    RowsRecord,
    StructureRecord,
    TransitionRecord,
    TransitionWithoutOutliers,
)
from secateur.probing.component_sections import check_words
from secateur.probing.map_page import WORDS, trust_words

NEURONS_SHOWN = 10  # of each end: a reading of neurons has thousands, and 20 lines fit a screen
READINGS_SHOWN = 4  # readings side by side; with more, the lowest and the highest stand for them
MATRIX = 10  # readings whose correlations fit 80 characters
SITES = 8  # in one line; more are counted
LINEARITY_COLUMNS = ("site", "stream", "held\nout", "added", "held\nout", "cosine", "cond.", "dim.", "anis.")

Cell = JsonValue  # of a table
Scores = TransitionRecord | TransitionWithoutOutliers


def print_readings(found: Mapping[str, object], top: int | None = None) -> None:
    """Print what `secateur.probe` returned.

    Args:
        found: As `LinearityRecord`, `ProbeRecord` or `RowsRecord` describe it.
        top: Print that many of the most and of the least important parts; None: all, but of neurons 10.
    """
    if "models" in found:
        print_linearity(LinearityRecord.model_validate(found))
    elif "components" in found:
        print_components(ProbeRecord.model_validate(found), top)
    else:
        print_rows_record(RowsRecord.model_validate(found), top)


def print_rows_record(found: RowsRecord, top: int | None) -> None:
    """Print the rows of one reading."""
    rows = found.rows
    if "rank" in rows[0]:
        rows = _ends(rows, top or (NEURONS_SHOWN if found.what == "neurons" else None))
    columns = [name for name in rows[0] if name != "values"]
    cells = [[_short(row[name]) for name in columns] for row in rows]
    on = f" on {found.task} ({found.split})" if found.task else ""
    fit = "" if found.of == found.n else f", {found.n} of {found.of} examples fit"
    title = f"{found.what} of {found.model}{on}{fit}"
    print_rows([name.replace("_", " ") for name in columns], cells, title=title)
    if found.overlap:
        print_overlap("rank correlation", found.overlap)
    for line in check_words(str(found.task), found.check, found.what):
        terminal().print(Text(line))


def _ends(rows: Sequence[dict[str, Cell]], top: int | None) -> list[dict[str, Cell]]:
    """Return the `top` most and `top` least important rows, by rank; all in their own order if none is left out."""
    if top is None or len(rows) <= 2 * top:
        return list(rows)
    ranked = sorted(rows, key=lambda row: int(str(row["rank"])))
    gap: dict[str, Cell] = dict.fromkeys(rows[0])
    return [*ranked[:top], gap | {"site": f"… {len(rows) - 2 * top:,} between"}, *ranked[-top:]]


def _short(value: Cell) -> Cell:
    """Return lists and records as a short text."""
    if isinstance(value, list):
        return " ".join(map(_short_item, value))
    if isinstance(value, Mapping):
        return " ".join(f"{name} {show(item)}" for name, item in value.items())
    return value


def _short_item(item: Cell) -> str:
    if isinstance(item, list):
        answer, count = item
        return f"{count}×{str(answer).strip()}"
    return f"{item:.3g}" if isinstance(item, float) else str(item)


# -------------------------------------------------------------------------------------------------- several readings


def print_components(found: ProbeRecord, top: int | None) -> None:
    """Print which readings there are, then each kind of part, then what heads do."""
    kinds = found.components.kinds
    terminal().print(Text(f"{', '.join(found.what)} of {found.model} ({found.split})"))
    first = next(iter(kinds.values()))
    rows = [(number, reading.name, reading.n, reading.of) for number, reading in enumerate(first.readings, 1)]
    print_rows(("no", "reading", "n", "of"), rows)
    for name, kind in kinds.items():
        terminal().print()
        print_kind(name, kind, top or (NEURONS_SHOWN if name == "neurons" else None))
        for reading in kind.readings:
            for line in check_words(reading.name, reading.check, name):
                terminal().print(Text(line))
    behavior = found.components
    columns = {
        "prefix matching": behavior.prefix_matching,
        "copying": behavior.copying,
        "beyond sink": behavior.copying_beyond_sink,
        "at sink": behavior.attention_sink,
    }
    read = {name: values for name, values in columns.items() if values}
    if read:
        terminal().print()
        scores = [(site, *(values[site] for values in read.values())) for site in next(iter(read.values()))]
        print_rows(("site", *read), scores, title="what heads do")
        if behavior.induction_overlap:
            print_overlap("rank correlation", behavior.induction_overlap)


def print_kind(name: str, kind: ImportanceRecord, top: int | None) -> None:
    """Print mean and rank of every part, most important first, and how far the readings agree on their order."""
    order = sorted(kind.mean, key=lambda site: (-kind.mean[site], site))
    rows: list[dict[str, Cell]] = []
    for rank, site in enumerate(order, start=1):
        values = [reading.values[site] for reading in kind.readings]
        row: dict[str, Cell] = {"site": site, "mean": kind.mean[site], "rank": rank}
        if len(values) <= READINGS_SHOWN:
            row |= {str(number): value for number, value in enumerate(values, start=1)}
        else:
            row |= {"lowest": min(values), "highest": max(values)}
        rows.append(row)
    rows = _ends(rows, top)
    cells = [list(row.values()) for row in rows]
    print_rows(list(rows[0]), cells, title=f"{name}: importance, {kind.unit}")
    if kind.overlap:
        print_overlap(f"{name}: rank correlation of readings", kind.overlap, numbered=True)


def print_overlap(title: str, overlap: OverlapRecord, *, numbered: bool = False) -> None:
    """Print the matrix where it fits, else the mean of each reading with the others; empty where there is no order."""
    names, rho = overlap.names, overlap.rho
    labels = [str(number) for number in range(1, len(names) + 1)] if numbered else names
    columns: tuple[str, ...] = ("", *labels)
    rows = [(label, *map(_two, row)) for label, row in zip(labels, rho, strict=True)]
    if len(names) > MATRIX:
        columns, rows = ("no", "mean with the others"), []
        for number, label in enumerate(labels):
            others = [value for n, value in enumerate(rho[number]) if n != number and value is not None]
            rows.append((label, _two(sum(others) / len(others) if others else None)))
    terminal().print()
    print_rows(columns, rows, title=f"{title} (n = {overlap.n:,})", whole=columns[1:])


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# ----------------------------------------------------------------------------------------------------------------- map


def print_map(found: Mapping[str, object]) -> None:
    """Print of each kind how far each reading agrees with the truth, and the most and least needed by the best."""
    record = MapRecord.model_validate(found)
    terminal().print(Text(f"map of {record.model} on {record.task} ({record.split}), {record.n:,} examples"))
    for kind in record.kinds:
        best = kind.trusted or next(iter(kind.readings))
        order = sorted(kind.readings[best].items(), key=lambda item: (item[1], item[0]))
        count = min(SITES, (len(order) + 1) // 2)
        ends = [("least needed", order[:count]), ("most needed", order[: -count - 1 : -1])]
        terminal().print()
        terminal().print(Text(trust_words(kind)))
        if kind.check:
            rows = [
                (WORDS[name], _two(one.rho), *map(_two, one.ci or (None, None)))
                for name, one in kind.check.agreement.items()
            ]
            print_rows((f"rank correlation, {kind.check.n} removals", "", "from", "to"), rows)
        for words, some in ends:
            terminal().print(
                Text(f"{words:<13} " + ", ".join(f"{site} {value:+.3g}" for site, value in some))
            )
    for note in record.notes:
        terminal().print(Text(f"note: {note}"))
    print("\n" + "\n".join(f"written  {path}" for path in record.written or ()))


# ----------------------------------------------------------------------------------------------------------- linearity


def print_linearity(found: LinearityRecord) -> None:
    """Print one model whole, or of several the held-out scores, blocks by models; then what stands against them."""
    models = found.models
    title = f"linearity of {found.model} on {found.task} ({found.split})"
    if len(models) == 1:
        first = models[0].rows[0]
        tokens = f"{first.num_tokens:,} tokens, {first.num_fit:,} to fit held-out maps"
        cells = []
        for row in models[0].rows:
            cells.append([row.site, *_scores(row)])
            if row.without_outliers and row.outliers:
                cells.append([f"  less {row.outliers.count:,}", *_scores(row.without_outliers)])
        print_rows(LINEARITY_COLUMNS, cells, title=f"{title}, {tokens}", whole=LINEARITY_COLUMNS)
    else:
        print_series(models, title)
    for line in (*outlier_notes(models), *reason_notes(models)):
        terminal().print(Text(line))


def _scores(row: Scores) -> list[str]:
    """Return the cells of one line: both scores, cosine, condition, dimension, anisotropy."""
    pairs = [score for pair in (row.stream, row.added) for score in pair or (None, None)]
    dimension = row.intrinsic_dimension
    return [
        *map(_four, pairs),
        "" if row.cosine is None else f"{row.cosine:.3f}",
        f"{row.condition:.0e}",
        "" if dimension is None else f"{dimension:.1f}",
        f"{row.anisotropy:.2f}",
    ]


def _four(score: float | None) -> str:
    """Return four digits behind the point, as far as they say something: held out, noise may score below -100."""
    return "" if score is None else f"{score:.4f}" if score > -10 else f"{score:.0f}"


def print_series(models: Sequence[ProfileRecord], title: str) -> None:
    """Print a table for each score; where outlier tokens pass in any model, a second line without them."""
    sites = list(dict.fromkeys(row.site for model in models for row in model.rows))
    by_site = [{row.site: row for row in model.rows} for model in models]
    columns = ("site", *(model.name for model in models))
    for number, words in enumerate(("with the residual", "without the residual")):
        lines = []
        for site in sites:
            rows = [rows.get(site) for rows in by_site]
            pairs = [row and (row.stream, row.added)[number] for row in rows]
            if not any(pairs):
                continue
            lines.append([site, *(_four(pair[1]) if pair else "" for pair in pairs)])
            if any(row and row.without_outliers for row in rows):
                usual = [row and (row.without_outliers or row) for row in rows]
                pairs = [row and (row.stream, row.added)[number] for row in usual]
                lines.append(["  less outliers", *(_four(pair[1]) if pair else "" for pair in pairs)])
        if number:
            terminal().print()
        print_rows(columns, lines, title=f"{title}: {words}, held out", whole=("site",))


def outlier_notes(models: Sequence[ProfileRecord]) -> Iterator[str]:
    """Yield which tokens are outliers, joining places whose outliers are alike; then where they decide the scores."""
    for model in models:
        begin = "" if len(models) == 1 else f"{model.name} "
        alike: dict[tuple[int, str], list[tuple[TransitionRecord, OutliersRecord]]] = {}
        for row in model.rows:
            if row.outliers:
                first = row.outliers.positions[0].position, row.outliers.tokens[0].text
                alike.setdefault(first, []).append((row, row.outliers))
        for (position, word), places in alike.items():
            outliers = [found for _, found in places]
            at = _span([found.positions[0].count for found in outliers])
            named = _span([found.tokens[0].count for found in outliers])
            yield (
                f"outlier tokens: {begin}{_sites([row.site for row, _ in places])}: "
                f"{_span([found.count for found in outliers])} of {places[0][0].num_tokens:,}, up to "
                f"{max(found.largest for found in outliers):.0f} median norms; most often at position {position} "
                f"({at} of {outliers[0].positions[0].of:,}), {word!r} "
                f"({named} of {outliers[0].tokens[0].of:,})"
            )
        if swayed := [row for row in model.rows if row.outliers and row.outliers.matter]:
            yield f"warning: {begin}{swayed_words(swayed)}"


def swayed_words(rows: Sequence[TransitionRecord]) -> str:
    """Say that outlier tokens decide scores of these places, with the one that they change most."""
    changes = [
        (abs(whole - without), row.site, whole, without)
        for row in rows
        if row.without_outliers
        for pair, other in (
            (row.stream, row.without_outliers.stream),
            (row.added, row.without_outliers.added),
        )
        for whole, without in zip(pair or (), other or (), strict=False)
    ]
    most = ""
    if changes:
        _, site, whole, without = max(changes)
        most = f" ({site}: {_four(whole)} with them, {_four(without)} without)"
    return (
        f"outlier tokens decide scores of {_sites([row.site for row in rows])}{most}. Compare blocks by the lines "
        "without them, as --method depth --by linearity does."
    )


def _span(counts: Sequence[int]) -> str:
    """Return `284`, or `205 to 510`."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _sites(sites: Sequence[str]) -> str:
    if len(sites) <= SITES:
        return ", ".join(sites)
    return f"{len(sites)} places from {sites[0]} to {sites[-1]}"


def print_structure(found: Mapping[str, JsonValue]) -> None:
    """Print, for each kind of edit, what it was compared with and the greatest difference."""
    record = StructureRecord.model_validate(found)
    rows = []
    for edit in record.edits:
        compared = ", ".join(name for name in edit.differences if name != "idle")
        most = max(edit.differences.values(), default=0.0)
        verdict = "proved" if edit.proved else "refused" if edit.refused else "DIFFERS"
        rows.append((edit.edit, verdict, edit.refused or f"{most:.1e}", compared))
    title = (
        f"{record.architecture} ({record.family}), a tiny random copy of {record.blocks} blocks, in float64"
    )
    print_rows(("edit", "", "difference", "masked, compared with"), rows, title=title)
    installed = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    terminal().print(Text(f"Differences are relative; proved is up to {record.tolerance:g}. {installed}."))


def reason_notes(models: Sequence[ProfileRecord]) -> Iterator[str]:
    """Yield each reason against scores once, with the sites that it is about."""
    sites: dict[tuple[str, str, bool], list[str]] = {}
    for model in models:
        for row in model.rows:
            reads: tuple[tuple[Scores | None, str], ...] = (
                (row, ""),
                (row.without_outliers, " without outlier tokens"),
            )
            for scores, where in reads:
                if scores and scores.reason:
                    key = model.name, scores.reason, scores.trusted
                    sites.setdefault(key, []).append(row.site + where)
    for (name, reason, trusted), places in sites.items():
        where = ", ".join(places) if len(models) == 1 else f"{name} {', '.join(places)}"
        yield f"{'note' if trusted else 'not to be trusted'}: {where}: {reason}"
