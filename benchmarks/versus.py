"""One budget beside each method alone and other papers' ideas (`make versus`): same text, same sizes, measured alike.

    python benchmarks/versus.py [--only NAME ...] [--share 0.8] [--smoke] [--write]

A row is a method at one size: as many parameters at most as are left without so many whole blocks. It is measured on
held-out text of two domains, written to versus/NAME-SHARE.json beside this file, and not measured again while that file
is there. `--write` prints all rows into docs/versus.md. `--smoke` runs everything on a tiny model, in a scratch folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from peers import PEERS
from pydantic import Field

import secateur
from secateur.core.comparison import compare
from secateur.core.plan import Plan
from secateur.core.records.record import Number, Record
from secateur.core.records.verdict import SpeedRecord
from secateur.core.score import METRICS, OUTCOME
from secateur.errors import ModelError, SecateurError
from secateur.evaluation.sample import sample
from secateur.gains.length import Length
from secateur.gains.record import measure
from secateur.hf.anatomy import anatomy as anatomy_of
from secateur.hf.load import Loaded, load_model
from secateur.methods.registry import method_named, read_options
from secateur.session import Session, open_session
from secateur.surgery.materialize import cut
from secateur.tasks.load import load_task

HERE = Path(__file__).parent
ROWS = HERE / "versus"
REFUSED = ".txt"  # of a method that cannot reach a size: why, in the place of its row
PAGE = HERE.parent / "docs" / "versus.md"
SHARED = HERE.parents[1] / "shared" / "data"
OURS = "budget"
# of the parameters, by which a peer that takes whole neurons ends below a size, and the budget too
ROUNDED = 5e-4
DOMAINS = {"stories": "other stories", "books": "books"}
OPTIPFAIR = "optipfair==0.4.2"
PROMPT, NEW = "One day, a little girl named Lily", 40


# ------------------------------------------------------------------------------------------------------------ records


class DomainRecord(Record):
    """Losses on the held-out text of one domain, by document, so that any two rows can be compared."""

    tokens: list[int] = Field(description="scored tokens of each document")
    losses: list[Number] = Field(description="nats per token of each document")

    @property
    def outcomes(self) -> np.ndarray:
        """Return the documents as OUTCOME rows, so that they are compared as examples are."""
        rows = np.zeros(len(self.tokens), OUTCOME)
        rows["example"], rows["tokens"], rows["loss"] = range(len(self.tokens)), self.tokens, self.losses
        return rows

    @property
    def loss(self) -> float:
        """Return nats per token over all documents."""
        return METRICS["text_loss"].mean(self.outcomes)


class MachineRecord(Record):
    """The machine and the versions that times depend on."""

    cpu: str
    threads: int
    python: str
    torch: str
    transformers: str
    secateur: str


class VersusRow(Record):
    """A method at one size."""

    method: str = Field(description="a name of `METHODS`")
    asked: Number = Field(description="nominal share of the parameters")
    model: str
    dtype: str
    parameters: Number = Field(description="share of all parameters that is kept")
    non_embedding: Number = Field(description="share of the parameters outside embeddings that is kept")
    domains: dict[str, DomainRecord] = Field(description="by the names of `DOMAINS`")
    calibration_tokens: int = Field(description="of the text to choose by")
    seconds: Number = Field(description="processor seconds of the search")
    passes: Number = Field(
        description="the same in forward passes of the whole model over the selection split"
    )
    prefill: SpeedRecord
    decode: SpeedRecord
    sample: str = Field(description="greedy text after the prompt")
    edits: list[str] = Field(description="in words")
    seed: int
    date: str
    machine: MachineRecord


def machine() -> MachineRecord:
    """Return what the times of this process depend on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return MachineRecord(
        cpu=names[0].partition(":")[2].strip() if names else "unknown",
        threads=torch.get_num_threads(),
        python=sys.version.partition(" ")[0],
        torch=torch.__version__,
        transformers=version("transformers"),
        secateur=secateur.__version__,
    )


