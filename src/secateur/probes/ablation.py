"""Measure the loss of dropping one part: a block, attention, feed-forward network, head, group or neuron.

Dropping a part is a plan with one more edit, and the evaluator does the rest: blocks below it run once, and plans that
the ledger knows are not run again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.core.acts import CHOSEN
from secateur.core.plan import Drop, Plan
from secateur.core.readings import Readings
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.core.stats import mean_interval
from secateur.evaluation.evaluator import Evaluator


def ablation_importance(
    judge: Evaluator, sites: Sequence[Site], examples: Sequence[int], *, split: str, base: Plan | None = None
) -> dict[str, Readings]:
    """Return metric(model) − metric(model without the part), with the sign that makes a part worth keeping positive.

    With L blocks, one kind of part costs about half of L whole passes.

    Args:
        split: The split that the examples are of.
        base: The plan of "the model"; by default the whole one.

    Returns: one Readings for each metric the task has, in the metric's own unit, the loss last: `text_loss` for text,
        `accuracy` and `loss` for answers, `loss` for tasks of both, for play the loss of logged actions, or the cost.
        Each value has its 95 % interval over groups of examples.

    Raises: `UnknownName` for a site the model does not have, `PlanError` for one that cannot be dropped.

    Source: Bansal et al. 2022 (arXiv 2212.09095), FFN importance. Differs: measured on the split named, never on the
    one reported; loss beside accuracy, which ties on few examples.
    """
    base = Plan(judge.loaded.fingerprint) if base is None else base
    plans = {site: base + Drop(site) for site in sites}
    outcomes, groups = judge([base, *plans.values()], examples, "ablation"), judge.task.groups(examples)
    readings = {}
    for name in _metrics(judge, examples):
        metric = METRICS[name]
        weights = outcomes[base]["tokens"] if metric.weighted else None
        lost = {str(site): metric.gain(outcomes[base], outcomes[plan]) for site, plan in plans.items()}
        finite = {site: values for site, values in lost.items() if np.isfinite(values).all()}
        intervals = {site: mean_interval(values, groups, weights) for site, values in finite.items()}
        readings[name] = Readings(
            what=f"importance by ablation ({name})",
            unit=metric.unit,
            split=split,
            n=len(examples),
            low_is_removable=True,
            source="metric(model) − metric(model without it) (arXiv 2212.09095)",
            values={site: float(np.average(values, weights=weights)) for site, values in lost.items()},
            intervals={site: interval for site, interval in intervals.items() if interval},
        )
    return readings


def _metrics(judge: Evaluator, examples: Sequence[int]) -> Sequence[str]:
    """Return the names of the metrics that these examples are measured in."""
    if "text" in judge.task.kinds:
        return (judge.task.primary_metric,)
    if judge.task.answers:
        return ("accuracy", "loss")
    first = judge.encoded[examples[0]]
    if first.steps is None:
        return ("cost",)
    return ("action_loss" if first.steps.content[CHOSEN].size else "action_error",)
