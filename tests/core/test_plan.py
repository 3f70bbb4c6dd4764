"""Addresses, edits and plans as values: what is printed parses back, what is equal has one identity anywhere."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from secateur.core.plan import Plan, Truncate, parse_edits
from secateur.core.site import MATRICES, Site, matrix_names
from secateur.errors import PlanError, SecateurError, UnknownName

PARTS = [
    "",
    ".attn",
    ".mlp",
    ".attn.h0",
    ".attn.h17",
    ".attn.g3",
    ".mlp.n0",
    ".mlp.n4095",
    ".mlp.e17",
    ".e3.down",
]
ADDRESSES = [f"b{b}{part}" for b in (0, 7, 12, 123) for part in (*PARTS, *(f".{m}" for m in MATRICES))]
GATED, PLAIN = MATRICES, ("q", "k", "v", "o", "up", "down")


# ----------------------------------------------------------------------------------------------------- sites


@pytest.mark.parametrize("text", ADDRESSES)
def test_every_address_prints_as_it_was_parsed(text):
    site = Site.parse(text)
    assert str(site) == text
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(text)) == hash(site)
    assert site.is_matrix == (text.rpartition(".")[2] in MATRICES)


def test_addresses_are_told_apart():
    assert len({Site.parse(text) for text in ADDRESSES}) == len(ADDRESSES)


def test_parts_of_an_address_are_its_fields():
    assert Site.parse("b12") == Site(12)
    assert Site.parse("b12.down") == Site(12, "down")
    assert Site.parse("b2.attn.h7") == Site(2, "attn", "h", 7)
    assert Site.parse("b2.attn.g1") == Site(2, "attn", "g", 1)
    assert Site.parse("b0.mlp.n871") == Site(0, "mlp", "n", 871)
    assert Site.parse("b0.mlp.e17") == Site(0, "mlp", "e", 17)
    assert Site.parse("b0.e17.gate") == Site(0, "gate", "e", 17)
    assert [str(whole) for whole in Site.parse("b0.e17.gate").wholes] == ["b0.mlp.e17", "b0.mlp", "b0"]


@pytest.mark.parametrize(
    "text",
    ["", "b", "12", "b-1", "bx", "B1", "b1.", "b1.w", "b1.qq", "b1.q.h1", "b1.attn.n1", "b1.mlp.h1", "b1.attn.h",
     "b1.attn.h-1", "b1 .q", " b1", "b1\n", "b1.down.", "b1.attn.h1.q", "b1.e1", "b1.e1.q", "b1.mlp.e1.up",
     "b1.attn.e1", "enc.b1.w", "b1.2"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_the_grammar(text):
    with pytest.raises(
        UnknownName, match=r"is not a site\. Write b12|heads are attn\.hN, KV groups attn\.gN"
    ):
        Site.parse(text)


@pytest.mark.parametrize(
    "fields",
    [(-1,), (0, "w"), (0, "q", "h", 1), (0, "mlp", "h", 1), (0, "attn", "n", 1), (0, "attn", "h", -1), (0, "", "h")],
)  # fmt: skip
def test_no_site_is_made_that_could_not_be_printed_and_parsed(fields):
    with pytest.raises(UnknownName):
        Site(*fields)


def test_a_unit_needs_its_letter():
    """Two sites that print alike would be different: an index without a unit must not exist."""
    with pytest.raises(AssertionError, match="index 5 of no unit"):
        Site(1, "attn", "", 5)


def test_blocks_come_in_order_of_their_numbers():
    assert sorted(map(Site.parse, ["b10.q", "b9.up", "b9.q", "b2"])) == list(
        map(Site.parse, ["b2", "b9.q", "b9.up", "b10.q"])
    )


# ---------------------------------------------------------------------------------------------- matrix names


@pytest.mark.parametrize("available", [GATED, PLAIN], ids=["gated", "plain"])
def test_matrices_go_by_their_own_names_in_canonical_order(available):
    for count in (1, 2, 3):
        for words in itertools.permutations(available, count):
            assert matrix_names(words, available) == tuple(m for m in MATRICES if m in words)
    assert matrix_names([], available) == ()
    assert matrix_names(["q", "q", "q_proj"], available) == ("q",)


def test_the_first_feed_forward_matrix_of_laser_is_the_gate_where_there_is_one():
    """METHODS 0, from the authors' layer tables: Llama's fc_in is gate_proj, its fc_up is up_proj."""
    assert matrix_names(["fc_in"], GATED) == ("gate",)
    assert matrix_names(["fc_in"], PLAIN) == ("up",)
    for available in (GATED, PLAIN):
        assert matrix_names(["fc_up"], available) == ("up",)
        assert matrix_names(["fc_out"], available) == ("down",)
        assert matrix_names(["k_proj", "q_proj", "v_proj", "out_proj"], available) == ("q", "k", "v", "o")
        assert matrix_names(["o_proj", "up_proj", "down_proj"], available) == ("o", "up", "down")
    assert matrix_names(["gate_proj"], GATED) == ("gate",)


def test_groups():
    assert matrix_names(["attn"], GATED) == ("q", "k", "v", "o")
    assert matrix_names(["mlp"], GATED) == ("gate", "up", "down")
    assert matrix_names(["mlp"], PLAIN) == ("up", "down")
    assert matrix_names(["all"], GATED) == GATED
    assert matrix_names(["all"], PLAIN) == PLAIN
    assert matrix_names(["mlp", "attn"], reversed(PLAIN)) == PLAIN


def test_unknown_and_missing_matrices_are_refused_with_what_there_is():
    with pytest.raises(UnknownName, match=r"unknown matrix 'fc_inn'\. Did you mean fc_in"):
        matrix_names(["fc_inn"], PLAIN)
    for word in ("gate", "gate_proj"):
        with pytest.raises(
            UnknownName, match=rf"no 'gate' matrix \(asked for by '{word}'\); it has q, k, v, o, up"
        ):
            matrix_names([word], PLAIN)


# ----------------------------------------------------------------------------------------------------- edits


@pytest.mark.parametrize(
    ("block", "matrix", "rank"), list(itertools.product((0, 31), MATRICES, (0, 1, 4096)))
)
def test_edits_read_as_they_are_written(block, matrix, rank):
    site = Site(block, matrix)
    assert parse_edits([f"{site}={rank}"]) == (Truncate(site, rank),)
    assert parse_edits([f"{site}=tail:{rank}"]) == (Truncate(site, rank, "tail"),)


def test_several_edits_keep_the_order_they_were_given_in():
    assert parse_edits([]) == ()
    assert parse_edits(["b1.up=3", "b0.q=tail:2"]) == (
        Truncate(Site(1, "up"), 3),
        Truncate(Site(0, "q"), 2, "tail"),
    )


@pytest.mark.parametrize(
    "word",
    ["b2.gate", "b2.gate=", "b2.gate=-1", "b2.gate=1.5", "b2.gate=x", "b2.gate=top:1", "b2.gate=tail:", "b2.gate==1",
     "b2.gate=tail:-1", "b2.gate=1 ", "b2.gate=²", "b2.gate=tail:²"],
)  # fmt: skip
def test_what_is_no_edit_is_refused_with_an_example(word):
    with pytest.raises(
        SecateurError, match=rf"^{re.escape(repr(word))} is not an edit\. Write for example b2\.gate=5"
    ):
        parse_edits([word])


def test_only_matrices_are_truncated_to_ranks_that_exist():
    with pytest.raises(UnknownName, match="is not a site"):
        parse_edits(["gate=5"])
    for word in ("b2=5", "b2.attn=5", "b2.mlp.n3=5"):
        with pytest.raises(PlanError, match="only a matrix can be truncated"):
            parse_edits([word])
    for rank, side in ((-1, "top"), (1, "middle")):
        with pytest.raises(PlanError, match="rank must be at least 0"):
            Truncate(Site(0, "q"), rank, side)


# ----------------------------------------------------------------------------------------------------- plans


EDITS = parse_edits(["b3.up=4", "b0.q=0", "b10.down=tail:7", "b3.gate=1"])


def test_plans_are_their_edits_in_whatever_order():
    plans = {Plan("m", order) for order in itertools.permutations(EDITS)}
    assert len(plans) == len({p.identity for p in plans}) == 1
    (plan,) = plans
    assert [str(e.site) for e in plan.edits] == ["b0.q", "b3.gate", "b3.up", "b10.down"]
    grown = Plan("m")
    for edit in EDITS:
        grown = grown + edit
    assert grown == plan
    assert (len(plan), plan.lowest_block, len(Plan("m")), Plan("m").lowest_block) == (4, Site(0), 0, None)


def test_whatever_differs_gives_another_identity():
    base = "b1.up=4"
    different = [
        Plan("m"),
        Plan("m", parse_edits([base])),
        Plan("n", parse_edits([base])),
        *(Plan("m", parse_edits([w])) for w in ("b1.up=5", "b2.up=4", "b1.gate=4", "b1.up=tail:4")),
        Plan("m", parse_edits([base, "b0.q=1"])),
    ]
    assert len({p.identity for p in different}) == len(set(different)) == len(different)
    assert all(re.fullmatch("[0-9a-f]{32}", p.identity) for p in different)


def test_identity_is_the_same_in_another_process_and_for_ever():
    """Ledgers of earlier versions are read by it: this digest may change only with the plan's version."""
    plan = Plan("fingerprint", EDITS)
    code = (
        "from secateur.core.plan import Plan, parse_edits\n"
        "edits = parse_edits(['b10.down=tail:7', 'b3.gate=1', 'b3.up=4', 'b0.q=0'])\n"
        "print(Plan('fingerprint', edits).identity)"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == plan.identity, done.stderr
    assert plan.identity == "407f6a07514a7076bdd1b5322453df07"


def test_two_edits_of_one_matrix_contradict_each_other():
    with pytest.raises(PlanError, match=r"two edits claim b1\.up: b1\.up → rank 2; b1\.up → rank 3"):
        Plan("m", parse_edits(["b1.up=3", "b0.q=1", "b1.up=2"]))
    with pytest.raises(PlanError, match=r"claim b1\.up"):
        Plan("m", parse_edits(["b1.up=3"])) + Truncate(Site(1, "up"), 3, "tail")


def test_plans_say_what_they_do():
    assert str(Plan("m")) == "nothing cut"
    assert str(Plan("m", parse_edits(["b1.up=3", "b0.q=tail:1"]))) == (
        "b0.q → rank 1 (tail components); b1.up → rank 3"
    )


@pytest.mark.parametrize("edits", [(), EDITS])
def test_plans_survive_json_and_whatever_stands_beside_them(edits):
    plan = Plan("m", edits)
    data = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(data) == plan
    assert Plan.from_json(data | {"provenance": {"command": "x"}}).identity == plan.identity


GOOD = Plan("m", EDITS).to_json()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "version None"),
        (GOOD | {"version": 2}, "version 2; this secateur reads version 1"),
        ({"version": 1, "edits": []}, "not a plan"),
        ({"version": 1, "model": "m"}, "not a plan"),
        (GOOD | {"edits": 3}, "not a plan"),
        (GOOD | {"edits": [3]}, "not a plan"),
        (GOOD | {"edits": [{}]}, "not a plan"),
        (GOOD | {"edits": [{"kind": "truncate", "matrix": "b0.q"}]}, "not a plan"),
        (GOOD | {"edits": [{"kind": "truncate", "matrix": "b0.q", "rank": "x"}]}, "not a plan"),
        (GOOD | {"edits": [{"kind": "truncate", "matrix": 5, "rank": 1}]}, "not a plan"),
        (GOOD | {"edits": [{"kind": "truncate", "matrix": "b0.q", "rank": -1}]}, "at least 0"),
        (GOOD | {"edits": [*GOOD["edits"], GOOD["edits"][0]]}, "two edits claim"),
    ],
)
def test_json_that_is_no_plan_is_refused(broken, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(broken)


def test_kinds_of_edits_that_this_version_does_not_know_are_named():
    with pytest.raises(UnknownName, match=r"unknown kind of edit 'truncated'\. Did you mean truncate"):
        Plan.from_json(GOOD | {"edits": [{"kind": "truncated"}]})
    with pytest.raises(UnknownName, match="is not a site"):
        Plan.from_json(GOOD | {"edits": [{"kind": "truncate", "matrix": "b0.w", "rank": 1}]})
