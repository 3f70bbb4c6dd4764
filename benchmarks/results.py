"""The four papers' claims on a real language model: each row is one experiment, run once, kept in results/NAME.json.

The model is SmolLM2-135M-Instruct, dequantized from Q4_1 (`make llm`); the data are in ../shared/data. Every row goes
through the verbs that users have; a row that was killed goes on where it was, and a finished row is not run again.

    python benchmarks/results.py [--only NAME ...] [--again] [--list]
    python benchmarks/results.py --write      docs/results.md and its pictures, from the rows that there are
    python benchmarks/results.py --smoke      every row on a few examples, and the page, in a folder that is left alone
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import results_page
import torch
from results_records import (
    BlockLinearity,
    CutFigures,
    DepthFigures,
    DepthForm,
    DepthPoint,
    Figures,
    HeadReading,
    ImportanceFigures,
    InductionFigures,
    LinearityFigures,
    OverlapFigures,
    RemovalFigures,
    RemovalPoint,
    RowRecord,
    partial_rank_correlation,
)

import secateur
from secateur.core.records.probe import LinearityRecord
from secateur.core.records.verdict import CutRecord, IntervalRecord, ScoreRecord, VerdictRecord
from secateur.core.site import Site
from secateur.core.stats import rank_correlation
from secateur.methods.components.records import ComponentsAnalysis
from secateur.methods.depth.records import DepthAnalysis
from secateur.methods.registry import read_options
from secateur.probes.heads import head_importance
from secateur.probes.induction import prefix_matching
from secateur.records import versions
from secateur.session import open_session

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "smollm2-135m"
DATA = ROOT.parent / "shared" / "data"
ROWS_FOLDER = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "results-out"
PROSE = f"text:{DATA / 'text_tinystories_train.jsonl'}"
SEED = 0
SIDE = 64  # tokens of a chunk of the stories that are watched beside a cut
WATCHED = 12_000  # characters of those stories
LATE = (27, 30)  # blocks that a smoke test looks at


@dataclass(frozen=True)
class Bench:
    """The folder that a row may fill, and whether it is run on a few examples alone."""

    folder: Path
    smoke: bool

    def few(self, number: int) -> int:
        """Return a number of examples, or as many as a smoke test takes."""
        return min(number, 60) if self.smoke else number

    def prune(
        self, name: str, task: str, *, english: bool = False, **options: Any
    ) -> tuple[VerdictRecord, Path]:
        """Prune the model; return the verdict and the folder, in which a run that was killed goes on.

        Args:
            english: Watch plain English beside the cut, as is the default of `prune`; else some stories, in a tenth of
                the time.
        """
        if self.smoke:
            options = {"layers": LATE, "allow_small": True} | options
        out = self.folder / name
        beside = {} if english else {"side": [self.stories()], "seqlen": SIDE}
        options = {"report": "quick", "seed": SEED, "spectra": str(SCRATCH / "spectra")} | beside | options
        result = secateur.prune(MODEL, task, out, **options)
        assert result.verdict is not None
        return result.verdict.record, out

    def stories(self) -> str:
        """Write the stories that are watched beside a cut; return them as a task."""
        place = self.folder / "stories.txt"
        text = (DATA / "text_tinystories_valid.txt").read_text(encoding="utf-8")
        place.write_text(text[:WATCHED], encoding="utf-8")
        return f"text:{place}"

    def questions(self, data: str, choose: int, prove: int, group: str | None) -> tuple[str, str]:
        """Write questions to choose by and others to test on, drawn by the seed; return the two files.

        Args:
            data: Name of a file in the folder of the data.
            group: The key of `meta` that related questions share; they stay on one side. None: equal prompts do.
        """
        lines = (DATA / f"{data}.jsonl").read_text(encoding="utf-8").splitlines()
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in map(json.loads, lines):
            name = str(row["prompt"] if group is None else row["meta"][group])
            groups.setdefault(name, []).append(row | {"group": name})
        names = sorted(groups)
        random.Random(SEED).shuffle(names)
        rows = [row for name in names for row in groups[name]]
        first = self.few(choose)
        while first < len(rows) and rows[first]["group"] == rows[first - 1]["group"]:
            first += 1
        parts = {"choose": rows[:first], "prove": rows[first : first + self.few(prove)]}
        for name, part in parts.items():
            text = "".join(json.dumps(row) + "\n" for row in part)
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return str(self.folder / "choose.jsonl"), str(self.folder / "prove.jsonl")


# -------------------------------------------------------------------------------------------- cuts for gain: 1 and 5


def laser(
    bench: Bench,
    *,
    data: str,
    choose: int,
    prove: int = 1000,
    group: str | None = None,
    english: bool = False,
) -> CutFigures:
    """Return the best truncation of all matrices, whether or not it is shown to gain."""
    task, test = bench.questions(data, choose, prove, group)
    verdict, _ = bench.prune("out", task, english=english, test_task=test, method="laser", keep_unproven=True)
    return cut_figures(verdict, data)


def directions(
    bench: Bench,
    *,
    data: str,
    shots: int = 0,
    choose: int | None = None,
    prove: int = 1000,
    limit: int | None = None,
) -> CutFigures:
    """Return the best removal of singular directions of keys and values, whether or not it is shown to gain."""
    options: dict[str, Any] = {"limit": limit and (max(200, bench.few(limit)) if bench.smoke else limit)}
    task = data
    if choose is not None:
        task, options["test_task"] = bench.questions(data, choose, prove, None)
    verdict, _ = bench.prune(
        "out",
        task,
        method="directions",
        matrices=("k", "v"),
        dynamic=False,
        shots=shots,
        keep_unproven=True,
        **options,
    )
    return cut_figures(verdict, data.removeprefix("builtin:"), shots=shots)


def cut_figures(verdict: VerdictRecord, data: str, *, shots: int = 0) -> CutFigures:
    """Return what a row keeps of a verdict."""
    start, choice = verdict.baseline, verdict.search.choice
    losses = [one.difference for one in verdict.secondary if one.metric in ("choice_loss", "loss")]
    texts = [one.ratio for one in verdict.side_effects if one.unit == "perplexity"]
    return CutFigures(
        data=data,
        shots=shots,
        chosen_by=verdict.task.splits["select"],
        tested=verdict.n,
        metric=verdict.metric,
        unit=verdict.unit,
        before=interval(verdict.before),
        after=interval(verdict.after),
        difference=verdict.difference,
        p_value=verdict.p_value,
        verdict=verdict.verdict,
        loss=losses[0] if losses else None,
        edits=[edit_words(one) for one in verdict.cut],
        tried=verdict.candidates_tried,
        proposed=verdict.search.proposed,
        shown=choice is not None and choice.shown,
        majority=start.majority.share if start and start.majority else None,
        chance=start.chance if start else None,
        alternatives=[one for one in verdict.alternatives if one.applicable],
        guards=[one.name for one in verdict.guards if one.fired],
        text_ratio=texts[0] if texts else None,
    )


def interval(score: ScoreRecord) -> IntervalRecord:
    """Return the value of a score with its interval."""
    return IntervalRecord(value=score.value, ci=score.ci)


def edit_words(cut: CutRecord) -> str:
    """Return an edit in a few words."""
    if cut.kind == "truncate":
        return f"{cut.site} to rank {cut.rank} of {cut.full_rank}"
    if cut.kind == "remove_directions":
        return f"{(cut.full_rank or 0) - (cut.rank or 0)} of {cut.full_rank} directions of {cut.site}"
    return cut.edit


# ------------------------------------------------------------------------------------------------------- 2 linearity


def linearity(bench: Bench, *, chunks: int, seqlen: int) -> LinearityFigures:
    """Return the linearity of every block on stories, with and without the few tokens of huge norm."""
    found = secateur.probe(
        MODEL, PROSE, what="linearity", limit=max(100, bench.few(chunks)), seqlen=seqlen, allow_small=bench.smoke,
        **({"layers": LATE} if bench.smoke else {}),
    )  # fmt: skip
    (model,) = LinearityRecord.model_validate(found).models
    blocks = []
    for row in model.rows:
        without = row.without_outliers
        assert row.stream is not None, f"{row.site} varies no more than rounding"
        assert row.added is not None
        streams = (row.stream, row.stream if without is None else without.stream or row.stream)
        added = (row.added, row.added if without is None else without.added or row.added)
        blocks.append(
            BlockLinearity(
                block=Site.parse(row.site).block,
                stream=streams[0][1],
                stream_without=streams[1][1],
                added=added[0][1],
                added_without=added[1][1],
                outliers=0 if row.outliers is None else row.outliers.count,
            )
        )
    return LinearityFigures(data="TinyStories", tokens=model.rows[0].num_tokens, blocks=blocks)


# ----------------------------------------------------------------------------------------------------------- 3 depth


def depth(bench: Bench, *, chunks: int, blocks: int, seqlen: int = 64) -> DepthFigures:
    """Return the loss with blocks dropped, folded into the network before them, and replaced by linear maps."""
    forms: dict[str, DepthForm] = {}
    deepest, figures = [], {}
    for form in ("fold", "linear"):
        verdict, out = bench.prune(
            form, PROSE, method="depth", by="cosine", form=form, blocks=1 if bench.smoke else blocks,
            limit=max(130, bench.few(chunks)), seqlen=seqlen, report="standard", ledger=bench.folder / "depth.sqlite",
        )  # fmt: skip
        analysis = DepthAnalysis.model_validate_json((out / "analysis.json").read_text(encoding="utf-8"))
        assert analysis.depth is not None
        figures = {"fit_tokens": analysis.depth.fit_tokens, "prompt": analysis.depth.prompt}
        deepest.append(cut_figures(verdict, f"{form}, {blocks} blocks"))
        order = [step.block for step in analysis.depth.order]
        for curve in analysis.depth.series:
            points = [
                DepthPoint(
                    blocks=one.blocks_removed,
                    parameters=one.parameters,
                    loss=one.loss,
                    over_drop=one.over_drop,
                    sample=one.sample,
                )
                for one in curve.points
            ]
            forms.setdefault(curve.form, DepthForm(form=curve.form, order=order, points=points))
    return DepthFigures(
        data="TinyStories",
        chunks=verdict.task.splits["select"],
        seqlen=seqlen,
        forms=[forms[form] for form in ("drop", "fold", "linear")],
        deepest=deepest,
        **figures,
    )


# ----------------------------------------------------------------------------------------------- 4 heads and networks


def importance(
    bench: Bench, *, tasks: Sequence[str], shots: Sequence[int], examples: int
) -> ImportanceFigures:
    """Return how far the published importance of heads agrees over tasks and numbers of shots."""
    readings: list[HeadReading] = []
    values: list[dict[str, float]] = []
    model = secateur.load(MODEL)
    for task in tasks:
        for count in shots:
            options = read_options(
                "", str(DATA / f"{task}.jsonl"), shots=count, skip_long=True, allow_small=True
            )
            session = open_session(
                replace(options, model=str(MODEL), in_memory=model), None, needs={"select": 1}
            )
            some = session.shuffled("select")[: 5 if bench.smoke else examples]
            found = head_importance(
                session.loaded, session.encoded, some, packing=session.judge().packing, split="select"
            ).values
            values.append(dict(found))
            by_depth = correlation(list(found.values()), blocks_of(found))
            readings.append(HeadReading(task=task, shots=count, examples=len(some), by_depth=by_depth))
    overlaps = []
    for left, right in combinations(range(len(values)), 2):
        sides = list(values[left].values()), list(values[right].values())
        overlaps.append(
            OverlapFigures(
                left=left,
                right=right,
                rho=correlation(*sides),
                partial=partial_rank_correlation(*sides, blocks_of(values[left])),
            )
        )
    totals = [sum(one.values()) for one in values]
    mean = {
        head: sum(one[head] / total for one, total in zip(values, totals, strict=True)) / len(values)
        for head in values[0]
    }
    return ImportanceFigures(readings=readings, overlaps=overlaps, mean=mean)


def blocks_of(heads: dict[str, float]) -> list[float]:
    """Return the block number of each head."""
    return [float(Site.parse(head).block) for head in heads]


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    found = rank_correlation(left, right)
    assert found is not None
    return found[0]


def induction(bench: Bench, *, seeds: int) -> InductionFigures:
    """Return the prefix matching of every head, on random tokens that repeat."""
    seeds = min(seeds, 3) if bench.smoke else seeds
    return InductionFigures(
        seeds=seeds, prefix_matching=dict(prefix_matching(secateur.load(MODEL), seeds=seeds).values)
    )


def removal(bench: Bench, *, part: str, data: str, target: float, limit: int) -> RemovalFigures:
    """Return the course of a removal of heads or networks up to a share of them."""
    verdict, out = bench.prune(
        "out", str(DATA / f"{data}.jsonl"), method=part, target=target, limit=max(130, bench.few(limit)),
        step=target if bench.smoke else 0.1,
    )  # fmt: skip
    analysis = ComponentsAnalysis.model_validate_json((out / "analysis.json").read_text(encoding="utf-8"))
    assert analysis.pruning is not None
    points = [
        RemovalPoint(
            removed=one.heads_removed if part == "heads" else one.ffns_removed,
            parameters=one.parameters,
            value=one.value,
            loss=one.loss,
        )
        for one in analysis.pruning.series[0].points
    ]
    ends = cut_figures(verdict, data).model_copy(update={"edits": [verdict.cut_summary]})
    return RemovalFigures(part=part, points=points, ends=ends)


# ------------------------------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Row:
    """An experiment: its name, what it looks at, and what runs it; None: it was never run here."""

    name: str
    what: str
    run: Callable[[Bench], Figures] | None = None


ROWS = (
    Row(
        "laser-counterfact",
        "LASER, CounterFact",
        partial(laser, data="counterfact", choose=600, english=True),
    ),
    Row("linearity", "Linearity of every block, stories", partial(linearity, chunks=600, seqlen=128)),
    Row("depth", "Depth by cosine, stories", partial(depth, chunks=500, blocks=3)),
    Row("laser-fever", "LASER, FEVER", partial(laser, data="fever_paper_dev", choose=200, prove=600)),
    Row(
        "importance",
        "Importance of heads over tasks and shots",
        partial(
            importance,
            tasks=("arc_easy_test", "openbookqa_test", "winogrande_validation"),
            shots=(0, 1, 5),
            examples=30,
        ),
    ),
    Row("induction", "Heads that match prefixes", partial(induction, seeds=50)),
    Row("laser-wikidata", "LASER, WikidataQA", partial(laser, data="bigbench_qa_wikidata", choose=400)),
    Row(
        "laser-truthfulqa",
        "LASER, TruthfulQA",
        partial(laser, data="truthfulqa_pairs", choose=500, group="question_idx"),
    ),
    Row("laser-hotpotqa", "LASER, HotpotQA", partial(laser, data="hotpotqa_dev", choose=250)),
    Row(
        "laser-epistemic",
        "LASER, epistemic reasoning",
        partial(laser, data="bigbench_epistemic_reasoning", choose=150, prove=500),
    ),
    Row(
        "heads",
        "Heads, up to 70 %, CounterFact",
        partial(removal, part="heads", data="counterfact", target=0.7, limit=1000),
    ),
    Row(
        "ffns",
        "Networks, up to 20 %, CounterFact",
        partial(removal, part="ffns", data="counterfact", target=0.2, limit=1000),
    ),
    Row("int-mult-0", "Directions, products, 0 shots", partial(directions, data="builtin:int-mult")),
    Row("int-mult-5", "Directions, products, 5 shots", partial(directions, data="builtin:int-mult", shots=5)),
    Row("int-sum-0", "Directions, sums, 0 shots", partial(directions, data="builtin:int-sum", limit=300)),
    Row(
        "int-sum-5",
        "Directions, sums, 5 shots",
        partial(directions, data="builtin:int-sum", shots=5, limit=500),
    ),
    Row("copa", "Directions, COPA", partial(directions, data="copa_train", choose=150, prove=250)),
    Row("cb", "Directions, CB", partial(directions, data="cb_train", choose=100, prove=150)),
    Row("rte", "Directions, RTE", partial(directions, data="rte_train", choose=150, prove=500)),
    Row("finetuned", "Directions before and after fine-tuning, all five tasks"),
    Row("healed", "Depth healed by LoRA for 200,000 tokens"),
    Row("copying", "Copying of every head, on random tokens"),
    Row("random-orders", "Heads and networks in random orders beside the curves"),
)


def run(row: Row, folder: Path, *, smoke: bool) -> RowRecord:
    """Run a row in its own folder, which is removed when it has ended well."""
    assert row.run is not None
    torch.set_num_threads(1)
    resumed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    figures = row.run(Bench(folder, smoke))
    record = RowRecord(
        name=row.name,
        figures=figures,
        seed=SEED,
        seconds=time.process_time() - began,
        resumed=resumed,
        date=str(date.today()),
        machine=machine(),
        versions=versions(),
    )
    shutil.rmtree(folder)
    return record


def machine() -> str:
    """Return the processor, its cores and the threads in use."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, one thread"


