"""The work of a prune: plans to judge, passes to read by, greedy text. Plain values; counts only, no seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateur.core.site import Site
from secateur.evaluation.measurement import GENERATED_TOKENS
from secateur.methods.method import Reading
from secateur.session import Session
from secateur.tasks.joint import tested

CONTINUED = 32  # chunks of text that the verdict continues
CHORES = (
    "behavior",
    "sides read",
    "reload",
    "report",
    "statistics",
)  # named readings that take time and no task


@dataclass(frozen=True)
class Plans:
    """`count` plans that write the same matrices, each at mean `rank`; without matrices they stand blocks aside.
    Below `block`, the lowest that is touched, nothing runs."""

    count: float
    block: int
    edited: tuple[Site, ...] = ()
    rank: float = 0.0


@dataclass(frozen=True)
class Judged:
    """Plans judged on the examples from `first` to `last` of a place: a split, or a side task."""

    stage: str
    place: str
    first: int
    last: int
    plans: tuple[Plans, ...]
    decomposes: bool = False  # truncations and directions need the spectra of what they write

    @property
    def evaluations(self) -> float:
        """The number of plans times examples."""
        return (self.last - self.first) * sum(plans.count for plans in self.plans)


@dataclass(frozen=True)
class Read:
    """A reading in a stage of the search, or one of `CHORES`."""

    stage: str
    reading: Reading

    @property
    def what(self) -> str:
        """The name of the reading."""
        return self.reading.what


@dataclass(frozen=True)
class Generated:
    """Greedy text: `rows` prompts side by side, `tokens` each, under `plans` plans."""

    stage: str
    rows: int
    tokens: int
    plans: float


Work = Judged | Read | Generated


@dataclass(frozen=True)
class SideWork:
    """A side task as the verdict measures it: its place, its examples, and whether text is continued."""

    name: str
    examples: int
    continued: bool


def empty(count: float = 1.0) -> Plans:
    """Return the model as it is, as so many plans."""
    return Plans(count, 0)


def proof(session: Session, sides: Sequence[SideWork]) -> Iterator[Work]:
    """Yield the work of the verdict: both models on `test` and on each side, and what is to be had without a cut."""
    n, kind = len(tested(session.task)), session.task.kind
    alternative = 0 if kind == "text" else 1  # one token banned, or a bias per answer
    yield Judged("verify", "test", 0, n, (empty(2 + alternative),))
    for what in ("reload", "report", "sides read"):
        yield Read("verify", Reading(what, "test", n, ()))
    yield Read("verify", Reading("statistics", "test", n, (), times=3 + len(sides)))
    for side in sides:
        yield Judged("sides", side.name, 0, side.examples, (empty(2),))
        if side.continued:
            yield Generated("sides", min(CONTINUED, side.examples), GENERATED_TOKENS, 2)
