"""What some components of a matrix answer on their own: LASER's look into the tail (arXiv 2312.13558, Fig. 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secateur.core.plan import Plan, Truncate
from secateur.evaluation.evaluator import Evaluator


def split_answers(judge: Evaluator, plan: Plan, examples: Sequence[int]) -> list[dict[str, Any]]:
    """For each edited matrix what all of it answers, then the components kept, then those removed, alone."""
    rows = []
    for edit in plan.edits:
        full = min(judge.loaded.anatomy.matrix(edit.matrix).shape)
        rest = Truncate(edit.matrix, full - edit.rank, "tail" if edit.side == "top" else "top")
        rows.append(component_answers(judge, Truncate(edit.matrix, full), examples) | {"kind": "full"})
        rows += [component_answers(judge, part, examples) for part in (edit, rest)]
    return rows


def component_answers(
    judge: Evaluator, edit: Truncate, examples: Sequence[int], *, most: int = 8
) -> dict[str, Any]:
    """The model that keeps only these components of one matrix: what it answers, how often, and how close that is.

    `cosine` is the mean cosine similarity of the input embeddings of the first token answered and of the first token
    of the right answer, over `examples` (1 where they are the same token).
    """
    plan = Plan(judge.loaded.fingerprint, (edit,))
    outcomes = judge([plan], examples, "component answers")[plan]
    answered = np.array([_answered(judge, row) for row in outcomes])
    gold = np.array([judge.encoded[e].pairs[judge.encoded[e].gold][1][0] for e in examples])
    texts = Counter(judge.loaded.tokenizer.decode([token]) for token in answered.tolist())
    return {
        "site": str(edit.matrix),
        "rank": edit.rank,
        "kind": edit.side,
        "answers": [
            list(item) for item in sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:most]
        ],
        "cosine": _mean_cosine(judge, answered, gold),
        "accuracy": float(outcomes["correct"].mean()),
        "n": len(examples),
    }


def _answered(judge: Evaluator, row: np.void) -> int:
    """The first token of the answer: of the chosen choice, or the first greedy one."""
    if judge.task.member(int(row["example"])).kind == "choice":
        return judge.encoded[int(row["example"])].pairs[int(row["predicted"])][1][0]
    return int(row["predicted"])


def _mean_cosine(judge: Evaluator, answered: np.ndarray, gold: np.ndarray) -> float:
    table = judge.loaded.parameter(f"{judge.loaded.anatomy.embedding}.weight")
    left, right = (table[torch.from_numpy(ids).to(table.device)].double() for ids in (answered, gold))
    return float(torch.nn.functional.cosine_similarity(left, right, dim=1).mean())
