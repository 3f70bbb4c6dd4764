"""Everything that `secateur prune` can be told, and what of a model it names. Opens nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from secateur.core.score import METRICS
from secateur.core.site import Site, matrix_names
from secateur.errors import SecateurError, UnknownName, nearest
from secateur.hf.anatomy import Anatomy
from secateur.search.laser import PAPER_FRACTIONS, SMALL_RANKS

METHODS = ("laser", "directions", "depth", "heads", "ffns", "components")
REMOVING = ("heads", "ffns", "components")


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
    layers: tuple[int, int] | None = None
    fractions: tuple[float, ...] = PAPER_FRACTIONS
    small_ranks: tuple[int, ...] = SMALL_RANKS
    exhaustive: bool = False
    compose: bool = True
    target: float | None = None
    max_loss: float | None = None
    params: float | None = None
    step: float = 0.1
    rescore: bool = True
    random_orders: int = 3
    portable: bool = False
    protocol: str | None = None
    per_head: bool = False
    overall: bool = False
    dynamic: bool = True
    weakest: bool | None = None
    second_order: bool = False
    whitened: bool = False
    blocks: int | None = None
    by: str = "loss"
    form: str = "fold"
    contiguous: bool = False
    rank: int | None = None
    zeroed: bool = False
    factorize: bool = False
    keep_unproven: bool = False
    seed: int = 0
    split_seed: int = 0
    limit: int | None = None
    shots: int = 0
    seqlen: int = 256
    chat: bool = False
    allow_small: bool = False
    skip_long: bool = False
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    offload_folder: str | None = None
    max_memory: str | None = None
    spectra: str | None = None
    max_tokens: int = 0
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

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownName(f"unknown method {self.method!r}.{nearest(self.method, METHODS)}")
        if self.objective is not None and self.objective not in METRICS:
            raise UnknownName(f"unknown objective {self.objective!r}.{nearest(self.objective, METRICS)}")
        if self.spectra == "":
            raise SecateurError("--spectra is empty: give a folder, or leave it out.")
        if self.more_tasks and self.test_task is not None:
            raise SecateurError(
                "--test-task is for one --task: with several it would not say whose test it is."
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise SecateurError(f"a --task is given twice: {', '.join(self.tasks)}. Each counts once.")
        self._refuse_foreign()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every --task."""
        return (self.task, *self.more_tasks)

    def _refuse_foreign(self) -> None:
        """What another method would listen to must not be without effect and without a word."""
        for f in fields(self):
            listeners = self.LISTENERS.get(f.name, METHODS)
            if self.method not in listeners and vars(self)[f.name] != f.default:
                typed = " ".join(_as_typed(f.name, vars(self)[f.name])) or f.name
                raise SecateurError(
                    f"{typed} is not for --method {self.method}, but for {_either(listeners)}."
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
