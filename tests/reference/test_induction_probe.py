"""Prefix matching and copying against their definitions as loops, over every family; planted heads; the way in which
attention weights are had, and given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fixtures.zoo import CONTEXT, VOCAB_SIZE, ZOO, tiny
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.hf.anatomy import anatomy
from secateur.hf.load import Loaded, load_model
from secateur.probes.heads import attend, sdpa_weights
from secateur.probes.induction import (
    copying,
    copying_scores,
    prefix_matching,
    prefix_scores,
    random_segments,
    random_vocabulary,
    with_bos,
)

# --------------------------------------------------------------------------------------- the definitions, as loops


def prefix_by_loops(weights: np.ndarray, tokens: list[int], segment: int, lead: int) -> float:
    """For every position after the first repeat, over all earlier places of its token, what their followers get."""
    total, count = 0.0, 0
    for p in range(lead + segment, len(tokens)):
        for earlier in range(lead, p):
            if tokens[earlier] == tokens[p]:
                total += weights[p, earlier + 1]
        count += 1
    return total / count


def copying_by_loops(logits: np.ndarray, weights: np.ndarray, tokens: list[int], lead: int) -> float:
    return float(np.mean([share for share, _ in copied_by_loops(logits, weights, tokens, lead)]))


def copied_by_loops(
    logits: np.ndarray, weights: np.ndarray, tokens: list[int], lead: int
) -> list[tuple[float, bool]]:
    """`logits` (positions, vocabulary); a softmax over all of it. With each share, whether it is at the sink."""
    shares = []
    for j in range(lead, len(tokens)):
        likely = np.exp(logits[j] - logits[j].max())
        likely /= likely.sum()
        mine = [likely[tokens[i]] for i in range(j + 1)]
        raised = [max(0.0, value - sum(mine) / len(mine)) for value in mine]
        attended = max(range(j + 1), key=lambda i, j=j: weights[j, i])
        shares.append((raised[attended] / sum(raised) if sum(raised) else 0.0, attended in (0, j)))
    return shares


def stochastic(seed: int, heads: int, length: int) -> np.ndarray:
    """Random causal attention, (heads, length, length)."""
    made = np.tril(np.random.default_rng(seed).random((heads, length, length)) ** 3)
    return made / made.sum(-1, keepdims=True)


@pytest.mark.parametrize(("segment", "repeats", "lead"), [(2, 4, 1), (7, 4, 1), (11, 3, 0), (5, 2, 2)])
def test_prefix_scores_are_the_loops(segment, repeats, lead):
    weights = stochastic(segment, 3, lead + repeats * segment)
    tokens = [*range(1000, 1000 + lead), *list(range(segment)) * repeats]
    expected = [prefix_by_loops(head, tokens, segment, lead) for head in weights]
    found = prefix_scores(torch.from_numpy(weights), segment, lead)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_planted_induction_head_scores_one_and_others_what_theory_says():
    segment, length = 9, 37
    planted, uniform, previous = torch.zeros(3, length, length, dtype=torch.float64)
    for p in range(length):
        planted[p, max(0, p - segment + 1)] = 1  # what followed this token in the repeat before
        uniform[p, : p + 1] = 1 / (p + 1)
        previous[p, max(0, p - 1)] = 1
    scores = prefix_scores(torch.stack([planted, uniform, previous]), segment)
    theory = sum(((p - 1) // segment) / (p + 1) for p in range(1 + segment, length)) / (3 * segment)
    torch.testing.assert_close(scores, torch.tensor([1, theory, 0], dtype=torch.float64))


@pytest.mark.parametrize("lead", [0, 1])
def test_copying_scores_are_the_loops(lead):
    generator = np.random.default_rng(lead)
    weights, logits = stochastic(5, 4, 13), generator.normal(0, 3, (4, 13, 90))
    tokens = generator.permutation(90)[:13].tolist()
    expected = [copying_by_loops(logits[h], weights[h], tokens, lead) for h in range(4)]
    attended = torch.from_numpy(weights.argmax(-1))
    found = copying_scores(torch.from_numpy(logits[:, :, tokens]), attended, lead).mean(dim=-1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_planted_copying_heads():
    """One raises just what it attends, one everything but that, one nothing, one two tokens of which it attends one."""
    length = 12
    attended = torch.tensor([max(0, j - 3) for j in range(length)]).expand(4, -1)
    logits = torch.zeros(4, length, length)
    for j, at in enumerate(attended[0].tolist()):
        logits[0, j, at] = 5.0
        logits[1, j, at] = -5.0
        logits[3, j, [at, (at + 1) % (j + 1)]] = 300.0  # far beyond what float32 can exponentiate
    scores = copying_scores(logits, attended).mean(dim=-1)
    # with two tokens in sight both are raised alike, which is not at all
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.0, 0.0, 0.5 * 10 / 11]))


# ------------------------------------------------------------------------------------------ whole models, every family


def stock_weights(name: str, tokens: Tensor) -> tuple[Loaded, list[np.ndarray], list[Tensor]]:
    """From transformers' own list of a model that is eager from the start, and what enters each v projection.

    Eager Falcon with ALiBi adds it twice, unlike its sdpa; there the weights are made of queries and keys.
    """
    model = tiny(name, torch.float64)
    alibi = name == "falcon-rw"
    if not alibi:
        model.config._attn_implementation = "eager"
    loaded = Loaded(name, model, None, anatomy(model), name, None, None)
    entering: list[Tensor] = []
    for block in range(loaded.anatomy.num_blocks):
        path = loaded.anatomy.matrices[Site(block, "v")].module
        model.get_submodule(path).register_forward_hook(lambda m, args, y: entering.append(args[0]))
    out = model(input_ids=tokens, use_cache=False, output_attentions=not alibi)
    if alibi:
        return loaded, [alibi_weights(loaded, b, x[0]) for b, x in enumerate(entering)], entering
    return loaded, [weights[0].double().numpy() for weights in out.attentions], entering


def alibi_weights(loaded: Loaded, block: int, x: Tensor) -> np.ndarray:
    """softmax((q·k + slope · position) / √d_head), slopes 2^−2, 2^−4, 2^−6, 2^−8 for 4 heads (arXiv 2108.12409)."""
    q, k = (projected(loaded, block, kind, x).reshape(len(x), 4, -1) for kind in "qk")
    slopes = 2.0 ** -torch.tensor([2.0, 4.0, 6.0, 8.0], dtype=torch.float64)
    scores = torch.einsum("thd,jhd->htj", q, k) + slopes[:, None, None] * torch.arange(len(x))
    ahead = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    return (scores / q.shape[-1] ** 0.5).masked_fill(ahead, -torch.inf).softmax(-1).numpy()


def projected(loaded: Loaded, block: int, kind: str, x: Tensor) -> Tensor:
    """x through a logical matrix with its part of the bias."""
    matrix = loaded.anatomy.matrices[Site(block, kind)]
    y = x @ matrix.read(loaded.model.get_parameter(matrix.weight)).T
    bias = loaded.model.get_submodule(matrix.module).bias
    return y if bias is None else y + matrix.of_output(bias)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_prefix_matching_is_the_definition(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    found = prefix_matching(loaded, seeds=2)
    expected = np.zeros((loaded.anatomy.num_blocks, loaded.anatomy.num_heads))
    segments = random_segments(loaded, 2, 4)
    for segment in segments:
        tokens = [1, *segment.tolist() * 4]
        _, stock, _ = stock_weights(name, torch.tensor([tokens]))
        for block, weights in enumerate(stock):
            for head in range(loaded.anatomy.num_heads):
                expected[block, head] += prefix_by_loops(weights[head], tokens, len(segment), 1) / 2
    assert_readings(found, expected)
    assert (found.n, found.split, found.unit, found.what) == (
        2,
        "random tokens",
        "share",
        "prefix matching",
    )


def assert_readings(found: Any, expected: np.ndarray) -> None:
    assert set(found.values) == {f"b{b}.attn.h{h}" for b, h in np.ndindex(expected.shape)}
    for (block, head), value in np.ndenumerate(
        expected
    ):  # eager softmax is float32 whatever the model's dtype
        assert found.values[f"b{block}.attn.h{head}"] == pytest.approx(value, rel=1e-4, abs=1e-6)


def readout(loaded: Loaded, ov: Tensor, norm: bool) -> np.ndarray:
    """Logits (positions, vocabulary) of vectors in the residual stream, module by module."""
    model = loaded.model
    if norm and loaded.anatomy.final_norm is not None:
        ov = model.get_submodule(loaded.anatomy.final_norm)(ov)
    if loaded.anatomy.family == "opt" and model.model.decoder.project_out is not None:
        ov = model.model.decoder.project_out(ov)
    logits = model.get_submodule(loaded.anatomy.unembedding)(ov)
    cap = model.config.final_logit_softcapping if loaded.anatomy.family == "gemma2" else None
    return (cap * torch.tanh(logits / cap) if cap else logits).numpy()


def ov_by_head(loaded: Loaded, block: int, x: Tensor, head: int, output_bias: bool) -> Tensor:
    """W_o's columns of the head times W_v's rows of its key/value head, from the logical matrices. (positions, d)"""
    parts, model = loaded.anatomy, loaded.model
    o = parts.matrices[Site(block, "o")]
    value = projected(loaded, block, "v", x.reshape(-1, parts.d_model))
    group, d = head * parts.num_kv_heads // parts.num_heads, parts.d_head
    columns = o.read(model.get_parameter(o.weight))[:, head * d : (head + 1) * d]
    out = value[:, group * d : (group + 1) * d] @ columns.T
    bias = model.get_submodule(o.module).bias
    return out + bias if output_bias and bias is not None else out


@pytest.mark.parametrize("name", sorted(ZOO))
def test_copying_is_the_definition(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    segment = random_segments(loaded, 1, 4, unique=True)[0]
    tokens = [1, *segment.tolist()]
    stock, weights, entering = stock_weights(name, torch.tensor([tokens]))
    expected, beyond, sink = np.zeros((3, loaded.anatomy.num_blocks, loaded.anatomy.num_heads))
    for block, head in np.ndindex(expected.shape):
        logits = readout(stock, ov_by_head(stock, block, entering[block], head, False), norm=True)
        copied = copied_by_loops(logits, weights[block][head], tokens, 1)
        expected[block, head] = np.mean([share for share, _ in copied])
        beyond[block, head] = np.mean([share for share, at_sink in copied if not at_sink] or [0.0])
        sink[block, head] = np.mean([at_sink for _, at_sink in copied])
    assert 0 < sink.mean() < 1, "both kinds of position occur"
    found = copying(loaded, seeds=1)
    assert_readings(found.every, expected)
    assert_readings(found.beyond_sink, beyond)
    assert_readings(found.sink, sink)


def test_copying_of_some_blocks_is_that_of_all_in_them(as_loaded):
    loaded = as_loaded(tiny("llama", torch.float64))
    every = copying(loaded, seeds=2).every.values
    some = copying(loaded, seeds=2, blocks=range(1, 2)).every.values
    assert some == {site: value for site, value in every.items() if site.startswith("b1.")}
    assert 0 < len(some) < len(every)


@pytest.mark.parametrize("name", ["opt", "opt-projected", "llama", "gptj", "falcon-40b"])
def test_copying_as_the_authors_feeds_every_block_the_embeddings(name, as_loaded):
    """Each block alone on the embeddings: the same as the first block of a model that begins with it."""
    loaded = as_loaded(tiny(name, torch.float64))
    segment = random_segments(loaded, 1, 4, unique=True)[0]
    tokens = [1, *segment.tolist()]
    expected = np.zeros((loaded.anatomy.num_blocks, loaded.anatomy.num_heads))
    for block in range(loaded.anatomy.num_blocks):
        model = tiny(name, torch.float64)
        model.config._attn_implementation = "eager"
        blocks = model.get_submodule(loaded.anatomy.blocks[0].rpartition(".")[0])
        blocks[0].load_state_dict(blocks[block].state_dict())
        other = as_loaded(model)
        entering: list[Tensor] = []
        path = other.anatomy.matrices[Site(0, "v")].module
        model.get_submodule(path).register_forward_hook(lambda m, a, y, e=entering: e.append(a[0]))
        weights = model(torch.tensor([tokens]), use_cache=False, output_attentions=True).attentions[0][0]
        for head in range(loaded.anatomy.num_heads):
            logits = readout(other, ov_by_head(other, 0, entering[0], head, True), norm=False)
            expected[block, head] = copying_by_loops(logits, weights[head].numpy(), tokens, 1)
    assert_readings(copying(loaded, seeds=1, authors=True).every, expected)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_weights_times_values_are_what_the_model_computes(name, as_loaded):
    """So the weights are those in use, of the heads in the order of the output projection, with the right values."""
    loaded = as_loaded(tiny(name, torch.float64))
    parts, tokens = loaded.anatomy, torch.arange(3, 33)[None]
    seen: dict[str, Tensor] = {}
    for block in range(parts.num_blocks):
        for kind in "vo":
            module = loaded.model.get_submodule(parts.matrices[Site(block, kind)].module)
            module.register_forward_hook(
                lambda m, args, y, key=f"{block}{kind}": seen.__setitem__(key, (args[0], y))
            )
    loaded.model(tokens, use_cache=False)  # as the model attends by itself
    found: dict[int, Tensor] = {}
    used = dict(seen)
    attend(loaded, tokens, lambda block, weights: found.update({block: weights[0].double()}))
    for block in range(parts.num_blocks):
        v = parts.matrices[Site(block, "v")].of_output(used[f"{block}v"][1])
        each = v.reshape(30, parts.num_kv_heads, parts.d_head).repeat_interleave(
            parts.num_heads // parts.num_kv_heads, dim=1
        )
        mixed = torch.einsum("htj,jhd->thd", found[block], each)
        torch.testing.assert_close(
            used[f"{block}o"][0].reshape(30, parts.num_heads, -1), mixed, rtol=0, atol=1e-5
        )


def test_a_model_trained_to_recall_has_induction_heads_above_its_first_block():
    """Such a head needs one below it that looks one token back, so the first block can have none."""
    found = prefix_matching(load_model("builtin:recall"), seeds=8).values
    assert sum(value > 0.5 for name, value in found.items() if name.startswith("b1.")) >= 2
    assert all(value < 0.1 for name, value in found.items() if name.startswith("b0."))


# --------------------------------------------------------------------------------- attention, and how it is left behind


@pytest.mark.parametrize("name", ["llama", "falcon-7b", "gptj"])
def test_the_model_attends_as_before_also_after_an_error(name, as_loaded):
    loaded = as_loaded(tiny(name))
    before = loaded.model.config._attn_implementation
    tokens = torch.arange(3, 20)[None]
    logits = loaded.model(tokens).logits
    prefix_matching(loaded, seeds=1)
    with pytest.raises(ZeroDivisionError):
        attend(loaded, tokens, lambda block, weights: 1 / 0)
    copying(loaded, seeds=1, authors=True)
    assert loaded.model.config._attn_implementation == before
    assert torch.equal(loaded.model(tokens).logits, logits)
    for module in loaded.model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("shown", "message"), [(None, "block 0 shows no weights"), (0.125, "block 0 look ahead")]
)
def test_attention_that_cannot_be_read_is_refused(shown, message, as_loaded):
    def other(module, query, key, value, attention_mask, **kwargs):
        size = (*query.shape[:3], key.shape[2])
        return query.transpose(1, 2).contiguous(), None if shown is None else query.new_full(size, shown)

    AttentionInterface.register("other", other)
    AttentionMaskInterface.register("other", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = tiny("llama")
    model.set_attn_implementation("other")
    with pytest.raises(ModelError, match=message):
        copying(as_loaded(model), seeds=1)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"mask": "bool"}, {"mask": "bias"}]
)
def test_weights_are_those_inside_torchs_attention(options):
    """With the identity for values, attention gives back its weights."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, 9, 4), torch.randn(2, 3, 9, 4)
    keep = torch.ones(9, 9, dtype=torch.bool).tril()
    masks = {"bool": keep, "bias": torch.randn(9, 9).masked_fill(~keep, -1e9)}
    options = {"attn_mask": masks[options["mask"]]} if "mask" in options else options
    identity = torch.eye(9).expand(2, 3, 9, 9)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, identity, enable_gqa=True, **options
    )
    torch.testing.assert_close(sdpa_weights(query, key, identity, enable_gqa=True, **options), expected)


