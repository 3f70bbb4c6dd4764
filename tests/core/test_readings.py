"""The mean of readings over tasks, and Spearman's overlap between them, against scipy and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from secateur.core.readings import Readings, mean_readings, spearman_overlap
from secateur.errors import SecateurError


def readings(values, **options) -> Readings:
    named = {f"b{i // 4}.attn.h{i % 4}": float(value) for i, value in enumerate(values)}
    defaults = {"what": "head importance", "unit": "nats", "split": "probe", "n": 10, "source": "test"}
    return Readings(**defaults | {"low_is_removable": True} | options, values=named)


def test_the_mean_counts_each_task_once():
    found = mean_readings([readings([1, 2, 6], n=10), readings([3, 2, 0], n=1000)])
    assert found.values == {"b0.attn.h0": 2, "b0.attn.h1": 2, "b0.attn.h2": 3}
    assert (found.n, found.split, found.unit, found.low_is_removable) == (1010, "probe", "nats", True)
    assert Readings.from_json(found.to_json()) == found


def test_the_mean_finds_addresses_by_name():
    first, second = readings([1, 2, 3]), readings([10, 20, 30])
    backwards = replace(second, values=dict(reversed(second.values.items())))
    assert mean_readings([first, backwards]).values == mean_readings([first, second]).values


@pytest.mark.parametrize("ties", [False, True])
def test_overlap_is_spearmans(ties):
    generator = np.random.default_rng(3)
    columns = [generator.integers(0, 5, 40) if ties else generator.normal(size=40) for _ in range(4)]
    found = spearman_overlap({f"task{i}": readings(column) for i, column in enumerate(columns)})
    np.testing.assert_allclose(found.rho, spearmanr(np.array(columns), axis=1).statistic, rtol=1e-12)
    assert found.names == ("task0", "task1", "task2", "task3")
    assert found.n == 40
    assert [found.rho[i][i] for i in range(4)] == pytest.approx([1] * 4)


def test_what_counts_is_the_order_of_removal():
    low, high = readings([1, 2, 3, 5]), readings([9, 4, 2, 1], low_is_removable=False, what="redundancy")
    assert spearman_overlap({"a": low, "b": high}).rho[0][1] == pytest.approx(1)


def test_a_reading_without_order_has_no_overlap():
    found = spearman_overlap({"a": readings([1, 2, 3]), "flat": readings([4, 4, 4])})
    assert math.isnan(found.rho[0][1])
    assert math.isnan(found.rho[1][1])
    assert found.rho[0][0] == pytest.approx(1)
    assert json.loads(json.dumps(found.to_json()))["rho"][1] == [None, None]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(SecateurError, match=r"not of the same parts: 1 .* b0\.attn\.h2"):
        spearman_overlap({"a": readings([1, 2]), "b": readings([1, 2, 3])})
    with pytest.raises(SecateurError, match="not of the same parts"):
        mean_readings([readings([1, 2]), readings([1, 2, 3])])
    with pytest.raises(SecateurError, match="not of one kind"):
        mean_readings([readings([1]), readings([1], unit="share")])
    with pytest.raises(SecateurError, match="not of one kind"):
        mean_readings([readings([1]), readings([1], low_is_removable=False)])
    with pytest.raises(SecateurError, match="at least two"):
        spearman_overlap({"a": readings([1])})
    for nothing in (lambda: mean_readings([]), lambda: spearman_overlap({})):
        with pytest.raises(SecateurError, match="no readings"):
            nothing()
