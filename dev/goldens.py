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
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
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
    "seconds": "wall clock",
    "created": "time stamp",
    "versions": "of the libraries",
    "command": "the command as a line or as options, whose names may change",
    "command_line": "the same",
    "peak_bytes": "measured memory (bench)",
    "peak_bytes_prefill": "the same",
    "peak_bytes_decode": "the same",
    "prefill.before": "measured speed (bench)",
    "prefill.before_iqr": "the same",
    "prefill.after": "the same",
    "prefill.after_iqr": "the same",
    "prefill.speedup": "the same",
    "prefill.speedup_iqr": "the same",
    "prefill.of_limit": "the same",
    "decode.before": "the same",
    "decode.before_iqr": "the same",
    "decode.after": "the same",
    "decode.after_iqr": "the same",
    "decode.speedup": "the same",
    "decode.speedup_iqr": "the same",
    "decode.of_limit": "the same",
}
VARIES_COLUMNS = {"seconds"}  # the same in tables of pages, by the head of the column

# Keys with prose, whose wording is free: compared as text that is there, or not.
PROSE = {"sentence", "detail", "why", "how", "condition", "note", "warning", "description", "assumptions"}
PROSE_TAGS = {"p", "h1", "h2", "h3", "h4", "small", "summary", "footer", "header", "li", "button", "noscript"}

FACTS = "builtin:facts --task builtin:facts"
SMALL = "--limit 200 --allow-small"
RECALL = f"builtin:recall --task builtin:recall {SMALL}"
ARITH = f"builtin:arith --task builtin:int-mult {SMALL}"
JOINT = "builtin:components --task builtin:facts --task builtin:recall --limit 300"
STORIES = "{data}/models/stories260K --task text:{data}/text_tinystories_valid.txt --seqlen 64 --limit 150 --allow-small"
READ = "{data}/models/stories260K --task text:{data}/text_tinystories_valid.txt --seqlen 64 --limit 150"
COPA = "{data}/models/stories260K --task {data}/copa_train.jsonl --test-task {data}/copa_validation.jsonl --limit 150"
CHOICE = f"{COPA} --allow-small"
TRAIN = "train text:{data}/text_tinystories_valid.txt --tokenizer {data}/models/stories260K --layers 2 --d-model 32"
MLP = "--matrices mlp --layers 2:3"


def prune(options: str, *then: str) -> tuple[str, ...]:
    return (f"prune {options} -o out --json", *then)


def directions(options: str, model: str = ARITH) -> tuple[str, ...]:
    return prune(f"{model} --method directions {options}")


def healed(cut: str, options: str, task: str = f"--task builtin:facts {SMALL}") -> tuple[str, ...]:
    return (
        f"{cut} -o cut --json",
        f"heal cut {task} {options} -o out --json",
        "report out",
        "show out --json",
    )


DEPTH = f"prune {FACTS} {SMALL} --method depth --blocks 1"

