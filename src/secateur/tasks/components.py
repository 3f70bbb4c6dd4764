"""The text of the embedded model `builtin:components`: facts, recall from the context and copying, all without noise.

Standard library only, drawn with `random.Random`; the training script and the task share it. Knows no model
and no tokenizer.

The model has more attention heads than its task needs. Recall and copying live in attention; most of the facts
has to be stored elsewhere. So a cut of heads that looks at recall only keeps recall and copying and loses facts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from secateur.tasks import facts, recall
from secateur.tasks.example import Example

KIND = recall.KIND
DESCRIPTION = (
    "The questions of builtin:recall, for a model that learned recall without noise, with heads to spare."
)

# Shares of facts, recall and copying in the text. Copying first: it is what teaches a model to look back.
EARLY, LATE = (0.1, 0.3, 0.6), (0.75, 0.15, 0.1)
EARLY_TEXTS = 400 * 64  # steps x sequences
COPYING = recall.Copying()


def words() -> list[str]:
    """Return every word of the text, once, in a fixed order: the vocabulary of the embedded model."""
    return list(dict.fromkeys([*facts.words(), *recall.words()]))


def texts(seed: int) -> Iterator[str]:
    """Yield training text without end: EARLY_TEXTS texts of the EARLY mixture, then LATE."""
    rng = random.Random(f"components {seed}")
    statements = facts.texts(seed, noise=0)
    for number in count():
        (kind,) = rng.choices(("facts", "recall", "copying"), EARLY if number < EARLY_TEXTS else LATE)
        if kind == "facts":
            yield next(statements)
        elif kind == "recall":
            yield recall.recall_text(rng, noise=0)
        else:
            yield COPYING.text(rng)


def examples() -> list[Example]:
    """Return the questions of `builtin:recall`."""
    return recall.examples()
