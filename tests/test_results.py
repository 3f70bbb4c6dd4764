"""docs/results.md says what the rows in benchmarks/results say; nothing here runs a model or draws a picture."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fixtures.places import BENCHMARKS, ROOT
from pydantic import ValidationError

sys.path.insert(0, str(BENCHMARKS))

import results
import results_page
from results_records import RowRecord, partial_rank_correlation

FOLDER = BENCHMARKS / "results"
FILES = sorted(FOLDER.glob("*.json"))


def test_the_page_is_what_the_rows_say():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == results_page.text(results_page.read(FOLDER), results.ROWS), (
        "written from other rows: `python benchmarks/results.py --write` writes it again"
    )


@pytest.mark.parametrize("picture", results_page.PICTURES)
def test_a_picture_is_of_the_rows_that_there_are(picture: str):
    shown = results_page.shown_in(picture, results_page.read(FOLDER))
    drawn = ROOT / "docs" / "results" / f"{picture}.svg"
    assert drawn.exists() == bool(shown)
    if shown:
        assert results_page.digest(shown) in drawn.read_text(encoding="utf-8"), (
            "drawn from other rows: `python benchmarks/results.py --write` draws it again"
        )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_is_read_back_and_is_one_of_the_table(file: Path):
    row = RowRecord.model_validate_json(file.read_text(encoding="utf-8"))
    assert row.name == file.stem
    assert row.name in {one.name for one in results.ROWS if one.run is not None}
    assert row.seconds > 0
    assert "/" not in row.machine, "names a place of this machine"


def test_a_row_of_another_kind_is_refused():
    row = json.loads(FILES[0].read_text(encoding="utf-8"))
    with pytest.raises(ValidationError):
        RowRecord.model_validate(row | {"figures": {"kind": "guess"}})
    with pytest.raises(ValidationError):
        RowRecord.model_validate({key: value for key, value in row.items() if key != "seconds"})


def test_what_was_not_run_is_said():
    page = results_page.text({}, results.ROWS)
    for row in results.ROWS:
        assert f"| `{row.name}` | {row.what} | not measured here |" in page


@dataclass(frozen=True)
class Planted:
    """Two readings that agree through a third alone, or by themselves."""

    left: np.ndarray
    right: np.ndarray
    fixed: np.ndarray


def planted(own: float) -> Planted:
    rng = np.random.default_rng(0)
    fixed, shared = rng.normal(size=(2, 400))
    noise = rng.normal(size=(2, 400))
    return Planted(fixed + own * shared + noise[0], fixed + own * shared + noise[1], fixed)


def test_agreement_through_a_third_alone_is_gone_when_that_is_held_fixed():
    alone, own = planted(0.0), planted(1.0)
    assert results.correlation(list(alone.left), list(alone.right)) > 0.4
    assert abs(partial_rank_correlation(alone.left, alone.right, alone.fixed)) < 0.1
    assert partial_rank_correlation(own.left, own.right, own.fixed) > 0.35


def test_the_partial_correlation_is_that_of_the_three_simple_ones():
    one = planted(0.5)
    ab, ac, bc = (
        results.correlation(list(x), list(y))
        for x, y in ((one.left, one.right), (one.left, one.fixed), (one.right, one.fixed))
    )
    expected = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    assert partial_rank_correlation(one.left, one.right, one.fixed) == pytest.approx(expected, abs=1e-12)
