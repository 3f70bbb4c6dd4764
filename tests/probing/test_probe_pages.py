"""Every reading of `secateur probe` writes its record and a page with the same numbers."""

from __future__ import annotations

import json

import pytest

import secateur
from secateur.core.records.probe import RowsRecord
from secateur.methods.registry import method_readings
from secateur.probing.report import rows_section

NEEDS_A_PLAN = ("tail", "frequency", "paraphrases")
HEADINGS = {
    "spectrum": "What truncation is predicted to do",
    "curves": "How much can go",
    "tail": "What the removed part says",
    "frequency": "Which facts came back",
    "paraphrases": "Other words, same fact",
    "directions": "Which directions hurt",
}


def test_every_reading_of_a_method_has_a_heading():
    assert set(HEADINGS) == set(method_readings())


@pytest.mark.parametrize("what", HEADINGS)
def test_a_reading_writes_its_rows_and_their_page(what, tmp_path):
    plan = ["b2.gate=3"] if what in NEEDS_A_PLAN else None
    found = secateur.probe(
        "builtin:facts", "builtin:facts", what=what, limit=120, plan=plan, layers="2:3", out=tmp_path / "o"
    )
    assert found["written"] == [str(tmp_path / "o" / name) for name in ("probe.json", "probe.html")]
    assert json.loads((tmp_path / "o/probe.json").read_text())["rows"] == found["rows"]
    page = (tmp_path / "o/probe.html").read_text(encoding="utf-8")
    assert f"<h2>{HEADINGS[what]}</h2>" in page
    assert "(validation split)" in page
    site = found["rows"][0].get("site")
    assert site is None or f'<th scope="row">{site}</th>' in page
    assert len(page.encode()) < 1_500_000


def test_a_reading_without_rows_has_no_section():
    record = RowsRecord(what="x", model="m", task=None, split="select", rows=[])
    assert not rows_section(record)


def test_cells_are_inert():
    record = RowsRecord(
        what="x", model="m", task=None, split="select", rows=[{"site": "<img>", "a": None, "b": 0.5}]
    )
    (body,) = rows_section(record).body
    assert "<img" not in body
    assert "&lt;img&gt;" in body
    assert "<td>—</td><td>0.5</td>" in body
