"""Sizes of a model that acts, a decision transformer: what it reads and gives at each step of an episode."""

from __future__ import annotations

from typing import NamedTuple

POSITIONS = 3  # of a step: the return that is still to come, the state, the action
STATE = 1  # the place among them at which the action is predicted


STEPS = ("states", "actions", "returns_to_go", "timesteps")  # arrays of some steps, as a model reads them
CHOSEN = "chosen"  # and the number of each action, beside them; none where actions are numbers themselves


class Acts(NamedTuple):
    """Numbers in a state, and in an action or how many actions there are; and the steps that have an embedding."""

    state_dim: int
    act_dim: int
    most_steps: int


def places(steps: int) -> tuple[int, ...]:
    """Return the positions of a row of so many steps at which actions are predicted."""
    return tuple(range(STATE, POSITIONS * steps, POSITIONS))
