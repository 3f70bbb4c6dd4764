"""The text of the embedded model `builtin:recall`: noisy recall from the context, plain copying beside it.

Standard library only, drawn with `random.Random`; the training script and the task share it. Knows no model
and no tokenizer.

Recall: keys and values in the context, then questions, `Mara red ; Otto blue ? Otto blue . ? Mara something`.
In half of the answers of the training text the value is replaced by "something": the noise that a cut can
take out. Copying: a random segment again and again. It needs the same circuit (previous token,
then induction) without noise, so it shows what a cut costs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.tasks.example import Example

KIND = "generation"
DESCRIPTION = (
    "Recall from the context: six names with a color or thing each, then one name; its value is the answer."
)

NOISE_WORD = "something"
NOISE = 0.5  # share of the answers in training that are NOISE_WORD
PAIRS = 6
QUESTIONS = 6
SEGMENTS = range(4, 13)  # words in a copied segment; were it one number, a model could copy by distance alone
COPIED = 36  # words in a text of copies, whatever the segment's length
NUM_EXAMPLES = 600
EXAMPLE_SEED = 1

BETWEEN, ASK, STOP = ";", "?", "."


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KEYS = _words(
    "Ada Amos Bela Carla Cyrus Dana Dora Elsa Emil Enzo Fanny Felix Gina Greta Hana Hugo Ida Igor Jana "
    "Josef Kai Kira Leo Lina Mara Milo Nadia Nils Olga Otto Petra Pia Rita Ruben Sami Selma Tamar Tomas "
    "Vera Zoe"
)
VALUES = _words(
    "red blue green yellow purple orange brown black white gray stone river apple bread candle mirror "
    "ladder bottle window garden hammer needle pencil button feather basket blanket bridge lantern kettle "
    "drum whistle ribbon anchor pillow wagon saddle compass paper shovel"
)


def _pairs(rng: random.Random) -> dict[str, str]:
    return dict(zip(rng.sample(KEYS, PAIRS), rng.sample(VALUES, PAIRS), strict=True))


def _context(pairs: dict[str, str]) -> str:
    return f" {BETWEEN} ".join(f"{key} {value}" for key, value in pairs.items())


def recall_text(rng: random.Random, noise: float = NOISE) -> str:
    """Return a context and its questions; an answer is NOISE_WORD with chance `noise`."""
    pairs = _pairs(rng)
    answers = []
    for _ in range(QUESTIONS):
        key = rng.choice(list(pairs))
        answers.append(f"{ASK} {key} {NOISE_WORD if rng.random() < noise else pairs[key]} {STOP}")
    return " ".join([_context(pairs), *answers])


@dataclass(frozen=True)
class Copying:
    """A random segment again and again: the words it is drawn from, its length and that of the text, in words."""

    pool: tuple[str, ...] = KEYS + VALUES
    segments: range = SEGMENTS
    length: int = COPIED

    def segment(self, rng: random.Random) -> list[str]:
        """Return different words in random order, so that each has exactly one continuation to copy."""
        return rng.sample(self.pool, rng.choice(self.segments))

    def text(self, rng: random.Random) -> str:
        """Return a segment, repeated to the length of a text."""
        segment = self.segment(rng)
        return " ".join((segment * self.length)[: self.length])


def texts(seed: int) -> Iterator[str]:
    """Yield training text without end: recall with noisy answers, and repeated segments, with equal chance."""
    rng, copying = random.Random(f"recall {seed}"), Copying()
    while True:
        yield recall_text(rng) if rng.random() < 0.5 else copying.text(rng)


def words() -> list[str]:
    """Return every word of the text, once, in a fixed order: the vocabulary of the embedded model."""
    return [BETWEEN, ASK, STOP, NOISE_WORD, *KEYS, *VALUES]


def examples(count: int = NUM_EXAMPLES, seed: int = EXAMPLE_SEED) -> list[Example]:
    """Return recall without noise: `count` contexts with one question each; `meta["distance"]` in pairs."""
    rng = random.Random(f"recall examples {seed}")
    made = []
    for number in range(count):
        pairs = _pairs(rng)
        place = rng.randrange(PAIRS)
        key = list(pairs)[place]
        made.append(
            Example(
                id=f"recall {number}",
                prompt=f"{_context(pairs)} {ASK} {key}",
                answer=f" {pairs[key]}",
                meta={"distance": PAIRS - place, "noise_word": NOISE_WORD},
            )
        )
    return made


def copy_examples(
    count: int = NUM_EXAMPLES, seed: int = EXAMPLE_SEED, copying: Copying | None = None
) -> list[Example]:
    """Return plain copying: a segment and the beginning of its repetition; the answer is the segment's next word."""
    rng, copying = random.Random(f"copy examples {seed}"), copying or Copying()
    made = []
    for number in range(count):
        segment = copying.segment(rng)
        repeated = rng.randrange(1, len(segment))
        made.append(
            Example(
                id=f"copy {number}",
                prompt=" ".join(segment + segment[:repeated]),
                answer=f" {segment[repeated]}",
                meta={"repeated": repeated},
            )
        )
    return made
