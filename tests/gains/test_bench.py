"""Gains: what is counted, against hand counts and torch's own counter; what is stored; and the record. Never a time."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.folders import save_model, secateur
from fixtures.zoo import ZOO, tiny
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur import api
from secateur.core.plan import Drop, Plan
from secateur.core.site import Site
from secateur.errors import ModelError, SecateurError, UnknownName
from secateur.gains.cost import Attended, cost, prefill, random_tokens
from secateur.gains.length import Length
from secateur.gains.memory import RESET, peak_bytes
from secateur.gains.record import bytes_on_disk, gains, measure, peaks, zeroed, zeroed_note
from secateur.gains.timing import decode, paired, speed
from secateur.hf.modeling_secateur import LowRank
from secateur.hf.running import using_threads
from secateur.surgery.materialize import cut

BATCH, PROMPT = 2, 12


def silent(stage, done, total):
    """No progress."""


def tokens(batch=BATCH, prompt=PROMPT):
    return random_tokens(96, batch, prompt)


def test_a_model_that_keeps_no_cache_has_no_bytes_of_it_and_is_not_timed(as_loaded):
    loaded = as_loaded(tiny("openai-gpt"))
    assert gains(loaded, loaded).kv_bytes_per_token is None
    with pytest.raises(ModelError, match="timing: OpenAIGPTLMHeadModel keeps no cache"):
        loaded.anatomy.check_cached("timing")


# -------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("name", ZOO)
def test_flops_are_those_that_torch_counts(name, as_loaded):
    _assert_as_torch_counts(as_loaded(tiny(name)))


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "bloom", "falcon-40b", "gemma2", "phi3"])
def test_flops_of_a_cut_model_are_those_that_torch_counts(name, as_loaded):
    """Block 0 without attention, block 1 with one KV group less and without its feed-forward network; what is left of
    the cache is a mark a token in block 0, and the other groups' keys and values in block 1."""
    before = as_loaded(tiny(name))
    gone = [Drop(Site.parse(site)) for site in ("b0.attn", "b1.attn.g0", "b1.mlp")]
    after = as_loaded(cut(before, Plan(before.fingerprint, tuple(gone))))
    _assert_as_torch_counts(after)
    groups = before.anatomy.num_kv_heads
    held = cost(before, tokens()).attended[1].held * (groups - 1) // groups  # Falcon's cache repeats keys
    assert cost(after, tokens()).kv_bytes_per_token == 2 * 4 + held


def _assert_as_torch_counts(loaded):
    """Plain attention multiplies every query with every key, of which a causal model needs (n + 1) / 2n. The prompt is
    shorter than the windows; rotary angles are the model's own business."""
    found = cost(loaded, tokens())
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
        prefill(loaded.model, tokens())
    scores = found.prefill_flops - found.matmul_flops
    assert found.matmul_flops + scores * 2 * PROMPT // (PROMPT + 1) == counter.get_total_flops() - _rotary(
        counter
    )


def _rotary(counter):
    """Angles are an outer product of positions and frequencies, which torch counts as a matrix product."""
    return sum(
        sum(ops.values())
        for name, ops in counter.get_flop_counts().items()
        if name.rpartition(".")[2].startswith("rotary_emb")
    )


def test_flops_of_a_grouped_llama_by_hand(as_loaded):
    """d_model 32, 4 query and 2 key heads of 8, d_ff 40, 2 blocks; the unembedding at the last position only."""
    found = cost(as_loaded(tiny("llama")), tokens())
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 40
    assert found.matmul_flops == 2 * (2 * block * BATCH * PROMPT + 96 * 32 * BATCH)
    keys = sum(range(1, PROMPT + 1))
    assert found.prefill_flops - found.matmul_flops == BATCH * 2 * (2 + 2) * 32 * keys


def test_a_window_bounds_the_keys_that_count(as_loaded):
    """Mistral's window of 16 at 24 positions, against a loop over the mask."""
    found = cost(as_loaded(tiny("mistral")), tokens(prompt=24))
    pairs = sum(1 for i in range(24) for j in range(24) if i - 16 < j <= i)
    assert found.prefill_flops - found.matmul_flops == BATCH * 2 * 4 * 32 * pairs


