"""Everything that `finetune`, `heal` and `train` can be told, checked before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from secateur.core.origin import Origin
from secateur.core.ranges import SEED, check_ranges, real, whole
from secateur.core.site import check_matrix_words
from secateur.errors import TaskError, TrainingError, UnknownName, nearest
from secateur.hf.size import Size
from secateur.options import Options

TRAINABLE = ("probe", "select")
ALL = ("all",)
TASK_OPTIONS = (  # options of `prune` that say how a model and a task are opened
    "revision", "test_task", "seed", "split_seed", "limit", "shots", "seqlen", "chat", "allow_small", "skip_long",
    "dtype", "device", "max_tokens", "trust_remote_code",
)  # fmt: skip
STAGES = {"layers": ("layers",), "end": ("end",), "both": ("layers", "end")}
REGULARISERS = ("cosine", "mse")

assert {field.name for field in fields(Options)} >= set(TASK_OPTIONS), "each is an option of prune"


@dataclass(frozen=True)
class Tuning:
    """AdamW with a linear schedule and gradients clipped at norm 1, the defaults of the Hugging Face Trainer.

    Args:
        split: The splits to train on: probe, select or both.
        epochs: Passes over these splits.
        lr: Learning rate at its peak.
        batch_size: Examples per step of one process.
        weight_decay: AdamW's weight decay.
        warmup: Share of the steps in which the learning rate rises.
        max_steps: Exactly so many steps, whatever `epochs` is.
        bf16: Mixed precision: weights in float32, arithmetic in bfloat16.
        lora: Rank of adapters that are trained instead of all parameters; None: no adapters.
        lora_alpha: Adapters are scaled by `lora_alpha` / `lora`; None: by 2.
        lora_targets: Words for the matrices that get adapters.

    Raises: `TaskError` for the test split, `UnknownName` for an unknown split or matrix, `TrainingError` for a number
    outside its range and for options of adapters without `lora`.

    Source: Biderman et al. 2024 (arXiv 2405.09673) for `lora_alpha` of twice the rank.
    """

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
        """Return whether the best epoch is chosen by its loss on select, which then is not trained on."""
        return "select" not in self.split

    @property
    def lora_scale(self) -> float:
        """Return α; what an adapter adds is scaled by α / rank."""
        assert self.lora is not None
        return 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha


FINETUNE_DEFAULTS = Tuning()
HEAL_DEFAULTS = Tuning(lr=1e-4)
TRAIN_DEFAULTS = Tuning(("select",), epochs=1, lr=1e-3, batch_size=16, weight_decay=0.1, warmup=0.05)


@dataclass(frozen=True)
class Healing:
    """Options that only `heal` has.

    Args:
        stage: `layers` (what stands for removed blocks), `end` (all parameters) or `both`, one after the other.
        temperature: Temperature of both models' probabilities in the stage `end`.
        hidden: Weight of the error of the hidden states beside the divergence in the stage `end`.
        side: Tasks to watch.
        ledger: The file that notes an opening of test; None: test is not opened.

    Raises: `UnknownName` for an unknown stage, `TrainingError` for a number outside its range or an empty `ledger`.
    """

    stage: str = "both"
    temperature: float = real(1.0, 0, above=True, such="1 or 2")
    hidden: float = real(1.0)
    side: tuple[str, ...] = ()
    ledger: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UnknownName(f"unknown stage {self.stage!r}.{nearest(self.stage, STAGES)}")
        check_ranges(self, TrainingError)
        if self.ledger == "":
            raise TrainingError("--ledger is empty: give a file, or leave it out.")


def check_stage(healing: Healing, tuning: Tuning) -> None:
    """Raise `TrainingError` for adapters in a healing that has only the stage `layers`, which uses none."""
    if tuning.lora is not None and healing.stage == "layers":
        raise TrainingError(
            "--lora is for the stage end: what stands for blocks is always trained whole. Leave it out."
        )


class ModelLocation(TypedDict):
    """Arguments of `load_model` and `blank_model` that say which model is read, and in which precision."""

    name: str
    revision: str | None
    dtype: str


@dataclass(frozen=True)
class Teacher:
    """The model that a cut was made from.

    Args:
        origin: How the cut's plan.json names it.
        given: Where it is now, as the user says; None: where `origin` says.
    """

    origin: Origin
    given: str | None = None

    @property
    def name(self) -> str:
        """Return the folder, hub name or `builtin:NAME` of the model."""
        return self.origin.model if self.given is None else self.given

    @property
    def location(self) -> ModelLocation:
        """Return where the model is read from, in the precision in which it was cut."""
        revision = self.origin.revision if self.given is None else None
        return {"name": self.name, "revision": revision, "dtype": self.origin.dtype}


@dataclass(frozen=True)
class Recipe:
    """Options that only `train` has.

    Args:
        text: The text file.
        tokenizer: A folder with a tokenizer.
        size: Shapes of the model.
        steps: Optimizer steps.
        save_steps: Write a checkpoint after each of these steps; 0 is the untrained model.
        regulariser: `none`, `cosine` or `mse`.
        weight: Weight of the regulariser in the loss.
        seqlen: Tokens per chunk of text.
        seed: Seed of the weights, of the order of chunks and of what is held out.

    Raises: `UnknownName` for an unknown regulariser; `TrainingError` for a number outside its range, a step outside
    the run, and chunks longer than the model's context.
    """

    text: str
    tokenizer: str
    size: Size
    steps: int = whole(1000)
    save_steps: tuple[int, ...] = whole((), 0)
    regulariser: str = "none"
    weight: float = real(0.5)
    seqlen: int = whole(256, 2)
    seed: int = whole(0, 0, SEED)

    def __post_init__(self) -> None:
        known = ("none", *REGULARISERS)
        if self.regulariser not in known:
            raise UnknownName(f"unknown regulariser {self.regulariser!r}.{nearest(self.regulariser, known)}")
        check_ranges(self, TrainingError)
        for step in self.save_steps:
            if not 0 <= step <= self.steps:
                raise TrainingError(f"--save-steps {step}: from 0 to the last of the {self.steps} steps.")
        if self.seqlen > self.size.context:
            raise TrainingError(f"--seqlen {self.seqlen} is more than the --context of {self.size.context}.")


def splits_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in `probe,select` or in a sequence of names, each known one once, in the order of a task."""
    names = names_of(given)
    return (
        *(name for name in TRAINABLE if name in names),
        *(name for name in names if name not in TRAINABLE),
    )


def names_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in `o,down` or in a sequence of names."""
    return tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else tuple(given)


def task_options_of(model: str, task: str, given: Mapping[str, Any]) -> Options:
    """Return the options by which `prune` opens this model and this task.

    Raises: `UnknownName` for an option that only `prune` has.
    """
    for name in given:
        if name not in TASK_OPTIONS:
            raise UnknownName(f"finetune has no option {name!r}.{nearest(name, TASK_OPTIONS)}")
    return Options(model=model, task=task, **given)
