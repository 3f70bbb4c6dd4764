"""Environments of gymnasium, where it is installed: what they say of themselves, and episodes against a slow loop."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fixtures.zoo import variant
from transformers import PreTrainedModel

from secateur.errors import TaskError
from secateur.evaluation.generate import play
from secateur.hf.load import Loaded
from secateur.tasks.environments import Space, open_environment, space_of
from secateur.tasks.example import Episode

installed = pytest.mark.skipif(
    find_spec("gymnasium") is None or find_spec("minigrid") is None,
    reason="gymnasium is not installed: pip install -c constraints.txt gymnasium minigrid",
)
MINIGRID = "MiniGrid-Dynamic-Obstacles-5x5-v0"
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of numpy and of drawing


@pytest.mark.skipif(find_spec("gymnasium") is not None, reason="gymnasium is installed")
def test_what_is_not_installed_is_said_with_the_line_that_installs_it():
    with pytest.raises(TaskError, match=r'not installed: pip install "secateur\[rl\]"'):
        space_of("CartPole-v1", None)


@installed
def test_sizes_are_those_of_the_environment():
    assert space_of("CartPole-v1", None) == Space(4, 2, True, 500)
    assert space_of("CartPole-v1", 30) == Space(4, 2, True, 30)
    assert space_of("Pendulum-v1", None) == Space(3, 1, False, 200)
    assert space_of(MINIGRID, 20)[:3] == (147, 3, True)
    assert space_of(MINIGRID, None).max_steps == 4 * 5**2  # by a rule of its own
    for name, words in (
        ("Nowhere-v0", "makes no environment 'Nowhere-v0'"),
        ("FrozenLake-v1", "neither numbers"),
    ):
        with pytest.raises(TaskError, match=words):
            space_of(name, None)


@installed
@pytest.mark.parametrize(
    ("name", "discrete"), [("CartPole-v1", True), ("Pendulum-v1", False), (MINIGRID, True)]
)
def test_episodes_are_those_of_a_loop_by_hand(name, discrete, as_loaded: Callable[[PreTrainedModel], Loaded]):
    import gymnasium
    import minigrid  # noqa: F401

    space = space_of(name, 12)
    kind = "decision" if discrete else "decision-tanh"
    loaded = as_loaded(variant(kind, state_dim=space.state_dim, act_dim=space.act_dim))
    episodes = [Episode(name, seed, 5.0, 1.0, 12, 4) for seed in range(4)]
    found = play(loaded, episodes, 20)
    for one, episode in zip(found, episodes, strict=True):
        world = gymnasium.make(name, max_episode_steps=12)
        state, _ = world.reset(seed=episode.seed)
        states, actions, to_go, total, over = [], [], [5.0], 0.0, False
        while not over:
            state = state["image"] if isinstance(state, dict) else state
            states.append(np.asarray(state, np.float32).reshape(-1))
            told = {
                "states": torch.tensor(np.array(states[-4:]))[None],
                "actions": torch.tensor(
                    np.array([*actions, np.zeros(space.act_dim)][-4:]), dtype=torch.float32
                )[None],
                "returns_to_go": torch.tensor(to_go[-4:])[None, :, None],
                "timesteps": torch.arange(len(states))[None, -4:],
            }
            with torch.no_grad():
                preferred = loaded.model(**told).action_preds[0, -1]
            taken = int(preferred.argmax())
            actions.append(np.eye(space.act_dim)[taken] if discrete else preferred.numpy())
            state, reward, ended, cut_short, _ = world.step(taken if discrete else preferred.numpy())
            total, over = total + float(reward), ended or cut_short
            to_go.append(5.0 - total)
        assert (one.total, one.steps) == (pytest.approx(total, abs=1e-4), len(states))


def test_builtin_names_are_ours():
    assert open_environment("builtin:gridworld", None).space == Space(103, 4, True, 40)
    with pytest.raises(TaskError, match="there is no environment 'builtin:maze'"):
        open_environment("builtin:maze", None)
