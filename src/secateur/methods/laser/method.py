"""LASER as a method of `prune`: its options, and where its search and its report are. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option
from secateur.core.ranges import real, whole
from secateur.errors import SecateurError
from secateur.methods.laser.grid import PAPER_FRACTIONS, SMALL_RANKS
from secateur.methods.method import Method
from secateur.methods.options import GainConfig

if TYPE_CHECKING:
    from secateur.methods.method import Proposal
    from secateur.session import Session


def _small_ranks(flag: str, name: str) -> tuple[int, ...]:
    if name not in ("full", "paper"):
        raise SecateurError(f"{flag} {name!r}: write full or paper.")
    return () if name == "paper" else SMALL_RANKS


def _grid_word(ranks: Sequence[int]) -> str | None:
    """Return the word for ranks that have one; others can be given in Python alone."""
    return None if ranks else "paper"


@dataclass(frozen=True)
class LaserConfig(GainConfig):
    """The options of `--method laser`."""

    fractions: tuple[float, ...] = option(
        real(PAPER_FRACTIONS, 0, 1),
        "Ranks to try, as shares of the full rank.",
        python_only=True,
        typed=lambda _: None,
    )
    small_ranks: tuple[int, ...] = option(
        whole(SMALL_RANKS, 0),
        "Ranks to try: full, or paper (LASER's fractions without the small ranks).",
        "NAME",
        flags="--grid",
        read=_small_ranks,
        typed=_grid_word,
        default_text="full",
    )
    compose: bool = option(True, "Also compose several cuts greedily.", flags="--compose/--no-compose")


class Laser(Method):
    """Low-rank truncation of single matrices, and several composed."""

    name = "laser"
    summary = "low-rank truncation of single matrices, and several composed"
    Config = LaserConfig

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for matrices or layers that the model does not have."""
        from secateur.methods.laser.search import check

        check(session)

    def search(self, session: Session) -> Proposal:
        """Screen by gradients, race on `select`, compose."""
        from secateur.methods.laser.search import search

        return search(session)
