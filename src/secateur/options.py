"""Everything that `secateur prune` can be told, and what of a model it names. Opens nothing, and imports no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.core.form import Form
from secateur.core.machine import check_dtype, check_placement
from secateur.core.ranges import SEED, check_ranges, real, whole, whole_number
from secateur.core.score import METRICS
from secateur.core.site import Site, check_matrix_words, matrix_names
from secateur.errors import SecateurError, TaskError, UnknownName, nearest
from secateur.methods.depth.runs import BY, FORMS
from secateur.search.race import PAPER_FRACTIONS, SMALL_RANKS
from secateur.search.removal import SMALLEST

if TYPE_CHECKING:
    from secateur.hf.anatomy import Anatomy

METHODS = ("laser", "directions", "depth", "heads", "ffns", "components")
REMOVING = ("heads", "ffns", "components")
PROTOCOLS = ("search", "removal", "threshold", "paper")


@dataclass(frozen=True)
class Options:
    """Everything `secateur prune` can be told. What changes the result is in `command()`, what changes speed is not."""

    model: str
    task: str
    method: str = "laser"
    revision: str | None = None
    test_task: str | None = None
    side: tuple[str, ...] = ()
    more_tasks: tuple[str, ...] = ()
    objective: str | None = None
    matrices: tuple[str, ...] = ("all",)
    layers: tuple[int, int] | None = whole(None, 0)
    fractions: tuple[float, ...] = real(PAPER_FRACTIONS, 0, 1)
    small_ranks: tuple[int, ...] = whole(SMALL_RANKS, 0)
    exhaustive: bool = False
    compose: bool = True
    target: float | None = real(None, SMALLEST, 1, such="70%")
    max_loss: float | None = real(None, such="0.02, in the metric's own unit")
    params: float | None = real(
        None, 0, 1, above=True, below=True, such="0.6, the share of parameters to keep"
    )
    step: float = real(0.1, SMALLEST, 1, such="10%")
    rescore: bool = True
    random_orders: int = whole(3, 0, 1000)
    portable: bool = False
    protocol: str | None = None
    per_head: bool = False
    overall: bool = False
    dynamic: bool = True
    weakest: bool | None = None
    second_order: bool = False
    whitened: bool = False
    blocks: int | None = whole(None)
    by: str = "loss"
    form: str = "fold"
    contiguous: bool = False
    rank: int | None = whole(None)
    zeroed: bool = False
    factorize: bool = False
    keep_unproven: bool = False
    seed: int = whole(0, 0, SEED)
    split_seed: int = whole(0, 0, SEED)
    limit: int | None = whole(None)
    shots: int = whole(0, 0)
    seqlen: int = whole(256, 2)
    chat: bool = False
    allow_small: bool = False
    skip_long: bool = False
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    offload_folder: str | None = None
    max_memory: str | None = None
    spectra: str | None = None
    max_tokens: int = whole(0, 0, flag="--batch-size")
    trust_remote_code: bool = False

    SPEED_ONLY: ClassVar[tuple[str, ...]] = (
        "device",
        "device_map",
        "offload_folder",
        "max_memory",
        "spectra",
        "max_tokens",
    )
    LISTENERS: ClassVar[Mapping[str, tuple[str, ...]]] = {  # which methods an option is for, if not for all
        **dict.fromkeys(("fractions", "small_ranks", "compose"), ("laser",)),
        **dict.fromkeys(("matrices", "exhaustive", "keep_unproven"), ("laser", "directions")),
        **dict.fromkeys(("target", "step", "rescore"), ("directions", *REMOVING)),
        "max_loss": ("directions", "depth", *REMOVING),
        **dict.fromkeys(("params", "random_orders", "portable"), REMOVING),
        **dict.fromkeys(("protocol", "overall", "dynamic", "weakest"), ("directions",)),
        **dict.fromkeys(("per_head", "second_order", "whitened"), ("directions",)),
        **dict.fromkeys(("blocks", "by", "form", "contiguous", "rank"), ("depth",)),
    }

    PROTOCOL_LISTENERS: ClassVar[Mapping[str, tuple[str, ...]]] = {  # of method directions, if not all
        **dict.fromkeys(("max_loss", "step"), ("removal",)),
        "target": ("removal", "paper"),
        "overall": ("paper",),
        "weakest": ("removal", "threshold", "paper"),
        "rescore": ("search", "removal"),
        **dict.fromkeys(("exhaustive", "dynamic"), ("search",)),
    }

    @classmethod
    def of(cls, model: str, *tasks: str, **given: Any) -> Options:
        """Options from values as they are typed, in Python as on the command line: `matrices="q,v"` or a list,
        `layers="1:3"`, `target="70%"`. Raises `SecateurError` for text that cannot be read so."""
        if not tasks:
            raise TaskError("no task is given; name one, such as questions.jsonl.")
        values = {name: _value(name, value) for name, value in given.items()}
        return cls(model=model, task=tasks[0], more_tasks=tasks[1:], **values)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownName(f"unknown method {self.method!r}.{nearest(self.method, METHODS)}")
        if self.objective is not None and self.objective not in METRICS:
            raise UnknownName(f"unknown objective {self.objective!r}.{nearest(self.objective, METRICS)}")
        self._check_words()
        check_ranges(self)
        if self.layers is not None and not (len(self.layers) == 2 and self.layers[0] < self.layers[1]):
            shown = ":".join(map(str, self.layers))
            raise SecateurError(f"--layers {shown}: FROM:TO is half open, so 2:4 is blocks 2 and 3.")
        if self.more_tasks and self.test_task is not None:
            raise SecateurError(
                "--test-task is for one --task: with several it would not say whose test it is."
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise SecateurError(f"a --task is given twice: {', '.join(self.tasks)}. Each counts once.")
        self._refuse_foreign()
        self._check_form()

    def _check_words(self) -> None:
        """Raises `UnknownName`, and `SecateurError` for words that are empty or contradict each other."""
        for name, value, known in (("by", self.by, BY), ("form", self.form, FORMS)):
            if value not in known:
                raise UnknownName(f"unknown --{name} {value!r}.{nearest(value, known)}")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise UnknownName(f"unknown protocol {self.protocol!r}; it is one of {', '.join(PROTOCOLS)}.")
        for name in ("spectra", "test_task", "revision"):
            if vars(self)[name] == "":
                raise SecateurError(f"--{name.replace('_', '-')} is empty: give it a value, or leave it out.")
        if "" in self.side:
            raise SecateurError("--side is empty: give it a task, or leave it out.")
        if not self.matrices:
            raise UnknownName("--matrices names none: write such as q,k,v,o,gate,up,down, or attn, mlp, all.")
        check_matrix_words(self.matrices)
        check_dtype(self.dtype)
        check_placement(self.device, self.device_map, self.offload_folder, self.max_memory)

    @property
    def written_as(self) -> Form:
        """Returns the shapes in which the cut is written. Raises `SecateurError` for two that exclude each other."""
        return Form(self.zeroed, self.factorize, self.portable)

    def _check_form(self) -> None:
        self.written_as  # noqa: B018  raises where two forms are asked for
        if self.zeroed and self.method == "depth":
            raise SecateurError(
                "--zeroed keeps the original's shapes, and a block is more than its weights, so --method depth cannot "
                "leave zeros in its place. Leave it out."
            )
        if self.rank is not None and self.form != "linear":
            raise SecateurError(f"--rank {self.rank} is for --form linear. Leave it out, or give that form.")

    @property
    def chosen_protocol(self) -> str:
        """Of method directions: the one asked for; else removal where a bound is set, and search where none is."""
        if self.protocol is not None:
            return self.protocol
        return "search" if self.target is None and self.max_loss is None else "removal"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every --task."""
        return (self.task, *self.more_tasks)

    @property
    def named(self) -> str:
        """The model, with its revision."""
        return self.model if self.revision is None else f"{self.model}@{self.revision}"

    def _refuse_foreign(self) -> None:
        """Raises `SecateurError` for an option of another method or protocol, which would have no effect."""
        for f in fields(self):
            if vars(self)[f.name] == f.default:
                continue
            listeners = self.LISTENERS.get(f.name, METHODS)
            typed = " ".join(_as_typed(f.name, vars(self)[f.name])) or f.name
            if self.method not in listeners:
                raise SecateurError(
                    f"{typed} is not for --method {self.method}, but for {_either(listeners)}."
                )
            protocols = self.PROTOCOL_LISTENERS.get(f.name, PROTOCOLS)
            if self.method == "directions" and self.chosen_protocol not in protocols:
                flag = typed.split()[0]
                raise SecateurError(
                    f"{flag} is for --protocol {' and '.join(protocols)}, not {self.chosen_protocol}."
                )

    def command(self) -> dict[str, Any]:
        """What identifies a run: two runs with equal commands give the same checkpoint."""
        shown = {name: value for name, value in self._given().items() if name not in self.SPEED_ONLY}
        return json.loads(json.dumps(shown))

    def command_line(self) -> str:
        """`secateur prune ...` as one would type it to get this again, without -o. What has its default is left out."""
        defaults = {f.name: f.default for f in fields(self)}
        words = ["secateur", "prune", self.model, *(word for task in self.tasks for word in ("--task", task))]
        for name, value in self._given().items():
            if name not in ("model", "task", "more_tasks", *self.SPEED_ONLY) and value != defaults[name]:
                words += _as_typed(name, value)
        return shlex.join(words)

    @property
    def offloading(self) -> dict[str, str | None]:
        """What `load_model` is told of a model that is larger than a device."""
        return {name: vars(self)[name] for name in ("device_map", "offload_folder", "max_memory")}

    def _given(self) -> Mapping[str, Any]:
        return {f.name: vars(self)[f.name] for f in fields(self)}


