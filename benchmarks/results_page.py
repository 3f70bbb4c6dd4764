"""docs/results.md: what the rows of results.py found, in sentences and tables. Draws nothing and runs nothing.

A row that was not run is there as *not measured here*; what shows no difference says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Protocol, TypeVar

from results_records import (
    CutFigures,
    DepthFigures,
    ImportanceFigures,
    InductionFigures,
    LinearityFigures,
    RemovalFigures,
    RowRecord,
)

from secateur.core.comparison import IMPROVES
from secateur.core.records.verdict import IntervalRecord
from secateur.core.site import Site
from secateur.core.stats import holm, rank_correlation

Found = Mapping[str, RowRecord]
Kind = TypeVar("Kind")
DEPTHS = (1, 2, 3, 5, 8, 10)
LATE = 20  # of 30 blocks: the last third begins
FEW = 3  # edits of a plan that a table names
REPEATS = 0.3  # prefix matching from which a head is called an induction head
NOT_MEASURED = "not measured here"
NAMES = {  # of data sets, by their files
    "counterfact": "CounterFact",
    "fever_paper_dev": "FEVER",
    "bigbench_qa_wikidata": "WikidataQA",
    "truthfulqa_pairs": "TruthfulQA",
    "hotpotqa_dev": "HotpotQA",
    "bigbench_epistemic_reasoning": "epistemic reasoning",
    "int-mult": "products",
    "int-sum": "sums",
    "copa_train": "COPA",
    "cb_train": "CB",
    "rte_train": "RTE",
    "arc_easy_test": "ARC-Easy",
    "openbookqa_test": "OpenBookQA",
    "winogrande_validation": "WinoGrande",
}
PICTURES = {  # file: the rows that it shows, by the beginning of their names
    "laser": ("laser-",),
    "linearity": ("linearity",),
    "depth": ("depth",),
    "importance": ("importance", "induction"),
    "removal": ("heads", "ffns"),
}


class NamedRow(Protocol):
    """A row as the page names it."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> str: ...


def read(folder: Path) -> dict[str, RowRecord]:
    """Return the rows that were run, by name."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: RowRecord.model_validate_json(file.read_text(encoding="utf-8")) for file in files}


def shown_in(picture: str, found: Found) -> list[RowRecord]:
    """Return the rows that a picture shows; none: it is not drawn."""
    return [row for name, row in found.items() if name.startswith(PICTURES[picture])]


def digest(rows: Iterable[RowRecord]) -> str:
    """Return what a picture carries of the rows it was drawn from, so that an old one is told from a new one."""
    return hashlib.sha256("".join(row.model_dump_json() for row in rows).encode()).hexdigest()[:16]


def write(found: Found, rows: Sequence[NamedRow], page: Path) -> None:
    """Write the page, and its pictures into the folder beside it that has its name."""
    from results_pictures import draw

    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        if shown := shown_in(picture, found):
            draw(picture, shown, folder / f"{picture}.svg", digest(shown))
    page.write_text(text(found, rows), encoding="utf-8")


def text(found: Found, rows: Sequence[NamedRow]) -> str:
    """Return the page."""
    what = {row.name: row.what for row in rows}
    parts = [
        HEAD,
        "## In short",
        *(f"- {line}" for line in in_short(found)),
        "",
        *laser_section(found, what),
        *linearity_section(found),
        *depth_section(found, what),
        *heads_section(found, what),
        *directions_section(found, what),
        *runs_section(found, rows),
    ]
    return "\n".join(parts).rstrip() + "\n"


HEAD = """# On a real language model: what we measured

