"""Proofs before a cut: which edits are refused by them, how they are kept, and what a checkpoint says of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import tiny, variant

from secateur.core.plan import DROPPED
from secateur.errors import ModelError
from secateur.hf import recognize
from secateur.hf.blank import tiny_config, tiny_copy
from secateur.hf.families import FAMILIES
from secateur.methods.registry import methods
from secateur.probes import proved, structure

HEADS, BLOCKS = DROPPED["attn", "h"], DROPPED["", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("proved")
    save_model(place / "m", tiny("gpt2"), words)
    write_rows(place / "q.jsonl", questions())
    return place


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A cache that has no proof, in memory neither."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proved, "_IN_MEMORY", {})
    return tmp_path / "secateur" / "proofs"


@pytest.fixture
def forget(monkeypatch):
    """A function that makes this process forget its proofs, as another one that was never there."""
    return lambda: monkeypatch.setattr(proved, "_IN_MEMORY", {})


@pytest.fixture
def wrong(monkeypatch):
    """GPT-2's family as if q, k and v lay by groups in their common matrix, which they do not."""
    right = FAMILIES["GPT2LMHeadModel"]
    slots = {
        kind: replace(slot, layout="grouped") if kind in "qkv" else slot for kind, slot in right.slots.items()
    }
    family = replace(right, slots=slots)
    monkeypatch.setattr(recognize, "ARCHITECTURES", {**FAMILIES, right.architecture: family})


def test_what_does_not_pass_is_refused_by_kind_and_the_rest_is_cut(folder, wrong, tmp_path):
    out = ("-o", tmp_path / "out")
    found = secateur("apply", folder / "m", "--edit", "b0.q=2", *out)
    refused(found, "GPT2LMHeadModel", "'q'", "attention differs by", "(relative)")
    task = ("--task", folder / "q.jsonl", "--allow-small", "--method", "laser", "--matrices")
    refused(secateur("prune", folder / "m", *task, "q,down", *out), "'q'", "--matrices")
    refused(
        secateur(
            "eval", folder / "m", "--task", folder / "q.jsonl", "--allow-small", "--edit", "b0.attn.h0=drop"
        ),
        "'heads'",
    )
    done = secateur("apply", folder / "m", "--edit", "b0.mlp=drop", *out)
    assert done.exit_code == 0, done.stderr


def test_a_checkpoint_says_what_was_proved(folder, tmp_path):
    done = secateur(
        "apply", folder / "m", "--edit", "b0.attn.h0=drop", "--edit", "b1.down=2", "-o", tmp_path / "out"
    )
    assert (done.exit_code, done.stderr) == (0, "")
    stated = json.loads((tmp_path / "out" / "plan.json").read_text())["provenance"]["structure"]
    assert (stated["proved"], stated["not_proved"], stated["why"]) == (["down", "heads"], [], None)
    assert stated["versions"].keys() == {"secateur", "transformers", "torch"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Proved on a tiny random copy of its config: down, heads." in card


def test_what_has_no_copy_is_cut_and_said(tmp_path, words, caplog):
    save_model(tmp_path / "m", tiny("xglm"), words)
    done = secateur("apply", tmp_path / "m", "--edit", "b0.mlp=drop", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "is not proved: XGLMForCausalLM does not run in float64" in caplog.text
    stated = json.loads((tmp_path / "out" / "plan.json").read_text())["provenance"]["structure"]
    assert stated["proved"] == []
    assert stated["why"] in (tmp_path / "out" / "README.md").read_text()


def test_a_proof_is_made_once_by_kind(empty, forget, as_loaded, monkeypatch):
    loaded = as_loaded(tiny("gpt2"))
    assert proved.proof_of(loaded, {HEADS}).proved == [HEADS]
    forget()
    assert proved.proof_of(loaded, {HEADS, BLOCKS}).proved == [BLOCKS, HEADS]
    (file,) = empty.iterdir()
    assert json.loads(file.read_text())["kinds"].keys() == {HEADS, BLOCKS}
    forget()

    def never(*_: object) -> None:
        raise AssertionError("a copy was made")

    monkeypatch.setattr(proved, "tiny_copy", never)
    assert proved.proof_of(loaded, {BLOCKS}).proved == [BLOCKS]


def test_a_file_that_is_no_proof_is_replaced(empty, forget, as_loaded):
    loaded = as_loaded(tiny("gpt2"))
    proved.check_proved(loaded, {HEADS})
    (file,) = empty.iterdir()
    good = file.read_text()
    for broken in (
        "",
        "[]",
        '{"architecture": "GPT2LMHeadModel", "kinds": 3}',
        good.replace("GPT2", "Other"),
    ):
        file.write_text(broken)
        forget()
        assert proved.proof_of(loaded, {HEADS}).proved == [HEADS]
        assert file.read_text() == good


def test_where_nothing_can_be_kept_that_is_said(empty, as_loaded, caplog):
    empty.parent.mkdir()
    empty.write_text("a file where the folder would be")
    assert proved.proof_of(as_loaded(tiny("gpt2")), {HEADS}).proved == [HEADS]
    assert "proofs cannot be kept" in caplog.text


def test_a_failure_is_never_kept(empty, wrong, as_loaded):
    loaded = as_loaded(tiny("gpt2"))
    for _ in range(2):
        with pytest.raises(ModelError, match="'q' are refused"):
            proved.check_proved(loaded, {"q"})
    assert not empty.exists()


def test_sizes_and_names_share_a_proof(empty, as_loaded):
    for model in (variant("llama"), variant("llama", intermediate_size=64, vocab_size=120, eos_token_id=5)):
        proved.check_proved(as_loaded(model), {HEADS})
    assert len(list(empty.iterdir())) == 1
    proved.check_proved(as_loaded(variant("llama", rms_norm_eps=1e-3)), {HEADS})
    assert len(list(empty.iterdir())) == 2


def test_of_a_multimodal_model_the_language_model_alone_has_memory(as_loaded):
    loaded = as_loaded(tiny("gemma3-vision"))
    copy = tiny_copy(loaded, tiny_config(loaded, structure.WINDOW))
    tower = loaded.anatomy.details.tower
    held = {name for name, parameter in copy.named_parameters() if not parameter.is_meta}
    assert held == {
        name for name, _ in copy.named_parameters() if name.startswith(f"{tower}.") or "lm_head" in name
    }
    found = proved.proof_of(loaded, {HEADS, BLOCKS, "q", "linear maps"})
    assert (found.not_proved, found.why) == ([], None)


def test_every_method_says_what_it_may_propose():
    assert all(
        type(method).kinds is not methods()["laser"].__class__.__mro__[1].kinds
        for method in methods().values()
    )
