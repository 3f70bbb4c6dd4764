"""Runs GGUF files in llama.cpp, and compares their logits and greedy tokens with those of transformers.

    python tests/runtimes/run_llama_cpp.py FOLDER LLAMA_CPP RESULT.json

In the environment of `make gguf`. Reads the `jobs.json` that `convert.py` completed; writes what became of each.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import Llama

SAME = 2e-3  # relative, by norms, of logits; llama.cpp takes GELU from a table of half precision
FEW = 12  # tokens that every window of attention in the zoo holds
F32 = llama_cpp.GGML_TYPE_F32


def main(place: Path, source: Path, result: Path) -> None:
    rows = []
    for job in json.loads((place / "jobs.json").read_text()):
        row = {key: job[key] for key in ("model", "family", "cut")}
        row |= {"said": job["said"]["GGUF (llama.cpp)"]} | outcome_of(job)
        print(*row.values(), sep=" | ", flush=True)
        rows.append(row)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    result.write_text(f'{{"about": {json.dumps(about(source), indent=1)},\n"rows": [\n{lines}\n]}}\n')


def outcome_of(job: dict[str, Any]) -> dict[str, Any]:
    if "gguf" not in job:
        return {"outcome": "the converter refuses it", "why": job["refused"]}
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(job)], capture_output=True, text=True, check=False
    )  # a process of its own: a failed assertion of llama.cpp ends it
    if done.returncode:
        return {"outcome": "llama.cpp refuses it", "why": reason(done.stderr)}
    return json.loads(done.stdout.splitlines()[-1])


def one(job: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp computes with one file, against what transformers computed."""
    model = opened(job["gguf"], len(job["tokens"]) + len(job["greedy"]))
    expected = np.load(Path(job["folder"]) / "expected.npy")
    model.eval(job["tokens"])
    found = model.scores[: len(job["tokens"]), : expected.shape[1]].copy()
    told = {"logits": distance(found, expected), "first": distance(found[:FEW], expected[:FEW])}
    told["greedy"] = greedy(model, len(job["greedy"])) == job["greedy"]
    if job["text"]:
        told["text"] = model.tokenize(job["text"].encode(), add_bos=False) == job["tokens"]
    same = told["logits"] < SAME and told["greedy"] and told.get("text", True)
    return {"outcome": "the same" if same else "different"} | told


def opened(file: str, length: int) -> Llama:
    exact = {"type_k": F32, "type_v": F32, "flash_attn": False, "n_threads": 1, "n_threads_batch": 1}
    return Llama(file, n_ctx=length, logits_all=True, verbose=True, **exact)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, by norms."""
    return float(f"{np.linalg.norm(found - expected) / np.linalg.norm(expected):.2g}")


def greedy(model: Llama, count: int) -> list[int]:
    """The tokens that follow those that were evaluated."""
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(tokens[-1:])
    return tokens


def reason(log: str) -> str:
    """The line of llama.cpp's log that says why it stopped."""
    lines = [line for line in log.splitlines() if re.search(r"error loading model|GGML_ASSERT|failed", line)]
    return lines[0].strip() if lines else log.strip().splitlines()[-1]


def about(source: Path) -> dict[str, Any]:
    """When, where, and of which versions."""
    stated = re.search(r"@([0-9a-f]+)", (source.parents[1] / "CHANGELOG.md").read_text())
    names = ("llama-cpp-python", "transformers", "torch")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "llama.cpp": stated[1] if stated else None,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "weights": "float32, and the cache too",
        "same": f"logits differ by less than {SAME:g} of their norm, and the greedy tokens are equal",
    }


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print("\n" + json.dumps(one(json.loads(sys.argv[2]))))
    else:
        main(*map(Path, sys.argv[1:4]))
