"""Logged play and episodes as tasks for decision transformers: files of trajectories, files that say what to play.

Files are read with care: JSON lines, or numpy's .npz without pickles. Knows no model; its sizes are handed in.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from secateur.core.acts import CHOSEN, Acts
from secateur.core.fitted import Fitted
from secateur.core.reading import check_file, read_json
from secateur.errors import TaskError
from secateur.tasks.environments import BUILTIN, GRIDWORLD, GridWorld, Space, expert, space_of
from secateur.tasks.example import Episode, Example, Task, all_tested
from secateur.tasks.rows import read_rows
from secateur.tasks.shapes import explain
from secateur.tasks.splits import ExampleSource

DISCRETE, CONTINUOUS, EPISODES = "trajectories", "continuous", "episodes"  # kinds of tasks
MOST_BYTES = 2**31  # of the arrays in a file, unpacked
CONTEXT = 20  # steps: the K of the authors (Chen et al. 2021, arXiv 2106.01345)
SUFFIXES = (".jsonl", ".npz")
RIGHT = '{"states": [[0.5, 1.0], [0.4, 0.9]], "actions": [1, 0], "rewards": [0.0, 1.0]}'
WANTED = f"Trajectories are lines such as {RIGHT}, or states, actions, rewards and lengths in .npz"
RIGHT_EPISODES = (
    '{"environment": "builtin:gridworld", "seeds": {"first": 0, "count": 200}, "target_return": 0.9, '
    '"trajectories": "play.jsonl"}'
)
_BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError)


# ------------------------------------------------------------------------------------------------------ logged play


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One logged episode.

    Attributes:
        states: Numbers, (steps, state_dim).
        actions: The number of each action, (steps,), or numbers that are the action, (steps, act_dim).
        rewards: Numbers, (steps,).
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    @property
    def discrete(self) -> bool:
        """Return True where an action is one of several, False where it is made of numbers."""
        return self.actions.ndim == 1

    def problem(self, acts: Acts | None) -> str | None:
        """Return what is wrong with the arrays, by themselves or for a model of these sizes; None: nothing."""
        arrays, steps = (self.states, self.actions, self.rewards), len(self.states)
        if not steps or any(len(array) != steps for array in arrays):
            lengths = ", ".join(str(len(array)) for array in arrays)
            return f"it has {lengths} states, actions and rewards, and each step has one of each"
        if not all(np.isfinite(array).all() for array in arrays):
            return "a number in it is NaN or infinite"
        if self.discrete and self.actions.min() < 0:
            return "an action is negative, and discrete actions are numbered from 0 on"
        if acts is None:
            return None
        if self.states.shape[1] != acts.state_dim:
            return (
                f"a state has {self.states.shape[1]} numbers, and the model's state_dim is {acts.state_dim}"
            )
        if self.discrete and self.actions.max() >= acts.act_dim:
            return f"it takes action {self.actions.max()} (counted from 0), and the model's act_dim is {acts.act_dim}"
        if not self.discrete and self.actions.shape[1] != acts.act_dim:
            return f"an action has {self.actions.shape[1]} numbers, and the model's act_dim is {acts.act_dim}"
        if steps > acts.most_steps:
            return f"it has {steps} steps, and the model's max_ep_len is {acts.most_steps}"
        return None

    def windows(self, context: int, acts: Acts | None, return_scale: float = 1.0) -> Iterator[Example]:
        """Yield consecutive pieces of at most `context` steps, as a decision transformer reads them."""
        to_go = self.rewards[::-1].cumsum()[::-1] / return_scale
        chosen = self.actions.astype(np.int64) if self.discrete else np.zeros(0, np.int64)
        one_hot: np.ndarray = np.eye(acts.act_dim if acts else int(chosen.max(initial=0)) + 1)
        arrays: dict[str, np.ndarray] = {
            "states": self.states.astype(np.float32),
            "actions": (one_hot[chosen] if self.discrete else self.actions).astype(np.float32),
            "returns_to_go": to_go[:, None].astype(np.float32),
            "timesteps": np.arange(len(self.states)),
            CHOSEN: chosen,
        }
        whole = {"states": self.states, "actions": self.actions, "rewards": self.rewards}
        name = f"trajectory-{Fitted.of(whole).digest[:12]}"
        for start in range(0, len(self.states), context):
            steps = Fitted.of({key: array[start : start + context] for key, array in arrays.items()})
            last = min(start + context, len(self.states)) - 1
            words = f"steps {start} to {last} of {name} ({steps.digest})"
            yield Example(f"{name}#{start:06d}", words, "", group=name, steps=steps)


class TrajectoryLine(BaseModel):
    """One logged episode of a file of JSON lines; other keys are ignored."""

    model_config = ConfigDict(strict=True)

    states: list[list[float]] = Field(min_length=1)
    actions: list[object]
    rewards: list[float]


def read_trajectories(path: Path, acts: Acts | None, context: int) -> ExampleSource:
    """Return the logged play of a file in windows of at most `context` steps; those of one trajectory are one group.

    Args:
        acts: The sizes of the model that is to read them, where there is one.

    Raises: `TaskError` for a file that cannot be read, and trajectories that do not fit each other or the model.
    """
    if context < 1:
        raise TaskError(f"{path}: no step fits into so short a context; a step takes three positions.")
    found = _logged(path)
    kinds = {trajectory.discrete for _, trajectory in found}
    for where, trajectory in found:
        if problem := trajectory.problem(acts) or (
            "" if len(kinds) == 1 else "others have another kind of action"
        ):
            raise TaskError(f"{path}, {where}: {problem}.")
    kind = DISCRETE if kinds == {True} else CONTINUOUS
    return ExampleSource(path.stem, kind, windows_of((one for _, one in found), context, acts))


def windows_of(
    trajectories: Iterable[Trajectory], context: int, acts: Acts | None, return_scale: float = 1.0
) -> tuple[Example, ...]:
    """Return the windows of trajectories, equal ones once."""
    found = (example for one in trajectories for example in one.windows(context, acts, return_scale))
    return tuple({example.id: example for example in found}.values())


def _logged(path: Path) -> list[tuple[str, Trajectory]]:
    """Return the trajectories of a file, each with its place. Raises: `TaskError` where there is none."""
    found = list(_of_arrays(path) if path.suffix.lower() == ".npz" else _of_lines(path))
    if not found:
        raise TaskError(f"{path}: no trajectory in it. {WANTED}; see docs/tasks.md.")
    return found


def _of_lines(path: Path) -> Iterator[tuple[str, Trajectory]]:
    if path.suffix.lower() not in SUFFIXES:
        raise TaskError(f"{path}: a file of trajectories ends in {' or '.join(SUFFIXES)}. {WANTED}.")
    for where, value, _ in read_rows(path, WANTED):
        try:
            line = TrajectoryLine.model_validate(value)
            with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused
                states, actions = np.array(line.states, np.float32), np.array(line.actions)
        except ValidationError as error:
            raise TaskError(f"{path}, {where}: {explain(error)} Right would be {RIGHT}.") from error
        except ValueError as error:  # rows of different lengths
            raise TaskError(f"{path}, {where}: states, or actions, have different sizes.") from error
        if not _are_actions(actions):
            raise TaskError(f"{path}, {where}: actions are neither whole numbers nor lists of numbers.")
        yield where, Trajectory(states, actions, np.array(line.rewards, np.float64))


def _are_actions(actions: np.ndarray) -> bool:
    """Return True for the numbers of actions, (steps,) of whole numbers, and for numbers that are actions."""
    return (actions.ndim, actions.dtype.kind) in ((1, "i"), (1, "u"), (2, "i"), (2, "u"), (2, "f"))


def _of_arrays(path: Path) -> Iterator[tuple[str, Trajectory]]:
    check_file(path, TaskError)
    wanted = ("states", "actions", "rewards", "lengths")
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > MOST_BYTES:
            raise TaskError(
                f"{path} unpacks to {size / 1e9:.1f} GB, more than {MOST_BYTES / 1e9:.1f}. Give a part."
            )
        with np.load(path, allow_pickle=False) as held:
            if missing := [name for name in wanted if name not in held]:
                raise TaskError(f"{path} has no array {missing[0]!r}. {WANTED}.")
            states, actions, rewards, lengths = (held[name] for name in wanted)
    except _BROKEN as error:
        raise TaskError(f"{path} cannot be read as .npz without pickles ({error}). {WANTED}.") from error
    numbers = all(array.dtype.kind in "fiu" for array in (states, rewards)) and lengths.dtype.kind in "iu"
    if not (numbers and states.ndim == 2 and rewards.ndim == lengths.ndim == 1 and _are_actions(actions)):
        raise TaskError(
            f"{path}: wanted are states (steps, numbers), actions (steps,) of whole numbers or (steps, numbers), "
            "rewards (steps,), and lengths (episodes,) of whole numbers."
        )
    if (lengths < 1).any() or not int(lengths.sum()) == len(states) == len(actions) == len(rewards):
        raise TaskError(
            f"{path}: lengths add up to {lengths.sum()} steps, and there are {len(states)} states."
        )
    ends = np.cumsum(lengths)[:-1]
    parts = zip(*(np.split(array, ends) for array in (states, actions, rewards)), strict=True)
    for number, part in enumerate(parts):
        yield f"trajectory {number}", Trajectory(*part)


# ---------------------------------------------------------------------------------------------------------- episodes


MOST_SEEDS = 100_000
SEEDS = f'neither whole numbers from 0 on nor {{"first": F, "count": C}} with C up to {MOST_SEEDS:,}'


class EpisodesFile(BaseModel):
    """A file that says which episodes are to be played."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    environment: str = Field(min_length=1)
    seeds: list[int]
    target_return: float
    success_return: float | None = None
    max_steps: int | None = Field(None, ge=1)
    context: int = Field(CONTEXT, ge=1)
    return_scale: float = Field(1.0, gt=0)
    trajectories: str | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _listed(cls, seeds: object) -> list[int]:
        if isinstance(seeds, dict) and seeds.keys() == {"first", "count"}:
            first, count = seeds["first"], seeds["count"]
            if type(first) is type(count) is int and 1 <= count <= MOST_SEEDS:
                seeds = list(range(first, first + count))
        if (
            not isinstance(seeds, list)
            or not seeds
            or not all(type(one) is int and one >= 0 for one in seeds)
        ):
            raise ValueError(f"'seeds' are {SEEDS}")
        return seeds

    def examples(self, max_steps: int) -> tuple[Example, ...]:
        """Return an episode for each seed."""
        success = self.target_return if self.success_return is None else self.success_return
        one = Episode(
            self.environment, 0, self.target_return, success, max_steps, self.context, self.return_scale
        )
        return tuple(example_of(replace(one, seed=seed)) for seed in dict.fromkeys(self.seeds))


