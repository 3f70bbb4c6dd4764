"""Removal of singular directions as a method of `prune`: its options, and where its search is. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.core.config import option, options_of
from secateur.errors import SecateurError, UnknownName
from secateur.methods.method import Method
from secateur.methods.options import GainConfig, StepConfig

if TYPE_CHECKING:
    from secateur.methods.method import Proposal
    from secateur.session import Session

PROTOCOLS = ("search", "removal", "threshold", "paper")
LISTENING = {  # the protocols that an option is for, if not for all
    "max_loss": ("removal",),
    "step": ("removal",),
    "target": ("removal", "paper"),
    "overall": ("paper",),
    "weakest": ("removal", "threshold", "paper"),
    "rescore": ("search", "removal"),
    "exhaustive": ("search",),
    "dynamic": ("search",),
}


@dataclass(frozen=True)
class DirectionsConfig(GainConfig, StepConfig):
    """The options of `--method directions`."""

    protocol: str | None = option(
        None,
        "search (what helps most, by true evaluations), removal (as many as --max-loss allows), threshold (as many as "
        "the prediction allows), paper (a fixed --target of each matrix, 10% by default). "
        "[default: search, or removal with --max-loss or --target]",
        "NAME",
    )
    per_head: bool = option(
        False, "Each head's rows (of o: columns) have their own directions.", flags="--per-head"
    )
    overall: bool = option(
        False, "Protocol paper: the share of all in one list, not of each matrix.", flags="--overall"
    )
    dynamic: bool = option(
        True,
        "Also choose which kinds of matrices and which matrices, not only how many directions.",
        flags="--dynamic/--no-dynamic",
    )
    weakest: bool | None = option(
        None,
        "Those with the least effect go first, or those that hurt most. [default: signed; protocol removal: weakest]",
        flags="--weakest/--signed",
    )
    second_order: bool = option(False, "Add the Fisher term to the predicted change.", flags="--second-order")
    whitened: bool = option(
        False, "Directions of W C^½, C the second moment of what W reads.", flags="--whitened"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise UnknownName(f"unknown protocol {self.protocol!r}; it is one of {', '.join(PROTOCOLS)}.")
        for one in options_of(self):
            protocols = LISTENING.get(one.name, PROTOCOLS)
            value = vars(self)[one.name]
            if value != one.default and self.chosen_protocol not in protocols:
                flag = one.words(value)[0]
                raise SecateurError(
                    f"{flag} is for --protocol {' and '.join(protocols)}, not {self.chosen_protocol}."
                )

    @property
    def chosen_protocol(self) -> str:
        """The protocol asked for; else `removal` where a bound is set, and `search` where none is."""
        if self.protocol is not None:
            return self.protocol
        return "search" if self.target is None and self.max_loss is None else "removal"


class RemoveSingularDirections(Method):
    """Singular directions that hurt are removed, their mean effect is folded into biases."""

    name = "directions"
    summary = "singular directions that hurt, folded into biases"
    Config = DirectionsConfig

    def check(self, session: Session) -> None:
        """Raise `UnknownName` for matrices and layers, `SecateurError` where zeros cannot stand for directions."""
        from secateur.methods.directions.search import check

        check(session)

    def search(self, session: Session) -> Proposal:
        """Read effects on `probe`, choose directions and their number on `select`."""
        from secateur.methods.directions.search import search

        return search(session)
