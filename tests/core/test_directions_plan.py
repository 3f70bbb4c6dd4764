"""Directions to remove as values and as files: what is equal, what is told, what is refused, what comes back."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.zoo import tiny

import secateur as api
from secateur.checkpoint.plans import read_plan
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Plan, RemoveDirections, Truncate, parse_edits
from secateur.core.site import Site
from secateur.errors import PlanError, SecateurError, UnknownName

K = Site(2, "k")
MEAN = Fitted.of({"mean": np.arange(4, dtype=np.float32)})


# ----------------------------------------------------------------------------------------------------- values


def test_by_hand():
    assert parse_edits(["b2.k=without:0,7"]) == (RemoveDirections(K, (0, 7)),)
    assert parse_edits(["b2.k=without:7,0,7"]) == parse_edits(["b2.k=without:0,7"])
    (edit,) = parse_edits(["b11.down=without:3"])
    assert (edit.matrix, edit.directions, edit.per_head, edit.fold) == (Site(11, "down"), (3,), False, None)


@pytest.mark.parametrize(
    "word",
    ["b2.k=without", "b2.k=without:", "b2.k=without:0,", "b2.k=without:,0", "b2.k=without:-1", "b2.k=without:1.5",
     "b2.k=without:0;7", "b2.k=without:0, 7", "b2.k=0,7", "b2.k=tail:0,7", "b2.k=without:²", "b2.k=with:0"],
)  # fmt: skip
def test_what_is_no_edit_is_refused(word):
    with pytest.raises(SecateurError, match=r"is not an edit\. Write .*b2\.k=without:0,7"):
        parse_edits([word])


def test_only_matrices_have_directions_and_some_must_be_named():
    for word in ("b2=without:1", "b2.attn=without:1", "b2.mlp.n3=without:1"):
        with pytest.raises(PlanError, match="only a matrix has singular directions"):
            parse_edits([word])
    for none in ((), (-1, 2)):
        with pytest.raises(PlanError, match=r"b2\.k: name at least one direction"):
            RemoveDirections(K, none)
    with pytest.raises(UnknownName, match="is not a site"):
        parse_edits(["k=without:1"])


def test_directions_are_a_set_in_order():
    for order in itertools.permutations((9, 0, 4)):
        assert RemoveDirections(K, order) == RemoveDirections(K, (0, 4, 9, 4))
    assert RemoveDirections(K, [5, 1]).directions == (1, 5)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("fold", [None, MEAN], ids=["bare", "folded"])
def test_they_survive_json(per_head, fold):
    plan = Plan("m", (RemoveDirections(K, (7, 0), per_head, fold), Truncate(Site(0, "up"), 3), Drop(Site(1))))
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    assert read.identity == plan.identity
    assert hash(read) == hash(plan)
    (edit,) = read.removed
    assert (edit.directions, edit.per_head) == ((0, 7), per_head)
    assert edit.fold is None or (edit.fold.digest == MEAN.digest and edit.fold.arrays is None)


def test_whatever_differs_gives_another_identity():
    other = Fitted.of({"mean": np.arange(4, dtype=np.float32) + 1})
    edits = [
        RemoveDirections(K, (0,)), RemoveDirections(K, (1,)), RemoveDirections(K, (0, 1)),
        RemoveDirections(Site(2, "v"), (0,)), RemoveDirections(K, (0,), True), RemoveDirections(K, (0,), False, MEAN),
        RemoveDirections(K, (0,), True, MEAN), RemoveDirections(K, (0,), False, other), Truncate(K, 0),
    ]  # fmt: skip
    plans = [Plan("m", (edit,)) for edit in edits]
    assert len({plan.identity for plan in plans}) == len(set(plans)) == len(edits)


def test_a_plan_is_in_order_and_knows_what_was_fitted_for_it():
    edits = [RemoveDirections(Site(b, kind), (0,), fold=MEAN) for b, kind in ((3, "v"), (0, "up"), (0, "k"))]
    edits.append(RemoveDirections(Site(1, "o"), (0,)))
    for order in itertools.permutations(edits):
        plan = Plan("m", order)
        assert [str(edit.site) for edit in plan.edits] == ["b0.k", "b0.up", "b1.o", "b3.v"]
    assert plan.fitted == (MEAN,)
    assert plan.removed == plan.edits
    assert (plan.lowest_block, plan.truncated, plan.dropped) == (Site(0), (), ())


def test_one_matrix_is_claimed_once():
    removed = RemoveDirections(K, (0,))
    for other in (Truncate(K, 3), RemoveDirections(K, (1,)), RemoveDirections(K, (0,), fold=MEAN)):
        for edits in ((removed, other), (other, removed)):
            with pytest.raises(PlanError, match=r"two edits claim b2\.k: "):
                Plan("m", edits)
    for whole in ("b2.attn", "b2"):
        with pytest.raises(PlanError, match=rf"b2\.k without direction 0, but {whole} "):
            Plan("m", (Drop(Site.parse(whole)), removed))
    free = (Drop(Site.parse("b2.mlp")), Drop(Site.parse("b2.attn.h0")), Truncate(Site(2, "q"), 1))
    assert len(Plan("m", (removed, *free))) == 4


def test_they_say_what_they_do():
    assert str(RemoveDirections(K, (4,))) == "b2.k without direction 4"
    assert str(RemoveDirections(K, (9, 4), True)) == "b2.k without directions 4, 9 of its heads"
    assert str(RemoveDirections(K, tuple(range(12)))).endswith(
        "without directions " + ", ".join(map(str, range(12)))
    )
    assert str(RemoveDirections(K, tuple(range(13)))) == "b2.k without 13 directions"
    plan = Plan("m", (RemoveDirections(K, (4,)), Truncate(Site(0, "q"), 1), Drop(Site(1))))
    assert plan.descriptions == ["b0.q → rank 1", "b2.k without direction 4", "b1 gone"]


# ------------------------------------------------------------------------------------------------------- what is fitted


def test_a_digest_is_of_everything_that_counts():
    base = {"mean": np.arange(6, dtype=np.float32)}
    different = [
        base, {"mean": base["mean"].astype(np.float64)}, {"mean": base["mean"].reshape(2, 3)}, {"u": base["mean"]},
        {"mean": base["mean"] + np.float32(1e-6)}, {"mean": base["mean"].view(np.int32)},
        base | {"u": np.zeros((1, 2, 3), np.float32)}, base | {"u": np.zeros((1, 3, 2), np.float32)},
    ]  # fmt: skip
    assert len({Fitted.of(arrays).digest for arrays in different}) == len(different)
    assert Fitted.of(base).digest == "39e0c1534b0f451b8ece76648d509e7b"  # for ever: plans in files name it


def test_a_digest_is_not_of_the_order_or_layout_in_memory():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 7))
    one = Fitted.of({"mean": a, "u": b})
    assert Fitted.of({"u": b, "mean": a}) == one
    assert Fitted.of({"u": np.asfortranarray(b), "mean": np.concatenate([a, a])[::1][:5]}) == one
    assert one == Fitted(one.digest)
    assert one != Fitted.of({"mean": a})
    assert all(array.flags.c_contiguous for array in one.arrays.values())


def test_a_plan_read_gets_its_arrays_by_name():
    plan = Plan(
        "m",
        (
            RemoveDirections(K, (0,), fold=MEAN),
            RemoveDirections(Site(0, "v"), (0,)),
            Truncate(Site(1, "q"), 2),
        ),
    )
    read = Plan.from_json(plan.to_json())
    filled = read.with_fitted({MEAN.digest: MEAN})
    assert filled == read == plan
    assert filled.fitted[0].arrays["mean"].tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        read.with_fitted({})


# ------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A model, a task, and a checkpoint without some directions of four matrices."""
    place = tmp_path_factory.mktemp("plans")
    save_model(place / "llama", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions(80))
    loaded, draw = api.load(str(place / "llama")), np.random.default_rng(0)
    edits = []
    for kind, per_head in (("k", True), ("o", True), ("down", False), ("gate", False)):
        matrix = loaded.anatomy.matrix(Site(1, kind))
        mean = draw.normal(size=matrix.shape[1]).astype(np.float32)
        edits.append(RemoveDirections(matrix.site, (0, 3), per_head, Fitted.of({"mean": mean})))
    api.apply(str(place / "llama"), Plan(loaded.fingerprint, tuple(edits)), place / "out")
    return place