def example_of(episode: Episode) -> Example:
    """Return an episode as an example."""
    words = (
        f"{episode.environment}, seed {episode.seed}, at most {episode.max_steps} steps: a return of "
        f"{episode.target_return:g}, from {episode.success_return:g} on a success (the last {episode.context} steps "
        f"are seen, returns are divided by {episode.return_scale:g})"
    )
    return Example(f"seed-{episode.seed}", words, "", episode=episode)


def read_episodes(path: Path, acts: Acts | None) -> ExampleSource:
    """Return the episodes that a file says, and the logged play beside it as the examples of `probe`.

    Raises: `TaskError` for a file that cannot be used, and an environment that is unknown or does not fit the model.
    """
    value = read_json(path, TaskError)
    try:
        stated = EpisodesFile.model_validate(value)
    except ValidationError as error:
        why = explain(error, "the file")
        raise TaskError(f"{path}: {why} Right would be {RIGHT_EPISODES}; see docs/tasks.md.") from error
    space = space_of(stated.environment, stated.max_steps)
    check_space(space, acts, stated.environment)
    probed: tuple[Example, ...] = ()
    if stated.trajectories is not None:
        probed = _beside(path.parent / stated.trajectories, acts, stated)
        if any(_is_discrete(example) != space.discrete for example in probed):
            raise TaskError(
                f"{path}: {stated.environment} and {stated.trajectories} have other kinds of actions."
            )
    return ExampleSource(path.stem, EPISODES, stated.examples(space.max_steps), probed=probed)


