"""The OPT-66B study's tasks (arXiv 2212.09095), as far as they are at hand, through head importance: how many prompts
fit the model's context, how long a reading takes, how far the orders of heads agree between tasks and shots. With
--prune through the pruning of heads instead: how far it went, and what could be shown of it on `test`.

    python benchmarks/study.py DATA MODEL                                        every prompt, 0 shots
    python benchmarks/study.py DATA MODEL --random-opt --limit 200 --shots 0,1,5
    python benchmarks/study.py DATA MODEL --prune --limit 200

DATA is a folder with the task files of `FILES`. With --random-opt only the tokenizer of MODEL is used.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.methods.registry import read_options

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from rich.console import Console

import secateur
from secateur.cli.tables import table
from secateur.core.readings import Readings, spearman_overlap
from secateur.errors import TaskError, TooLong
from secateur.hf.load import Loaded
from secateur.session import read_task
from secateur.tasks.encode import encode

FILES = (  # the others of the study need the hub: secateur probe MODEL --task study:record
    *("hellaswag_validation", "piqa_validation", "arc_easy_test", "openbookqa_test", "winogrande_validation"),
    *("boolq_validation", "cb_train", "copa_train", "wsc_validation", "rte_train"),
)
COLUMNS = ("task", "shots", "examples", "fit", "read", "of", "seconds", "most important")
PRUNED = (
    "task",
    "shots",
    "test",
    "gone",
    "before",
    "after",
    "bound",
    "loss",
    "one answer",
    "verdict",
    "seconds",
)
MODAL = ("modal_share_before", "modal_share_after")  # not there where nothing was cut
CHEAP = {"method": "heads", "step": 0.25, "random_orders": 0, "skip_long": True, "allow_small": True}
Row = dict[str, Any]


def random_opt(tokenizer: str, folder: Path) -> str:
    """An OPT of 12 layers and d_model 128 with random weights and a context of 2,048, which holds five shots."""
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config = transformers.OPTConfig(
        vocab_size=len(words),
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    torch.manual_seed(0)
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def fitting(loaded: Loaded, task: str, shots: int, limit: int | None) -> tuple[int, int]:
    """How many examples of all three splits fit the context, and how many there are."""
    options = read_options(loaded.name, task, shots=shots, limit=limit, allow_small=True)
    examples = read_task(options, loaded).examples
    return sum(_fits(example, loaded) for example in examples), len(examples)


def _fits(example: Any, loaded: Loaded) -> bool:
    try:
        encode(example, loaded.tokenizer, context=loaded.anatomy.context)
    except TooLong:
        return False
    return True


def heads(model: str, task: str, shots: int, limit: int | None) -> Row:
    """Head importance on the probe split; without values, and with the reason, where nothing can be read."""
    asked = {"what": "heads", "split": "probe", "shots": shots, "limit": limit}
    started = time.perf_counter()
    try:
        found = secateur.probe(model, task, **asked, skip_long=True, allow_small=True)
    except TaskError as error:
        return {"why": str(error), "read": 0, "of": None, "seconds": None, "values": {}, "most important": ""}
    values = {row["site"]: row["importance"] for row in found["rows"]}
    return {
        "read": found["n"],
        "of": found["of"],
        "seconds": time.perf_counter() - started,
        "values": values,
        "most important": max(values, key=values.__getitem__),
    }


def run(model: str, data: Path, names: Sequence[str], shots: Sequence[int], limit: int | None) -> list[Row]:
    loaded = secateur.load(model)
    rows = []
    for name in names:
        for count in shots:
            task = str(data / f"{name}.jsonl")
            fit, examples = fitting(loaded, task, count, limit)
            row = {"task": name, "shots": count, "examples": examples, "fit": fit}
            rows.append(row | heads(model, task, count, limit))
    return rows


def pruned(model: str, task: str, out: Path, shots: int, limit: int | None) -> Row:
    """The verdict on a model without the heads that `prune` takes out, in steps of a quarter; or why there is none.

    `bound` is the one-sided 95 % lower bound of the gain; there is none where nothing could go. `loss`, nats a token,
    and `one answer`, the share of examples that get the commonest answer, are before and after.
    """
    started = time.perf_counter()
    try:
        found = secateur.prune(model, task, out, shots=shots, limit=limit, **CHEAP)
    except TaskError as error:
        return dict.fromkeys(PRUNED) | {"why": str(error), "verdict": "not run"}
    verdict, pruning = found.verdict, json.loads((found.out / "analysis.json").read_text())["pruning"]
    loss = next(row for row in verdict["secondary"] if row["metric"] == "loss")
    guard = next(row for row in verdict["guards"] if row["name"] == "constant predictor")
    return {
        "test": verdict["n"],
        "gone": pruning["series"][0]["points"][pruning["chosen"]["point"]]["heads_removed"],
        "before": verdict["before"]["value"],
        "after": verdict["after"]["value"],
        "bound": verdict["non_inferiority"] and verdict["non_inferiority"]["bound"],
        "loss": f"{loss['before']['value']:.2f} {loss['after']['value']:.2f}",
        "one answer": " ".join(f"{guard[when]:.0%}" for when in MODAL if when in guard),
        "verdict": verdict["verdict"],
        "seconds": time.perf_counter() - started,
    }


def prune(model: str, data: Path, names: Sequence[str], shots: Sequence[int], limit: int | None) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for count in shots:
                out = Path(folder) / f"{name}-{count}"
                found = pruned(model, str(data / f"{name}.jsonl"), out, count, limit)
                rows.append(found | {"task": name, "shots": count})
    return rows


def agreement(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Spearman's correlations of the orders of heads: between tasks at one number of shots, between shots of a task."""
    read = [row for row in rows if row["values"]]
    named = {
        f"{row['task']} {row['shots']}": Readings(
            "head importance", "nats/token", "probe", 0, True, "", row["values"]
        )
        for row in read
    }
    rho = np.array(spearman_overlap(named).rho)
    pairs = [(i, j) for i in range(len(read)) for j in range(i)]
    between = {
        "tasks": [rho[i, j] for i, j in pairs if read[i]["shots"] == read[j]["shots"]],
        "shots": [rho[i, j] for i, j in pairs if read[i]["task"] == read[j]["task"]],
    }
    return {
        name: {"lowest": min(found), "mean": float(np.mean(found)), "highest": max(found)}
        for name, found in between.items()
        if found
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--shots", default="0")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--random-opt", action="store_true")
    parser.add_argument("--prune", action="store_true", help="prune heads instead of reading them")
    parser.add_argument("--tasks", default=",".join(FILES), help="of them only these, by commas")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    given = parser.parse_args()
    logging.getLogger("secateur").setLevel(logging.ERROR)  # that splits are small, for every reading again
    names, shots = given.tasks.split(","), [int(word) for word in given.shots.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = random_opt(given.model, Path(folder)) if given.random_opt else given.model
        show = prunings if given.prune else readings
        found = show(model, given.data, names, shots, given.limit)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def prunings(model: str, data: Path, names: Sequence[str], shots: Sequence[int], limit: int | None) -> Row:
    rows = prune(model, data, names, shots, limit)
    _print_rows(PRUNED, rows)
    return {"rows": rows}


def readings(model: str, data: Path, names: Sequence[str], shots: Sequence[int], limit: int | None) -> Row:
    rows = run(model, data, names, shots, limit)
    found = agreement(rows)
    _print_rows(COLUMNS, rows)
    for name, values in found.items():
        said = ", ".join(f"{which} {value:.2f}" for which, value in values.items())
        Console().print(f"rank correlation between {name}: {said}")
    return {"rows": rows, "agreement": found}


def _print_rows(columns: Sequence[str], rows: Sequence[Row]) -> None:
    console = Console(width=140)  # also where it goes to a file
    console.print(table(columns, [[row[name] for name in columns] for row in rows], whole=columns[:1]))
    for row in rows:
        if "why" in row:
            console.print(f"{row['task']} at {row['shots']} shots: {row['why']}", markup=False)


if __name__ == "__main__":
    main()