CASES: dict[str, tuple[str, ...]] = {
    # laser
    "laser": prune(f"{FACTS} {MLP}", "show out --json --top 5", "runs --json", "report out"),
    "laser-exhaustive": prune(f"{FACTS} {SMALL} {MLP} --exhaustive --grid paper --no-compose"),
    "laser-compose": prune(f"{FACTS} {SMALL} --layers 1:3 --objective loss --seed 1"),
    "laser-factorize": prune(f"{FACTS} {SMALL} --matrices gate,down --layers 2 --factorize --split-seed 1"),
    "laser-unproven": prune(
        f"{RECALL} --matrices o --keep-unproven", "eval out --task builtin:recall --json"
    ),
    "laser-shots": prune(f"{FACTS} {SMALL} {MLP} --shots 1 --side builtin:recall --spectra spectra"),
    "laser-text": prune(f"{STORIES} --matrices down --layers 3:5"),
    "laser-choice": prune(f"{CHOICE} --matrices mlp --layers 4 --keep-unproven"),
    "laser-bfloat16": prune(f"{FACTS} {SMALL} {MLP} --dtype bfloat16"),
    # several tasks
    "joint": prune(f"{JOINT} --matrices down --layers 1"),
    "joint-each": prune(f"{JOINT} --each --matrices down --layers 1", "runs --json"),
    "joint-heads": prune(f"{JOINT} --method heads --max-loss 0.05"),
    # directions
    "directions": directions("--matrices k,v"),
    "directions-unproven": directions("--matrices k,v --keep-unproven --second-order"),
    "directions-exhaustive": directions("--matrices k --no-dynamic --exhaustive"),
    "directions-per-head": directions("--max-loss 0.05 --per-head --matrices attn"),
    "directions-target": directions("--matrices v --target 20% --signed --step 5%"),
    "directions-threshold": directions("--matrices k,v --protocol threshold --max-loss 0.02 --whitened"),
    "directions-paper": directions("--matrices k,v --protocol paper --keep-unproven"),
    "directions-overall": directions("--matrices k,v --protocol paper --overall --target 20% --weakest"),
    "directions-text": directions("--matrices k,v --layers 3:5", STORIES),
    # parts, step by step
    "heads": prune(f"{RECALL} --method heads", "show out --json"),
    "heads-target": prune(f"{RECALL} --method heads --target 50% --ranks-once --portable"),
    "heads-groups": prune(f"{STORIES} --method heads --max-loss 0.3 --random-orders 1"),
    "ffns": prune(f"{FACTS} {SMALL} --method ffns --max-loss 0.1 --step 34%"),
    "components": prune(f"{JOINT.replace(' --task builtin:recall', '')} --method components --max-loss 0.05"),
    "components-params": prune(f"{STORIES} --method components --params 0.8 --zeroed --random-orders 1"),
    "components-portable": prune(f"{FACTS} {SMALL} --method components --params 0.8 --portable"),
    # depth
    "depth": prune(f"{FACTS} {SMALL} --method depth --blocks 1"),
    "depth-linear": prune(f"{STORIES} --method depth --blocks 2 --form linear --by linearity"),
    "depth-rank": prune(f"{FACTS} {SMALL} --method depth --blocks 1 --form linear --rank 8 --by cosine"),
    "depth-drop": prune(f"{STORIES} --method depth --max-loss 1.5 --form drop --contiguous"),
    "depth-fold": prune(f"{STORIES} --method depth --blocks 2 --by cosine"),
    # apply, bench, eval
    "apply": (
        f"apply {FACTS.split()[0]} --edit b2.gate=3 --edit b1.down=tail:8 -o cut --json",
        "apply builtin:facts --plan cut -o again --factorize --svd randomized --check digests --json",
        "apply builtin:facts --plan cut/plan.json -o shards --shard-size 500KB --json",
        "bench again --prompt 16 --new 2 --repeats 1 --json",
    ),
    "apply-drop": (
        "apply builtin:recall --edit b1.attn.h0=drop --edit b0.mlp.n3=drop --dry-run --json",
        "apply builtin:recall --edit b1.attn.h0=drop --edit b0.mlp.n3=drop -o cut --json",
        "apply builtin:recall --edit b1.attn.h0=drop --portable -o stock --json",
        "apply builtin:facts --edit b2.k=without:0,7 --edit b1=drop -o shorter --json",
    ),
    "eval": (
        f"eval {FACTS} --json",
        f"eval {FACTS} --edit b2.gate=3 --split test --ledger ledger.sqlite --json",
        f"eval {FACTS} --edit b2.gate=3 --shots 2 --split probe",
        "tasks --json",
    ),
    "eval-text": (f"eval {STORIES} --json", f"eval {CHOICE} --json --split probe"),
    # probe
    "probe-components": (
        f"probe {FACTS} --task builtin:recall --shots 0,1 --what heads,ffns,neurons,induction -o out --json",
        "probe builtin:recall --what induction --layers 1",
    ),
    "probe-groups": (f"probe {READ} --what heads,ffns,neurons,induction -o out --json",),
    "probe-linearity": (f"probe {FACTS} --also builtin:recall --what linearity -o out --json",),
    "probe-linearity-finer": (f"probe {READ} --what linearity --parts --finer heads,matrices -o out --json",),
    "probe-spectrum": (
        f"probe {FACTS} --what spectrum {MLP} --json",
        f"probe {READ} --what spectrum --layers 4",
    ),
    "probe-directions": (
        "probe builtin:recall --task builtin:recall --what directions --split probe --layers 1 --json",
        f"probe {READ} --what directions --per-head --matrices attn --layers 3 --second-order --json",
        f"probe {READ} --what directions --whitened --matrices down --layers 3 --edit b1.up=40 --json",
    ),
    "probe-curves": (f"probe {FACTS} --limit 300 --what curves --matrices gate,o --layers 2 --json",),
    "probe-cut": tuple(
        f"probe {FACTS} --what {what} --edit b2.gate=3 --json"
        for what in ("tail", "frequency", "paraphrases")
    ),
    "probe-disk": (f"probe {FACTS} --limit 200 --what heads --device-map disk --offload-folder disk --json",),
    # heal, finetune, train
    "heal": healed(f"{DEPTH} --form linear --by cosine", "--max-steps 4 --ledger cut.run/ledger.sqlite"),
    "heal-fold": healed(
        f"prune {STORIES} --method depth --blocks 1 --by cosine",
        "--max-steps 3 --stage layers --lr 1e-3 --side {data}/copa_validation.jsonl",
        f"--{STORIES.split(' --', 1)[1]}",
    ),
    "heal-drop": healed(
        "apply builtin:facts --edit b1=drop --edit b0.gate=8",
        "--max-steps 4 --stage end --temperature 2 --hidden 0.5 --lora 4",
    ),
    "finetune": (f"finetune {FACTS} {SMALL} --epochs 1 --lr 1e-3 -o out --json", "show out --json"),
    "finetune-lora": (
        f"finetune {FACTS} {SMALL} --max-steps 3 --lora 4 --lora-targets q,v --split probe,select -o out --json",
    ),
    "finetune-choice": (f"finetune {CHOICE} --max-steps 3 --warmup 0.3 --weight-decay 0.1 -o out --json",),
    "train": (
        f"{TRAIN} --steps 4 --save-steps 0,2 --seqlen 32 --batch-size 4 -o out --json",
        "show out --json",
    ),
    "train-regulariser": (f"{TRAIN} --kv-heads 2 --steps 3 --regulariser cosine --seqlen 32 -o out --json",),
    # plan-cost
    "cost": (
        f"plan-cost {FACTS} --json",
        f"plan-cost {FACTS} --tflops 989 --bandwidth 3350 --devices 2 --json",
        f"plan-cost {FACTS} --no-calibrate",
    ),
    "cost-methods": tuple(
        f"plan-cost {FACTS} --no-calibrate --json --method {method}"
        for method in ("laser --exhaustive", "directions", "directions --max-loss 0.05", "heads", "ffns")
    ),
    "cost-depth": tuple(
        f"plan-cost {FACTS} --no-calibrate --json --method {method}"
        for method in ("components --target 50%", "depth --blocks 2", "depth --form linear --by cosine")
    ),
}


