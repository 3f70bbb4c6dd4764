"""How often a search says that it improved something where there is nothing to improve.

A true null: the gold answer of every example is drawn anew, uniformly and independently, among the example's choices,
so that no model can be right more often than chance. (Shuffled labels would be none: a constant answer can truly
improve on them.) Each study is the library's own search on choice accuracy and its own verdict on the test split,
opened once; only the checkpoint and the report are not written, the cut model is verified from memory.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.evaluation.measurement import measure_model
from secateur.evaluation.verdict import decide
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded
from secateur.methods.registry import method_named, read_options
from secateur.session import Session, open_session
from secateur.surgery.materialize import cut
from secateur.tasks.encode import encode
from secateur.tasks.example import Example, Task

STUDIES = 200
ALLOWED = 0.05
NUM_CHOICES = 4
OPTIONS = read_options(
    "builtin:facts",
    "builtin:facts",
    matrices=("o", "gate", "down"),
    layers=(1, 3),
    fractions=(0.8, 0.4, 0.1),
    small_ranks=(0, 1, 3),
    device="cpu",
)


def run(*, studies: int = STUDIES) -> dict[str, Any]:
    """Counts of the three words over `studies` independent nulls, with exact binomial intervals."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    facts = open_session(OPTIONS, None)
    answers = sorted({example.answer for example in facts.task.examples})
    results = [_study(facts, answers, seed) for seed in range(studies)]
    words = Counter(word for word, _, _ in results)
    return {
        "studies": studies,
        "examples": {name: len(indices) for name, indices in facts.task.splits.items()},
        "candidates_tried": sum(tried for _, tried, _ in results) / studies,
        "cut_something": sum(edits > 0 for _, _, edits in results),
        **{word.replace(" ", "_"): _share(words[word], studies) for word in ("improves", "worse")},
        "allowed": ALLOWED,
        "seconds": time.perf_counter() - started,
    }


def _share(count: int, n: int) -> dict[str, Any]:
    interval = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    return {"count": count, "share": count / n, "ci": [interval.low, interval.high]}


def _study(facts: Session, answers: list[str], seed: int) -> tuple[str, int, int]:
    """The verdict's word, how many plans were tried, how many edits the chosen one has."""
    task = null_task(facts.task, answers, random.Random(seed))
    encoded = {i: encode(e, facts.loaded.tokenizer, context=None) for i, e in enumerate(task.examples)}
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "ledger.sqlite") as ledger:
        options = replace(OPTIONS, seed=seed)
        session = Session(options, facts.loaded, task, encoded, ledger)
        found = method_named("laser").search(session)
        judge, cut = session.judge(), session.on(task, _cut(facts.loaded, found.plan)).judge()
        before, after = measure_model(judge, [], []), measure_model(cut, [], [])
        metric = session.objective.metric
        verdict = decide(
            judge, before, after, found.plan, [], metric, ledger=ledger, scope=session.scope, seed=seed
        )
    assert metric.name == "accuracy"
    assert verdict.openings == 1, "every study opens its own test split, once"
    return verdict.verdict, found.tried, len(found.plan.edits)


def null_task(task: Task, answers: list[str], rng: random.Random) -> Task:
    """Every question with four answers of the task's own, one of which is declared right by the lot."""

    def redrawn(example: Example) -> Example:
        choices = tuple(rng.sample(answers, NUM_CHOICES))
        return Example(example.id, example.prompt, rng.choice(choices), choices, group=example.group)

    return Task("null", "choice", tuple(map(redrawn, task.examples)), task.splits)


def _cut(loaded: Loaded, plan: Plan) -> Loaded:
    model = cut(loaded, plan)
    return replace(loaded, model=model, fingerprint=fingerprint(model))


if __name__ == "__main__":
    print(json.dumps(run(studies=int(sys.argv[1]) if len(sys.argv) > 1 else STUDIES), indent=2))
