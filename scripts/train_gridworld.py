"""Log play in builtin:gridworld and train a tiny decision transformer on it: a model to try secateur's episodes with.

python scripts/train_gridworld.py OUT [--episodes 4000] [--steps 4000] [--seed 0] [--play FILE.npz]

The play is an expert's who takes a random action for a share of the steps, more of them in some episodes than in
others, so that there is something to tell by the return. Everything follows from the seed; minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from secateur.tasks.environments import GridWorld
from secateur.tasks.trajectories import GRID_CONTEXT, Trajectory, noisy_play

NOISES = (0.0, 0.1, 0.3, 0.5)  # shares of random actions, of every fourth episode each
ROWS = 64  # windows of a step
WIDTH = 64


def main() -> None:
    """Log, train, and write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--play", type=Path, help="write the logged play to this file, as secateur reads it")
    asked = parser.parse_args()
    started = time.perf_counter()
    play = [noisy_play(seed, NOISES[seed % len(NOISES)]) for seed in range(asked.episodes)]
    if asked.play is not None:
        write_play(asked.play, play)
    print(f"{len(play)} episodes logged in {time.perf_counter() - started:.0f} s")
    train(play, asked.steps, asked.seed).save_pretrained(asked.out)
    print(f"{asked.out} written after {time.perf_counter() - started:.0f} s")


def write_play(file: Path, play: list[Trajectory]) -> None:
    """Write trajectories as an .npz without pickles: states, actions, rewards, and the lengths of the episodes."""
    np.savez_compressed(
        file,
        states=np.concatenate([one.states for one in play]),
        actions=np.concatenate([one.actions for one in play]),
        rewards=np.concatenate([one.rewards for one in play]),
        lengths=np.array([len(one.states) for one in play]),
    )


def train(play: list[Trajectory], steps: int, seed: int) -> DecisionTransformerModel:
    """Return a model that was trained for `steps` to predict the logged actions, by cross-entropy."""
    torch.manual_seed(seed)
    space = GridWorld().space
    config = DecisionTransformerConfig(
        state_dim=space.state_dim,
        act_dim=space.act_dim,
        hidden_size=WIDTH,
        max_ep_len=space.max_steps,
        n_layer=3,
        n_head=4,
        n_positions=3 * GRID_CONTEXT,
        activation_function="gelu",
        action_tanh=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = DecisionTransformerModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    draw = np.random.default_rng(seed)
    losses: list[float] = []
    for step in range(steps):
        inputs, chosen, real = windows(play, draw, space.act_dim)
        logits = model(**inputs).action_preds
        loss = nn.functional.cross_entropy(logits[real], chosen[real])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}: {np.mean(losses[-500:]):.4f} nats an action", flush=True)
    return model.eval()


def windows(
    play: list[Trajectory], draw: np.random.Generator, act_dim: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return windows that begin anywhere in random episodes, their actions, and a mask that is True for real steps."""
    shape = (ROWS, GRID_CONTEXT)
    states = np.zeros((*shape, play[0].states.shape[1]), np.float32)
    chosen, timesteps = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    to_go, real = np.zeros((*shape, 1), np.float32), np.zeros(shape, bool)
    for row in range(ROWS):
        one = play[int(draw.integers(len(play)))]
        start = int(draw.integers(len(one.states)))
        count = min(GRID_CONTEXT, len(one.states) - start)
        part = slice(start, start + count)
        states[row, :count], chosen[row, :count] = one.states[part], one.actions[part]
        to_go[row, :count, 0] = one.rewards[::-1].cumsum()[::-1][part]
        timesteps[row, :count], real[row, :count] = np.arange(start, start + count), True
    inputs = {
        "states": torch.from_numpy(states),
        "actions": torch.eye(act_dim)[torch.from_numpy(chosen)],
        "returns_to_go": torch.from_numpy(to_go),
        "timesteps": torch.from_numpy(timesteps),
    }
    return inputs, torch.from_numpy(chosen), torch.from_numpy(real)


if __name__ == "__main__":
    main()