# ------------------------------------------------------------------------------------------------------------ methods


@dataclass(frozen=True)
class Contestant:
    """A method of the table: by the options of our own, by a peer's choice, or by a package in a process of its own.

    Attributes:
        about: What it is, in one sentence.
        options: Of our own methods; `blocks` or `params` are added.
        package: The arguments of the package's own call.
    """

    name: str
    about: str
    options: Mapping[str, str] = field(default_factory=dict)
    package: Mapping[str, str] = field(default_factory=dict)


METHODS = {
    one.name: one
    for one in (
        Contestant("whole", "the model as it is"),
        Contestant(OURS, "ours: edits of every kind compete for one budget", {"method": "budget"}),
        Contestant(
            "cuts",
            "ours: the same without maps, which are fitted to the text",
            {"method": "budget", "kinds": "heads,neurons,attentions,ffns,blocks,matrices"},
        ),
        Contestant("fold", "ours: blocks by measured loss, folded", {"method": "depth", "form": "fold"}),
        Contestant("drop", "ours: blocks by measured loss, dropped", {"method": "depth", "form": "drop"}),
        Contestant(
            "linear",
            "ours: blocks by measured loss, each run a linear map",
            {"method": "depth", "form": "linear"},
        ),
        Contestant("ffns", "ours: whole feed-forward networks by measured loss", {"method": "ffns"}),
        Contestant(
            "components", "ours: heads and feed-forward networks by importance", {"method": "components"}
        ),
        Contestant("heads", "ours: KV groups by importance", {"method": "heads"}),
        Contestant("attention", "ours: whole attentions by measured loss", {"method": "attention"}),
        *(Contestant(peer.name, f"{peer.about} (arXiv {peer.paper})") for peer in PEERS.values()),
        Contestant(
            "optipfair-depth",
            f"the package {OPTIPFAIR}: blocks by the cosine of input and output, dropped",
            package={"pruning_type": "DEPTH"},
        ),
        Contestant(
            "optipfair-width",
            f"the package {OPTIPFAIR}: neurons of gated networks by weights and activations (MAW)",
            package={"pruning_type": "MLP_GLU"},
        ),
    )
}


LENGTH = Length(prompt=256, new=24, repeats=5)  # of the timing


@dataclass(frozen=True)
class Size:
    """The amount of text, in characters, and the shares that are asked for."""

    calibration: int = 16_000  # 4,000 tokens, of which a fifth is read and four fifths are chosen by
    held_out: int = 45_000  # 11,000 tokens, in either domain
    seqlen: int = 128
    length: Length = LENGTH


SMOKE = Size(3_000, 6_000, 48, Length(prompt=16, new=4, repeats=1))