def test_many_sequences_side_by_side_score_as_alone(as_loaded):
    """In a context of 64 all segments are equally long, and run together."""
    loaded = as_loaded(tiny("qwen3", torch.float64))
    joined = prefix_matching(loaded, seeds=6)
    expected = np.zeros((2, 4))
    for segment in random_segments(loaded, 6, 4):
        tokens = with_bos(loaded, np.tile(segment, 4)[None])
        weights: dict[int, Tensor] = {}
        attend(loaded, tokens, lambda b, w, kept=weights: kept.update({b: w}))
        for block, head in np.ndindex(2, 4):
            expected[block, head] += float(prefix_scores(weights[block], len(segment))[0, head]) / 6
    assert_readings(joined, expected)


@pytest.mark.parametrize("probe", [prefix_matching, copying])
def test_the_same_every_time(probe, as_loaded):
    first, second = (probe(as_loaded(tiny("gpt2")), seeds=3) for _ in range(2))
    assert first == second
    assert first != probe(as_loaded(tiny("gpt2")), seeds=2)


# ------------------------------------------------------------------------------------------------ the random tokens


def test_tokens_are_unique_and_leave_out_special_frequent_and_rare_ones(as_loaded):
    loaded = as_loaded(tiny("bloom"))  # no bound on its context
    usable = list(range(3, VOCAB_SIZE))  # 0, 1, 2 are special
    assert random_vocabulary(loaded).tolist() == usable[3:-3]  # 4 % of 93
    counts = [(7 * i) % VOCAB_SIZE for i in range(VOCAB_SIZE)]
    by_count = sorted(usable, key=lambda i: -counts[i])
    assert random_vocabulary(loaded, counts).tolist() == by_count[3:-3]
    with pytest.raises(ModelError, match="50 token frequencies"):
        random_vocabulary(loaded, counts[:50])


def test_segments_grow_by_two_up_to_context_and_vocabulary(as_loaded):
    bounded, free = as_loaded(tiny("llama")), as_loaded(tiny("bloom"))
    assert {len(s) for s in random_segments(bounded, 4, 4)} == {(CONTEXT - 1) // 4}
    assert {len(s) for s in random_segments(bounded, 2, 4, unique=True)} == {CONTEXT - 1}
    segments = random_segments(free, 40, 4)
    assert [len(s) for s in segments] == [min(25 + 2 * seed, 87) for seed in range(40)]
    assert all(len(set(s.tolist())) == len(s) for s in segments)
    assert with_bos(free, segments[0][None])[0, :2].tolist() == [1, segments[0][0]]


def test_a_context_without_room_is_refused(as_loaded):
    model = tiny("llama")
    model.config.max_position_embeddings = 8
    with pytest.raises(ModelError, match="a context of 8"):
        prefix_matching(as_loaded(model), seeds=1)
