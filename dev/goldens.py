"""Compares what two commits do: the same commands, run with either source, must give the same records and pages.

    python dev/goldens.py --base COMMIT          # the working tree against COMMIT
    python dev/goldens.py --base COMMIT --only depth --only heal-*
    python dev/goldens.py --list

A case is a series of `python -m secateur …` in an empty folder. Compared are exit codes, what is printed, all JSON, the
numbers of the HTML pages, and sums over the weights. What the base gives is kept in --cache, so that it runs once.
Prose is not compared, and of what the clock or the version decides (VARIES) only that it is there.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READS = 1  # raise it when something else is read of a case: what --cache holds is then made again

# What HEAD calls otherwise: "old" or "parent.old" → "new". It is for keys of JSON, names of files and sections, and
# texts that are a name as a whole, such as a method. Applied to the base before it is compared.
RENAMED: dict[str, str] = {}

# Of these keys, and all below them, only the structure is compared.
VARIES = {
    "seconds",  # wall clock
    "created",  # time stamp
    "versions",  # of the libraries
    *("peak_bytes", "peak_bytes_prefill", "peak_bytes_decode"),  # memory, as bench measures it
    *(
        f"{stage}.{key}"  # speeds, as bench measures them
        for stage in ("prefill", "decode")
        for key in ("before", "before_iqr", "after", "after_iqr", "speedup", "speedup_iqr", "of_limit")
    ),
}
VARIES_COLUMNS = {"seconds"}  # the same in tables of pages, by the head of the column

# Texts whose wording is free: of these keys only that there is a text is compared.
PROSE = {"assumptions", "command", "command_line", "condition", "cut_summary", "description", "detail"}
PROSE |= {"how", "note", "sentence", "test", "warning", "why"}
PROSE_TAGS = {"p", "h1", "h2", "h3", "h4", "small", "summary", "footer", "li", "button", "noscript"}
SECTION_TAGS = {"section", "header"}
VOID_TAGS = {"br", "meta", "link", "img", "input", "hr", "col"}

# Words of the commands below that stand for several.
SHORT = {
    "FACTS": "builtin:facts --task builtin:facts",
    "SMALL": "--limit 200 --allow-small",
    "RECALL": "builtin:recall --task builtin:recall --limit 200 --allow-small",
    "MULT": "builtin:arith --task builtin:int-mult --limit 200 --allow-small",
    "JOINT": "builtin:components --task builtin:facts --task builtin:recall --limit 300",
    "STORIES": "{data}/models/stories260K",
    "TEXT": "--task text:{data}/text_tinystories_valid.txt --seqlen 64 --limit 130",
    "COPA": "--task {data}/copa_train.jsonl --test-task {data}/copa_validation.jsonl --limit 150 --allow-small",
    "TRAIN": "train text:{data}/text_tinystories_valid.txt --tokenizer {data}/models/stories260K --layers 2 "
    "--d-model 32 --seqlen 32",
    "MLP": "--matrices mlp --layers 2:3",
}

# A case a paragraph: its name, then its commands, apart by `;`. What trains prints seconds, so it gets --json.
CASES = """
laser: prune FACTS MLP -o out --json; show out --json --top 5; runs --json; report out
laser-exhaustive: prune FACTS SMALL MLP --exhaustive --grid paper --no-compose -o out
laser-compose: prune FACTS SMALL --layers 1:3 --objective loss --seed 1 -o out
laser-factorize: prune FACTS SMALL --matrices gate,down --layers 2 --factorize --split-seed 1 -o out
laser-unproven: prune RECALL --matrices o --keep-unproven -o out; eval out --task builtin:recall --json
laser-shots: prune FACTS SMALL MLP --shots 1 --side builtin:recall --spectra spectra -o out
laser-text: prune STORIES TEXT --allow-small --matrices down --layers 3:5 -o out
laser-choice: prune STORIES COPA --matrices down --layers 4 --grid paper --keep-unproven -o out
laser-bfloat16: prune FACTS SMALL MLP --dtype bfloat16 -o out
joint: prune JOINT --matrices down --layers 1 -o out
joint-each: prune JOINT --each --matrices down --layers 1 -o out; runs --json
joint-heads: prune JOINT --method heads --max-loss 0.05 --step 34% --random-orders 1 -o out
directions: prune MULT --method directions --matrices k,v -o out
directions-unproven: prune MULT --method directions --matrices k,v --keep-unproven --second-order -o out
directions-exhaustive: prune MULT --method directions --matrices k --no-dynamic --exhaustive -o out
directions-per-head: prune MULT --method directions --max-loss 0.05 --per-head --matrices attn -o out
directions-target: prune MULT --method directions --matrices v --target 20% --signed --step 5% -o out
directions-threshold: prune MULT --method directions --matrices k,v --protocol threshold --whitened -o out
directions-paper: prune MULT --method directions --matrices k,v --protocol paper --keep-unproven -o out
directions-overall:
    prune MULT --method directions --matrices k,v --protocol paper --overall --target 20% --weakest -o out
