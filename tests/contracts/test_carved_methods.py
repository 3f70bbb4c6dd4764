"""Methods and readings on every kind of model that a cut left: they run, or refuse before they begin."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.cuts import drops, edits_of, factorized, linear
from fixtures.folders import questions, save_model, write_rows
from fixtures.zoo import variant

import secateur
from secateur.checkpoint.save import save_and_reload
from secateur.core.form import Form
from secateur.core.plan import Edit, Plan, Truncate
from secateur.core.site import Site
from secateur.errors import SecateurError
from secateur.hf.anatomy import Anatomy
from secateur.hf.load import load_model
from secateur.methods.registry import method_named, read_options
from secateur.pipeline import check
from secateur.session import open_session
from secateur.surgery.shape import shape_of

FAMILIES = {"llama": {"num_hidden_layers": 4}, "gpt2": {"n_layer": 4}}
KINDS = [
    "uneven heads", "attention of block 0", "all heads of a block", "FFN of block 0", "neurons",
    "all neurons of a block", "mixed", "directions and parts", "rank 0", "rank 3", "few directions left",
    "linear block 0", "last block linear", "all but one linear", "folded and cut",
    "no attention", "no network", "outputs of low rank",
]  # fmt: skip
FUSED = ["FFN of block 0", "directions and parts", "folded and cut"]  # and with biases
CASES = [*(("llama", kind) for kind in KINDS), *(("gpt2", kind) for kind in FUSED)]
WHOLE = ("mixed", "folded and cut")  # models that every method meets; it meets a third of the others, in turn
LIGHT = {"step": 0.5, "random_orders": 1, "target": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "laser": {"method": "laser", "fractions": (0.5,), "small_ranks": (), "compose": False},
    "directions": {"method": "directions", "dynamic": False, "per_head": True},
    "heads": {"method": "heads", **LIGHT},
    "ffns": {"method": "ffns", **LIGHT},
    "components": {"method": "components", **LIGHT},
    "fold": {"method": "depth", "blocks": 1},
    "linear": {"method": "depth", "blocks": 2, "form": "linear", "by": "linearity"},
    "drop": {"method": "depth", "blocks": 2, "form": "drop", "by": "cosine"},
    "budget": {"method": "budget", "params": 0.85},
}
NOTHING = "no block of 0:{} can go"
REFUSED = {  # (kind, method) → the words of the refusal
    **{("all but one linear", form): NOTHING.format(1) for form in ("fold", "linear", "drop")},
    **{("no attention", method): "no heads of blocks 0:4 can go" for method in ("heads", "components")},
    **{("no network", method): "no ffns of blocks 0:4 can go" for method in ("ffns", "components")},
    **{
        ("outputs of low rank", method): "no heads of blocks 0:4 can go" for method in ("heads", "components")
    },
    ("outputs of low rank", "ffns"): "no ffns of blocks 0:4 can go",
    **{(kind, "fold"): NOTHING.format(4) for kind in ("no network", "outputs of low rank")},
}
FACTORS = ("rank 3", "few directions left", "outputs of low rank")
UNREAD = {  # (kind, reading) → the words of the refusal
    **{(kind, "induction"): "is stored as two factors" for kind in FACTORS},
    **{("no attention", what): "has no" for what in ("heads", "induction")},
    ("no network", "neurons"): "has no",
}
COMMON = {"limit": 60, "allow_small": True, "device": "cpu"}


def edits(kind: str, a: Anatomy) -> list[Edit]:
    every = range(a.num_blocks)
    more = {
        "no attention": lambda: drops(*(f"b{block}.attn" for block in every)),
        "no network": lambda: drops(*(f"b{block}.mlp" for block in every)),
        "outputs of low rank": lambda: [
            Truncate(Site(block, kind), 2) for block in every for kind in ("o", "down")
        ],
        "folded and cut": lambda: [linear(a, 3, form="fold"), *drops("b0.attn.h1", "b1.mlp")],
    }
    return more[kind]() if kind in more else edits_of(kind, a)


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("carved")
    write_rows(place / "q.jsonl", questions(60))
    for family, changes in FAMILIES.items():
        save_model(place / family, variant(family, **changes), words)
    return place


def carved(place: Path, family: str, kind: str) -> Path:
    """A checkpoint that such a cut left, made when it is first asked for."""
    folder = place / f"{family} {kind}"
    if not folder.exists():
        dense = load_model(str(place / family), device="cpu")
        plan = Plan(dense.fingerprint, tuple(edits(kind, dense.anatomy)))
        factorize = factorized(kind) or kind == "outputs of low rank"
        secateur.apply(str(place / family), plan, folder, device="cpu", factorize=factorize)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["SecateurForCausalLM"]
    return folder


def meetings() -> Iterator[tuple[str, str, str]]:
    """Yield (family, kind, method): every method on `WHOLE` and where it refuses, and on a third of the others."""
    for number, (family, kind) in enumerate(CASES):
        for turn, method in enumerate(METHODS):
            if kind in WHOLE or (kind, method) in REFUSED or (number + turn) % 3 == 0:
                yield family, kind, method


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "method"), [*meetings()])
def test_every_method_runs_or_refuses_before_it_begins(family, kind, method, place, tmp_path):
    asked = str(carved(place, family, kind)), str(place / "q.jsonl")
    refusal = REFUSED.get((kind, method))
    if refusal is None:
        session = open_session(read_options(*asked, **COMMON, **METHODS[method]), None, check=check)
        plan = method_named(session.options.method).search(session).plan
        how = {"rows": session.first_rows(), "form": Form(), "decompose": session.judge().spectra}
        written = save_and_reload(session.loaded, plan, tmp_path / "out", **how)
        left = shape_of(plan, session.loaded.anatomy, factorize=False)
        assert written.anatomy.num_parameters == left.num_parameters(session.loaded.anatomy)
        return
    with pytest.raises(SecateurError, match=refusal):
        secateur.prune(*asked, tmp_path / "out", **COMMON, **METHODS[method])
    assert not (tmp_path / "out").exists()
    assert judged(tmp_path / "out.run") == 0


def judged(run: Path) -> int:
    """Rows of the ledger, where there is one."""
    if not (run / "ledger.sqlite").exists():
        return 0
    with sqlite3.connect(run / "ledger.sqlite") as db:
        return db.execute("SELECT count(*) FROM outcomes").fetchone()[0]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_forecast_runs_or_refuses_as_the_method_does(family, kind, place):
    asked = str(carved(place, family, kind)), str(place / "q.jsonl")
    for method, options in METHODS.items():
        refusal = REFUSED.get((kind, method))
        if refusal is None:
            assert secateur.plan_cost(*asked, calibrate=False, **COMMON, **options)
        else:
            with pytest.raises(SecateurError, match=refusal):
                secateur.plan_cost(*asked, calibrate=False, **COMMON, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_reading_runs_or_refuses(family, kind, place):
    asked = str(carved(place, family, kind)), str(place / "q.jsonl")
    for what in ("heads", "ffns", "neurons", "induction", "linearity"):
        refusal = UNREAD.get((kind, what))
        if refusal is None:
            assert secateur.probe(*asked, what=what, **COMMON)["what"] == what
        else:
            with pytest.raises(SecateurError, match=refusal):
                secateur.probe(*asked, what=what, **COMMON)


@pytest.mark.parametrize("form", ["fold", "linear", "drop"])
def test_depth_where_a_network_is_gone(form, place, tmp_path):
    """The block behind it is dropped or mapped, never folded; and every form that can is compared."""
    asked = str(carved(place, "llama", "FFN of block 0")), str(place / "q.jsonl")
    secateur.prune(*asked, tmp_path / "out", method="depth", form=form, blocks=2, report="full", **COMMON)
    record = json.loads((tmp_path / "out/analysis.json").read_text())["depth"]
    assert {series["form"] for series in record["series"]} == {"fold", "linear", "drop"}
    folds = [step["block"] for step in record["order"]]
    if form == "fold":
        assert folds[0] in (2, 3), "block 1 has no network before it"
        assert "1" not in record["order"][0]["measured"]
