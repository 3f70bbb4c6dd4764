"""What is lost when a part is dropped: blocks, attentions, feed-forward networks, heads, groups, neurons.

A part that is away is a plan with one drop more, and the judge does the rest: what lies below it runs once, and what
the ledger knows is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.core.plan import Drop, Plan
from secateur.core.readings import Readings
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator
from secateur.tasks.example import Task


def ablation_importance(
    judge: Evaluator, sites: Sequence[Site], examples: Sequence[int], *, split: str, base: Plan | None = None
) -> dict[str, Readings]:
    """metric(model) − metric(model without the part), turned so that a part worth keeping has a positive number.

    "The model" is that of plan `base`, the whole one by default. One Readings for each metric the task has:
    `text_loss` for text, `accuracy` and `loss` for answers, `loss` for tasks of both. Units: the metric's own. With L
    blocks, one kind of part costs about half of L whole passes.
    Source: Bansal et al. 2022 (arXiv 2212.09095), FFN importance. Differs: measured on the split named, never on the
    one reported; loss beside accuracy, which ties on few examples.
    Raises: `UnknownName` for a site the model does not have, `PlanError` for one that cannot be dropped.
    """
    base = Plan(judge.loaded.fingerprint) if base is None else base
    plans = {site: base + Drop(site) for site in sites}
    outcomes = judge([base, *plans.values()], examples, "ablation")
    found = {}
    for name in _metrics(judge.task):
        metric = METRICS[name]
        sign, whole = (1 if metric.higher_is_better else -1), metric.mean(outcomes[base])
        found[name] = Readings(
            what=f"importance by ablation ({name})",
            unit=metric.unit,
            split=split,
            n=len(examples),
            low_is_removable=True,
            source="metric(model) − metric(model without it) (arXiv 2212.09095)",
            values={str(s): sign * (whole - metric.mean(outcomes[plan])) for s, plan in plans.items()},
        )
    return found


def _metrics(task: Task) -> tuple[str, ...]:
    if "text" not in task.kinds:
        return "accuracy", "loss"
    return (task.primary_metric,)
