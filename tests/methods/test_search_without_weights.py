"""Searches decide by a judge and readings alone: on a model without weights, by made-up outcomes and readings."""

from __future__ import annotations

import random

import numpy as np
import pytest

from secateur.core.fitted import Fitted
from secateur.core.plan import Linearize
from secateur.core.records.probe import ComponentsRecord
from secateur.core.score import OUTCOME
from secateur.core.site import Site
from secateur.methods.components import search as components
from secateur.methods.depth import search as depth
from secateur.methods.depth.steps import Similarity
from secateur.methods.registry import read_options
from secateur.session import early_session

NEEDED = {"b0", "b0.mlp", "b1.attn.h2"}  # without any of these no answer is right


def blank(method: str, **options):
    """A session of the embedded model whose parameters are on the meta device, where nothing can be computed."""
    session = early_session(
        read_options("builtin:facts", "builtin:facts", method=method, limit=300, allow_small=True, **options)
    )
    assert session.loaded.model.device.type == "meta"
    return session


def judge(plans, examples, stage):
    """All answers are right, except without what is needed; a loss grows by what a plan takes."""
    judged = {}
    for plan in plans:
        rows = np.zeros(len(examples), dtype=OUTCOME)
        rows["example"], rows["tokens"] = examples, 1
        gone = {str(site) for site in plan.dropped} | {str(block) for block in plan.blocks_gone}
        rows["correct"] = float(not gone & NEEDED)
        rows["loss"] = 0.1 * len(gone) + 5 * len(gone & NEEDED) + (0.5 if plan.linearized else 0.0)
        judged[plan] = rows
    return judged


class Sides:
    """One side task, on which every plan does alike."""

    def side_values(self, plans):
        return {plan: {"side": 1.0} for plan in plans}, {"side": "share"}


class DepthGiven(Sides):
    def __init__(self) -> None:
        self.read, self.fitted = [], []

    def similarity(self, plan, blocks):
        self.read.append(tuple(blocks))
        return {block: Similarity(0.5 + block / 10, 0.9 - block / 10) for block in blocks}

    def maps(self, plan, runs):
        self.fitted += [run.blocks for run in runs]
        content = {"weight": np.eye(2)}
        return {run: Linearize(run.blocks, run.form, Fitted.of(content)) for run in runs}

    def samples(self, plans):
        return "the", {plan: str(plan) for plan in plans}


@pytest.mark.parametrize("by", ["loss", "linearity", "cosine"])
def test_depth(by):
    given = DepthGiven()
    options = {"by": by, "form": "linear", "max_loss": 0.0, "objective": "accuracy", "report": "full"}
    found = depth.run(blank("depth", **options), judge, given)
    order = {"loss": [1, 2], "linearity": [2, 1], "cosine": [0, 1]}[
        by
    ]  # of equal losses the first block goes
    assert found.search.order == order
    assert found.plan.blocks_gone == (set() if by == "cosine" else {Site(1), Site(2)}), (
        "as far as all answers stay right"
    )
    assert not found.plan.linearized, "made-up maps do worse than dropping"
    assert [tuple(run.blocks) for run in found.search.fell_back] == ([] if by == "cosine" else [(1, 2)])
    assert ((0, 1) if by == "cosine" else (1, 2)) in given.fitted, "a run is fitted as one"
    assert bool(given.read) or by == "loss"
    record = found.analysis.depth
    assert [series.form for series in record.series] == ["linear", "drop", "fold"]
    assert record.side_units == {"side": "share"}
    assert {other.by for other in record.other_orders} == {"linearity", "cosine"} - {by}


@pytest.mark.parametrize(("report", "forms"), [("quick", ["linear"]), ("standard", ["linear", "drop"])])
def test_a_shorter_report_of_depth_measures_less(report, forms):
    given = DepthGiven()
    found = depth.run(blank("depth", by="cosine", form="linear", blocks=2, report=report), judge, given)
    assert [series.form for series in found.analysis.depth.series] == forms
    assert not found.analysis.depth.other_orders
    assert not any(point.sides for series in found.analysis.depth.series for point in series.points)


class ComponentsGiven(Sides):
    """Importance in one random order, as long as no weights are asked."""

    def importance(self, plan, kind):
        draw = random.Random(kind)
        heads = [Site(block, "attn", "h", head) for block in range(3) for head in range(6)]
        ffns = [Site(block, "mlp") for block in range(3)]
        sites = heads if kind == "heads" else ffns
        return {site: draw.random() + 9 * (str(site) in NEEDED) for site in sites}

    def components(self):
        heads = {f"b{block}.attn.h{head}": 0.5 for block in range(3) for head in range(6)}
        return ComponentsRecord(prefix_matching=heads, copying=heads, induction_overlap=None)


@pytest.mark.parametrize(
    ("method", "gone"),
    [
        ("heads", {(b, h) for b in range(3) for h in range(6)} - {(1, 2)}),
        ("ffns", {1, 2}),
    ],
)
def test_heads_and_networks(method, gone):
    session = blank(method, step=0.05, max_loss=0.0, random_orders=1, objective="accuracy", report="full")
    found = components.run(session, judge, ComponentsGiven())
    sites = found.plan.dropped
    assert {(site.block, site.index) if site.unit else site.block for site in sites} == gone
    record = found.analysis.pruning
    assert [series.order for series in record.series] == ["re-scored", "ranks once", "random"]
    assert all(set(point.sides) == {"side"} for point in record.series[0].points)
    last = record.series[0].points[record.chosen.point]
    assert last.value == 1.0
    if method == "heads":
        assert last.prefix_matching == pytest.approx(1 / 18), "of one head of 18"