<!-- Written by `make results` from benchmarks/results/*.json. Edit benchmarks/results_page.py instead. -->

The model is SmolLM2-135M-Instruct: 30 blocks of 9 query heads in 3 groups, 135 million parameters. Its weights were
rounded to 4 bits (Q4_1) and are read back as float32, so **whatever a cut gains here may be rounding noise that it
undoes**. Every number comes from one run with seed 0 on one thread. Numbers marked *test* are of questions that nothing
was chosen by or fitted to; intervals are 95 %, paired where two models are compared. A difference is called shown only
by such a test, and nulls are printed like gains. `make results` runs the rows that are missing and writes this page
again; what each row took stands [at the end](#runs).
"""


# ------------------------------------------------------------------------------------------------------- numbers, words


def figures(found: Found, name: str, kind: type[Kind]) -> Kind | None:
    """Return what a row found; None where it was not run."""
    row = found.get(name)
    if row is None:
        return None
    assert isinstance(row.figures, kind), f"{name}: {row.figures.kind}"
    return row.figures


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus, and no zero before the point."""
    word = f"{abs(value):.{digits}f}"
    sign = "" if not float(word) else "−" if value < 0 else "+"
    return sign + (word[1:] if word.startswith("0.") else word)


def plain(value: float, digits: int) -> str:
    """Return a number without a zero before the point."""
    return signed(value, digits).removeprefix("+")


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.1f} %"


def measured(score: IntervalRecord, unit: str) -> str:
    """Return a score with its interval."""
    scale, digits = (100, 1) if unit == "share" else (1, 3)
    value = percent(score.value) if unit == "share" else f"{score.value:.3f}"
    if score.ci is None:
        return value
    low, high = (scale * one for one in score.ci)
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def changed(difference: IntervalRecord | None, unit: str) -> str:
    """Return a change with its interval: points for shares, nats for losses."""
    if difference is None or difference.ci is None:
        return "–"
    scale, digits = (100, 1) if unit == "share" else (1, 3)
    value, low, high = (signed(scale * one, digits) for one in (difference.value, *difference.ci))
    return f"{value} [{low}, {high}]"


def p_value(value: float) -> str:
    """Return p, or that it is very small."""
    return "< .001" if value < 0.001 else plain(value, 3)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, and a blank one."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def picture(name: str, found: Found, alt: str) -> list[str]:
    """Return the lines that show a picture; none where there is nothing to draw."""
    return [f"![{alt}](results/{name}.svg)", ""] if shown_in(name, found) else []


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


# ------------------------------------------------------------------------------------------------------------- in short


def in_short(found: Found) -> Iterator[str]:
    """Yield the sentence of each part that was measured."""
    for name, sentence in (
        ("LASER", lambda: laser_sentence(cuts(found, "laser-"))),
        ("Linearity", lambda: linearity_sentence(figures(found, "linearity", LinearityFigures))),
        ("Depth", lambda: depth_sentence(figures(found, "depth", DepthFigures))),
        ("Heads", lambda: importance_sentence(figures(found, "importance", ImportanceFigures))),
        ("Induction heads", lambda: induction_sentence(found)),
        ("Removal", lambda: removal_sentence(found)),
        ("Directions", lambda: directions_sentence(cuts(found, DIRECTIONS))),
    ):
        yield f"**{name}.** {sentence()}"


# ------------------------------------------------------------------------------------------------------ cuts for gain

DIRECTIONS = ("int-", "copa", "cb", "rte")


def cuts(found: Found, beginning: str | tuple[str, ...]) -> list[CutFigures]:
    """Return the cuts for gain of the rows whose names begin so."""
    return [
        row.figures
        for name, row in found.items()
        if name.startswith(beginning) and isinstance(row.figures, CutFigures)
    ]


def cut_rows(found: Found, what: Mapping[str, str], beginning: str | tuple[str, ...]) -> Iterator[list[str]]:
    """Yield a row of the table for each experiment, run or not; p also corrected for all that were run."""
    tested = cuts(found, beginning)
    corrected = dict(zip(map(id, tested), holm([cut.p_value for cut in tested]), strict=True))
    for name, told in what.items():
        if not name.startswith(beginning):
            continue
        label, cut = told.partition(", ")[2], figures(found, name, CutFigures)
        if cut is None:
            yield [label, NOT_MEASURED, *[""] * 7]
            continue
        best = max(cut.alternatives, key=lambda one: one.value or 0, default=None)
        yield [
            label,
            f"{cut.chosen_by:,} / {cut.tested:,}",
            measured(cut.before, cut.unit),
            measured(cut.after, cut.unit),
            changed(cut.difference, cut.unit),
            f"{p_value(cut.p_value)} ({p_value(corrected[id(cut)])})",
            cut.verdict + (f" ({listed(cut.guards)})" if cut.guards else ""),
            edits_words(cut.edits),
            f"{percent(best.value)}, {best.name}" if best and best.value is not None else "–",
        ]


def edits_words(edits: Sequence[str], *, first: int = FEW, between: str = "<br>") -> str:
    """Return the first edits and how many more there are."""
    more = [f"and {len(edits) - first} more"] if len(edits) > first else []
    return between.join([*edits[:first], *more]) or "nothing"


CUT_HEAD = (
    "data",
    "chosen by / tested on",
    "before, test",
    "after, test",
    "change, points",
    "p (Holm)",
    "verdict",
    "what was cut",
    "best without a cut",
)


def beside_rows(
    found: Found, what: Mapping[str, str], beginning: str | tuple[str, ...]
) -> Iterator[list[str]]:
    """Yield what stands beside each accuracy: chance, the majority, the log-loss, plain text."""
    for name, told in what.items():
        cut = figures(found, name, CutFigures) if name.startswith(beginning) else None
        if cut is not None:
            yield [
                told.partition(", ")[2],
                "–" if cut.chance is None else percent(cut.chance),
                "–" if cut.majority is None else percent(cut.majority),
                changed(cut.loss, "nats"),
                "–" if cut.text_ratio is None else f"× {cut.text_ratio.value:.3f}",
                f"{cut.tried} of {cut.proposed:,}",
                "yes" if cut.shown else "no",
            ]


BESIDE_HEAD = (
    "data",
    "chance",
    "majority answer",
    "log-loss, change in nats",
    "perplexity of other text",
    "candidates judged",
    "shown by the choosing split",
)


def laser_sentence(cuts: Sequence[CutFigures]) -> str:
    """Return what LASER came to."""
    if not cuts:
        return f"{NOT_MEASURED.capitalize()}."
    gains = [gain_words(cut) for cut in cuts if cut.verdict == IMPROVES]
    worse = [NAMES[cut.data] for cut in cuts if cut.verdict == "worse"]
    rest = len(cuts) - len(gains) - len(worse)
    return (
        f"Data sets measured: {len(cuts)}. On test the best cut is shown to gain on {len(gains) or 'none'}"
        + (f" ({'; '.join(gains)})" if gains else "")
        + (f", to be worse on {listed(worse)}" if worse else "")
        + (f"; on {rest} no difference is shown." if rest else ".")
    )


def gain_words(cut: CutFigures) -> str:
    """Return what was gained, and what it cost in other text."""
    cost = "" if cut.text_ratio is None else f", for a perplexity of other text × {cut.text_ratio.value:.2f}"
    return f"{NAMES[cut.data]} {changed(cut.difference, cut.unit)} points{cost}"


def laser_pattern(cuts: Sequence[CutFigures]) -> str:
    """Return where the cuts lie, beside where the paper's lie."""
    sites = [Site.parse(edit.split()[0]) for cut in cuts for edit in cut.edits]
    if not sites:
        return "No candidate was better on the choosing split, so there is no pattern to compare."
    mlp = [site for site in sites if site.part in ("gate", "up", "down")]
    late = [site for site in mlp if site.block >= LATE]
    return (
        f"The paper's gains lie in feed-forward matrices of the last blocks. Of the {len(sites)} matrices cut here "
        f"{len(mlp)} are feed-forward, {len(late)} of them in the last third of the blocks."
    )


def laser_section(found: Found, what: Mapping[str, str]) -> Iterator[str]:
    """Yield the part on truncations."""
    yield from ("## LASER: one matrix of lower rank", "")
    yield (
        "Every one of the 210 matrices may be replaced by its best approximation of one of 9 to 13 ranks. A "
        "screen by gradients leaves 96 of some 2,500 truncations; they race on the choosing split, and the "
        "best is tested *whether or not that split shows a gain*, so that this table has no gap where "
        "nothing helps. Without `--keep-unproven` secateur hands over the unchanged model wherever a gain is not shown."
    )
    yield ""
    yield from picture(
        "laser", found, "Change of accuracy on test questions by data set, with 95 % intervals"
    )
    yield from table(CUT_HEAD, cut_rows(found, what, "laser-"))
    if cuts(found, "laser-"):
        yield laser_pattern(cuts(found, "laser-")) + " A gain in this table may be undone quantization noise."
        yield ""
        yield from table(BESIDE_HEAD, beside_rows(found, what, "laser-"))
        yield "The other text: English in chunks of 256 tokens beside CounterFact, stories in chunks of 64 elsewhere."
        yield ""


def directions_sentence(cuts: Sequence[CutFigures]) -> str:
    """Return what the removal of directions came to."""
    if not cuts:
        return f"{NOT_MEASURED.capitalize()}."
    gains = [
        f"{NAMES[cut.data]} with {cut.shots} shots {changed(cut.difference, cut.unit)} points"
        for cut in cuts
        if cut.verdict == IMPROVES
    ]
    told = f" ({'; '.join(gains)})" if gains else ""
    return f"Settings measured: {len(cuts)}. The removal is shown to gain on {len(gains) or 'none'}{told}."


def directions_section(found: Found, what: Mapping[str, str]) -> Iterator[str]:
    """Yield the part on eigenpruning."""
    yield from ("## Directions: singular directions of keys and values", "")
    yield (
        "Singular directions of the matrices k and v of all blocks go in one list, the most harmful first by "
        "prediction. How many is tried on half of the choosing split, up to eight rounds, and nothing goes where no "
        "number helps. What they gave on average stays as a bias. The paper reports Phi-2's products rising from "
        "13.8 to 97.5 %, GPT-2's hardly at all."
    )
    yield ""
    yield from table(CUT_HEAD, cut_rows(found, what, DIRECTIONS))
    if cuts(found, DIRECTIONS):
        yield from table(BESIDE_HEAD, beside_rows(found, what, DIRECTIONS))
    yield from ("Before and after fine-tuning: " + NOT_MEASURED + ".", "")


# ------------------------------------------------------------------------------------------------------------ linearity


def linearity_sentence(found: LinearityFigures | None) -> str:
    """Return what the scores say with and without outlier tokens."""
    if found is None:
        return f"{NOT_MEASURED.capitalize()}."
    rows = found.blocks
    most = [row for row in rows if row.outliers]
    every, without = ([getattr(row, name) for row in rows] for name in ("stream", "stream_without"))
    orders = rank_correlation(every, without)
    alike = (
        "" if orders is None else f", and the two rank the blocks alike by {plain(orders[0], 2)} (Spearman)"
    )
    return (
        f"Over all tokens the median block scores {plain(median(every), 3)} with the residual; without the few "
        f"tokens of huge norm that {len(most)} of {len(rows)} blocks have it is {plain(median(without), 3)}{alike}."
    )


def linearity_section(found: Found) -> Iterator[str]:
    """Yield the part on linearity."""
    yield from ("## Linearity: how near a block is to a linear map", "")
    part = figures(found, "linearity", LinearityFigures)
    if part is None:
        yield from (f"{NOT_MEASURED.capitalize()}.", "")
        return
    yield (
        f"Held-out scores on {part.tokens:,} tokens of {part.data}; 1 is exactly linear. The paper scores "
        "the stream with the "
        "residual and finds nearly 1 everywhere. " + linearity_sentence(part)
    )
    yield ""
    yield from picture("linearity", found, "Linearity of every block, with and without outlier tokens")
    yield from table(
        (
            "blocks",
            "stream, all tokens",
            "without outliers",
            "what a block adds, all tokens",
            "without outliers",
            "outlier tokens",
        ),
        (
            [
                f"{low} to {low + len(rows) - 1}",
                *(
                    f"{plain(mean(values), 3)} ({plain(min(values), 3)} to {plain(max(values), 3)})"
                    for values in (
                        [row.stream for row in rows],
                        [row.stream_without for row in rows],
                        [row.added for row in rows],
                        [row.added_without for row in rows],
                    )
                ),
                f"{max(row.outliers for row in rows):,} at most",
            ]
            for low in range(part.blocks[0].block, part.blocks[-1].block + 1, 5)
            if (rows := [row for row in part.blocks if low <= row.block < low + 5])
        ),
    )


# ---------------------------------------------------------------------------------------------------------------- depth


def depth_sentence(found: DepthFigures | None) -> str:
    """Return whether the paper's order of the forms holds."""
    if found is None:
        return f"{NOT_MEASURED.capitalize()}."
    drop, fold, linear = ({point.blocks: point for point in form.points} for form in found.forms)
    depths = [depth for depth in DEPTHS if depth in drop.keys() & fold.keys() & linear.keys()]
    holds = [depth for depth in depths if linear[depth].loss < fold[depth].loss < drop[depth].loss]
    shown = 3 if 3 in depths else depths[-1]
    return (
        f"Whole {drop[0].loss:.3f} nats a token; without {shown} of 30 blocks {drop[shown].loss:.3f} dropped, "
        f"{fold[shown].loss:.3f} folded, {linear[shown].loss:.3f} as linear maps. The expected order "
        f"(dropped worst, a map of its own best) holds at {len(holds)} of {len(depths)} depths."
    )


def depth_section(found: Found, what: Mapping[str, str]) -> Iterator[str]:
    """Yield the part on depth."""
    yield from ("## Depth: whole blocks", "")
    part = figures(found, "depth", DepthFigures)
    if part is None:
        yield from (f"{NOT_MEASURED.capitalize()}.", "")
        return
    drop, fold, linear = ({point.blocks: point for point in form.points} for form in part.forms)
    fold_order, linear_order = part.forms[1].order, part.forms[2].order
    order = f"{', '.join(map(str, fold_order))}" + (
        "" if fold_order == linear_order else f" (as linear maps {', '.join(map(str, linear_order))})"
    )
    yield (
        f"Blocks go by cosine, read again after each: {order}. Maps are fitted to {part.fit_tokens:,} "
        f"tokens of {part.data}; losses are on {part.chunks} other chunks of {part.seqlen} tokens, which "
        "only decide whether a map is taken or the block is "
        "dropped after all. " + depth_sentence(part)
    )
    yield ""
    yield from picture("depth", found, "Loss against blocks gone, dropped, folded and as linear maps")
    yield from table(
        (
            "blocks gone",
            "parameters kept",
            "dropped",
            "folded",
            "as linear maps",
            "folded − dropped",
            "linear − dropped",
        ),
        (
            [
                str(depth),
                f"{percent(drop[depth].parameters)} ({percent(linear[depth].parameters)} with maps)",
                *(f"{form[depth].loss:.3f}" for form in (drop, fold, linear)),
                changed(fold[depth].over_drop, "nats"),
                changed(linear[depth].over_drop, "nats"),
            ]
            for depth in DEPTHS
            if depth in drop.keys() & fold.keys() & linear.keys()
        ),
    )
    if missing := [str(depth) for depth in DEPTHS if depth > max(drop)]:
        yield from (f"{listed(missing)} blocks: {NOT_MEASURED}.", "")
    for one in part.deepest:
        yield (
            f"- {one.data}, {one.tested} test chunks: {measured(one.before, one.unit)} → "
            f"{measured(one.after, one.unit)}, {changed(one.difference, one.unit)} nats: {one.verdict}."
        )
    yield ""
    last = max(fold)
    yield f"A good loss can hide garbage. After *{part.prompt}* the model goes on:"
    yield ""
    said = ("whole", drop[0]), (f"{last} folded", fold[last]), (f"{last} as maps", linear[last])
    yield from (f"- {name}: *{' '.join(point.sample.split())[:160]}*" for name, point in said)
    yield ""
    yield from (f"{what.get('healed', 'Healed depth')}: {NOT_MEASURED}.", "")


# ------------------------------------------------------------------------------------------------ heads and networks


def importance_sentence(found: ImportanceFigures | None) -> str:
    """Return how much of the agreement is depth alone."""
    if found is None:
        return f"{NOT_MEASURED.capitalize()}."
    across = agreement(found)
    shots, tasks = across["one task, other shots"], across["other tasks, same shots"]
    depth = mean(reading.by_depth for reading in found.readings)
    alone = "This is not depth alone" if tasks[1] > tasks[0] / 2 else "This is mostly depth"
    return (
        f"Published importance falls with depth (rank correlation with the block number {plain(depth, 2)}). Two "
        f"readings agree by {plain(shots[0], 2)} across shots and {plain(tasks[0], 2)} across tasks. {alone}: with the "
        f"block number held fixed it is {plain(shots[1], 2)} and {plain(tasks[1], 2)}. The study has .37 "
        "to .41 across shots."
    )


def agreement(found: ImportanceFigures) -> dict[str, tuple[float, float, float, float, int]]:
    """Return mean rank correlation, the same given the block, least, most and number of pairs, by what differs."""
    read = found.readings
    kinds: dict[str, Callable[[int, int], bool]] = {
        "one task, other shots": lambda a, b: read[a].task == read[b].task,
        "other tasks, same shots": lambda a, b: (
            read[a].task != read[b].task and read[a].shots == read[b].shots
        ),
        "other tasks, other shots": lambda a, b: (
            read[a].task != read[b].task and read[a].shots != read[b].shots
        ),
    }
    result = {}
    for name, belongs in kinds.items():
        pairs = [one for one in found.overlaps if belongs(one.left, one.right)]
        rho, partial = [one.rho for one in pairs], [one.partial for one in pairs]
        if pairs:
            result[name] = mean(rho), mean(partial), min(rho), max(rho), len(pairs)
    return result


def induction_sentence(found: Found) -> str:
    """Return which heads match prefixes, and where they rank; or that it was not measured."""
    heads = figures(found, "induction", InductionFigures)
    if heads is None:
        return f"{NOT_MEASURED.capitalize()}."
    return " ".join(induction_lines(heads, figures(found, "importance", ImportanceFigures)))


def induction_lines(heads: InductionFigures, importance: ImportanceFigures | None) -> Iterator[str]:
    """Yield which heads match prefixes, and where they rank by importance."""
    strong = sorted(
        (head for head, score in heads.prefix_matching.items() if score > REPEATS),
        key=lambda head: -heads.prefix_matching[head],
    )
    first = [f"{head.replace('.attn', '')} {plain(heads.prefix_matching[head], 2)}" for head in strong[:5]]
    blocks = sorted({Site.parse(head).block for head in strong})
    where = f"in blocks {blocks[0]} to {blocks[-1]}" if blocks else "none"
    yield (
        f"{len(strong)} of {len(heads.prefix_matching)} heads match prefixes of {heads.seeds} random sequences above "
        f"{plain(REPEATS, 1)}, {where}" + (f" ({', '.join(first)})." if first else ".")
    )
    if importance is not None and strong:
        order = sorted(importance.mean, key=lambda head: -importance.mean[head])
        ranks = [order.index(head) + 1 for head in strong]
        top = (0.1, 0.3, 0.5)
        inside = [sum(rank <= share * len(order) for rank in ranks) for share in top]
        yield (
            f"By published importance, the mean over all readings, they rank {min(ranks)} to {max(ranks)} "
            f"of {len(order)}: "
            + listed(
                [f"{count} in the top {100 * share:.0f} %" for count, share in zip(inside, top, strict=True)]
            )
            + f" ({listed([f'{share * len(strong):.0f}' for share in top])} were to be expected by chance)."
        )


def removal_sentence(found: Found) -> str:
    """Return what is left when heads or networks are gone."""
    said = []
    for name, part in (("heads", "heads"), ("ffns", "feed-forward networks")):
        if (row := figures(found, name, RemovalFigures)) is not None:
            ends, gone = row.ends, row.points[-1].removed
            said.append(
                f"Without {100 * gone:.0f} % of the {part} {ends.data} goes from {percent(ends.before.value)} to "
                f"{percent(ends.after.value)} on test ({changed(ends.difference, ends.unit)} points, {ends.verdict})"
            )
    return "; ".join(said) + "." if said else f"{NOT_MEASURED.capitalize()}."


def heads_section(found: Found, what: Mapping[str, str]) -> Iterator[str]:
    """Yield the part on components."""
    yield from ("## Heads and feed-forward networks", "")
    importance = figures(found, "importance", ImportanceFigures)
    if importance is not None:
        names = dict.fromkeys(NAMES[row.task] for row in importance.readings)
        yield (
            f"The study's importance, E|A·∂L/∂A|, of 270 heads on {listed(list(names))} at 0, 1 and 5 shots, "
            f"{importance.readings[0].examples} examples each. " + importance_sentence(importance)
        )
        yield ""
        yield from picture("importance", found, "Importance and prefix matching of every head")
        yield from table(
            (
                "pairs of readings",
                "number",
                "rank correlation (least to most)",
                "with the block number held fixed",
            ),
            (
                [name, str(count), f"{plain(rho, 2)} ({plain(low, 2)} to {plain(high, 2)})", plain(fixed, 2)]
                for name, (rho, fixed, low, high, count) in agreement(importance).items()
            ),
        )
    else:
        yield from (f"Importance over tasks and shots: {NOT_MEASURED}.", "")
    yield from ("**Induction heads.** " + induction_sentence(found), "")
    yield from (f"{what.get('copying', 'Copying')}: {NOT_MEASURED}.", "")
    yield from removal_part(found, what)


def removal_part(found: Found, what: Mapping[str, str]) -> Iterator[str]:
    """Yield the curves of what goes step by step."""
    yield from picture("removal", found, "Accuracy against the share of heads and of networks that are gone")
    for name in ("heads", "ffns"):
        row = figures(found, name, RemovalFigures)
        if row is None:
            yield from (f"{what.get(name, name)}: {NOT_MEASURED}.", "")
            continue
        ends = row.ends
        yield (
            f"**{what[name]}.** Read again after each step; the study keeps nearly all of OPT-66B's quality "
            f"without 70 % of heads or 20 % of networks. The curve is of {ends.chosen_by} validation "
            f"questions; on {ends.tested} test questions the last point goes from "
            f"{measured(ends.before, ends.unit)} to {measured(ends.after, ends.unit)} "
            f"({changed(ends.difference, ends.unit)} points, {ends.verdict})."
        )
        yield ""
        yield from table(
            ("gone", "parameters kept", "accuracy", "log-loss"),
            (
                [percent(one.removed), percent(one.parameters), percent(one.value), f"{one.loss:.3f}"]
                for one in row.points
            ),
        )
    yield from (f"{what.get('random-orders', 'Random orders')}: {NOT_MEASURED}.", "")


# ----------------------------------------------------------------------------------------------------------------- runs


def runs_section(found: Found, rows: Sequence[NamedRow]) -> Iterator[str]:
    """Yield when, where and in which time each row was run."""
    yield from ("## Runs", "")
    if found:
        last = max(found.values(), key=lambda row: row.date)
        machines = dict.fromkeys(row.machine for row in found.values())
        known = ", ".join(f"{name} {number}" for name, number in last.versions.items())
        yield from (f"{'; '.join(machines)}, other work beside. {known}. Seed {last.seed}.", "")
    yield from table(
        ("row", "what", "processor time", "date"),
        (
            [
                f"`{row.name}`",
                row.what,
                NOT_MEASURED if (one := found.get(row.name)) is None else time_words(one),
                "" if one is None else one.date,
            ]
            for row in rows
        ),
    )


def time_words(row: RowRecord) -> str:
    """Return the time of a row in minutes and seconds."""
    minutes, seconds = divmod(round(row.seconds), 60)
    return f"{minutes} min {seconds:02d} s" + (", since it went on after a stop" if row.resumed else "")
