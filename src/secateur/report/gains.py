"""The section about what the cut saves and where it loads. Strings from data are escaped here or in the template."""

from __future__ import annotations

from secateur.core.loading import evidence_text, sign
from secateur.core.records.verdict import BeforeAfter, GainsRecord, LoadsRecord, SpeedRecord, VerdictRecord
from secateur.report.frame import PageSection
from secateur.report.markup import MISSING, SPACE, change, known, table, text
from secateur.report.templating import fragment

NOTHING = 0.001  # a ratio this near 1 saves nothing
_PREFIXES = ("", "k", "M", "G", "T")


def gains_section(verdict: VerdictRecord) -> PageSection:
    """Return the section: sizes and speeds of the dense model and of the cut one, and where the cut one loads."""
    gains, loads = verdict.gains, where_it_loads(verdict.loads)
    if not verdict.cut and (gains is not None or loads):
        size_words = f"<p>Nothing was cut, so nothing is saved: {text(unchanged_size(verdict))}.</p>"
        return PageSection("gains", "Size, and where it loads", "", (size_words, loads))
    if gains is None:
        return PageSection("gains", "What it saves", "The dense model against the cut one.", (loads,))
    before, after = gains.parameters.before, gains.parameters.after
    title = "What it weighs" if known(before) and known(after) and after > before else "What it saves"
    note = f'<p class="note">{text(gains.note)}</p>' if gains.note else ""
    timed = gains.prefill is not None or gains.decode is not None
    lead = "The dense model against the cut one."
    if timed:
        lead = (
            "The dense model against the cut one, measured in the same run. The limit is what the remaining parameters "
            f"allow. Speeds with {', '.join(_conditions(gains))}."
        )
    return PageSection("gains", title, lead, (_table(gains, timed=timed), note, loads))


def unchanged_size(verdict: VerdictRecord) -> str:
    """Return how large a model is that nothing was cut of."""
    disk = verdict.gains.bytes_on_disk if verdict.gains else None
    words = f"{verdict.parameters.before:,} parameters"
    return f"{words}, {size(disk.before, 'B')} on disk" if disk else words


def _conditions(gains: GainsRecord) -> list[str]:
    """Return what the speeds were measured with, as HTML."""
    words = []
    if gains.shape is not None:
        shape = gains.shape
        words = [
            f"{shape.prompt:,} prompt tokens",
            f"{shape.new:,} new tokens",
            f"a batch of {shape.batch:,}",
        ]
    words += [text(gains.dtype), text(gains.device)]
    if gains.threads:
        words.append(f"{gains.threads:,} thread{'s' if gains.threads > 1 else ''}")
    return words


def _table(gains: GainsRecord, *, timed: bool) -> str:
    sizes = (
        ("Parameters", "", gains.parameters),
        ("On disk", "B", gains.bytes_on_disk),
        ("KV cache, a token", "B", gains.kv_bytes_per_token),
        ("Peak memory", "B", gains.peak_bytes),
    )
    speeds = (("Prefill", gains.prefill), ("Decode", gains.decode))
    rows = [_size_row(name, unit, pair) for name, unit, pair in sizes if pair is not None]
    rows += [_speed_row(name, speed) for name, speed in speeds if speed is not None]
    head = ("", "dense", "cut", "ratio", *(("limit", "share of the limit") if timed else ()))
    return (
        f'<div class="gains">{table(head, [row[: len(head)] for row in rows], source="verdict.json")}</div>'
    )


def _size_row(name: str, unit: str, pair: BeforeAfter) -> list[str]:
    cells = [text(size(value, unit)) for value in (pair.before, pair.after)]
    if not known(pair.before) or not known(pair.after) or not pair.before:
        ratio = MISSING
    elif abs(pair.after / pair.before - 1) < NOTHING:
        ratio = "nothing saved"
    else:
        share = pair.after / pair.before
        ratio = f"<b>{share:.2f} ×</b> <small>{text(change(share - 1, 'share', name_unit=False))} %</small>"
    return [name, *cells, ratio, "", ""]


def _speed_row(name: str, speed: SpeedRecord) -> list[str]:
    rates = [f"{rate:,.0f} tokens/s" if known(rate) else MISSING for rate in (speed.before, speed.after)]
    speedup = f"<b>{speed.speedup:.2f} ×</b>" if known(speed.speedup) else MISSING
    limit = f"{speed.limit:.2f} ×" if known(speed.limit) else ""
    share = ""
    if known(speed.of_limit):
        width = min(100.0, max(0.0, 100 * speed.of_limit))
        share = f'<span class="of"><i style="width:{width:.1f}%"></i></span>{100 * speed.of_limit:.0f} %'
    return [name, *rates, speedup, limit, share]


def size(value: float | None, unit: str) -> str:
    """Return `1.57 MB`, in powers of 1,000; counts in full."""
    if not known(value):
        return MISSING
    if not unit:
        return f"{value:,.0f}"
    power = next(p for p in range(len(_PREFIXES)) if value < 1000 ** (p + 1) or p == len(_PREFIXES) - 1)
    return f"{value / 1000**power:,.{0 if power == 0 else 2}f} {_PREFIXES[power]}{unit}"


def short(value: float | None, unit: str) -> str:
    """Return `size` for a small place: large counts in millions, `134.5 M`."""
    if unit or not known(value) or value < 1e6:
        return size(value, unit)
    return f"{value / 1e6:,.1f}{SPACE}M" if value < 1e9 else f"{value / 1e9:,.2f}{SPACE}G"


_KINDS = {"✓": ("yes", "loads"), "○": ("expected", "is expected to load"), "✗": ("no", "does not load")}


def where_it_loads(loads: LoadsRecord | None) -> str:
    """Return each program with its sign: how to load it and how that is known, or why it does not load."""
    if loads is None or not loads.where:
        return ""
    marks = [(place, sign(place), evidence_text(place)) for place in loads.where]
    places = [(place, mark, *_KINDS[mark], evidence) for place, mark, evidence in marks]
    return fragment("run", "loads", places=places)
