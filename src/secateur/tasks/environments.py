"""Environments that a decision transformer plays in: our own small world, and gymnasium's by name.

gymnasium and minigrid are imported only where one of theirs is asked for. Knows no model.
"""

from __future__ import annotations

import importlib
import math
import random
from collections import deque
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np

from secateur.errors import TaskError

BUILTIN = "builtin:"
GRIDWORLD = "gridworld"
NEEDS = 'pip install "secateur[rl]"'


class Space(NamedTuple):
    """Numbers in a state, and in an action or how many actions there are; and the most steps of an episode."""

    state_dim: int
    act_dim: int
    discrete: bool
    max_steps: int


class Moved(NamedTuple):
    """The state after an action, the reward of it, and True where the episode is over."""

    state: np.ndarray
    reward: float
    done: bool


class Environment(Protocol):
    """A world in which one episode is played at a time."""

    @property
    def space(self) -> Space:
        """Return the sizes of states and actions."""
        ...

    def reset(self, seed: int) -> np.ndarray:
        """Begin the episode of this seed, and return its first state, (state_dim,) float32."""
        ...

    def step(self, action: int | np.ndarray) -> Moved:
        """Take an action: its number, or the numbers that it is made of."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...


def open_environment(name: str, max_steps: int | None) -> Environment:
    """Return the environment of this name.

    Args:
        max_steps: Steps after which an episode ends; None: as many as the environment says.

    Raises: `TaskError` for a name that nobody knows, and one whose states or actions are no numbers.
    """
    if name.startswith(BUILTIN):
        if name != f"{BUILTIN}{GRIDWORLD}":
            raise TaskError(
                f"there is no environment {name!r}; {BUILTIN}{GRIDWORLD} is the one that secateur brings."
            )
        return GridWorld(max_steps or MAX_STEPS)
    return Gymnasium(name, max_steps)


def space_of(name: str, max_steps: int | None) -> Space:
    """Return the sizes of an environment's states and actions. Raises: as `open_environment`."""
    environment = open_environment(name, max_steps)
    try:
        return environment.space
    finally:
        environment.close()


# --------------------------------------------------------------------------------------------------------- gymnasium


class Gymnasium:
    """An environment of gymnasium, whose states are flattened to numbers; of a dictionary the `image` is the state.

    Raises: as `open_environment`.
    """

    def __init__(self, name: str, max_steps: int | None) -> None:
        if find_spec("gymnasium") is None:
            raise TaskError(f"{name} is an environment of gymnasium, which is not installed: {NEEDS}")
        gymnasium: Any = importlib.import_module("gymnasium")
        if find_spec("minigrid") is not None:
            importlib.import_module("minigrid")  # which registers its environments
        limit = {} if max_steps is None else {"max_episode_steps": max_steps}
        try:
            self._inner = gymnasium.make(name, **limit)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            more = f" Those of MiniGrid need minigrid: {NEEDS}" if find_spec("minigrid") is None else ""
            said = " ".join(str(error).split())[:200]
            raise TaskError(f"gymnasium makes no environment {name!r}: {said}{more}") from error
        spaces, seen, taken = gymnasium.spaces, self._inner.observation_space, self._inner.action_space
        self._of_image = isinstance(seen, spaces.Dict)
        seen = seen.spaces.get("image") if self._of_image else seen
        self._discrete = isinstance(taken, spaces.Discrete)
        if not isinstance(seen, spaces.Box) or not (self._discrete or isinstance(taken, spaces.Box)):
            raise TaskError(
                f"{name}: its states are neither numbers nor an image (Box), or its actions neither Discrete nor Box."
            )
        most = max_steps or self._inner.spec.max_episode_steps or self._own_limit()
        if most is None:
            raise TaskError(f'{name} ends no episode by itself: give "max_steps".')
        self._taken = taken
        size = int(taken.n) if self._discrete else math.prod(taken.shape)
        self.space = Space(math.prod(seen.shape), size, self._discrete, int(most))

    def _own_limit(self) -> int | None:
        """Return the steps after which the environment ends an episode by a rule of its own, as MiniGrid does."""
        try:
            most: int = self._inner.get_wrapper_attr("max_steps")
        except AttributeError:
            return None
        return most

    def reset(self, seed: int) -> np.ndarray:
        """Begin the episode of this seed, and return its first state."""
        return self._flat(self._inner.reset(seed=seed)[0])

    def step(self, action: int | np.ndarray) -> Moved:
        """Take an action; numbers are kept within the bounds of the environment."""
        if self._discrete:
            taken = self._taken.start + action
        else:
            numbers = np.asarray(action, self._taken.dtype).reshape(self._taken.shape)
            taken = np.clip(numbers, self._taken.low, self._taken.high)
        state, reward, terminated, truncated, _ = self._inner.step(taken)
        return Moved(self._flat(state), float(reward), bool(terminated or truncated))

    def close(self) -> None:
        """Free what the environment holds."""
        self._inner.close()

    def _flat(self, state: Any) -> np.ndarray:
        return np.asarray(state["image"] if self._of_image else state, np.float32).reshape(-1)