def test_two_factors_cost_what_they_hold(as_loaded):
    """A matrix of 40 × 32 as two factors of rank 3."""
    dense, model = cost(as_loaded(tiny("llama")), tokens()), tiny("llama")
    model.set_submodule("model.layers.0.mlp.up_proj", LowRank(40, 32, 3))
    loaded = replace(as_loaded(tiny("llama")), model=model)
    found = cost(loaded, tokens())
    assert dense.matmul_flops - found.matmul_flops == 2 * BATCH * PROMPT * (40 * 32 - 3 * (40 + 32))
    assert dense.weight_bytes - found.weight_bytes == 4 * (40 * 32 - 3 * (40 + 32))


# ------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("name", "kv_heads"), [("gpt2", 4), ("llama", 2), ("falcon-7b", 1), ("phi3-multi-query", 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_per_token(name, kv_heads, dtype, as_loaded):
    """Keys and values × blocks × key heads × head size × bytes: multi-head, grouped, multi-query."""
    found = cost(as_loaded(tiny(name, dtype)), tokens())
    assert found.kv_bytes_per_token == 2 * 2 * kv_heads * 8 * dtype.itemsize


def test_a_sliding_cache_holds_what_fits_its_window(as_loaded):
    """transformers keeps window - 1 = 15 of 24 tokens: the next one is the sixteenth."""
    found = cost(as_loaded(tiny("mistral")), tokens(prompt=24))
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4 * 15 / 24
    assert found.attended == (Attended(32, 2 * 2 * 8 * 4, 16),) * 2


def test_bytes_of_a_decoding_step_by_hand(as_loaded):
    """All weights but the looked-up embedding once; and the cache, as long as it is at each step."""
    model = tiny("llama")
    found = cost(as_loaded(model), tokens())
    weights = sum(p.nbytes for name, p in model.named_parameters() if "embed" not in name)
    assert found.weight_bytes == weights
    cached = [2 * 2 * 2 * 8 * 4 * (PROMPT + step) for step in (1, 2, 3)]
    assert found.decode_bytes(3) == weights + BATCH * sum(cached) / 3


def test_a_tied_unembedding_is_read(as_loaded):
    model = tiny("opt")
    positions = model.get_submodule("model.decoder.embed_positions").weight.nbytes
    found = cost(as_loaded(model), tokens())
    assert found.weight_bytes == sum(p.nbytes for p in model.parameters()) - positions


