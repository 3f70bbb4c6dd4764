"""Everything that `finetune`, `heal` and `train` can be told, checked before anything is loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from secateur.core.config import ALL_MATRICES, Named, option, options_of
from secateur.core.origin import Origin
from secateur.core.ranges import SEED, check_ranges, real, whole, whole_numbers
from secateur.core.site import check_matrix_words
from secateur.errors import TaskError, TrainingError, UnknownName, nearest
from secateur.hf.size import Size
from secateur.options import Options

TRAINABLE = ("probe", "select")
TASK_OPTIONS = (  # options of `prune` that say how a model and a task are opened
    "revision", "test_task", "seed", "split_seed", "limit", "shots", "seqlen", "chat", "join", "allow_small",
    "skip_long", "gguf_file", "dtype", "device", "max_tokens", "trust_remote_code",
)  # fmt: skip
STAGES = {"layers": ("layers",), "end": ("end",), "both": ("layers", "end")}
REGULARISERS = ("cosine", "mse")

assert {field.name for field in fields(Options)} >= set(TASK_OPTIONS), "each is an option of prune"


@dataclass(frozen=True)
class Tuning:
    """AdamW with a linear schedule and gradients clipped at norm 1, the defaults of the Hugging Face Trainer.

    Each field says what it is. `batch_size` is that of one process.

    Raises: `TaskError` for the test split, `UnknownName` for an unknown split or matrix, `TrainingError` for a number
    outside its range and for options of adapters without `lora`.

    Source: Biderman et al. 2024 (arXiv 2405.09673) for `lora_alpha` of twice the rank.
    """

    split: tuple[str, ...] = option(
        ("probe",),
        "What to learn: probe, select, or probe,select. Test is never trained on.",
        "NAMES",
        read=lambda flag, text: splits_of(text),
        default_text="probe",
    )
    epochs: int = option(whole(3), "How often every example is learned.", "N")
    lr: float = option(real(5e-5, 0, above=True, such="5e-5"), "Learning rate at its peak.", "RATE")
    batch_size: int = option(whole(8), "Examples per step.", "N")
    weight_decay: float = option(real(0.0), "AdamW's weight decay.", "RATE")
    warmup: float = option(
        real(0.0, 0, 1, below=True, such="0.06, a share of the steps"),
        "Share of the steps in which the rate rises, such as 0.06.",
        "SHARE",
    )
    max_steps: int | None = option(whole(None), "Exactly N steps, whatever --epochs says.", "N")
    bf16: bool = option(False, "Mixed precision: weights in float32, arithmetic in bfloat16.", flags="--bf16")
    lora: int | None = option(
        whole(None, such="8"),
        "Train low-rank adapters of this rank instead, and merge them (peft).",
        "RANK",
    )
    lora_alpha: float | None = option(
        real(None, 0, above=True, such="twice the rank"),
        "What adapters add is scaled by A/RANK; default 2 · RANK.",
        "A",
    )
    lora_targets: tuple[str, ...] = option(
        ALL_MATRICES,
        "Matrices that get adapters, such as q,v or o,down, attn, mlp.",
        "NAMES",
        read=lambda flag, text: names_of(text),
        default_text="all",
    )

    def __post_init__(self) -> None:
        for name in self.split or ("",):
            if name == "test":
                raise TaskError("test is for the one verdict and is never trained on: probe, select or both.")
            if name not in TRAINABLE:
                raise UnknownName(f"unknown split {name!r} to train on.{nearest(name, TRAINABLE)}")
        check_ranges(self, TrainingError)
        check_matrix_words(self.lora_targets)
        if self.lora is None and (self.lora_alpha is not None or self.lora_targets != ALL_MATRICES):
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

    Each field says what it is; in the stage `layers` what stands for removed blocks is trained, in `end` everything.
    Without `ledger`, the file that notes an opening of test, test is not opened.

    Raises: `UnknownName` for an unknown stage, `TrainingError` for a number outside its range or an empty `ledger`.
    """

    stage: str = option(
        "both",
        "layers (what stands for blocks, by the streams there), end (everything), or both in turn.",
        "NAME",
    )
    temperature: float = option(
        real(1.0, 0, above=True, such="1 or 2"), "end: of both models' probabilities.", "T"
    )
    hidden: float = option(real(1.0), "end: weight of the streams' error beside the divergence.", "WEIGHT")
    side: tuple[str, ...] = option(
        (), "A task to watch; may be repeated. Left out: plain English.", "TASK", repeated=True
    )
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


def steps_of(given: str | Sequence[int], flag: str = "--save-steps") -> tuple[int, ...]:
    """Return the numbers in `0,100,1000`, or in a sequence, each once and in order.

    Raises: `TrainingError` for text that is no numbers with commas between them.
    """
    numbers: Sequence[int] | None = () if isinstance(given, str) else given
    if isinstance(given, str):
        numbers = whole_numbers(names_of(given)) if given else []
        if numbers is None:
            raise TrainingError(f"{flag} {given!r}: write a number, or several such as 0,100,1000.")
    return tuple(sorted(set(numbers or ())))


@dataclass(frozen=True)
class Recipe:
    """Options that only `train` has.

    Args:
        text: The text file.
        tokenizer: A folder with a tokenizer.
        size: Shapes of the model.
        seqlen: Tokens per chunk of text.
        seed: Seed of the weights, of the order of chunks and of what is held out.

    The other fields say what they are.

    Raises: `UnknownName` for an unknown regulariser; `TrainingError` for a number outside its range, a step outside
    the run, and chunks longer than the model's context.
    """

    text: str
    tokenizer: str
    size: Size
    steps: int = option(whole(1000), "How many steps.", "N")
    save_steps: tuple[int, ...] = option(
        whole((), 0),
        "Checkpoints after so many steps too, as OUT/step-N; 0: untrained.",
        "N,...",
        read=lambda flag, text: steps_of(text, flag),
        default_text="",
    )
    regulariser: str = option(
        "none", "Pull the streams around a block together: cosine, mse, or none.", "NAME"
    )
    weight: float = option(real(0.5), "The regulariser's.", "WEIGHT")
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


def task_options(*left_out: str) -> Iterator[Named]:
    """Yield the options of model and task that the command line of a training has, without those `left_out`."""
    for named in options_of(Options):
        if named.name == "seed":
            told = "Seed of the order of examples and of dropout."
            yield replace(named, option=replace(named.option, help=told))
        elif named.name in TASK_OPTIONS and named.name not in left_out:
            yield named


def tuning_options(defaults: Tuning, *left_out: str) -> Iterator[Named]:
    """Yield the options of `Tuning` with a verb's own defaults, without those `left_out`."""
    for named in options_of(Tuning):
        if named.name not in left_out:
            yield replace(named, default=vars(defaults)[named.name])
