"""Options that several methods share, as parts of their configurations. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.core.config import ALL_MATRICES, Config, option, share, words_of
from secateur.core.ranges import LEAST_SHARE, real
from secateur.core.site import check_matrix_words
from secateur.errors import UnknownName


@dataclass(frozen=True)
class GainConfig(Config):
    """Options of methods that cut matrices to make the model better."""

    matrices: tuple[str, ...] = option(
        ALL_MATRICES,
        "Which matrices: q,k,v,o,gate,up,down, or attn, mlp, all; experts of a mixture; LASER's names too.",
        "NAMES",
        read=lambda flag, text: tuple(words_of(text)),
        typed=",".join,
        default_text="all",
    )
    exhaustive: bool = option(
        False, "Judge every candidate on all of select: no screening, no racing.", flags="--exhaustive"
    )
    keep_unproven: bool = option(
        False,
        "Take the best cut and write it even where neither select nor test shows a gain.",
        flags="--keep-unproven",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.matrices:
            raise UnknownName("--matrices names none: write such as q,k,v,o,gate,up,down, or attn, mlp, all.")
        check_matrix_words(self.matrices)


def max_loss_option(default: str = "0.02") -> float | None:
    """Return the field of `--max-loss`, whose help says what holds without it."""
    return option(
        real(None, such="0.02, in the metric's own unit"),
        "Lose at most M of the metric (share or nats) on select; also the margin of the verdict. "
        f"[default: {default}]",
        "M",
    )


@dataclass(frozen=True)
class BoundConfig(Config):
    """The option of methods that go as far as a bound on the loss allows."""

    max_loss: float | None = max_loss_option()


@dataclass(frozen=True)
class StepConfig(BoundConfig):
    """Options of methods that take parts out step by step."""

    target: float | None = option(
        real(None, LEAST_SHARE, 1, such="70%"),
        "Remove this share of the parts (heads, networks or directions), such as 70%.",
        "SHARE",
        read=share,
    )
    step: float = option(
        real(0.1, LEAST_SHARE, 1, such="10%"),
        "Share of them that is removed per step.",
        "SHARE",
        read=share,
        default_text="10%",
    )
    rescore: bool = option(
        True,
        "Rank what is left again after each step, or rank only once, as arXiv 2212.09095 and 2404.03147 do.",
        flags="--rescore/--ranks-once",
    )


def params_option() -> float | None:
    """Return the field of `--params`, which methods have that count parameters."""
    return option(
        real(None, 0, 1, above=True, below=True, such="0.6, the share of parameters to keep"),
        "Go on until this share of the parameters is left.",
        "SHARE",
        read=share,
    )
