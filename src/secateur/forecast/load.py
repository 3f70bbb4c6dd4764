"""The load of some examples, added up: passes, padded tokens, positions that are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from secateur.evaluation.batching import Batch, Packing, shards
from secateur.evaluation.workers import Limits
from secateur.session import Session
from secateur.tasks.joint import tested

CACHE_BYTES = Limits().cache_bytes


@dataclass(frozen=True)
class Load:
    """Sums over batches: `calls` of the model, padded `tokens`, `pairs` of a token and one that it may attend to,
    `kept` positions with logits. `shards` are what the activation cache holds at a time."""

    calls: int = 0
    tokens: int = 0
    pairs: int = 0
    kept: int = 0
    examples: int = 0
    shards: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(*(vars(self)[f.name] + vars(other)[f.name] for f in fields(self)))

    def repeated(self, times: int) -> Load:
        """Return the load of the same passes so many times, as of episodes in which every step is one."""
        calls, tokens, pairs, kept = (times * n for n in (self.calls, self.tokens, self.pairs, self.kept))
        return Load(calls, tokens, pairs, kept, self.examples, self.shards)


def load_of(batches: Sequence[Batch], examples: int, bidirectional: bool = False) -> Load:
    """Return the load of one shard; where attention is bidirectional each token attends to all."""
    shapes = [batch.tokens.shape for batch in batches]
    return Load(
        calls=len(batches),
        tokens=sum(rows * length for rows, length in shapes),
        pairs=sum(
            rows * (length**2 if bidirectional else length * (length + 1) // 2) for rows, length in shapes
        ),
        kept=sum(len(batch.keep) for batch in batches),
        examples=examples,
        shards=1,
    )


@dataclass(frozen=True, eq=False)
class OrderedExamples:
    """Examples of a session in the order in which a search takes them."""

    examples: Sequence[int]
    session: Session


@dataclass(frozen=True, eq=False)
class Loads:
    """The loads of every place, packed as the evaluator packs. `width`: bytes of one token's activations."""

    places: Mapping[str, OrderedExamples]
    packing: Packing
    width: int
    _known: dict[tuple[str, int, int, bool], Load] = field(default_factory=dict)

    def of(self, place: str, first: int, last: int, *, answers: bool = False) -> Load:
        """Examples `first` to `last` of a place; with `answers` each with its gold answer alone."""
        key = (place, first, last, answers)
        if key not in self._known:
            self._known[key] = self._packed(*key)
        return self._known[key]

    def _packed(self, place: str, first: int, last: int, answers: bool) -> Load:
        at = self.places[place]
        encoded, examples = at.session.encoded, at.examples[first:last]
        played = [episode.max_steps for e in examples if (episode := encoded[e].episode) is not None]
        encoded = {example: encoded[example].as_read for example in examples}
        if answers:
            encoded = {example: encoded[example].gold_alone for example in examples}
        cut = shards(examples, encoded, self.width, CACHE_BYTES)
        both_ways = at.session.loaded.anatomy.details.bidirectional
        once = sum(
            (load_of(self.packing.pack(encoded, shard), len(shard), both_ways) for shard in cut), Load()
        )
        return once.repeated(max(played, default=1))


def places_of(session: Session, sides: Mapping[str, Session]) -> dict[str, OrderedExamples]:
    """The splits in the order of the search, of `test` all that a verdict reads; and every side by its name."""
    found = {
        "probe": OrderedExamples(session.task.split("probe"), session),
        "test": OrderedExamples(tested(session.task), session),
        "select": OrderedExamples(session.shuffled("select"), session),
    }
    return found | {
        name: OrderedExamples(range(len(side.task.examples)), side) for name, side in sides.items()
    }
