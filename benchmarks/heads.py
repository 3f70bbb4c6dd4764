"""Speed and memory of reading heads, turn by turn against the plain ways of `plain_heads.py`.

A random OPT, float32, one thread; times are processor time, medians of the turns' ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cut_speed
import numpy as np
import plain_heads
import torch
from random_model import as_task
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from turns import paired

from secateur.evaluation.batching import Packing
from secateur.evaluation.evaluator import Evaluator
from secateur.gains.memory import RESET, RETURNS_AT_ONCE, resident
from secateur.hf.load import Loaded
from secateur.probes.heads import head_importance
from secateur.probes.induction import (
    REPEATS,
    copying,
    copying_scores,
    prefix_matching,
    prefix_scores,
    random_segments,
)
from secateur.tasks.encode import Encoded

SIZE = cut_speed.Size(layers=8, d_model=512, heads=8)
ROWS, LENGTH = 4, 128  # of a batch
ANSWERS = {"every token": LENGTH - 1, "few tokens": 4}  # that carry the loss, of each row
CASES = {
    "every token": ("ours", "every token"),
    "every token, in the evaluator's own batches": ("as used", "every token"),
    "few tokens": ("ours", "few tokens"),
}
PACKING = Packing(max_tokens=ROWS * LENGTH, max_kept=ROWS * LENGTH, pad=0)
SPEED_TARGETS = {"every token": 1.4, "few tokens": 1.9}  # times a full backward pass
MEMORY_TARGET, LOOP_TARGET, WHOLE_TARGET = 0.5, 350.0, 2.4
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
    return _importance(loaded, encoded, PACKING)


def as_used(loaded: Loaded, encoded: dict[int, Encoded]) -> np.ndarray:
    """In the evaluator's own batches, which bound the logits."""
    return _importance(loaded, encoded, Evaluator(loaded, as_task([])[0], encoded).packing)


def _importance(loaded: Loaded, encoded: dict[int, Encoded], packing: Packing) -> np.ndarray:
    found = head_importance(loaded, encoded, list(encoded), packing=packing)
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


IMPORTANCE = {"ours": ours, "as used": as_used, "plain": plain}


def importance(way: str, answers: str) -> dict[str, Any]:
    """`way` against the plain one."""
    encoded = text(ANSWERS[answers])
    found = paired(lambda: IMPORTANCE[way](opt(), encoded), lambda: plain(opt(), encoded))
    extra = {"ours": _peak(way, answers), "plain": _peak("plain", answers)}
    target = {"target": SPEED_TARGETS[answers], "memory_target": MEMORY_TARGET}
    return found | target | {"extra_bytes": extra, "memory": extra["ours"] / extra["plain"]}


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
    resting = resident("VmRSS")
    RESET.write_text("5")  # the mark of most resident memory: man 5 proc
    IMPORTANCE[way](loaded, encoded)
    return resident("VmHWM") - resting


# ------------------------------------------------------------------------------------------------ what heads do


def scores(heads: int = 32, segment: int = 75) -> dict[str, Any]:
    """The scores alone, of the same random weights and logits, against loops over entries of tensors and of arrays."""
    length, draw = 1 + REPEATS * segment, torch.Generator().manual_seed(0)
    weights = torch.rand(heads, length, length, generator=draw).pow(3).tril()
    weights /= weights.sum(-1, keepdim=True)
    logits = torch.randn(heads, length, length, generator=draw)
    attended, tokens = weights.argmax(-1), [-1, *list(range(segment)) * REPEATS]
    plain, prefix = (
        plain_heads,
        (lambda: prefix_scores(weights, segment), (weights,), (tokens, segment), 1000),
    )
    copied = (lambda: copying_scores(logits, attended), (logits, attended), (), 20)
    asked = {
        "prefix matching, triple loop": (plain.prefix_by_triple_loop, *prefix),
        "prefix matching, needed entries": (plain.prefix_by_needed_entries, *prefix),
        "copying": (plain.copying_by_loops, *copied),
    }
    return {
        f"{name} over {kind}": paired(
            lambda fast=fast: fast().numpy(),
            lambda loop=loop, read=read, tensors=tensors, rest=rest: np.array(
                [float(score) for score in loop(*map(read, tensors), *rest)]
            ),
            turns=3,
            times=times,
        )
        for name, (loop, fast, tensors, rest, times) in asked.items()
        for kind, read in (("tensors", torch.clone), ("arrays", Tensor.numpy))
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
        ),
        "copying": paired(
            lambda: np.array(list(copying(loaded, seeds=unique).every.values.values())),
            lambda: eagerly(plain_heads.copying, longer),
        ),
    }


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "importance": {name: importance(*asked) for name, asked in CASES.items()},
        "scores": scores(),
        "whole": whole(),
        "targets": {"scores": LOOP_TARGET, "whole": WHOLE_TARGET},
    }


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """What, measured, target, met: as `run.py` has them."""
    for name, one in found["importance"].items():
        what = f"head importance against a full backward pass, loss on {name}"
        yield what, _ratio(one), f"≥ {one['target']}×", _met(one["ratio"] >= one["target"])
        measured = f"{one['memory']:.2f}× ({one['extra_bytes']['ours'] / 1e6:.0f} MB)"
        met = _met(one["memory"] <= one["memory_target"])
        yield f"… extra memory, loss on {name}", measured, f"≤ {one['memory_target']}×", met
    for part, said in (("scores", ""), ("whole", ", end to end")):
        for name, one in found[part].items():
            target, asked = found["targets"][part], "needed entries" not in name  # which is no triple loop
            met = _met(one["ratio"] >= target) if asked else ""
            yield f"{name}{said}", _ratio(one), f"≥ {target:g}×" if asked else "", met


def _ratio(one: dict[str, Any]) -> str:
    digits = 0 if one["ratio"] >= 20 else 2
    low, high = one["ratio_iqr"]
    return f"{one['ratio']:.{digits}f}× [{low:.{digits}f}, {high:.{digits}f}]"


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "ANSWERS"), help="bytes of one way, alone")
    asked = parser.parse_args().memory
    torch.set_num_threads(1)
    print(extra_bytes(*asked) if asked else "\n".join(" | ".join(row) for row in rows(run())))


if __name__ == "__main__":
    main()