def _beside(path: Path, acts: Acts | None, stated: EpisodesFile) -> tuple[Example, ...]:
    """Return the logged play of another file as what episodes are of. Raises: `TaskError`, as `read_trajectories`."""
    found = _logged(path)
    for where, trajectory in found:
        if problem := trajectory.problem(acts):
            raise TaskError(f"{path}, {where}: {problem}.")
    return windows_of((one for _, one in found), stated.context, acts, stated.return_scale)


def logged_play(task: Task) -> Task | None:
    """Return the logged play of a task of episodes as a task by itself, to be watched; None where there is none."""
    logged = tuple(task.of(task.split("probe"))) if task.kind == EPISODES else ()
    if not logged:
        return None
    kind = DISCRETE if all(map(_is_discrete, logged)) else CONTINUOUS
    return Task("logged play", kind, logged, all_tested(logged))


def _is_discrete(example: Example) -> bool:
    """Return True for logged play in which each action is one of several."""
    return example.steps is not None and example.steps.content[CHOSEN].size > 0


def check_space(space: Space, acts: Acts | None, environment: str) -> None:
    """Raise `TaskError` where the states or actions of an environment are not those of the model."""
    if acts is None:
        return
    kind = "discrete actions" if space.discrete else "numbers in an action"
    if (space.state_dim, space.act_dim) != (acts.state_dim, acts.act_dim):
        raise TaskError(
            f"{environment} has {space.state_dim} numbers in a state and {space.act_dim} {kind}; the model's state_dim "
            f"is {acts.state_dim} and its act_dim {acts.act_dim}: they do not belong together."
        )
    if space.max_steps > acts.most_steps:
        raise TaskError(
            f"{environment} is played for {space.max_steps} steps, and the model's max_ep_len is {acts.most_steps}: "
            'give "max_steps".'
        )


