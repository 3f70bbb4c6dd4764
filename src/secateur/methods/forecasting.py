"""Describe a search to a forecast: how it decides, and what each of its readings costs. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from secateur.core.site import Site

CASES = ("least", "expected", "most")  # that a search can ask at the least, asked so far, can ask at the most


@dataclass(frozen=True)
class Habits:
    """The decisions of a search where a forecast draws the outcomes.

    Args:
        surviving: Share of a race's runners that stay after each round, as expected.
        gains: By case, how often something is found that betters what was there.
        droppable: By case, the share of the blocks that can go before the loss breaks its bound.
    """

    surviving: float = 0.55
    gains: Mapping[str, float] = field(default_factory=lambda: {"least": 0, "expected": 1, "most": math.inf})
    droppable: Mapping[str, float] = field(default_factory=lambda: {"least": 0, "expected": 0.5, "most": 1})


@dataclass(frozen=True)
class ReadingCost:
    """One reading of a model, as a forecast counts it.

    Args:
        what: Its name, by which its cost is known.
        place: The split that it reads.
        examples: The number of examples of that split.
        parts: The sites that it reads.
        times: The number of times that it is made.
        passes: Passes of the whole model for each batch: forward 1, backward to activations 1.
        blocks: Passes of the block of each part, for each batch.
        decomposes: Whether it needs the decompositions of its parts.
        under_plan: Whether a plan is carried out meanwhile, which decomposes the parts once more.
        not_cached: Whether its decompositions are of a kind that is never kept.
        spectra_bytes: Bytes of spectra that it holds at once; 0: as many as the evaluator.
        choices: Whether all choices of an example run, rather than its gold answer alone.
        fits: Whether moments of pairs of vectors are summed.
        scan_tokens: Tokens, at most, of an extra forward pass that is made first.
    """

    what: str
    place: str
    examples: int
    parts: tuple[Site, ...]
    times: float = 1.0
    passes: float = 0.0
    blocks: float = 0.0
    decomposes: bool = False
    under_plan: bool = False
    not_cached: bool = False
    spectra_bytes: int = 0
    choices: bool = False
    fits: bool = False
    scan_tokens: int = 0


class DryRun(Protocol):
    """A run of a search that is only counted: its session judges by drawn outcomes, readings are noted."""

    case: str  # one of `CASES`

    def draw(self) -> float:
        """Return the next of a fixed sequence of numbers that fill 0 to 1 evenly."""

    def read(self, reading: ReadingCost) -> None:
        """Note a reading."""

    def generated(self, rows: int, tokens: int, plans: float) -> None:
        """Note greedy text: `rows` prompts side by side, `tokens` each, under so many plans."""
