"""Options that every method of `secateur prune` has, and what of a model they name. Opens nothing; no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from secateur.core.config import Config, Named, check_options, option, options_of
from secateur.core.form import Form
from secateur.core.machine import Offloading, check_dtype, check_placement
from secateur.core.ranges import SEED, whole, whole_number
from secateur.core.score import METRICS
from secateur.core.site import Site, in_order, matrix_names
from secateur.errors import SecateurError, UnknownName
from secateur.hf.source import with_gguf
from secateur.tasks.questions import QuestionRules

if TYPE_CHECKING:
    from secateur.hf.anatomy import Anatomy
    from secateur.hf.load import Loaded


REPORTS = ("quick", "standard", "full")


def _layers(flag: str, text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    first, last = whole_number(low), whole_number(high)
    if first is None or (colon and last is None):
        raise SecateurError(
            f"{flag} {text!r}: write FROM:TO, half open, such as 2:4 for blocks 2 and 3; or one block, 2."
        )
    return first, first + 1 if last is None else last


def _tokens(flag: str, text: str) -> int:
    if text == "auto":
        return 0
    tokens = whole_number(text)
    if not tokens:
        raise SecateurError(f"{flag} {text!r}: write auto, or a number of tokens such as 2048.")
    return tokens


@dataclass(frozen=True)
class Options:
    """The model, the task, and the options of every method; `config` holds those of one method alone.

    `model` ends with the file that `gguf_file` names. What changes the result is in `command()`, what changes speed is
    not. `in_memory` is the model itself where it was handed over in Python; then `model` only names it.
    """

    model: str
    task: str
    method: str = "laser"
    more_tasks: tuple[str, ...] = ()
    config: Config = field(default_factory=Config)
    in_memory: Loaded | None = field(default=None, repr=False, compare=False)
    test_task: str | None = option(
        None, "Take the test split from here; probe and select from --task.", "TASK"
    )
    side: tuple[str, ...] = option(
        (), "Watch this task as a side effect; may be repeated.", "TASK", repeated=True
    )
    objective: str | None = option(
        None,
        f"Metric that chooses the plan and decides the verdict: {', '.join(METRICS)}.",
        "METRIC",
        choices=tuple(METRICS),
    )
    report: str = option(
        "standard",
        "How many comparisons the report measures beyond the search: quick, standard (a fifth of the search's time, or "
        "less), or full.",
        "NAME",
        choices=REPORTS,
    )
    layers: tuple[int, int] | None = option(
        whole(None, 0),
        "Which blocks, half open, from 0: 2:3 is block 2 alone.",
        "FROM:TO",
        read=_layers,
        typed=lambda layers: ":".join(map(str, layers)),
    )
    zeroed: bool = option(
        False, "Write zeros in the original's shapes: loads everywhere, saves nothing.", flags="--zeroed"
    )
    factorize: bool = option(
        False,
        "Store matrices of low rank as two factors, where that is smaller.",
        flags="--factorize",
    )
    seed: int = option(
        whole(0, 0, SEED), "Seed of the search's order and of resampling; never of the splits.", "N"
    )
    split_seed: int = option(whole(0, 0, SEED), "Seed of the splits into probe, select and test.", "N")
    limit: int | None = option(whole(None), "Use at most N examples.", "N")
    shots: int = option(
        whole(0, 0), "Put N solved examples of the calibration split before every prompt.", "N"
    )
    seqlen: int = option(whole(256, 2), "Tokens per chunk of text.", "N")
    join: str = option(
        "",
        "Put TEXT, such as a space, between a prompt and an answer of a file that nothing separates.",
        "TEXT",
    )
    extract: str = option(
        "",
        "Generate text and take the answer by this regular expression, or `number` for the last number.",
        "RULE",
    )
    max_new_tokens: int | None = option(
        whole(None), "With --extract: how much the model writes. [default: 256 tokens]", "N"
    )
    chat: bool = option(False, "Wrap prompts in the model's chat template.", flags="--chat")
    allow_small: bool = option(
        False,
        "Warn instead of refusing when a split has under 50 groups (examples that share a fact or text are one group).",
        flags="--allow-small",
    )
    skip_long: bool = option(
        False,
        "Leave out examples longer than the model's context, instead of refusing.",
        flags="--skip-long",
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub model.", "NAME")
    gguf_file: str | None = option(
        None,
        "Which .gguf file of MODEL, where that is a folder with several or a hub name.",
        "NAME",
        speed_only=True,  # it becomes a part of `model`
    )
    dtype: str = option(
        "auto", "auto (as stored), float32, bfloat16, float16 or float64; also what is written.", "NAME"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", "NAME", speed_only=True)
    device_map: str | None = option(
        None,
        "Spread the model by accelerate instead: auto, balanced, sequential, disk, or FILE.json.",
        "auto|FILE",
        speed_only=True,
    )
    offload_folder: str | None = option(
        None, "Allow --device-map to leave weights on disk; DIR holds converted ones.", "DIR", speed_only=True
    )
    max_memory: str | None = option(
        None,
        "What --device-map may fill: of memory, of GPU 0, ...",
        "cpu=SIZE,0=SIZE",
        speed_only=True,
    )
    spectra: str | None = option(
        None,
        "Keep decompositions of matrices in DIR, for this run and any other of the same weights.",
        "DIR",
        speed_only=True,
    )
    max_tokens: int = option(
        whole(0, 0, flag="--batch-size"),
        "Padded tokens per forward pass; auto halves when memory runs out.",
        "auto|TOKENS",
        flags="--batch-size",
        read=_tokens,
        default_text="auto",
        speed_only=True,
    )
    trust_remote_code: bool = option(
        False, "Run the code a checkpoint brings along.", flags="--trust-remote-code"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.model and self.gguf_file is not None:
            object.__setattr__(self, "model", with_gguf(self.model, self.gguf_file))
            object.__setattr__(self, "gguf_file", None)
        for name in ("spectra", "test_task", "revision"):
            if vars(self)[name] == "":
                raise SecateurError(f"--{name.replace('_', '-')} is empty: give it a value, or leave it out.")
        self.question_rules  # noqa: B018  raises for a broken pattern
        if "" in self.side:
            raise SecateurError("--side is empty: give it a task, or leave it out.")
        check_dtype(self.dtype)
        check_placement(self.device, self.device_map, self.offload_folder, self.max_memory)
        if self.layers is not None and not (len(self.layers) == 2 and self.layers[0] < self.layers[1]):
            shown = ":".join(map(str, self.layers))
            raise SecateurError(f"--layers {shown}: FROM:TO is half open, so 2:4 is blocks 2 and 3.")
        if self.more_tasks and self.test_task is not None:
            raise SecateurError(
                "--test-task is for one --task: with several it would not say whose test it is."
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise SecateurError(f"a --task is given twice: {', '.join(self.tasks)}. Each counts once.")
        self.config.check_beside(self)
        self.written_as  # noqa: B018  raises for two that exclude each other

    @property
    def full_report(self) -> bool:
        """Tell whether the report compares with everything that was not asked for."""
        return self.report == "full"

    @property
    def written_as(self) -> Form:
        """The shapes in which the cut is written."""
        return Form(self.zeroed, self.factorize or self.config.factorize, self.config.portable)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every --task."""
        return (self.task, *self.more_tasks)

    @property
    def question_rules(self) -> QuestionRules:
        """Return the rules by which questions of files are read."""
        return QuestionRules(self.join, self.extract, self.max_new_tokens)

    @property
    def named(self) -> str:
        """The model, with its revision."""
        return self.model if self.revision is None else f"{self.model}@{self.revision}"

    @property
    def offloading(self) -> Offloading:
        """The arguments of `load_model` for a model that is larger than a device."""
        return {
            "device_map": self.device_map,
            "offload_folder": self.offload_folder,
            "max_memory": self.max_memory,
        }

    def command(self) -> dict[str, Any]:
        """Return what identifies a run, as JSON: two runs with equal commands give the same checkpoint."""
        shown = {"model": self.model, "task": self.task, "more_tasks": self.more_tasks, "method": self.method}
        shown |= {one.name: value for one, value in self._given() if not one.option.speed_only}
        command: dict[str, Any] = json.loads(json.dumps(shown))
        return command

    def command_line(self) -> str:
        """Return `secateur prune ...` as one would type it to get this again, without -o and without defaults."""
        words = ["secateur", "prune", self.model, *(word for task in self.tasks for word in ("--task", task))]
        if self.method != "laser":
            words += ["--method", self.method]
        for one, value in self._given():
            if not one.option.speed_only and value != one.default:
                words += one.words(value)
        return shlex.join(words)

    def recipe(self, *, speed: bool = False) -> dict[str, object]:
        """Return the keys of a recipe that gives this again, without defaults.

        Args:
            speed: Also those that change how long it takes and not the result.
        """
        tasks: object = self.task if not self.more_tasks else list(self.tasks)
        keys: dict[str, object] = {"model": self.model, "task": tasks, "method": self.method}
        for one, value in self._given():
            if value is not None and value != one.default and (speed or not one.option.speed_only):
                keys[one.key] = one.entry(value)
        return keys

    def _given(self) -> Iterator[tuple[Named, Any]]:
        """Return every option, of all methods and of this one, with its value."""
        for holder in (self, self.config):
            for one in options_of(holder):
                yield one, vars(holder)[one.name]


SPEED_ONLY = frozenset(one.name for one in options_of(Options) if one.option.speed_only)


def layers_of(anatomy: Anatomy, options: Options) -> range:
    """Return the blocks asked for. Raises: `UnknownName` where the model has not all of them."""
    return block_range(options.layers, anatomy.num_blocks)


def block_range(layers: tuple[int, int] | None, count: int) -> range:
    """Return the blocks that `--layers` means in a model of `count` blocks, without it all. Raises: `UnknownName`."""
    low, high = layers or (0, count)
    if not 0 <= low < high <= count:
        raise UnknownName(
            f"layers {low}:{high} are not in this model: it has blocks 0 to {count - 1} (all of them: 0:{count})."
        )
    return range(low, high)


def matrices_of(anatomy: Anatomy, options: Options) -> list[Site]:
    """Return the matrices asked for, lowest block first. Raises: `UnknownName`."""
    sites, blocks = anatomy.every_matrix, layers_of(anatomy, options)
    available = in_order({site.name for site in sites})
    names = matrix_names(options.config.matrices, available)
    if not names:
        raise UnknownName(f"--matrices names none. This model has {', '.join(available)}, or all.")
    return sorted(site for site in sites if site.name in names and site.block in blocks)