# ----------------------------------------------------------------------------------------------- a small world of ours

PLAYED = range(100_000, 100_450)  # seeds of the episodes of builtin:gridworld, which no training has seen
LOGGED = range(200_000, 200_064)  # and of the play that is logged for its gradients
NOISE = 0.1  # share of random actions in that play
GRID_CONTEXT = 12


def gridworld(acts: Acts | None) -> ExampleSource:
    """Return episodes of `builtin:gridworld`, with the noisy play of an expert for gradients. Raises: `TaskError`."""
    name = f"{BUILTIN}{GRIDWORLD}"
    space = space_of(name, None)
    check_space(space, acts, name)
    stated = EpisodesFile(
        environment=name,
        seeds=list(PLAYED),
        target_return=0.9,
        success_return=0.05,
        context=GRID_CONTEXT,
    )
    probed = windows_of((noisy_play(seed, NOISE) for seed in LOGGED), GRID_CONTEXT, acts)
    return ExampleSource(GRIDWORLD, EPISODES, stated.examples(space.max_steps), probed=probed)


def noisy_play(seed: int, noise: float) -> Trajectory:
    """Return an episode of the grid world as an expert plays it who takes a random action for this share of steps."""
    world = GridWorld()
    state = world.reset(seed)
    draw = np.random.default_rng(seed)
    states, actions, rewards, done = [], [], [], False
    while not done:
        states.append(state)
        action = int(draw.integers(world.space.act_dim)) if draw.random() < noise else expert(world)
        state, reward, done = world.step(action)
        actions.append(action)
        rewards.append(reward)
    return Trajectory(np.array(states), np.array(actions), np.array(rewards))