def test_bytes_on_disk_are_those_of_the_files(tmp_path, words):
    one = save_model(tmp_path / "one", tiny("llama"), words)
    many = save_model(tmp_path / "many", tiny("llama"), words, max_shard_size="20KB")
    (one / "consolidated.safetensors").write_bytes(b"another copy")
    assert bytes_on_disk(one) == os.path.getsize(one / "model.safetensors")
    shards = sorted(many.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert bytes_on_disk(many) == sum(os.path.getsize(shard) for shard in shards)


# ------------------------------------------------------------------------------------------------------------ zeroed


def test_what_is_zero_but_stored_is_said(as_loaded):
    """Two heads, one feed-forward network and three neurons of another; nothing gets smaller by it."""
    before, model = as_loaded(tiny("llama")), tiny("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 8:16] = 0
        model.model.layers[1].self_attn.o_proj.weight[:, 24:] = 0
        model.model.layers[1].mlp.down_proj.weight[:] = 0
        model.model.layers[0].mlp.down_proj.weight[:, [1, 5, 6]] = 0
        model.model.layers[0].mlp.down_proj.weight[3] = 0  # an output without inputs is no neuron
    after = as_loaded(model)
    found = gains(before, after).to_json()
    assert found["zeroed"] == {
        "heads": 2,
        "ffns": 1,
        "neurons": 3,
        "weights": 2 * 256 + 32 * 40 + 3 * 32 + 37,
    }
    assert (
        found["note"] == "2 heads and 1 feed-forward network and 3 neurons are zero but stored: nothing saved"
    )
    for key in ("parameters", "kv_bytes_per_token"):
        assert found[key]["before"] == found[key]["after"]
    was, now = (cost(one, tokens()) for one in (before, after))
    assert was == now


def test_zero_columns_of_gpt2_are_rows_of_its_parameter(as_loaded):
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[:8] = 0
    found = zeroed(as_loaded(model))
    assert (found.heads, found.ffns, found.neurons) == (1, 0, 0)
    assert zeroed_note(found) == "1 head is zero but stored: nothing saved"
    assert zeroed_note(zeroed(as_loaded(tiny("gpt2")))) is None


# ----------------------------------------------------------------------------------------------------------- the record


def test_a_narrower_model_saves_what_its_shapes_say(as_loaded):
    """Multi-query against grouped: one key head instead of two, and so one 16-column matrix pair less a block."""
    before, after = as_loaded(tiny("phi3")), as_loaded(tiny("phi3-multi-query"))
    found = gains(before, after).to_json()
    fewer = 2 * 2 * 8 * 32
    assert found["parameters"]["before"] - found["parameters"]["after"] == fewer
    assert found["kv_bytes_per_token"] == {"before": 256, "after": 128}
    assert found["bytes_on_disk"] is None  # in memory only
    assert found["note"] is None
    assert [found[key] for key in ("peak_bytes", "prefill", "decode", "shape", "threads")] == [None] * 5


def test_limits_come_from_the_shapes(as_loaded):
    before, after = as_loaded(tiny("phi3")), as_loaded(tiny("phi3-multi-query"))
    found = measure(before, after, Length(PROMPT, 4, BATCH, 2), progress=silent).to_json()
    was, now = (cost(one, tokens()) for one in (before, after))
    for name, limit in (
        ("prefill", was.prefill_flops / now.prefill_flops),
        ("decode", was.decode_bytes(4) / now.decode_bytes(4)),
    ):
        assert found[name]["limit"] == limit > 1
        assert found[name]["of_limit"] == found[name]["speedup"] / limit
    assert found["shape"] == {"prompt": PROMPT, "new": 4, "batch": BATCH, "repeats": 2}


def test_lengths_stop_at_the_context_and_say_so(as_loaded):
    loaded = as_loaded(tiny("llama"))
    assert Length(512, 32).within(64, None, 128) == Length(32, 32)
    assert Length(512, 100).within(64) == Length(32, 32)
    assert Length(50, 4).within(64) == Length(50, 4)
    assert Length(512, 32).within(None) == Length(512, 32)
    found = measure(loaded, loaded, Length(512, 2, 1, 1), progress=silent).to_json()
    assert found["shape"]["prompt"] == 62
    assert "62 + 2 tokens of the 512 + 2 asked for" in found["note"]


def test_windows_and_dtypes_are_noted(as_loaded):
    before, after = as_loaded(tiny("mistral")), as_loaded(tiny("llama", torch.bfloat16))
    note = measure(before, after, Length(24, 2, 1, 1), progress=silent).note
    assert "dense: 2 of 2 blocks keep a sliding window of 16 tokens" in note
    assert "dense model is float32, the cut one bfloat16" in note


def test_speed_is_the_median_of_pairs():
    """Times in which the middle is known: ratios 2, 4, 3."""
    found = speed(((2.0, 1.0), (4.0, 1.0), (3.0, 1.0)), 12, 1.5).to_json()
    assert [found[name] for name in ("before", "after", "speedup", "of_limit")] == [4.0, 12.0, 3.0, 2.0]
    assert found["speedup_iqr"] == [2.5, 3.5]


def test_rounds_alternate_and_the_first_is_not_counted(monkeypatch, as_loaded):
    """A clock that counts its calls, and models that tell when they ran."""
    ran, models = [], (tiny("llama"), tiny("llama"))
    for number, model in enumerate(models):
        model.register_forward_pre_hook(lambda m, a, number=number: ran.append(number))
    ticks = iter(range(10_000))
    found = paired(models, tokens(), new=1, repeats=3, progress=silent, clock=lambda: next(ticks))
    assert ran == [0, 1, 0, 1, 1, 0, 1, 0] * 2
    assert found.prefill == found.decode == ((1, 1),) * 3


@pytest.mark.parametrize("name", ["opt", "bloom", "falcon-rw", "mistral", "gemma3", "gpt2"])
def test_what_is_timed_decodes_as_generate_does(name):
    """Greedy, with the cache, past a window."""
    model = tiny(name)
    with torch.inference_mode():
        found = decode(model, prefill(model, tokens(prompt=20)), 8)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(tokens(prompt=20), attention_mask=torch.ones(BATCH, 20), **options)
    assert torch.equal(found, expected[:, 20:])


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with using_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with using_threads(None) as count:
        assert count == before


# ------------------------------------------------------------------------------------------------ memory, and the verb


@pytest.fixture(scope="module")
def place(tmp_path_factory, words) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    save_model(folder / "dense", tiny("phi3"), words)
    save_model(folder / "cut", tiny("phi3-multi-query"), words)
    return folder


def _load(folder):
    return {"name": str(folder), "dtype": "auto", "device": "cpu"}


@pytest.mark.slow
@pytest.mark.skipif(not RESET.exists(), reason="only Linux keeps a mark that can be reset")
def test_peak_memory_sees_a_known_tensor(tmp_path, words):
    """Logits are kept for one position, so a feed-forward network of 16,384 is the peak: gate, its activation, up and
    their product, of which three live at once; on top of the weights."""
    model = _wide_llama()
    folder = save_model(tmp_path / "wide", model, words)
    found = peak_bytes(_load(folder), batch=1, prompt=1000, new=2, threads=1)
    weights, one = sum(p.nbytes for p in model.parameters()), 1000 * 16_384 * 4
    assert 2.9 * one < found["prefill"] - weights < 3.3 * one
    assert 0 < found["decode"] - weights < 0.2 * one


def _wide_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 16_384, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, max_position_embeddings=1024, **shape))


