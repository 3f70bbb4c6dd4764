"""The only room that opens the `test` split, once for each verdict."""

from secateur.verify.alternatives import alternatives
from secateur.verify.verdict import decide
from secateur.verify.witness import Side, Witness, opening, paraphrase_task, witness

__all__ = ["Side", "Witness", "alternatives", "decide", "opening", "paraphrase_task", "witness"]