# ------------------------------------------------------------------------------------------------------ our own world

SIZE, SIGHT, LAVA = (
    8,
    2,
    10,
)  # cells of a side, cells that are seen in each direction, cells that end an episode
MAX_STEPS = 40
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
Cell = tuple[int, int]


class GridWorld:
    """A room with a key, a goal that opens with it, and lava, of which the agent sees the cells around it.

    A state is four layers of what it sees (walls, lava, the key, the goal), whether it holds the key, and where it is.
    There are four actions, the moves. The reward is 1 − 0.9 · steps / `max_steps` at the goal with the key, else 0, as
    in MiniGrid (Chevalier-Boisvert et al. 2023, arXiv 2306.13831).
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        cells = (2 * SIGHT + 1) ** 2
        self.space = Space(4 * cells + 3, len(MOVES), True, max_steps)
        self.agent: Cell = (0, 0)
        self.key: Cell | None = None  # None where the agent holds it
        self.goal: Cell = (0, 0)
        self.lava: frozenset[Cell] = frozenset()
        self._steps = 0

    def reset(self, seed: int) -> np.ndarray:
        """Draw a room by the seed in which the key and then the goal can be reached, and return the first state."""
        draw = random.Random(seed)
        cells = [(x, y) for x in range(SIZE) for y in range(SIZE)]
        self._steps = 0
        while True:
            self.agent, self.key, self.goal, *lava = draw.sample(cells, 3 + LAVA)
            self.lava = frozenset(lava)
            if all(
                self.first_move(start, to) is not None
                for start, to in ((self.agent, self.key), (self.key, self.goal))
            ):
                return self._seen()

    def step(self, action: int | np.ndarray) -> Moved:
        """Move by one cell, or stay where a wall is."""
        self._steps += 1
        self.agent = self._after(self.agent, int(action))
        if self.agent == self.key:
            self.key = None
        won = self.agent == self.goal and self.key is None
        over = won or self.agent in self.lava or self._steps >= self.space.max_steps
        reward = 1 - 0.9 * self._steps / self.space.max_steps if won else 0.0
        return Moved(self._seen(), reward, over)

    def close(self) -> None:
        """Do nothing."""

    def first_move(self, start: Cell, end: Cell) -> int | None:
        """Return the first move of a shortest way that no lava lies on; None where there is no way."""
        reached: dict[Cell, int] = {}
        waiting = deque([(start, -1)])
        while waiting:
            cell, first = waiting.popleft()
            if cell in reached or cell in self.lava:
                continue
            reached[cell] = first
            for move in range(len(MOVES)):
                waiting.append((self._after(cell, move), move if first < 0 else first))
        return reached.get(end)

    def _after(self, cell: Cell, move: int) -> Cell:
        x, y = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
        return (x, y) if 0 <= x < SIZE and 0 <= y < SIZE else cell

    def _seen(self) -> np.ndarray:
        layers = np.zeros((4, 2 * SIGHT + 1, 2 * SIGHT + 1), np.float32)
        for row in range(2 * SIGHT + 1):
            for column in range(2 * SIGHT + 1):
                x, y = self.agent[0] + column - SIGHT, self.agent[1] + row - SIGHT
                inside = 0 <= x < SIZE and 0 <= y < SIZE
                layers[:, row, column] = (
                    not inside,
                    (x, y) in self.lava,
                    (x, y) == self.key,
                    (x, y) == self.goal,
                )
        own = [self.key is None, self.agent[0] / (SIZE - 1), self.agent[1] / (SIZE - 1)]
        return np.concatenate([layers.reshape(-1), np.array(own, np.float32)])


def expert(world: GridWorld) -> int:
    """Return the move of one who sees the whole room: to the key, then to the goal."""
    move = world.first_move(world.agent, world.key or world.goal)
    assert move is not None, "rooms are drawn so that there is a way"
    return move
