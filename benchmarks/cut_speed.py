"""Speed of models without 70 % of their heads and 20 % of their feed-forward networks, and without a third of their
blocks, against the limit that what is left sets; and the rank below which two factors are faster than one matrix.
Random weights, float32, one thread.

Times are processor time: with one thread it is what the work takes, whoever else uses the machine's other cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan
from secateur.core.site import Site
from secateur.gains.cost import random_tokens
from secateur.gains.length import Length
from secateur.gains.record import costs
from secateur.gains.timing import paired, speed
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.surgery.materialize import cut

TARGETS = {"prefill": 0.95, "decode": 0.90}  # of the limit
DEPTH_TARGETS = {"prefill": 0.95, "decode": 0.95}
HEADS_REMOVED, FFNS_REMOVED = 0.7, 0.2
TOKENS = (512, 1)  # a prompt's, a decoding step's
FRACTIONS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of d_model
TRIALS = 15


@dataclass(frozen=True)
class Size:
    layers: int = 12
    d_model: int = 768
    heads: int = 12
    kv_heads: int = 4
    vocabulary: int = 50_272  # OPT's


def opt(size: Size) -> nn.Module:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.d_model,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            ffn_dim=4 * size.d_model,
            word_embed_proj_dim=size.d_model,
        )
    )


def grouped_llama(size: Size) -> nn.Module:
    """Three matrices of 8/3 d_model, as Llama has them: as many parameters as two of 4 d_model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.d_model,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            intermediate_size=8 * size.d_model // 3,
        )
    )


SIZE, LENGTH = Size(), Length(prompt=512, new=32, batch=1, repeats=7)
MODELS: dict[str, Callable[[Size], nn.Module]] = {"OPT": opt, "grouped Llama": grouped_llama}


def dense(name: str, size: Size) -> Loaded:
    torch.manual_seed(0)
    return _loaded(name, MODELS[name](size).eval().requires_grad_(False))


def _loaded(name: str, model: nn.Module) -> Loaded:
    return Loaded(name, model, None, anatomy(model), fingerprint(model), None, None)


def plan_of(loaded: Loaded, seed: int = 0) -> Plan:
    """Heads (KV groups where heads share keys) and feed-forward networks, drawn at random over all blocks."""
    draw, parts = random.Random(seed), loaded.anatomy
    kind = "h" if parts.num_kv_heads == parts.num_heads else "g"
    units = [
        Site.parse(f"b{b}.attn.{kind}{n}") for b in range(parts.num_blocks) for n in range(parts.num_kv_heads)
    ]
    ffns = [Site(block, "mlp") for block in range(parts.num_blocks)]
    gone = draw.sample(units, round(HEADS_REMOVED * len(units)))
    gone += draw.sample(ffns, round(FFNS_REMOVED * len(ffns)))
    return Plan(loaded.fingerprint, tuple(Drop(site) for site in sorted(gone)))


