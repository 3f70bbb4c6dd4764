"""How a model is fine-tuned: what the user may choose, checked before anything is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from secateur.core.distributed import world
from secateur.core.ranges import check_ranges, real, whole
from secateur.core.site import check_matrix_words
from secateur.errors import TaskError, TrainingError, UnknownName, nearest
from secateur.options import Options

TRAINABLE = ("probe", "select")
ALL = ("all",)
OF_TASK = (
    "revision", "test_task", "seed", "split_seed", "limit", "shots", "seqlen", "chat", "allow_small", "skip_long",
    "dtype", "device", "max_tokens", "trust_remote_code",
)  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """AdamW with a linear schedule and gradients clipped at norm 1, as the Hugging Face Trainer has them by default.

    `warmup` is the share of the steps in which the rate rises; with `max_steps` there are that many steps, whatever
    `epochs` says. `bf16`: mixed precision. `lora`: instead of all parameters adapters of that rank for the matrices
    `lora_targets`, scaled by `lora_alpha` / `lora`; without `lora_alpha` by 2 (Biderman et al. 2024, arXiv 2405.09673).
    Raises: `TaskError` for the test split, `UnknownName` for no split, `TrainingError` for what means nothing."""

    split: tuple[str, ...] = ("probe",)
    epochs: int = whole(3)
    lr: float = real(5e-5, 0, above=True, such="5e-5")
    batch_size: int = whole(8)
    weight_decay: float = real(0.0)
    warmup: float = real(0.0, 0, 1, below=True, such="0.06, a share of the steps")
    max_steps: int | None = whole(None)
    bf16: bool = False
    lora: int | None = whole(None, such="8")
    lora_alpha: float | None = real(None, 0, above=True, such="twice the rank")
    lora_targets: tuple[str, ...] = ALL

    def __post_init__(self) -> None:
        for name in self.split or ("",):
            if name == "test":
                raise TaskError("test is for the one verdict and is never trained on: probe, select or both.")
            if name not in TRAINABLE:
                raise UnknownName(f"unknown split {name!r} to train on.{nearest(name, TRAINABLE)}")
        check_ranges(self, TrainingError)
        check_matrix_words(self.lora_targets)
        if self.lora is None and (self.lora_alpha is not None or self.lora_targets != ALL):
            raise TrainingError("--lora-alpha and --lora-targets say how adapters are: give --lora RANK too.")

    @property
    def chooses(self) -> bool:
        """Whether select is left to choose the best epoch by."""
        return "select" not in self.split

    @property
    def lora_scale(self) -> float:
        """α, which an adapter's rank divides."""
        assert self.lora is not None
        return 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha

    def told(self) -> dict[str, Any]:
        """As a command says it; without what is about adapters or several processes, where there are none."""
        plain = asdict(self) | {"split": ",".join(self.split), "lora_targets": ",".join(self.lora_targets)}
        kept = {name: value for name, value in plain.items() if self.lora or not name.startswith("lora")}
        return kept | ({"processes": world()} if world() > 1 else {})


def splits_of(given: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """`probe,select` or a sequence of names, each once, in the order of a task."""
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    known = [name for name in TRAINABLE if name in names]
    return (*known, *(name for name in names if name not in TRAINABLE))


def names_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """`o,down` or a sequence of names."""
    return tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else tuple(given)


def options_of(model: str, task: str, given: Mapping[str, Any]) -> Options:
    """The model and the task as `prune` opens them. Raises `UnknownName` for an option that only `prune` has."""
    for name in given:
        if name not in OF_TASK:
            raise UnknownName(f"finetune has no option {name!r}.{nearest(name, OF_TASK)}")
    return Options(model=model, task=task, **given)


def command_of(options: Options, tuning: Tuning) -> dict[str, Any]:
    """What identifies a fine-tuning: two with equal commands give the same checkpoint."""
    kept = {name: vars(options)[name] for name in OF_TASK if name not in Options.SPEED_ONLY}
    return {"finetune": options.model, "task": options.task} | kept | tuning.told()


NO_LORA = {"lora": None, "lora_alpha": None, "lora_targets": "all"}  # what a command does not say


def started(command: Mapping[str, Any]) -> list[str]:
    """`secateur`, or how several processes of it are."""
    several = ["torchrun", "--nproc-per-node", str(command.get("processes")), "-m", "secateur"]
    return several if "processes" in command else ["secateur"]


def command_line(command: Mapping[str, Any]) -> str:
    """`secateur finetune ...` as one would type it to get this again, without -o. What has its default is left out."""
    plain = command_of(Options(model="", task=""), Tuning()) | NO_LORA
    words = [*started(command), "finetune", command["finetune"], "--task", command["task"]]
    return typed(words, command, plain)


SAID = ("finetune", "heal", "train", "task", "processes")  # of a command, by the words before its options


def typed(words: Sequence[str], command: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """These words, and what `command` has otherwise than `plain`, as one would type them."""
    options = ((name, value) for name, value in command.items() if name not in SAID and value != plain[name])
    return shlex.join([*words, *(word for name, value in options for word in _option(name, value))])


def _option(name: str, value: Any) -> list[str]:
    """Numbers are typed with commas between them; text, which may have commas, each with the option's name."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    many = value if isinstance(value, list) else [value]
    if all(isinstance(one, int) for one in many):
        many = [",".join(map(str, many))]
    return [word for one in many for word in (flag, str(one))]


assert {f.name for f in fields(Options)} >= set(OF_TASK), "options of prune that finetune takes over"
