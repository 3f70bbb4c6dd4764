"""Speed and memory of reading heads, turn by turn against the plain ways of `plain_heads.py`.

A random OPT, float32, one thread; times are processor time, medians of the turns' ratios.

    python benchmarks/heads.py            all of it, a few minutes
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cut_speed
import numpy as np
import plain_heads
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from secateur.gains.memory import RESET, RETURNS_AT_ONCE
from secateur.hf.load import Loaded
from secateur.judge.rows import Packing
from secateur.probes.heads import head_importance
from secateur.probes.induction import REPEATS, copying, copying_scores, prefix_matching, prefix_scores
from secateur.probes.random_tokens import random_segments
from secateur.tasks.encode import Encoded

SIZE = cut_speed.Size(layers=8, d_model=512, heads=8)
ROWS, LENGTH = 4, 128  # of a batch
ANSWERS = {"every token": LENGTH - 1, "few tokens": 4}  # that carry the loss, of each row
PACKING = Packing(max_tokens=ROWS * LENGTH, max_kept=ROWS * LENGTH, pad=0)
SPEED_TARGETS = {"every token": 1.4, "few tokens": 1.9}  # times a full backward pass
MEMORY_TARGET, LOOP_TARGET, WHOLE_TARGET = 0.5, 350.0, 2.4
TURNS = 5
SEEDS = {
    "prefix matching": 12,
    "copying": 1,
}  # of the whole probes: what the plain ways do in a minute or two


@cache
def opt(size: cut_speed.Size = SIZE) -> Loaded:
    """With a tokenizer of one word per id, for the random tokens of prefix matching and copying."""
    words = {f"w{number}": number for number in range(size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    named = {"bos_token": "w0", "pad_token": "w1", "eos_token": "w2", "unk_token": "w3"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    return replace(cut_speed.dense("OPT", size), tokenizer=fast)


def text(answers: int, vocabulary: int = SIZE.vocabulary) -> dict[int, Encoded]:
    """Rows of random tokens of which the last `answers` are the answer."""
    tokens = np.random.default_rng(0).integers(4, vocabulary, (ROWS, LENGTH + 1)).tolist()
    cuts = [(tuple(row[: LENGTH - answers]), tuple(row[LENGTH - answers : LENGTH])) for row in tokens]
    return {number: Encoded((pair,), 0, (1,)) for number, pair in enumerate(cuts)}


# ------------------------------------------------------------------------------------------------------ importance


def ours(loaded: Loaded, encoded: dict[int, Encoded]) -> np.ndarray:
    found = head_importance(loaded, encoded, list(encoded), packing=PACKING)
    return np.array(list(found.values.values()))


def plain(loaded: Loaded, encoded: dict[int, Encoded]) -> np.ndarray:
    """In the units of `head_importance`: per token that is run."""
    loaded.model.requires_grad_(True)
    total = plain_heads.full_backward(loaded.model, [_batch(b) for b in PACKING.pack(encoded, list(encoded))])
    loaded.model.requires_grad_(False)
    return total.flatten().double().numpy() / sum(one.longest - 1 for one in encoded.values())


def _batch(batch: Any) -> plain_heads.Batch:
    count = torch.bincount(batch.example)[batch.example]
    return batch.tokens, batch.keep[batch.where], batch.token, 1 / count


IMPORTANCE = {"ours": ours, "plain": plain}


def importance(answers: str) -> dict[str, Any]:
    encoded = text(ANSWERS[answers])
    found = paired(*(lambda way=way: way(opt(), encoded) for way in IMPORTANCE.values()))
    peaks = {way: _peak(way, answers) for way in IMPORTANCE}
    target = {"target": SPEED_TARGETS[answers], "memory_target": MEMORY_TARGET}
    return found | target | {"extra_bytes": peaks, "memory": peaks["ours"] / peaks["plain"]}


def _peak(way: str, answers: str) -> int:
    command = [sys.executable, "-W", "ignore", __file__, "--memory", way, answers]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | RETURNS_AT_ONCE
    )
    return int(done.stdout.splitlines()[-1])


def extra_bytes(way: str, answers: str) -> int:
    """How far resident memory rises above what this process holds with the loaded model at rest."""
    small = cut_speed.Size(layers=1, d_model=16, heads=2, vocabulary=SIZE.vocabulary)
    IMPORTANCE[way](opt(small), text(ANSWERS[answers]))  # brings in the libraries' code
    loaded, encoded = opt(), text(ANSWERS[answers])
    resting = _resident("VmRSS")
    RESET.write_text("5")  # the mark of most resident memory: man 5 proc
    IMPORTANCE[way](loaded, encoded)
    return _resident("VmHWM") - resting


def _resident(which: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{which}:\s+(\d+) kB", status, flags=re.M)[1])


# ------------------------------------------------------------------------------------------------ what heads do


def scores(heads: int = 8, segment: int = 75) -> dict[str, Any]:
    """The scores alone, from the same random weights and logits."""
    length, draw = 1 + REPEATS * segment, np.random.default_rng(0)
    weights = np.tril(draw.random((heads, length, length)) ** 3)
    weights /= weights.sum(-1, keepdims=True)
    logits, tokens = draw.normal(size=(heads, length, length)), [-1, *list(range(segment)) * REPEATS]
    w, z, attended = torch.tensor(weights), torch.tensor(logits), weights.argmax(-1)
    looked = torch.tensor(attended)
    loops = plain_heads
    return {
        "prefix matching, triple loop": paired(
            lambda: prefix_scores(w, segment).numpy(),
            lambda: np.array(loops.prefix_by_triple_loop(weights, tokens, segment)),
            times=200,
        ),
        "prefix matching, needed entries alone": paired(
            lambda: prefix_scores(w, segment).numpy(),
            lambda: np.array(loops.prefix_by_needed_entries(weights, tokens, segment)),
            times=200,
        ),
        "copying": paired(
            lambda: copying_scores(z, looked).numpy(),
            lambda: np.array(loops.copying_by_loops(logits, attended)),
            times=20,
        ),
    }


def whole() -> dict[str, Any]:
    """The probes end to end, model included, against one sequence at a time with loops."""
    loaded, few, unique = opt(), SEEDS["prefix matching"], SEEDS["copying"]
    segments = random_segments(loaded, few, REPEATS)
    longer = random_segments(loaded, unique, REPEATS, unique=True)

    def eagerly(read: Callable[..., np.ndarray], *args: Any) -> np.ndarray:
        loaded.model.set_attn_implementation("eager")
        found = read(loaded.model, loaded.tokenizer.bos_token_id, *args)
        loaded.model.set_attn_implementation("sdpa")
        return found.flatten()

    return {
        "prefix matching": paired(
            lambda: np.array(list(prefix_matching(loaded, seeds=few).values.values())),
            lambda: eagerly(plain_heads.prefix_matching, segments, REPEATS),
            turns=3,
        ),
        "copying": paired(
            lambda: np.array(list(copying(loaded, seeds=unique).values.values())),
            lambda: eagerly(plain_heads.copying, longer),
            turns=3,
        ),
    }


# ----------------------------------------------------------------------------------------------------- measuring


def paired(
    ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray], *, turns: int = TURNS, times: int = 1
) -> dict[str, Any]:
    """Turn by turn, after one that is not counted. `times`: ours so often in a turn, where one is too fast to clock."""
    first, second = ours(), theirs()
    seconds = []
    for _ in range(turns):
        fast = _seconds(ours, times) / times
        seconds.append((fast, _seconds(theirs, 1)))
    ratios = [slow / fast for fast, slow in seconds]
    return {
        "seconds": np.median([fast for fast, _ in seconds]).item(),
        "plain_seconds": np.median([slow for _, slow in seconds]).item(),
        "ratio": float(np.median(ratios)),
        "ratio_iqr": np.quantile(ratios, (0.25, 0.75)).tolist(),
        "largest_difference": float(np.abs(first - second).max() / np.abs(second).max()),
    }


def _seconds(run: Callable[[], Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        run()
    return time.process_time() - start


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "importance": {answers: importance(answers) for answers in ANSWERS},
        "scores": scores(),
        "whole": whole(),
        "targets": {"scores": LOOP_TARGET, "whole": WHOLE_TARGET},
    }


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What, measured, target, met: as `run.py` has them."""
    for answers, one in found["importance"].items():
        what = f"head importance against a full backward pass, loss on {answers}"
        yield what, _ratio(one), f"≥ {one['target']}×", _met(one["ratio"] >= one["target"])
        measured = f"{one['memory']:.2f}× ({one['extra_bytes']['ours'] / 1e6:.0f} MB)"
        met = _met(one["memory"] <= one["memory_target"])
        yield f"{what}: extra memory", measured, f"≤ {one['memory_target']}×", met
    for part, said in (("scores", "by loops"), ("whole", "end to end")):
        for name, one in found[part].items():
            target = found["targets"][part]
            yield f"{name} {said}", _ratio(one), f"≥ {target:g}×", _met(one["ratio"] >= target)


def _ratio(one: dict[str, Any]) -> str:
    digits = 0 if one["ratio"] >= 20 else 2
    low, high = one["ratio_iqr"]
    return f"{one['ratio']:.{digits}f}× [{low:.{digits}f}, {high:.{digits}f}]"


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "ANSWERS"))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.memory:
        torch.set_num_threads(1)
        print(extra_bytes(*asked.memory))
        return
    found = run()
    print(json.dumps(found, indent=2) if asked.json else "\n".join(" | ".join(row) for row in rows(found)))


if __name__ == "__main__":
    main()