@pytest.fixture
def out(place, tmp_path):
    return shutil.copytree(place / "out", tmp_path / "out")


def test_what_is_written_is_read(place):
    plan = read_plan(place / "out")
    assert read_plan(place / "out/plan.json") == plan
    names = sorted(path.name for path in (place / "out/tensors").iterdir())
    assert names == sorted(f"{fitted.digest}.safetensors" for fitted in plan.fitted)
    for fitted in plan.fitted:
        assert Fitted.of(fitted.arrays) == fitted
        assert fitted.arrays["mean"].dtype == np.float32


def test_tensors_may_be_read_by_whoever_may_read_the_plan(place):
    mode = (place / "out/plan.json").stat().st_mode
    assert {path.stat().st_mode for path in (place / "out/tensors").iterdir()} == {mode}


def weights_of(folder):
    return {name: data for name, data in contents(folder).items() if name.endswith((".safetensors", ".py"))}


@pytest.mark.slow
def test_the_plan_of_a_checkpoint_makes_it_again_in_this_process_and_in_another(place, tmp_path):
    words = ["apply", str(place / "llama"), "--plan", str(place / "out"), "-o"]
    done = secateur(*words, tmp_path / "here")
    assert done.exit_code == 0, done.stderr
    command = [sys.executable, "-c", "from secateur.cli import main; main()", *words, str(tmp_path / "there")]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    expected = weights_of(place / "out")
    assert len(expected) == 5  # the model and four means
    assert weights_of(tmp_path / "here") == weights_of(tmp_path / "there") == expected


