"""What the regulariser costs: a training step with it against the same step without it, turn by turn.

    OMP_NUM_THREADS=1 python benchmarks/regulariser.py [--d-model 256] [--layers 8] [--length 256] [--rows 8]

A Mistral with random weights, AdamW, random tokens; a step is forward, backward, clipping and update. Prints JSON with
processor seconds and the cost in percent of a step: medians over turns, and the quartiles.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM

from secateur.training.objectives import KINDS, LinearityRegulariser


def model_of(d_model: int, layers: int, length: int) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=2048,
        hidden_size=d_model,
        intermediate_size=d_model * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, d_model // 64),
        num_key_value_heads=max(1, d_model // 64),
        max_position_embeddings=length,
    )
    return MistralForCausalLM(config).train()


def step_of(
    model: MistralForCausalLM, optimizer: torch.optim.Optimizer, ids: torch.Tensor, kind: str | None
) -> Callable[[], float]:
    def step() -> float:
        regulariser = None if kind is None else LinearityRegulariser(model, kind=kind)
        started = time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        if regulariser is not None:
            loss = loss + regulariser.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.process_time() - started
        if regulariser is not None:
            regulariser.remove()
        return seconds

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("--d-model", 256),
        ("--layers", 8),
        ("--length", 256),
        ("--rows", 8),
        ("--turns", 15),
    ):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    model = model_of(given.d_model, given.layers, given.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 2048, (given.rows, given.length))
    steps = {kind: step_of(model, optimizer, ids, kind) for kind in (None, *KINDS)}
    for step in steps.values():
        step()
    turns = [{kind: step() for kind, step in steps.items()} for _ in range(given.turns)]
    costs = {kind: [100 * (turn[kind] / turn[None] - 1) for turn in turns] for kind in KINDS}
    told = {
        kind: {"percent": float(np.median(cost)), "iqr": np.quantile(cost, (0.25, 0.75)).tolist()}
        for kind, cost in costs.items()
    }
    seconds = float(np.median([turn[None] for turn in turns]))
    print(json.dumps(vars(given) | {"seconds": seconds, "cost": told}, indent=2))


if __name__ == "__main__":
    main()