# Reading what a case left


def read_case(folder: Path, printed: list[tuple[int, str]]) -> dict[str, Any]:
    """All that is compared of a case, by what it was read from."""
    found: dict[str, Any] = {}
    for number, (code, text) in enumerate(printed, 1):
        found[f"command {number}"] = {"exit code": code, "printed": read_printed(text)}
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
    return [
        float(found.replace(",", ""))
        for found in re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?", text)
    ]


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
    """What a figure draws, with the numbers of its texts in place of the texts; without colors."""
    if isinstance(data, dict):
        return {key: drawn_numbers(value) for key, value in data.items() if "color" not in key}
    if isinstance(data, list):
        return [drawn_numbers(value) for value in data]
    return numbers(data) if isinstance(data, str) else data


class PageReader(HTMLParser):
    """Reads sections: their tables row by row, and the numbers drawn outside of tables and of prose."""

    VOID = {"br", "meta", "link", "img", "input", "hr", "col"}

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, dict[str, list]] = {}
        self.figures = ""
        self.open: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.heads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append((tag, given.get("id") or ""))
        if tag == "section":
            self.sections[given.get("id") or str(len(self.sections))] = {"tables": [], "drawn": []}
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
            kept = [cell for head, cell in zip(self.heads, self.cells) if head not in VARIES_COLUMNS]
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
        names = [name for tag, name in self.open if tag == "section"]
        return self.sections.get(names[-1]) if names else None


# Comparing