def _value(name: str, value: Any) -> Any:
    """Reads a text where the option holds no text; makes lists tuples, and leaves other values as they are."""
    if isinstance(value, str) and name == "matrices":
        return tuple(words_of(value))
    if isinstance(value, str) and name == "side":
        return (value,)
    if isinstance(value, str) and name == "layers":
        return _layers(value)
    if isinstance(value, str) and name in ("target", "step", "params"):
        return _share(name, value)
    return tuple(value) if isinstance(value, list) else value


def words_of(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _layers(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    first, last = whole_number(low), whole_number(high)
    if first is None or (colon and last is None):
        raise SecateurError(
            f"--layers {text!r}: write FROM:TO, half open, such as 2:4 for blocks 2 and 3; or one block, 2."
        )
    return first, first + 1 if last is None else last


def _share(name: str, text: str) -> float:
    """`70%` or `0.7`."""
    digits = text.removesuffix("%")
    try:
        return float(digits) / 100 if text.endswith("%") else float(digits)
    except ValueError:
        raise SecateurError(f"--{name} {text!r}: write a share, such as 70% or 0.7.") from None


def _either(names: Sequence[str]) -> str:
    """`heads, ffns or components`."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _as_typed(name: str, value: Any) -> list[str]:
    """One option of `command_line`. Of grids, only the paper's has a word; others are Python's alone."""
    flag = "--" + name.replace("_", "-")
    if name in ("fractions", "small_ranks"):
        return ["--grid", "paper"] if (name, value) == ("small_ranks", ()) else []
    if name == "rescore":
        return ["--ranks-once"]
    if name == "weakest":
        return ["--weakest" if value else "--signed"]
    if isinstance(value, bool):
        return [flag] if value else ["--no-" + name]
    if name == "side":
        return [word for task in value for word in (flag, task)]
    joined = {"matrices": ",", "layers": ":"}.get(name)
    return [flag, joined.join(map(str, value)) if joined else str(value)]


def layers_of(anatomy: Anatomy, options: Options) -> range:
    """The blocks asked for. Raises `UnknownName` where the model has not all of them."""
    low, high = options.layers or (0, anatomy.num_blocks)
    if not 0 <= low < high <= anatomy.num_blocks:
        raise UnknownName(
            f"layers {low}:{high} are not in this model: it has blocks 0 to {anatomy.num_blocks - 1} (all of them: "
            f"0:{anatomy.num_blocks})."
        )
    return range(low, high)


def matrices_of(anatomy: Anatomy, options: Options) -> list[Site]:
    """The matrices asked for, lowest block first. Raises `UnknownName`."""
    names, blocks = matrix_names(options.matrices, anatomy.matrix_kinds), layers_of(anatomy, options)
    if not names:
        raise UnknownName(f"--matrices names none. This model has {', '.join(anatomy.matrix_kinds)}, or all.")
    return sorted(site for site in anatomy.matrices if site.part in names and site.block in blocks)