directions-text: prune STORIES TEXT --allow-small --method directions --matrices k --layers 4 -o out
heads: prune RECALL --method heads -o out; show out --json
heads-target: prune RECALL --method heads --target 50% --ranks-once --portable --random-orders 1 -o out
heads-groups: prune STORIES TEXT --allow-small --method heads --target 40% --step 40% --random-orders 1 -o out
ffns: prune FACTS SMALL --method ffns --max-loss 0.1 --step 34% -o out
components: prune JOINT --method components --max-loss 0.02 --step 34% --random-orders 1 -o out
components-params:
    prune FACTS SMALL --method components --params 0.9 --step 20% --zeroed --random-orders 1 -o out
components-portable:
    prune FACTS SMALL --method components --params 0.9 --step 20% --portable --random-orders 1 -o out
depth: prune FACTS SMALL --method depth --blocks 1 -o out
depth-linear: prune STORIES TEXT --allow-small --method depth --blocks 2 --form linear --by linearity -o out
depth-rank: prune FACTS SMALL --method depth --blocks 1 --form linear --rank 8 --by cosine -o out
depth-drop: prune STORIES TEXT --allow-small --method depth --max-loss 0.5 --form drop --contiguous -o out
depth-fold: prune STORIES TEXT --allow-small --method depth --blocks 2 --by cosine -o out
apply:
    apply builtin:facts --edit b2.gate=3 --edit b1.down=tail:8 -o cut --json;
    apply builtin:facts --plan cut -o again --factorize --svd randomized --check digests --json;
    apply builtin:facts --plan cut/plan.json -o shards --shard-size 500KB --json
apply-drop:
    apply builtin:recall --edit b1.attn.h0=drop --edit b0.mlp.n3=drop --dry-run --json;
    apply builtin:facts --edit b0.mlp.n1=drop --edit b1.mlp.n1=drop --edit b2.mlp.n1=drop --edit b2.mlp.n2=drop
    --portable -o stock --json;
    apply builtin:facts --edit b2.k=without:0,7 --edit b1=drop -o shorter --json
bench: apply builtin:facts --edit b2.mlp=drop -o cut --json; bench cut --prompt 16 --new 2 --repeats 1 --json
eval:
    eval FACTS --json; eval FACTS --edit b2.gate=3 --split test --ledger ledger.sqlite --json;
    eval FACTS --edit b2.gate=3 --shots 2 --split probe; tasks --json
eval-text: eval STORIES TEXT --allow-small --json; eval STORIES COPA --json --split probe
probe-components:
    probe FACTS --task builtin:recall --shots 0,1 --what heads,ffns,neurons,induction -o out --json;
    probe builtin:recall --what induction --layers 1
probe-groups: probe STORIES TEXT --what heads,ffns,neurons --layers 3:5 -o out --json
probe-linearity: probe FACTS --also builtin:recall --what linearity -o out --json
probe-linearity-finer: probe STORIES TEXT --what linearity --parts --finer heads,matrices -o out --json
probe-spectrum: probe FACTS --what spectrum MLP --json; probe STORIES TEXT --what spectrum --layers 4
probe-directions:
    probe builtin:recall --task builtin:recall --what directions --split probe --layers 1 --json;
    probe STORIES TEXT --what directions --per-head --matrices attn --layers 3 --second-order --json;
    probe STORIES TEXT --what directions --whitened --matrices down --layers 3 --edit b1.up=40
probe-curves: probe FACTS --limit 300 --what curves --matrices gate,o --layers 2 --json
probe-cut:
    probe FACTS --what tail --edit b2.gate=3 --json; probe FACTS --what frequency --edit b2.gate=3 --json;
    probe FACTS --what paraphrases --edit b2.gate=3 --json