def renamed(value: Any, parent: str = "") -> Any:
    """The base's records in HEAD's names."""
    if isinstance(value, dict):
        return {
            RENAMED.get(f"{parent}.{key}", RENAMED.get(key, key)): renamed(each, key)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [renamed(each, parent) for each in value]
    return RENAMED.get(value, value) if isinstance(value, str) else value


def comparable(value: Any, parent: str = "", key: str = "", free: bool = False) -> Any:
    """A record in which prose, and what varies, is replaced by its kind."""
    free = free or key in PROSE or key in VARIES or f"{parent}.{key}" in VARIES
    if isinstance(value, dict):
        return {each: comparable(below, key, each, free) for each, below in value.items()}
    if isinstance(value, list) and key in PROSE:
        return "text"
    if isinstance(value, list):
        return [comparable(below, parent, key, free) for below in value]
    if not free or value is None or isinstance(value, bool):
        return value
    return "text" if isinstance(value, str) else "number"


def differences(base: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two records differ, one line each."""
    if isinstance(base, dict) and isinstance(new, dict):
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


def run_case(commands: tuple[str, ...], src: Path, data: Path) -> dict[str, Any]:
    """Runs the commands of a case in a new folder with the source in `src`, and reads what they left.

    Raises: `RuntimeError` where a command fails.
    """
    env = os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    printed = []
    with tempfile.TemporaryDirectory(prefix="goldens-") as folder:
        for command in commands:
            words = [word.replace("{data}", str(data)) for word in shlex.split(command)]
            called = [sys.executable, "-m", "secateur", *words]
            done = subprocess.run(called, cwd=folder, env=env, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"`{command}` ends with {done.returncode}: {done.stderr.strip()[-300:]}")
            printed.append((done.returncode, done.stdout))
        return read_case(Path(folder), printed)


def of_base(name: str, commit: str, cache: Path, data: Path) -> dict[str, Any]:
    """What the base gives for a case: from the cache, or by running it."""
    made_of = [CASES[name], READS, sys.version, version("torch"), version("transformers"), str(data)]
    path = cache / commit / f"{name}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]}.json"
    if not path.exists():
        found = run_case(CASES[name], cache / commit / "src", data)
        path.with_suffix(".part").write_text(json.dumps(found), "utf-8")
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text("utf-8"))


def check_out(commit: str, folder: Path) -> Path:
    """The source of a commit, in `folder`/src."""
    if not (folder / "src").exists():
        packed = git("archive", commit, "src")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            tarfile.open(fileobj=io.BytesIO(packed)).extractall(part, filter="data")
            (Path(part) / "src").rename(folder / "src")
    return folder / "src"


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def compare(name: str, commit: str, new_src: Path, given: argparse.Namespace) -> tuple[str, str, list[str]]:
    """Name of a case, `same`, `different`, `failed` or `skipped`, and in which respects."""
    if not given.data.is_dir() and any("{data}" in command for command in CASES[name]):
        return name, "skipped", [f"there is no {given.data}"]
    started = time.monotonic()
    try:
        base = of_base(name, commit, given.cache, given.data)
        middle = time.monotonic()
        new = json.loads(json.dumps(run_case(CASES[name], new_src, given.data)))
    except RuntimeError as error:
        return name, "failed", [str(error)]
    found = list(differences(comparable(renamed(base)), comparable(new)))
    spent = f"base {middle - started:.0f} s, new {time.monotonic() - middle:.0f} s"
    return name, "different" if found else "same", [spent, *found]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="the commit to compare to")
    parser.add_argument("--head", help="another commit in place of the working tree")
    parser.add_argument(
        "--only", action="append", default=[], help="cases to run: names, or patterns (depth*)"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and their commands")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (2)")
    parser.add_argument("--show", type=int, default=5, help="differences to print of a case (5)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "secateur-goldens")
    beside = Path(git("rev-parse", "--path-format=absolute", "--git-common-dir").decode().strip()).parents[1]
    parser.add_argument(
        "--data", type=Path, default=beside / "shared/data", help="models and texts to use too"
    )
    given = parser.parse_args()
    if not given.base and not given.list:
        parser.error("give --base COMMIT")
    return given


def chosen(only: list[str]) -> list[str]:
    return [name for name in CASES if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)]


def main() -> int:
    """Entry point: 1 where anything differs or fails."""
    given = options()
    names = chosen(given.only)
    if given.list:
        print("\n".join(f"{name}\n" + "\n".join(f"    {line}" for line in CASES[name]) for name in names))
        return 0
    commit = git("rev-parse", "--verify", f"{given.base}^{{commit}}").decode().strip()
    check_out(commit, given.cache / commit)
    words: Mapping[str, int] = {"same": 0, "different": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="goldens-src-") as folder, ThreadPoolExecutor(given.jobs) as pool:
        if given.head:
            new_src = check_out(given.head, Path(folder))
        else:
            new_src = shutil.copytree(ROOT / "src", Path(folder) / "src")
        for name, word, notes in pool.map(lambda name: compare(name, commit, new_src, given), names):
            words[word] += 1
            print(f"{word:9} {name}: {notes[0]}", flush=True)
            for line in notes[1 : given.show + 1]:
                print(f"    {line}")
            if len(notes) > given.show + 1:
                print(f"    … {len(notes) - 1} differences in all", flush=True)
    print(", ".join(f"{count} {word}" for word, count in words.items() if count))
    return 1 if words["different"] + words["failed"] or not names else 0


if __name__ == "__main__":
    sys.exit(main())
