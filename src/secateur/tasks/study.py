"""The tasks of the study of OPT-66B by name, and which task of the evaluation harness each of them is.

Source: Bansal et al. 2022 (arXiv 2212.09095): 14 tasks at 0, 1 and 5 shots, two more out of its domain. Prompts, splits
and right answers are the harness's; nothing of it is imported before one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from secateur.errors import UnknownName, nearest
from secateur.tasks.harness import read_harness
from secateur.tasks.splits import Source

NEEDS = "secateur[lm-eval], network"


class StudyTask(NamedTuple):
    """`harness` is the name that lm-eval has for it."""

    harness: str
    kind: str
    description: str


STUDY: Mapping[str, StudyTask] = {
    "hellaswag": StudyTask("hellaswag", "choice", "How a description of an everyday scene goes on."),
    "piqa": StudyTask("piqa", "choice", "Which of two ways reaches a physical goal."),
    "arc-easy": StudyTask("arc_easy", "choice", "Science questions of grade school, the easy part."),
    "arc-challenge": StudyTask(
        "arc_challenge", "choice", "Science questions of grade school, the hard part."
    ),
    "openbookqa": StudyTask("openbookqa", "choice", "Elementary science, closed book."),
    "winogrande": StudyTask("winogrande", "choice", "Which of two names fills the gap."),
    "boolq": StudyTask("boolq", "choice", "Yes or no, from a passage."),
    "cb": StudyTask("cb", "choice", "CommitmentBank: true, false or neither."),
    "copa": StudyTask("copa", "choice", "Which of two is the cause, or the effect."),
    "wic": StudyTask("wic", "choice", "Whether a word means the same in two sentences."),
    "wsc": StudyTask("wsc", "choice", "Whether a pronoun refers to a noun."),
    "multirc": StudyTask("multirc", "choice", "Whether an answer about a passage is right."),
    "rte": StudyTask("rte", "choice", "Textual entailment."),
    "record": StudyTask("record", "choice", "Which entity of a news text fills the gap."),
    "mathqa": StudyTask("mathqa", "choice", "Word problems with five choices (out of domain)."),
    "lambada": StudyTask("lambada_openai", "generation", "The last word of a passage (out of domain)."),
}


def check_study(name: str) -> None:
    """Raises `UnknownName`."""
    if name not in STUDY:
        raise UnknownName(f"the study has no task {name!r}.{nearest(name, STUDY)}")


def read_study(name: str) -> Source:
    """Raises: `UnknownName`, and what `read_harness` raises: without lm_eval, without the data or a network."""
    check_study(name)
    return replace(read_harness(STUDY[name].harness), name=name)