def test_a_checkpoint_that_was_moved_works(place, out):
    assert read_plan(out) == read_plan(place / "out")
    for how in (out, out / "plan.json"):
        found = [
            api.evaluate(str(place / "llama"), str(place / "q.jsonl"), plan=how, allow_small=True),
            api.evaluate(str(out), str(place / "q.jsonl"), allow_small=True),
        ]
        cut, written = ([score["value"] for score in one["scores"]] for one in found)
        np.testing.assert_allclose(cut, written, rtol=1e-4)
    whole = api.evaluate(str(place / "llama"), str(place / "q.jsonl"), allow_small=True)
    assert abs(whole["scores"][-1]["value"] - cut[-1]) > 1e-3


def test_eval_takes_the_plan_on_the_command_line(place):
    words = ["eval", place / "llama", "--task", place / "q.jsonl", "--allow-small", "--json", "--plan"]
    done = secateur(*words, place / "out")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["plan"].endswith(
        "b1.k without directions 0, 3 of its heads; b1.o without directions 0, 3 of its heads"
    )
    assert [s["value"] for s in told["scores"]] == [
        s["value"]
        for s in api.evaluate(
            str(place / "llama"), str(place / "q.jsonl"), plan=place / "out", allow_small=True
        )["scores"]
    ]


def refused(out, *words):
    with pytest.raises(PlanError) as caught:
        read_plan(out)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_missing_tensors_are_refused(place, out, tmp_path):
    shutil.copy(out / "plan.json", tmp_path / "alone.json")
    refused(tmp_path / "alone.json", "Copy tensors/ along with plan.json", str(tmp_path / "tensors"))
    done = secateur("apply", place / "llama", "--plan", tmp_path / "alone.json", "-o", tmp_path / "cut")
    assert done.exit_code == 2
    assert "Copy tensors/ along" in done.stderr
    assert not (tmp_path / "cut").exists()
    next((out / "tensors").iterdir()).unlink()
    refused(out, "cannot be read")


def test_no_byte_of_the_tensors_may_differ(out):
    """Each byte of the header, and some of the numbers."""
    file = sorted((out / "tensors").iterdir())[0]
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    assert header < len(good)
    for at in (*range(header), *range(header, len(good), 17), len(good) - 1):
        file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        refused(out, file.name)
    for half in (b"", good[:-1], good[: header - 1], good + b"\0"):
        file.write_bytes(half)
        refused(out, file.name)
    file.write_bytes(good)
    read_plan(out)


def test_tensors_of_another_digest_are_refused(out):
    first, second = sorted((out / "tensors").iterdir())[:2]
    shutil.copy(first, second)
    refused(out, second.name, "not what the plan was made with")


@pytest.mark.parametrize(
    "digest",
    [
        "../../llama/model",
        "/etc/hostname",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "a\0b",
        "x" * 5000,
        "~",
        7,
        ["a"],
        {},
    ],
)
def test_a_digest_leads_nowhere_else(out, digest):
    record = json.loads((out / "plan.json").read_text())
    record["edits"][0]["fold"] = digest
    (out / "plan.json").write_text(json.dumps(record))
    refused(out)


@pytest.mark.parametrize(
    "change",
    [{"directions": []}, {"directions": [-1]}, {"directions": 3}, {"directions": ["x"]}, {"matrix": "b1.attn"},
     {"matrix": 5}, {"directions": None}],
    ids=str,
)  # fmt: skip
def test_json_that_is_no_removal_is_refused(out, change):
    record = json.loads((out / "plan.json").read_text())
    record["edits"][0] |= change
    (out / "plan.json").write_text(json.dumps(record))
    refused(out, str(out / "plan.json"))
    for key in ("directions", "per_head", "fold", "matrix"):
        broken = json.loads((out / "plan.json").read_text())
        del broken["edits"][0][key]
        (out / "plan.json").write_text(json.dumps(broken))
        refused(out, "plan.json")


def test_plans_that_read_alike_are_not_one_command(place, tmp_path):
    """Beyond a dozen directions a plan tells their number alone, and it never tells what is folded."""
    model = str(place / "llama")
    fingerprint = api.load(model).fingerprint
    many = [RemoveDirections(Site(0, "up"), tuple(range(start, start + 13))) for start in (0, 1)]
    folds = [Fitted.of({"mean": np.full(32, value, np.float32)}) for value in (1, 2)]
    folded = [RemoveDirections(Site(0, "up"), (0,), fold=fold) for fold in folds]
    for number, (first, second) in enumerate((many, folded)):
        assert str(first) == str(second)
        out = tmp_path / str(number)
        assert not api.apply(model, Plan(fingerprint, (first,)), out).already
        assert api.apply(model, Plan(fingerprint, (first,)), out).already
        with pytest.raises(SecateurError, match="holds the result of another command"):
            api.apply(model, Plan(fingerprint, (second,)), out)


def test_a_plan_without_its_arrays_is_not_carried_out(place, tmp_path):
    bare = Plan.from_json(json.loads((place / "out/plan.json").read_text()))
    with pytest.raises(PlanError, match=r"its fitted tensors \([0-9a-f]{32}\) are not there"):
        api.apply(str(place / "llama"), bare, tmp_path / "cut")
    with pytest.raises(PlanError, match="are not there"):
        api.evaluate(str(place / "llama"), str(place / "q.jsonl"), plan=bare, allow_small=True)
