"""Pruning a real small model of stories: how far heads and feed-forward networks can go, and a cut checkpoint of each
kind that continues a story where secateur cannot be imported.

    python benchmarks/stories.py MODEL TEXT OUT

Curves are of the loss on `select`, in nats per token. MODEL is a Llama of at least 4 blocks with grouped heads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console

import secateur
from secateur.cli.cost import print_gains
from secateur.cli.tables import table

BEGINNING = "Once upon a time"
METHODS = ("heads", "ffns", "components")
EVERY_OTHER = tuple(f"b{block}.attn.h{head}=drop" for block in range(5) for head in (1, 3, 5, 7))
HALF_OF_FOUR = tuple(f"b{block}.attn.g{group}=drop" for block in range(4) for group in (0, 2))
KINDS: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {  # edits, options of `apply`
    "heads, one of each group": (EVERY_OTHER, {}),
    "heads, unevenly": (("b1.attn.h3=drop", "b3.attn.h0=drop", "b3.attn.h5=drop"), {}),
    "KV groups": (("b1.attn.g0=drop", "b3.attn.g2=drop"), {}),
    "FFN": (("b3.mlp=drop",), {}),
    "neurons": (tuple(f"b2.mlp.n{number}=drop" for number in range(40)), {}),
    "a block": (("b2=drop",), {}),
    "attention of block 0": (("b0.attn=drop",), {}),
    "low rank, factorized": (("b1.down=16", "b2.up=16"), {"factorize": True}),
    "KV groups, portable": (HALF_OF_FOUR, {"portable": True}),
    "KV groups, zeroed": (("b1.attn.g0=drop", "b3.attn.g2=drop"), {"zeroed": True}),
}
BENCHED = ("heads, one of each group", "attention of block 0")
CLEAN = """
import json, sys
sys.path.append(sys.argv[1])
from importlib.util import find_spec
assert find_spec("secateur") is None
import transformers
transformers.utils.logging.disable_progress_bar()
for folder, trusted in json.loads(sys.argv[2]):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
    words = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    asked = words(sys.argv[3], return_tensors="pt").input_ids
    made = model.generate(asked, max_new_tokens=40, do_sample=False, pad_token_id=0)
    print(json.dumps([type(model).__name__, words.decode(made[0], skip_special_tokens=True)]))
"""


# --------------------------------------------------------------------------------------------------------- curves


def curves(model: str, text: str, out: Path, **options: Any) -> dict[str, Any]:
    """By method: what `prune` saw and said, and how long it took."""
    found = {}
    for method in METHODS:
        started = time.process_time()
        result = secateur.prune(model, f"text:{text}", out / method, method=method, overwrite=True, **options)
        analysis = json.loads((result.out / "analysis.json").read_text(encoding="utf-8"))
        seconds = time.process_time() - started
        found[method] = {"pruning": analysis["pruning"], "verdict": result.verdict, "seconds": seconds}
    return found


def curve_rows(pruning: dict[str, Any]) -> Iterator[list[str]]:
    """At every point of the re-scored order: the loss there, with ranks taken once and the same parameters left
    (between two points: on the line that joins them), and over the random orders of the same shares."""
    series = pruning["series"]
    rescored, once = (one["points"] for one in series[:2])
    for number, point in enumerate(rescored):
        chance = [one["points"][number]["value"] for one in series[2:]]
        yield [
            f"{point['heads_removed']:.0%}",
            f"{point['ffns_removed']:.0%}",
            f"{point['parameters']:.0%}",
            f"{point['value']:.2f}",
            f"{_at(once, point['parameters']):.2f}",
            f"{np.mean(chance):.2f} ({min(chance):.2f}-{max(chance):.2f})" if chance else "",
            f"{point['prefix_matching']:.0%}",
            f"{point['copying']:.0%}",
        ]


def _at(points: Sequence[dict[str, Any]], parameters: float) -> float:
    ordered = sorted(points, key=lambda point: point["parameters"])
    return float(np.interp(parameters, [p["parameters"] for p in ordered], [p["value"] for p in ordered]))


# ---------------------------------------------------------------------------------------------------- checkpoints


def cut(model: str, out: Path) -> dict[str, Path]:
    """A checkpoint of each kind."""
    return {
        kind: secateur.apply(model, edits, out / _folder(kind), overwrite=True, **how).out
        for kind, (edits, how) in KINDS.items()
    }


def _folder(kind: str) -> str:
    return kind.replace(",", "").replace(" ", "-").lower()


def said_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plan.json").read_text(encoding="utf-8"))["provenance"]["loads"]


def continued(folders: Sequence[Path]) -> list[list[str]]:
    """Class and greedy continuation, from one process that has transformers and no secateur."""
    jobs = json.dumps([[str(folder), said_of(folder)["form"] == "carved"] for folder in folders])
    packages = sysconfig.get_paths()["purelib"]
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", CLEAN, packages, jobs, BEGINNING]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def checkpoint_rows(model: str, made: dict[str, Path]) -> Iterator[list[str]]:
    dense = secateur.load(model).anatomy.num_parameters
    for (kind, folder), (name, text) in zip(made.items(), continued(list(made.values())), strict=True):
        left = secateur.load(str(folder)).anatomy.num_parameters / dense
        yield [kind, said_of(folder)["form"], name, f"{left:.1%}", text.replace("\n", " ")]


# ---------------------------------------------------------------------------------------------------------- all


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--random-orders", type=int, default=5)
    given = parser.parse_args()
    logging.getLogger("secateur").setLevel(
        logging.ERROR
    )  # that there is no stock checkpoint, every time again
    console = Console(width=140)  # also where it goes to a file
    options = {"limit": given.limit, "step": given.step, "random_orders": given.random_orders}
    for method, found in curves(given.model, given.text, given.out, **options).items():
        columns = ("heads gone", "FFNs gone", "parameters", "re-scored", "ranks once", "random (range)")
        console.print(f"\n{method}, {found['seconds']:.0f} s: {found['verdict']['sentence']}", markup=False)
        console.print(
            table((*columns, "prefix matching left", "copying left"), list(curve_rows(found["pruning"])))
        )
    made = cut(given.model, given.out)
    columns = ("cut", "form", "class", "parameters", "continues")
    console.print(table(columns, list(checkpoint_rows(given.model, made))))
    for kind in BENCHED:
        print_gains(secateur.bench(made[kind], given.model, threads=1))


if __name__ == "__main__":
    main()
