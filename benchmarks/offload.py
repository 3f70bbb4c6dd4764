"""A model that has no room: heads read by gradients, and an edit judged, with most weights left on disk. In how much
memory, and in how much time.
Random weights in a Llama's shape, stored in bfloat16 and computed with in float32, one thread; each case in a process
of its own.

Memory is anonymous memory (RssAnon): pages of a mapped checkpoint are the kernel's to drop, and no need of ours.
A model in memory lies in such pages too where it is computed with as it is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from secateur.gains.memory import RETURNS_AT_ONCE, STATUS

MEGA = 10**6
VOCABULARY = 8192
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
    "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 128,
}  # fmt: skip
LIMIT = 150  # MB of weights that may lie in memory
EDITS = ["b3.down=100", "b7.attn.h2=drop"]
REPEATS = 3
IN_MEMORY = {"dtype": "float32", "device": "cpu"}
TARGET = 0.5  # of the anonymous memory that the model in memory takes


def run() -> dict[str, Any]:
    """Medians over processes that take turns, so that a busy machine is busy for both."""
    with tempfile.TemporaryDirectory() as place:
        weights = make(Path(place))
        how = {"here": IN_MEMORY, "there": dispatched(place)}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in how}
        for _ in range(REPEATS):
            for name, options in how.items():
                found[name].append(in_a_process(place, options))
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("peak", "wall", "processor")}
        for name, runs in found.items()
    }
    digests = {run["digest"] for runs in found.values() for run in runs}
    return {
        "weights": weights,
        "limit": LIMIT * MEGA,
        "repeats": REPEATS,
        "equal": len(digests) == 1,
        "target": TARGET,
        **middle,
    }


def dispatched(place: str) -> dict[str, str]:
    return {
        "dtype": "float32",
        "device_map": "auto",
        "max_memory": f"cpu={LIMIT}MB",
        "offload_folder": f"{place}/offload",
    }


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    here, there = found["here"], found["there"]
    share, limit = there["peak"] / here["peak"], found["limit"] / MEGA
    what = f"heads and an edit judged, {found['weights'] / MEGA:.0f} MB of weights, {limit:.0f} MB of them in memory"
    measured = f"{there['peak'] / MEGA:.0f} of {here['peak'] / MEGA:.0f} MB, {share:.2f}×"
    yield f"{what}: anonymous memory", measured, f"≤ {TARGET}×", "yes" if share <= TARGET else "NO"
    times = f"{there['wall']:.0f} s, {here['wall']:.0f} s in memory, {there['wall'] / here['wall']:.2f}×"
    processor = f"processor time {there['processor'] / here['processor']:.2f}×"
    runs = f"median of {found['repeats']}" if found["repeats"] > 1 else "one run each"
    yield f"{what}: time, load included", f"{times} ({processor}; {runs})", "", ""
    yield (
        f"{what}: every reading",
        "equal" if found["equal"] else "different",
        "equal",
        ("yes" if found["equal"] else "NO"),
    )


def make(place: Path) -> int:
    """A checkpoint, its tokenizer and a task. How many bytes the weights are in float32."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    size = sum(p.nbytes for p in model.parameters())
    model.to(torch.bfloat16).save_pretrained(place / "model", max_shard_size="100MB")
    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w1").save_pretrained(place / "model")
    draw = random.Random(0)
    with (place / "task.jsonl").open("w", encoding="utf-8") as file:
        for number in range(250):
            words = [f"w{draw.randrange(2, VOCABULARY)}" for _ in range(16)]
            row = {"id": str(number), "prompt": " ".join(words[:-1]), "answer": f" {words[-1]}"}
            file.write(json.dumps(row) + "\n")
    return size


def in_a_process(place: str, options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, place, json.dumps(options)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=dict(os.environ) | RETURNS_AT_ONCE)
    return json.loads(done.stdout)


def measure(place: str, options: dict[str, Any]) -> dict[str, Any]:
    """`peak`: the most anonymous bytes above those of the libraries; seconds; a digest of every reading."""
    from secateur import api

    api.load("builtin:recall", device="cpu")  # brings in the libraries' code
    started, processor = time.perf_counter(), time.process_time()
    with most_anonymous() as most:
        asked = {"limit": 60, "allow_small": True, **options}
        found = [api.probe(f"{place}/model", f"{place}/task.jsonl", what="heads", **asked)]
        found += [api.evaluate(f"{place}/model", f"{place}/task.jsonl", plan=EDITS, **asked)]
    text = json.dumps(found, sort_keys=True)
    return {
        "peak": most[-1] - most[0],
        "wall": time.perf_counter() - started,
        "processor": time.process_time() - processor,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


@contextmanager
def most_anonymous(every: float = 0.002) -> Iterator[list[int]]:
    """Bytes at the start, and when it closes the most that was seen, looking `every` so many seconds."""
    seen, done = [anonymous()], threading.Event()

    def look() -> None:
        most = seen[0]
        while not done.wait(every):
            most = max(most, anonymous())
        seen.append(most)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def anonymous() -> int:
    return 1024 * int(re.search(r"^RssAnon:\s+(\d+) kB", STATUS.read_text(), flags=re.M)[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]))) + "\n")