def _third(loaded: Loaded) -> range:
    """The middle third of the blocks, where blocks are most alike."""
    count = loaded.anatomy.num_blocks
    return range(count // 3, count // 3 + count // 3)


def dropped(loaded: Loaded) -> Plan:
    return Plan(loaded.fingerprint, tuple(Drop(Site(block)) for block in _third(loaded)))


def linear(loaded: Loaded) -> Plan:
    """One map for the run; what numbers it holds costs nothing."""
    d = loaded.anatomy.d_model
    draw = np.random.default_rng(0)
    arrays = {"weight": draw.standard_normal((d, d)) / d**0.5, "bias": np.zeros(d)}
    edit = Linearize(
        tuple(_third(loaded)), "linear", Fitted.of({n: a.astype("f4") for n, a in arrays.items()})
    )
    return Plan(loaded.fingerprint, (edit,))


DEPTH: Mapping[str, Callable[[Loaded], Plan]] = {"dropped": dropped, "as one linear map": linear}


def measure(
    name: str, size: Size, length: Length, plan_for: Callable[[Loaded], Plan] = plan_of
) -> dict[str, Any]:
    """The record of `secateur bench` in short, for a model in memory."""
    before = dense(name, size)
    plan = plan_for(before)
    after = _loaded(name, cut(before, plan))
    was, now = costs(before, after, length)
    tokens = random_tokens(size.vocabulary, length.batch, length.prompt)
    models = before.model, after.model
    times = paired(
        models, tokens, new=length.new, repeats=length.repeats, progress=_silent, clock=time.process_time
    )
    limits = {
        "prefill": was.prefill_flops / now.prefill_flops,
        "decode": was.decode_bytes(length.new) / now.decode_bytes(length.new),
    }
    made = {"prefill": length.batch * length.prompt, "decode": length.batch * length.new}
    pairs = {"prefill": times.prefill, "decode": times.decode}
    return {
        "parameters": {"before": before.anatomy.num_parameters, "after": after.anatomy.num_parameters},
        "removed": len(plan.edits),
        "blocks": {"before": before.anatomy.num_blocks, "gone": len(plan.blocks_gone)},
    } | {phase: speed(pairs[phase], made[phase], limits[phase]) for phase in pairs}


def _silent(stage: str, done: int, total: int) -> None:
    """No progress."""


# ------------------------------------------------------------------------------------------------ factors of low rank


def factors(rows: int, columns: int) -> list[dict[str, Any]]:
    """Speedup of x Aᵀ B over x Wᵀ, by tokens: at each rank, and the rank up to which there is one."""
    found = []
    for tokens in TOKENS:
        ranks = [round(fraction * min(rows, columns)) for fraction in FRACTIONS]
        speedups = [speedup_of_factors(rows, columns, rank, tokens) for rank in ranks]
        found.append(
            {
                "shape": [rows, columns],
                "tokens": tokens,
                "ranks": ranks,
                "speedups": speedups,
                "break_even": break_even(ranks, speedups),
                "arithmetic_break_even": rows * columns / (rows + columns),
            }
        )
    return found


@torch.inference_mode()
def speedup_of_factors(rows: int, columns: int, rank: int, tokens: int) -> float:
    """Median over TRIALS turns, each long enough for the clock. B is stored (rank, out), as in our checkpoints."""
    torch.manual_seed(0)
    x, w = torch.randn(tokens, columns), torch.randn(rows, columns)
    a, b = torch.randn(rank, columns), torch.randn(rank, rows)
    times = max(4, 2_000_000_000 // (2 * tokens * rows * columns + 20_000_000))
    ratios = []
    for _ in range(TRIALS):
        whole = _seconds(lambda: nn.functional.linear(x, w), times)
        split = _seconds(lambda: nn.functional.linear(x, a) @ b, times)
        ratios.append(whole / split)
    return float(np.median(ratios[1:]))


def _seconds(run: Callable[[], Tensor], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        run()
    return time.process_time() - start


def break_even(ranks: Sequence[int], speedups: Sequence[float]) -> float | None:
    """The rank where the speedup falls to 1, between the last rank with one and the next; None: it never does."""
    for low, high, fast, slow in zip(ranks, ranks[1:], speedups, speedups[1:], strict=False):
        if fast >= 1 > slow:
            return low + (high - low) * (fast - 1) / (fast - slow)
    return None


# -------------------------------------------------------------------------------------------------------------- result


def run(size: Size = SIZE, length: Length = LENGTH) -> dict[str, Any]:
    torch.set_num_threads(1)
    models = {name: measure(name, size, length) for name in MODELS}
    d = size.d_model
    return {"models": models, "factors": [*factors(d, d), *factors(4 * d, d)], "targets": TARGETS}


def run_depth(size: Size = SIZE, length: Length = LENGTH) -> dict[str, Any]:
    torch.set_num_threads(1)
    models = {
        f"{name}, {how}": measure(name, size, length, plan) for name in MODELS for how, plan in DEPTH.items()
    }
    return {"models": models, "targets": DEPTH_TARGETS}


def depth_rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """For RESULTS.md."""
    for name, model in found["models"].items():
        for phase, target in found["targets"].items():
            one, blocks = model[phase], model["blocks"]
            measured = f"{one['speedup']:.2f}× of at most {one['limit']:.2f}×: {one['of_limit']:.0%}"
            met = "yes" if one["of_limit"] >= target else "NO"
            what = f"{name}, {blocks['gone']} of {blocks['before']} blocks gone: {phase}"
            yield what, measured, f"≥ {target:.0%} of the limit", met


def lines(found: dict[str, Any]) -> list[str]:
    told = []
    for name, model in found["models"].items():
        for phase, target in found["targets"].items():
            one = model[phase]
            low, high = one["speedup_iqr"]
            told.append(
                f"{name}, {phase}: {one['speedup']:.2f}× [{low:.2f}, {high:.2f}] of at most {one['limit']:.2f}×: "
                f"{one['of_limit']:.1%} of the limit (target {target:.0%})"
            )
    for one in found["factors"]:
        d, pairs = min(one["shape"]), zip(one["ranks"], one["speedups"], strict=True)
        shown = ", ".join(f"{rank / d:.0%} {speedup:.2f}×" for rank, speedup in pairs)
        even = "beyond" if one["break_even"] is None else f"{one['break_even']:.0f}"
        rows, columns = one["shape"]
        told.append(
            f"{rows} × {columns}, {one['tokens']} tokens: {shown}; break-even at rank {even} "
            f"(arithmetic {one['arithmetic_break_even']:.0f})"
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = run(length=replace(LENGTH, repeats=asked.repeats))
    print(json.dumps(found, indent=2) if asked.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
