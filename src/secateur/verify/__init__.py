"""The only room that opens the `test` split, once for each verdict."""

from secateur.verify.alternatives import alternatives
from secateur.verify.openings import look, record
from secateur.verify.sentence import sentence
from secateur.verify.verdict import decide
from secateur.verify.witness import Side, Witness, paraphrase_task, witness

__all__ = [
    "Side",
    "Witness",
    "alternatives",
    "decide",
    "look",
    "paraphrase_task",
    "record",
    "sentence",
    "witness",
]