probe-disk: probe FACTS --limit 200 --what heads --device-map disk --offload-folder disk --json
heal:
    prune FACTS SMALL --method depth --blocks 1 --form linear --by cosine -o cut;
    heal cut --task builtin:facts SMALL --max-steps 4 --ledger cut.run/ledger.sqlite -o out --json;
    report out; show out --json
heal-fold:
    prune STORIES TEXT --allow-small --method depth --blocks 1 --by cosine -o cut;
    heal cut --task text:{data}/text_tinystories_valid.txt --seqlen 16 --limit 300 --allow-small --max-steps 3
    --side {data}/copa_validation.jsonl --stage layers --lr 1e-3 -o out --json
heal-drop:
    apply builtin:facts --edit b1=drop --edit b0.gate=8 -o cut;
    heal cut --task builtin:facts SMALL --max-steps 4 --stage end --temperature 2 --hidden 0.5 --lora 4 -o out
    --json
finetune: finetune FACTS SMALL --epochs 1 --lr 1e-3 -o out --json; show out --json
finetune-lora: finetune FACTS SMALL --max-steps 3 --lora 4 --lora-targets q,v --split probe,select -o out --json
finetune-choice: finetune STORIES COPA --max-steps 3 --warmup 0.3 --weight-decay 0.1 -o out --json
train: TRAIN --steps 4 --save-steps 0,2 --batch-size 4 -o out --json; show out --json
train-regulariser: TRAIN --kv-heads 2 --steps 3 --regulariser cosine -o out --json
cost:
    plan-cost FACTS --json; plan-cost FACTS --no-calibrate;
    plan-cost FACTS --tflops 989 --bandwidth 3350 --devices 2 --json
cost-parts:
    plan-cost FACTS --no-calibrate --json --method heads; plan-cost FACTS --no-calibrate --json --method ffns;
    plan-cost FACTS --no-calibrate --json --method components --target 50%
cost-other:
    plan-cost FACTS --no-calibrate --json --exhaustive;
    plan-cost FACTS --no-calibrate --json --method directions;
    plan-cost FACTS --no-calibrate --json --method directions --max-loss 0.05;
    plan-cost FACTS --no-calibrate --json --method depth --form linear --by cosine
"""


def cases() -> dict[str, list[list[str]]]:
    """The commands of each case, in words."""
    written = {}
    for line in re.sub(r"\n +", " ", CASES).strip().splitlines():
        name, commands = line.split(":", 1)
        long = [
            " ".join(SHORT.get(word, word) for word in command.split()) for command in commands.split(";")
        ]
        written[name] = [command.split() for command in long]
    return written


# Reading what a case left


def read_case(folder: Path, printed: list[str]) -> dict[str, Any]:
    """All that is compared of a case, by what it was read from."""
    found = {f"printed {number}": read_printed(text) for number, text in enumerate(printed, 1)}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0].endswith(".run") or not path.is_file():
            continue
        if path.suffix == ".json":
            found[name] = json.loads(path.read_text("utf-8"))
        elif path.suffix == ".html":
            found[name] = read_page(path.read_text("utf-8"))
        elif path.suffix == ".safetensors":
            found[name] = read_weights(path)
    return found


def read_printed(text: str) -> Any:
    """The JSON that was printed, or the numbers of each line of a table."""
    try:
        return json.loads(text)
    except ValueError:
        return [numbers(line) for line in text.splitlines()]


def numbers(text: str) -> list[float]:
    """The numbers of a text, in order."""
    text = text.replace("\u2212", "-").replace("\u2013", " ")
    found = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return [float(number.replace(",", "")) for number in found]


def read_weights(path: Path) -> dict[str, Any]:
    """Shape, dtype and two sums of each tensor: of what is above zero and of what is below, by place."""
    from safetensors.torch import load_file

    found = {}
    for name, tensor in sorted(load_file(path).items()):
        flat = tensor.double().flatten()
        ramp = 1 + (flat.new_ones(flat.numel()).cumsum(0) % 1009) / 1009
        sums = [float((flat.clamp(min=0) * ramp).sum()), float((flat.clamp(max=0) * ramp).sum())]
        found[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "sums": sums}
    return found


def read_page(text: str) -> dict[str, Any]:
    """The numbers of a page: of each section its tables and its drawings, and the data of plotly's figures."""
    reader = PageReader()
    reader.feed(text)
    figures = {figure["id"]: drawn_numbers(figure["data"]) for figure in json.loads(reader.figures or "[]")}
    return {"sections": reader.sections, "figures": figures}