@dataclass(frozen=True)
class Ring:
    """A model with the text to choose by and to measure on.

    Attributes:
        session: Its `probe` and `select` are to choose by, its `test` the held-out stories.
        books: The same model on the other domain.
        forward: Processor seconds of one forward pass over `select`.
        folder: Scratch, with the ledger.
    """

    session: Session
    books: Session
    forward: float
    folder: Path
    size: Size

    def held(self, blocks: int) -> int:
        """Return the parameters of so many blocks."""
        return blocks * max(width.num_parameters for width in self.session.loaded.anatomy.widths)

    def kept(self, blocks: int) -> float:
        """Return the share of the parameters that is left without so many blocks."""
        return 1 - self.held(blocks) / self.session.loaded.anatomy.num_parameters

    def attentions(self, blocks: int) -> int:
        """Return the fewest attentions that hold as many parameters as so many blocks."""
        each = max(width.attention for width in self.session.loaded.anatomy.widths)
        return -(-self.held(blocks) // each)

    def blocks(self, share: float) -> int:
        """Return the fewest blocks without which no more than a share of the parameters is left."""
        return next(count for count in range(10_000) if self.kept(count) <= share + 1e-9)


def write_texts(folder: Path, size: Size) -> None:
    """Write calibration.jsonl, stories.jsonl and books.jsonl, which share no document."""
    stories, books = (
        [json.loads(line) for line in (SHARED / f"text_{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("tinystories_train", "gutenberg_books")
    )
    np.random.default_rng(0).shuffle(stories)  # type: ignore[arg-type]  # a list is shuffled as well
    each = size.held_out // len(books)
    middles = [{**book, "text": book["text"][len(book["text"]) // 2 :][:each]} for book in books]
    texts = {
        "calibration": _first(stories, size.calibration),
        "stories": _first(stories[::-1], size.held_out),
        "books": middles,
    }
    for name, rows in texts.items():
        lines = (json.dumps({"id": row["id"], "text": row["text"]}) for row in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _first(rows: Sequence[Mapping[str, str]], length: int) -> list[Mapping[str, str]]:
    """Return the first rows that hold `length` characters together."""
    ends = np.cumsum([len(row["text"]) for row in rows])
    return list(rows[: int(np.searchsorted(ends, length)) + 1])


def open_ring(model: str, dtype: str, folder: Path, size: Size) -> Ring:
    """Return the model with its texts, read once."""
    write_texts(folder, size)
    options = read_options(
        model,
        f"text:{folder / 'calibration.jsonl'}",
        test_task=f"text:{folder / 'stories.jsonl'}",
        seqlen=size.seqlen,
        dtype=dtype,
        device="cpu",
        allow_small=True,
        report="quick",
    )
    session = open_session(options, None)
    books = load_task(
        f"text:{folder / 'books.jsonl'}",
        tokenizer=session.loaded.tokenizer,
        seqlen=size.seqlen,
        allow_small=True,
    )
    session.judge()(
        [session.empty], session.shuffled("select")
    )  # the first pass sets up more than later ones
    started = time.process_time()
    session.judge()([session.empty], session.shuffled("select"))
    return Ring(session, session.on(books), time.process_time() - started, folder, size)


# ------------------------------------------------------------------------------------------------------------ a row


@dataclass(frozen=True)
class Cut:
    """The result of a method: a plan for the session's model, or another model, and the seconds of the search."""

    seconds: float
    plan: Plan
    model: Loaded | None = None


def searched(ring: Ring, contestant: Contestant, share: float) -> Cut:
    """Return what a method cuts.

    Raises: `SecateurError` where it cannot reach the size.
    """
    session, count, started = ring.session, ring.blocks(share), time.process_time()
    if contestant.package:
        return packaged(ring, contestant.package, count)
    if contestant.options:
        less = ROUNDED if contestant.name == OURS else -1e-9
        sized: dict[str, float] = {"params": ring.kept(count) - less}
        if contestant.options["method"] == "depth":
            sized = {"blocks": count}
        elif contestant.options["method"] == "attention":
            sized = {"attentions": ring.attentions(count)}
        common = session.options
        options = read_options(
            common.model,
            common.task,
            test_task=common.test_task,
            seqlen=common.seqlen,
            dtype=common.dtype,
            device="cpu",
            allow_small=True,
            report="quick",
            **contestant.options,
            **sized,
        )
        method, asked = method_named(options.method), replace(session, options=options)
        method.check(asked)
        plan = method.search(asked).plan
    elif contestant.name in PEERS:
        plan = PEERS[contestant.name].choose(session, count)
    else:
        plan = session.empty
    return Cut(time.process_time() - started, plan)


def packaged(ring: Ring, arguments: Mapping[str, str], count: int) -> Cut:
    """Return the model that the package makes, which is installed into the scratch folder.

    Raises: `SecateurError` where it cannot be had, or fails.
    """
    session, site, out = ring.session, ring.folder / "site", ring.folder / "optipfair"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), OPTIPFAIR]
    text = [session.encoded[e].pairs[0] for name in ("probe", "select") for e in session.task.split(name)]
    (ring.folder / "tokens.json").write_text(json.dumps([[*context, *answer] for context, answer in text]))
    anatomy, kind = session.loaded.anatomy, arguments["pruning_type"]
    held = sum(
        matrix.num_parameters for at, matrix in anatomy.matrices.items() if at.part in ("gate", "up", "down")
    )
    percent = 100 * count * anatomy.widths[0].num_parameters / held
    number = str(count) if kind == "DEPTH" else f"{percent:.4f}"
    call = [str(HERE / "optipfair_cut.py"), kind, session.options.model, str(ring.folder / "tokens.json")]
    before = os.times()
    for words, place in ((install, ""), ([*call, str(out), number], str(site))):
        if place or not site.exists():
            done = subprocess.run(
                [sys.executable, *words],
                env={**os.environ, "PYTHONPATH": place},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SecateurError(f"not measured here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    session.loaded.tokenizer.save_pretrained(out)
    return Cut(seconds, session.empty, load_model(str(out), dtype=session.options.dtype, device="cpu"))


def measured(ring: Ring, name: str, share: float) -> VersusRow:
    """Search, and return the row.

    Raises: `SecateurError` as `searched`.
    """
    found = searched(ring, METHODS[name], share)
    session, books = ring.session, ring.books
    whole, left = session.loaded, found.model
    if left is None:
        model = cut(whole, found.plan, factorize=True)
        left = replace(whole, model=model, anatomy=anatomy_of(model))
    on_test = session if found.model is None else session.on(session.task, found.model)
    on_books = books if found.model is None else books.on(books.task, found.model)
    gains = measure(whole, left, ring.size.length, progress=session.progress)
    assert gains.prefill is not None
    assert gains.decode is not None
    embedded = whole.anatomy.num_parameters - sum(width.num_parameters for width in whole.anatomy.widths)
    prompt = whole.tokenizer(PROMPT).input_ids
    text = [session.encoded[e].longest for split in ("probe", "select") for e in session.task.split(split)]
    kept = left.anatomy.num_parameters
    return VersusRow(
        method=name,
        asked=share,
        model=Path(session.options.model).name,
        dtype=str(whole.model.dtype).removeprefix("torch."),
        parameters=kept / whole.anatomy.num_parameters,
        non_embedding=(kept - embedded) / (whole.anatomy.num_parameters - embedded),
        domains={
            "stories": by_document(on_test, found.plan, session.task.split("test")),
            "books": by_document(on_books, found.plan, range(len(books.task.examples))),
        },
        calibration_tokens=sum(text),
        seconds=found.seconds,
        passes=found.seconds / ring.forward,
        prefill=gains.prefill,
        decode=gains.decode,
        sample=sample(on_test.loaded, prompt, NEW, None if found.model else found.plan),
        edits=found.plan.descriptions,
        seed=session.options.seed,
        date=date.today().isoformat(),
        machine=machine(),
    )


def by_document(session: Session, plan: Plan, examples: Sequence[int]) -> DomainRecord:
    """Return the losses of a plan on these examples, by their groups, which are documents."""
    plan = plan if plan.model == session.loaded.fingerprint else session.empty
    rows, groups = session.judge()([plan], examples)[plan], session.task.groups(examples)
    tokens = np.bincount(groups, weights=rows["tokens"])
    losses = np.bincount(groups, weights=rows["tokens"] * rows["loss"]) / tokens
    return DomainRecord(tokens=tokens.astype(int).tolist(), losses=losses.tolist())


# ------------------------------------------------------------------------------------------------------------ the page


def rows_in(folder: Path) -> list[VersusRow]:
    """Return the finished rows, by share from the largest on, in the order of `METHODS`."""
    rows = [
        VersusRow.read(file, ModelError, "Remove it, and measure it again.") for file in folder.glob("*.json")
    ]
    return sorted(rows, key=lambda row: (-row.asked, list(METHODS).index(row.method)))


def refused_in(folder: Path) -> dict[str, str]:
    """Return why a method has no row at a size, by NAME-SHARE."""
    return {file.stem: file.read_text("utf-8").strip() for file in sorted(folder.glob(f"*{REFUSED}"))}


def difference(row: VersusRow, ours: VersusRow, domain: str) -> str:
    """Return the loss of a row less ours, with its 95 % interval by document."""
    pair = ours.domains[domain].outcomes, row.domains[domain].outcomes
    found = compare(METRICS["text_loss"], *pair, np.arange(len(pair[0])), seed=0)
    bounds = "" if found.difference_ci is None else " [{:+.3f}, {:+.3f}]".format(*found.difference_ci)
    return f"{found.difference:+.3f}{bounds}"


HEAD = """\
# Side by side

Made by `make versus`; do not edit. One budget beside each of our methods alone and beside other papers' ideas, on
{row.model} in {row.dtype}. All choose by the same {row.calibration_tokens:,} tokens of TinyStories, none is healed, and
all are cut and measured by the same code. Losses are nats per token on {stories}, and on {books},
none of it seen by a method.
*More than ours* is the loss less that of the budget at the same size, with a paired 95 % interval by document: above 0
the budget is better. The sizes are those that so many whole blocks leave; a method that takes whole networks may end
below, one that puts maps in their place above. F is one forward pass of the whole model over the validation split.
Other work ran beside, and rows of several days are of several machines, so times are rough. Multiple-choice tasks:
not measured here.

One thread of {machine.cpu}; torch {machine.torch}, transformers {machine.transformers}, secateur {machine.secateur};
seed {row.seed}; {dates}.
"""
COLUMNS = (
    "",
    "kept",
    "outside embeddings",
    "stories",
    "more than ours",
    "books",
    "more than ours",
    "search, s",
    "in F",
    "prefill, tokens/s",
    "decode, tokens/s",
)


def page(rows: Sequence[VersusRow], refused: Mapping[str, str] | None = None) -> str:
    """Return docs/versus.md; `refused` is what `refused_in` gives."""
    first, dates = rows[0], sorted({row.date for row in rows})
    texts = {
        name: f"{sum(record.tokens):,} tokens of {len(record.tokens)} {DOMAINS[name]}"
        for name, record in first.domains.items()
    }
    head = HEAD.format(row=first, machine=first.machine, dates=", ".join(dates), **texts)
    lines, whole = [head.rstrip()], next((row for row in rows if row.method == "whole"), None)
    lines += ["", "## In short", "", *_in_short(rows)]
    for share in _shares(rows):
        lines += ["", f"## {share:.0%} of the parameters", ""]
        lines += _table([row for row in rows if row.asked == share], whole, share, refused or {})
    lines += ["", "## The rows", ""]
    lines += [f"- **{one.name}**: {one.about}." for one in METHODS.values()]
    lines += ["", "## Greedy text", "", f"After “{PROMPT}”:", ""]
    lines += [f"- {_named(row)}: {json.dumps(row.sample, ensure_ascii=False)}" for row in rows]
    return "\n".join(lines) + "\n"


def _shares(rows: Sequence[VersusRow]) -> list[float]:
    """Return the sizes of the rows in their order, each once."""
    return list(dict.fromkeys(row.asked for row in rows if row.method != "whole"))


def _in_short(rows: Sequence[VersusRow]) -> Iterator[str]:
    """Yield for each size how the budget compares to the best of the others in each domain."""
    for share in _shares(rows):
        of_share = {row.method: row for row in rows if row.asked == share}
        if OURS not in of_share:
            continue
        ours, alone = of_share.pop(OURS), [row for name, row in of_share.items() if METHODS[name].options]
        peers = [row for name, row in of_share.items() if not METHODS[name].options]
        for what, others in (("peer", peers), ("of our other methods", alone)):
            said = [
                f"on {words} {best.method} {difference(best, ours, domain)}"
                for domain, words in DOMAINS.items()
                if (best := min(others, key=lambda row: row.domains[domain].loss, default=None)) is not None
            ]
            yield f"- {share:.0%}, the best {what} loses more than the budget, in nats: {', '.join(said)}."


def _named(row: VersusRow) -> str:
    return row.method if row.method == "whole" else f"{row.method}, {row.asked:.0%}"


def _table(
    rows: Sequence[VersusRow], whole: VersusRow | None, share: float, refused: Mapping[str, str]
) -> Iterator[str]:
    """Yield the lines of a table; a method that has no row cannot reach the size, or was not measured."""
    ours = next((row for row in rows if row.method == OURS), None)
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    listed = {row.method: row for row in ([] if whole is None else [whole]) + list(rows)}
    for name in METHODS:
        if name not in listed:
            why = "cannot be so small" if f"{name}-{share:g}" in refused else "not measured here"
            yield f"| {name} | {why} |" + " |" * (len(COLUMNS) - 2)
            continue
        row = listed[name]
        compared = {
            d: difference(row, ours, d) if ours and name not in (OURS, "whole") else "" for d in DOMAINS
        }
        losses = [f"{row.domains[d].loss:.3f} | {compared[d]}" for d in DOMAINS]
        speeds = [f"{s.after:,.0f} (×{s.speedup:.2f})" for s in (row.prefill, row.decode)]
        yield (
            f"| {name} | {row.parameters:.1%} | {row.non_embedding:.1%} | {' | '.join(losses)} | {row.seconds:.0f} | "
            f"{row.passes:.0f} | {' | '.join(speeds)} |"
        )


def main() -> None:
    """Measure the rows that are missing, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--share", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.7])
    parser.add_argument("--model", default=str(HERE.parent / "models" / "smollm2-135m"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model, little text, into a scratch folder"
    )
    parser.add_argument("--write", action="store_true", help="print the finished rows into docs/versus.md")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if asked.smoke:
            found = smoke(Path(scratch), asked.only)
            print(page(found, refused_in(Path(scratch) / "rows")))
        elif asked.write:
            PAGE.write_text(page(rows_in(ROWS), refused_in(ROWS)), encoding="utf-8")
        else:
            fill(ROWS, open_ring(asked.model, asked.dtype, Path(scratch), Size()), asked.only, asked.share)


def smoke(folder: Path, names: Sequence[str]) -> list[VersusRow]:
    """Return one row of each method on a tiny model; none of a package."""
    ring = open_ring(str(SHARED / "models" / "stories260K"), "float32", folder, SMOKE)
    fill(folder / "rows", ring, [name for name in names if not METHODS[name].package], [0.8])
    return rows_in(folder / "rows")


def fill(folder: Path, ring: Ring, names: Sequence[str], shares: Sequence[float]) -> None:
    """Measure the rows that are missing in a folder, and write each when it is finished."""
    folder.mkdir(exist_ok=True)
    for share in shares:
        for name in names:
            at = 1.0 if name == "whole" else share
            file = folder / f"{name}-{at:g}.json"
            if file.exists():
                continue
            try:
                row = measured(ring, name, at)
            except SecateurError as error:
                file.with_suffix(REFUSED).write_text(f"{error}\n", encoding="utf-8")
                print(f"{name} at {share:.0%}: {error}", flush=True)
                continue
            file.write_text(json.dumps(row.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            losses = ", ".join(f"{d} {row.domains[d].loss:.4f}" for d in DOMAINS)
            print(
                f"{name} at {row.parameters:.1%}: {losses}; {row.seconds:.0f} s, {row.passes:.0f} F",
                flush=True,
            )


if __name__ == "__main__":
    main()
