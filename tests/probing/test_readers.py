"""What `probe --what heads|ffns|neurons|induction` gives: every part once, in the terms of the probes themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest

import secateur

NUM_BLOCKS, NUM_HEADS, D_FF = 3, 6, 256


@pytest.fixture(scope="module")
def rows():
    """The rows of one reading of the embedded facts model on its `probe` split."""

    def read(what: str) -> list[dict]:
        return secateur.probe("builtin:facts", "builtin:facts", what=what, split="probe")["rows"]

    return read


def test_every_head_once_ranked_from_the_most_important(rows):
    found = rows("heads")
    assert [row["site"] for row in found] == [
        f"b{b}.attn.h{h}" for b in range(NUM_BLOCKS) for h in range(NUM_HEADS)
    ]
    by_rank = sorted(found, key=lambda row: row["rank"])
    assert [row["rank"] for row in by_rank] == list(range(1, NUM_BLOCKS * NUM_HEADS + 1))
    assert all(a["importance"] >= b["importance"] > 0 for a, b in pairwise(by_rank))


def test_every_neuron_once(rows):
    found = rows("neurons")
    assert len({row["site"] for row in found}) == len(found) == NUM_BLOCKS * D_FF


def test_ablation_agrees_with_the_plan_that_zeroes_the_same_part(rows):
    """Without biases, a feed-forward network whose down projection has rank 0 is no feed-forward network."""
    worth = {row["site"]: row for row in rows("ffns")}
    assert set(worth) == {f"b{b}{part}" for b in range(NUM_BLOCKS) for part in ("", ".mlp", ".attn")}
    options = {"split": "probe"}
    whole, cut = (
        {
            s["metric"]: s["value"]
            for s in secateur.evaluate("builtin:facts", "builtin:facts", plan=p, **options)["scores"]
        }
        for p in (None, ["b2.down=0"])
    )
    assert worth["b2.mlp"]["loss"] == pytest.approx(cut["loss"] - whole["loss"], abs=1e-5)
    assert worth["b2.mlp"]["accuracy"] == pytest.approx(whole["accuracy"] - cut["accuracy"])


@pytest.mark.slow
def test_the_recall_model_has_induction_heads():
    found = secateur.probe("builtin:recall", "builtin:recall", what="induction")["rows"]
    assert max(row["prefix_matching"] for row in found) > 0.4
    assert all(0 <= row["copying"] <= 1 for row in found)