def test_memory_that_was_not_measured_is_null():
    found = peaks({"prefill": 1, "decode": 2}, {"prefill": None, "decode": None})
    assert set(found.values()) == {None}
    found = peaks({"prefill": 5, "decode": 2}, {"prefill": 3, "decode": 4})
    assert found["peak_bytes"].to_json() == {"before": 5, "after": 4}
    assert found["peak_bytes_prefill"].to_json() == {"before": 5, "after": 3}
    assert found["peak_bytes_decode"].to_json() == {"before": 2, "after": 4}


@pytest.mark.slow
def test_the_verb(place):
    words = ["bench", place / "cut", "--against", place / "dense", "--prompt", 8, "--new", 2, "--repeats", 1]
    done = secateur(*words, "--threads", 1, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes_on_disk"] == {
        "before": os.path.getsize(place / "dense/model.safetensors"),
        "after": os.path.getsize(place / "cut/model.safetensors"),
    }
    assert found["shape"] == {"prompt": 8, "new": 2, "batch": 1, "repeats": 1}
    assert (found["threads"], found["dtype"]) == (1, "float32")
    for key in ("prefill", "decode"):
        assert np.isfinite([found[key]["before"], found[key]["after"], found[key]["of_limit"]]).all()
    assert all(math.isfinite(found["peak_bytes"][side]) for side in ("before", "after")) or not RESET.exists()


def test_the_table(place, monkeypatch):
    """In 80 columns nothing is cut off."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        "secateur.gains.record.peak_bytes", lambda *a, **k: {"prefill": 1_500_000, "decode": 70}
    )
    done = secateur("bench", place / "cut", "--against", place / "dense", "--repeats", 1)
    assert done.exit_code == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "tokens/s" in line]
    assert [row.rstrip()[-2:] for row in rows] == [" %", " %"]
    for said in ("1.50 MB", "asked for"):
        assert said in done.stdout


@pytest.mark.slow
def test_the_dense_model_is_read_from_the_plan(place):
    with pytest.raises(UnknownName, match="Give --against MODEL"):
        api.bench(place / "cut")
    plan = {"provenance": {"command": {"model": str(place / "dense"), "revision": None}}}
    (place / "cut/plan.json").write_text(json.dumps(plan))
    found = api.bench(place / "cut", prompt=4, new=1, repeats=1)
    assert found["against"] == str(place / "dense")
    assert found["kv_bytes_per_token"] == {"before": 256, "after": 128}
    (place / "cut/plan.json").write_text("[]")
    with pytest.raises(UnknownName, match="Give --against MODEL"):
        api.bench(place / "cut")


def test_numbers_below_one_are_refused(place):
    with pytest.raises(SecateurError, match="--repeats 0: give a whole number, 1 or more"):
        api.bench(place / "cut", place / "dense", repeats=0)