def drawn_numbers(data: Any) -> Any:
    """Return the numbers that a figure draws, those of its texts in place of the texts; without colors."""
    if isinstance(data, dict):
        return {key: drawn_numbers(value) for key, value in data.items() if "color" not in key}
    if isinstance(data, list):
        return [drawn_numbers(value) for value in data]
    return numbers(data) if isinstance(data, str) else data


class PageReader(HTMLParser):
    """Reads sections: their tables row by row, and the numbers drawn outside of tables and of prose."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, dict[str, list]] = {}
        self.figures = ""
        self.open: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.heads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        if tag not in VOID_TAGS:
            self.open.append((tag, given.get("id") or ""))
        if tag in SECTION_TAGS:
            self.sections[given.get("id") or tag] = {"tables": [], "drawn": []}
        elif tag == "table" and self.section:
            self.section["tables"].append([])
        elif tag == "tr":
            self.cells = []
        elif tag in ("td", "th"):
            self.cells.append("")
        elif self.section and given.get("style") and not self.inside(PROSE_TAGS):
            self.section["drawn"].extend(numbers(given["style"]))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass
        if tag != "tr" or not self.section:
            return
        if self.inside({"thead"}):
            self.heads = self.cells
        else:
            pairs = zip(self.heads, self.cells, strict=True)
            kept = [cell for head, cell in pairs if head not in VARIES_COLUMNS]
            self.section["tables"][-1].append([numbers(cell) for cell in kept])

    def handle_data(self, data: str) -> None:
        if ("script", "figures") in self.open:
            self.figures += data
        elif self.inside({"td", "th"}) and self.cells:
            self.cells[-1] += data
        elif self.section and not self.inside({*PROSE_TAGS, "script", "style"}):
            self.section["drawn"].extend(numbers(data))

    def inside(self, tags: set[str]) -> bool:
        return any(tag in tags for tag, _ in self.open)

    @property
    def section(self) -> dict[str, list] | None:
        names = [name or tag for tag, name in self.open if tag in SECTION_TAGS]
        return self.sections.get(names[-1]) if names else None


# Comparing


def renamed(value: Any, parent: str = "") -> Any:
    """The base's records in HEAD's names."""
    if isinstance(value, dict):
        names = {key: RENAMED.get(f"{parent}.{key}", RENAMED.get(key, key)) for key in value}
        return {names[key]: renamed(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [renamed(each, parent) for each in value]
    return RENAMED.get(value, value) if isinstance(value, str) else value


def comparable(value: Any, parent: str = "", key: str = "", varies: bool = False) -> Any:
    """A record in which prose, and what varies, is replaced by its kind."""
    varies = varies or key in VARIES or f"{parent}.{key}" in VARIES
    if isinstance(value, dict):
        return {each: comparable(below, key, each, varies) for each, below in value.items()}
    if isinstance(value, list):
        return [comparable(below, parent, key, varies) for below in value]
    if isinstance(value, str):
        return "text" if varies or key in PROSE else value
    return "number" if varies and type(value) in (int, float) else value


def differences(base: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each place where two records differ."""
    if isinstance(base, dict) and isinstance(new, dict):
        if (
            path.endswith("› command") and "method" in new
        ):  # of other methods' options a run says nothing any more
            base = {key: value for key, value in base.items() if key in new}
        for key in [*base, *(key for key in new if key not in base)]:
            yield from differences(base.get(key, "(absent)"), new.get(key, "(absent)"), f"{path} › {key}")
    elif isinstance(base, list) and isinstance(new, list) and len(base) == len(new):
        for index, (one, other) in enumerate(zip(base, new, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif not same(base, new):
        yield f"{path.removeprefix(' › ')}: {shown(base)} → {shown(new)}"


def same(base: Any, new: Any) -> bool:
    if isinstance(base, float | int) and isinstance(new, float | int):
        close = math.isclose(base, new, rel_tol=1e-6, abs_tol=1e-12)
        return close and isinstance(base, bool) == isinstance(new, bool)
    return base == new


def shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    return "a record" if isinstance(value, dict) else f"{value!r:.60}"


# Running


def run_case(name: str, src: Path, data: Path) -> dict[str, Any]:
    """Runs the commands of a case in a new folder with the source in `src`, and reads what they left.

    Raises: `RuntimeError` where a command fails.
    """
    env = os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    printed = []
    with tempfile.TemporaryDirectory(prefix="goldens-") as folder:
        for command in cases()[name]:
            called = [sys.executable, "-m", "secateur", *(word.format(data=data) for word in command)]
            done = subprocess.run(called, cwd=folder, env=env, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr[-300:].strip()
                raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {said}")
            printed.append(done.stdout)
        return read_case(Path(folder), printed)


def of_base(name: str, commit: str, cache: Path, data: Path) -> dict[str, Any]:
    """Return the results of the base for a case: from the cache, or by running it."""
    made_of = [cases()[name], READS, sys.version, version("torch"), version("transformers"), str(data)]
    path = cache / commit / f"{name}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]}.json"
    if not path.exists():
        found = run_case(name, cache / commit / "src", data)
        path.with_suffix(".part").write_text(json.dumps(found), "utf-8")
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text("utf-8"))


def check_out(commit: str, folder: Path) -> Path:
    """The source of a commit, in `folder`/src."""
    if not (folder / "src").exists():
        packed = git("archive", commit, "src")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(part, filter="data")
            (Path(part) / "src").rename(folder / "src")
    return folder / "src"


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def compare(name: str, commit: str, new_src: Path, given: argparse.Namespace) -> tuple[str, list[str]]:
    """`same`, `different`, `failed` or `skipped`, and what there is to say of the case."""
    if not given.data.is_dir() and "{data}" in str(cases()[name]):
        return "skipped", [f"there is no {given.data}"]
    started = time.monotonic()
    try:
        base = of_base(name, commit, given.cache, given.data)
    except RuntimeError as error:
        return "failed", [f"the base: {error}"]
    middle = time.monotonic()
    try:
        new = json.loads(json.dumps(run_case(name, new_src, given.data)))
    except RuntimeError as error:
        return "different", [str(error)]
    spent = f"base {middle - started:.0f} s, new {time.monotonic() - middle:.0f} s"
    found = list(differences(comparable(renamed(base)), comparable(new)))
    return "different" if found else "same", [spent, *found]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="the commit to compare to")
    parser.add_argument("--head", help="another commit in place of the working tree")
    parser.add_argument("--only", action="append", metavar="NAME", help="cases: names, or patterns (depth*)")
    parser.add_argument("--list", action="store_true", help="print the cases and their commands")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (2)")
    parser.add_argument("--show", type=int, default=5, help="differences to print of a case (5)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "secateur-goldens")
    beside = Path(git("rev-parse", "--path-format=absolute", "--git-common-dir").decode().strip()).parents[1]
    parser.add_argument("--data", type=Path, default=beside / "shared/data", help="a model and texts")
    given = parser.parse_args()
    if not given.base and not given.list:
        parser.error("give --base COMMIT")
    return given


def run_all(names: list[str], given: argparse.Namespace) -> list[str]:
    """Compares the cases, says of each what came out, and returns that in one word each."""
    commit = git("rev-parse", "--verify", f"{given.base}^{{commit}}").decode().strip()
    check_out(commit, given.cache / commit)
    words = []
    with tempfile.TemporaryDirectory(prefix="goldens-src-") as folder, ThreadPoolExecutor(given.jobs) as pool:
        new_src = Path(folder) / "src"
        if given.head:
            check_out(given.head, Path(folder))
        else:
            shutil.copytree(ROOT / "src", new_src)
        found = pool.map(lambda name: compare(name, commit, new_src, given), names)
        for name, (word, notes) in zip(names, found, strict=True):
            words.append(word)
            more = len(notes) - 1 - given.show
            print(f"{word:9} {name}: {notes[0]}", *notes[1 : given.show + 1], sep="\n    ", flush=True)
            if more > 0:
                print(f"    … and {more} more", flush=True)
    return words


def main() -> int:
    """Entry point: 1 where anything differs or fails."""
    given = options()
    names = [name for name in cases() if any(fnmatch.fnmatch(name, one) for one in given.only or ["*"])]
    if given.list:
        for name in names:
            print(name, *(f"    {' '.join(command)}" for command in cases()[name]), sep="\n")
        return 0
    words = Counter(run_all(names, given))
    print(", ".join(f"{count} {word}" for word, count in words.items()) or "no such case")
    return 1 if words["different"] or words["failed"] or not words else 0


if __name__ == "__main__":
    sys.exit(main())