def rows_asked(only: Sequence[str]) -> Iterator[Row]:
    """Yield the rows that can be run, or those named. Raises: `SystemExit` for a name that there is none of."""
    names = [row.name for row in ROWS if row.run is not None]
    if unknown := sorted(set(only) - set(names)):
        raise SystemExit(f"there is no row {', '.join(unknown)}; they are: {', '.join(names)}.")
    yield from (row for row in ROWS if row.run is not None and (not only or row.name in only))


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows alone")
    parser.add_argument("--again", action="store_true", help="run finished rows again")
    parser.add_argument("--list", action="store_true", help="say which rows there are, and which were run")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page and its pictures")
    parser.add_argument("--smoke", action="store_true", help="every row on a few examples, kept apart")
    asked = parser.parse_args()
    scratch = SCRATCH / "smoke" if asked.smoke else SCRATCH
    kept = scratch if asked.smoke else ROWS_FOLDER
    page = (scratch if asked.smoke else ROOT / "docs") / "results.md"
    found = results_page.read(kept)
    if asked.list:
        for row in ROWS:
            told = (
                f"{found[row.name].seconds:.0f} s, {found[row.name].date}" if row.name in found else "not run"
            )
            print(f"{row.name:20} {told:20} {row.what}")
        return
    for row in () if asked.write else rows_asked(asked.only):
        if row.name not in found or asked.again or asked.smoke:
            record = run(row, scratch / row.name, smoke=asked.smoke)
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{row.name}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            print(f"{row.name}: {record.seconds:.0f} s of processor time", flush=True)
    results_page.write(results_page.read(kept), ROWS, page)


if __name__ == "__main__":
    main()
