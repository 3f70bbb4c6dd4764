"""A plan carried out on a checkpoint larger than the memory that is allowed: how much memory it takes, and how long.
A Llama's shape in bfloat16 with random weights, written shard by shard; one thread, in a process of its own.

Memory is anonymous memory (RssAnon): pages of a mapped checkpoint are the kernel's to drop, and no need of ours. A
process that takes more than the limit is killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from offload import most_anonymous

from secateur.gains.memory import RETURNS_AT_ONCE

GIGA = 10**9
LIMIT = 4 * GIGA
BOUND = 5  # times the float32 size of the largest matrix that is decomposed, and that matrix itself
SHAPE = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 58,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
}  # fmt: skip
EDITS = [  # 8 matrices: exact ones of the largest size and of a square, randomized ones, and neurons of three
    "b3.gate=1024", "b10.q=1024", "b20.up=64", "b30.down=128", "b40.v=16", "b12.mlp.n7=drop", "b50=drop",
]  # fmt: skip


def run() -> dict[str, Any]:
    """About 45 GB of disk for as long as it takes."""
    with tempfile.TemporaryDirectory(prefix="surgery-") as place:
        found = carried_out(Path(place), SHAPE, EDITS, "5GB", LIMIT)
    assert "peak" in found, f"killed: {found['killed']} bytes are more than the limit"
    return found


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    what = f"surgery on {found['bytes'] / GIGA:.1f} GB, {found['matrices']} matrices edited"
    peak, limit, bound = (found[key] / GIGA for key in ("peak", "limit", "bound"))
    yield f"{what}: anonymous memory", f"{peak:.2f} GB", f"≤ {limit:g} GB", _met(peak <= limit)
    own = (found["peak"] - found["at_rest"]) / GIGA
    of = f"≤ {bound:.2f} GB (a matrix and {BOUND}× its float32 size)"
    yield f"{what}: … beyond the libraries", f"{own:.2f} GB", of, _met(own <= bound)
    rate = found["bytes"] / found["seconds"] / GIGA
    yield f"{what}: time", f"{found['seconds']:.0f} s, {rate:.2f} GB/s, all checks included", "", ""
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["stages"].items())
    yield f"{what}: … of which", stages, "", ""
    yield (
        f"{what}: largest error of a stated residual",
        f"{found['wrong']:.1e}",
        "≤ 1e-3",
        _met(found["wrong"] <= 1e-3),
    )


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def carried_out(
    place: Path, shape: dict[str, int], edits: list[str], shard_size: str, limit: int
) -> dict[str, Any]:
    """Makes the checkpoint, cuts it in a process that may not take more than `limit`, and looks at what came out."""
    size = make(place / "model", shape, shard_size)
    found = in_a_process(place, edits, shard_size, limit)
    if "peak" not in found:
        return found
    found |= {"bytes": size, "limit": limit, "matrices": edited(place), "svd": told_of(place)}
    return found | {"bound": bound_of(place), "wrong": largest_error(place)}


def make(folder: Path, shape: dict[str, int], shard_size: str) -> int:
    """A checkpoint of random weights that is never in memory. How many bytes of weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from secateur.checkpoint.save import check_space
    from secateur.checkpoint.stream import shards_of, write_index, write_shard
    from secateur.core.machine import shard_bytes

    folder.mkdir()
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    model.save_pretrained(folder, state_dict={})
    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(96)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w1").save_pretrained(folder)
    shards = shards_of(model, shard_bytes(shard_size))
    size = sum(shard.num_bytes for shard in shards)
    check_space(folder, 2 * size + size // 20)  # the cut beside it
    drawn: dict[torch.Size, torch.Tensor] = {}

    def random(name: str) -> torch.Tensor:
        """The same numbers for all tensors of a shape, turned by the number of the block."""
        blank = model.get_parameter(name)
        if blank.shape not in drawn:
            torch.manual_seed(len(drawn))
            drawn[blank.shape] = (torch.randn(blank.shape) * 0.02).to(torch.bfloat16)
        number = re.search(r"\.(\d+)\.", name)
        return drawn[blank.shape].roll(int(number[1]) if number else 0, 0)

    for shard in shards:
        write_shard(shard, random, folder, lambda _: None)
    write_index(model, shards, folder)
    return size


def in_a_process(place: Path, edits: list[str], shard_size: str, limit: int) -> dict[str, Any]:
    """What `measure` finds in a process of its own, or `{"killed": bytes}` where that took more than `limit`."""
    command = [sys.executable, "-W", "ignore", __file__, str(place), shard_size, *edits]
    environment = dict(os.environ) | RETURNS_AT_ONCE
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None:
        held = anonymous_of(process.pid)
        if held > limit:
            process.kill()
            process.communicate()
            return {"killed": held}
        time.sleep(0.005)
    told, _ = process.communicate()
    assert process.returncode == 0, "the surgery failed; it said why above"
    return json.loads(told)


def anonymous_of(process: int) -> int:
    """Bytes; 0 when it is over."""
    try:
        told = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", told, flags=re.M)
    return 1024 * int(found[1]) if found else 0


def measure(place: Path, shard_size: str, edits: list[str]) -> dict[str, Any]:
    """`at_rest`: anonymous bytes of the libraries; `peak`: the most there was; seconds, in all and by stage."""
    from secateur import api

    how = {"check": "digests", "device": "cpu"}
    api.apply("builtin:recall", ["b0.q=1"], place / "small", **how)  # brings in the libraries' code
    started, times = time.perf_counter(), {}

    def progress(stage: str, done: int, total: int) -> None:
        times[stage] = time.perf_counter() - started

    with most_anonymous() as most:
        api.apply(str(place / "model"), edits, place / "out", shard_size=shard_size, progress=progress, **how)
    whole = time.perf_counter() - started
    stages = {"fingerprint and writing": times["write"], "reading again": times["check"] - times["write"]}
    stages["loading it, fingerprint"] = whole - times["check"]
    return {"at_rest": most[0], "peak": most[-1], "seconds": whole, "stages": stages}


def told_of(place: Path) -> list[dict[str, Any]]:
    """How each decomposed matrix was, by plan.json."""
    return json.loads((place / "out/plan.json").read_text())["provenance"]["svd"]


def edited(place: Path) -> int:
    """Matrices that are truncated, or of which neurons are gone, which are three for each block."""
    from secateur.checkpoint.plans import read_plan

    plan = read_plan(place / "out")
    return len(plan.truncated) + 3 * len({site.block for site in plan.dropped if site.unit == "n"})


def bound_of(place: Path) -> int:
    """Bytes: the largest matrix that was decomposed, and 5 times its float32 size."""
    largest = max(rows * columns for rows, columns in (told["shape"] for told in told_of(place)))
    return largest * (2 + BOUND * 4)


def largest_error(place: Path) -> float:
    """Of the residuals that plan.json states, against those of the matrices in the files."""
    import torch

    from secateur.checkpoint.plans import read_plan
    from secateur.core.site import Site
    from secateur.hf.load import load_model

    models = [
        load_model(str(place / name), device_map="disk", offload_folder=str(place / "offloaded"))
        for name in ("model", "out")
    ]
    wrong = 0.0
    gone = read_plan(place / "out").blocks_gone
    for told in told_of(place):
        site = Site.parse(told["matrix"])
        moved = Site(site.block - sum(block.block < site.block for block in gone), site.part)
        before, after = (
            model.parameter(model.anatomy.matrix(where).weight).float()
            for model, where in zip(models, (site, moved), strict=True)
        )
        residual = float(torch.linalg.norm(before - after) / torch.linalg.norm(before))
        wrong = max(wrong, abs(residual - told["residual"]))
    shutil.rmtree(place / "offloaded", ignore_errors=True)
    return wrong


if __name__ == "__main__":
    here, size_of_shards, *asked = sys.argv[1:]
    sys.stdout.write(json.dumps(measure(Path(here), size_of_shards, asked)) + "\n")
