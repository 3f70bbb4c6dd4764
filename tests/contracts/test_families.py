"""What every family must fulfil: the Anatomy's names mean what the running model does with them.

The split of fused parameters is checked against the model's behavior, not against a second table: uniform
attention when queries or keys vanish, locality of a perturbed query, heads that touch only their own columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from fixtures.zoo import (
    CONTEXT,
    DECODERS,
    MASKED,
    OF_ALL_KINDS,
    VOCAB_SIZE,
    by_layout,
    once_a_code,
    precision,
    tiny,
)
from torch import Tensor, nn

from secateur.core.site import Site
from secateur.errors import ModelError, UnknownName
from secateur.hf.anatomy import Anatomy, anatomy
from secateur.hf.family import MULTIMODAL
from secateur.hf.fingerprint import fingerprint
from secateur.hf.matrices import Matrix

UNGATED = {
    "apertus", "arcee", "biogpt", "bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "jais2",
    "mpt", "nanochat", "nemotron", "opt", "persimmon", "phi", "starcoder2", *DECODERS,
    *(MASKED.keys() - {"modernbert"}),
}  # fmt: skip
TOKENS = torch.tensor([[5, 17, 40, 3, 88, 61, 23, 9, 71, 34], [90, 4, 4, 55, 12, 7, 66, 31, 8, 20]])
TANH_GELU = {
    "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "bloom", "codegen", "phi", "gemma", "gemma2", "gemma3", "openai-gpt",
    "starcoder2", "vaultgemma",
}  # fmt: skip
SQUARED_RELU = {"arcee", "bitnet", "jais2", "nanochat", "nemotron", "persimmon"}
OF_THEIR_OWN = {"apertus"}  # the activation has parameters
BIASED_NORMS = {"stablelm-12b", "persimmon"}  # of queries and keys, so that none of them vanishes


@pytest.fixture(params=once_a_code(OF_ALL_KINDS))
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    with precision(request.param):
        yield request.param


@cache
def shared(name: str) -> tuple[nn.Module, Anatomy]:
    """A float64 model for tests that change nothing."""
    model = tiny(name, torch.float64)
    return model, anatomy(model)


@contextmanager
def taps(model: nn.Module, *paths: str) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Path → (input, output) of the last call of each module."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def tap(path: str) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output = output[0] if isinstance(output, tuple | list) else output
            seen[path] = args[0], output.clone()  # Falcon goes on adding into the output

        return keep

    handles = [model.get_submodule(path).register_forward_hook(tap(path)) for path in set(paths)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def weight(model: nn.Module, matrix: Matrix) -> Tensor:
    return model.get_parameter(matrix.weight)


def bias_part(model: nn.Module, matrix: Matrix) -> Tensor | float:
    bias = model.get_submodule(matrix.module).bias if has_bias(model, matrix) else None
    return 0.0 if bias is None else matrix.of_output(bias)


def has_bias(model: nn.Module, matrix: Matrix) -> bool:
    return "bias" in dict(model.get_submodule(matrix.module).named_parameters())


def silence_(model: nn.Module, matrix: Matrix) -> None:
    """The matrix and its part of the bias become zero."""
    matrix.write_(weight(model, matrix), torch.zeros(matrix.shape))
    if has_bias(model, matrix):
        bias = model.get_submodule(matrix.module).bias
        bias[matrix.of_output(torch.arange(len(bias)))] = 0


def window(model: nn.Module, block: int) -> int:
    """Count the positions that a block attends to, its own included."""
    config = model.config.get_text_config()
    kinds = (
        getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ["global"] * 9
    )
    if kinds[block] not in ("sliding_attention", "local"):
        return CONTEXT
    if config.model_type == "modernbert":
        return config.sliding_window + 1  # on either side
    return config.window_size if kinds[block] == "local" else config.sliding_window


def attention_without_scores(
    name: str, parts: Anatomy, length: int, seen: int, sinks: Tensor | None
) -> Tensor:
    """(heads, t, j): uniform over the `seen` last j ≤ t; with ALiBi, a softmax of the slopes (Press et al. 2021); over
    all j in a masked language model. A sink is one more logit of a head, at which nothing is read."""
    scores = torch.zeros(parts.num_heads, length, length, dtype=torch.float64)
    if name in ("bloom", "falcon-rw", "mpt"):
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / parts.num_heads) for h in range(parts.num_heads)])
        scale = 1 / math.sqrt(parts.d_head) if name == "falcon-rw" else 1.0  # Falcon scales the bias too
        scores += scale * slopes[:, None, None] * torch.arange(length)
    ago = torch.arange(length)[:, None] - torch.arange(length)
    if name in MASKED:
        return scores.masked_fill(ago.abs() >= seen, -math.inf).softmax(-1)
    scores = scores.masked_fill((ago < 0) | (ago >= seen), -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, length, 1)], dim=-1)
    return scores.softmax(-1)[..., :length]


def test_counts_are_the_models_own(name):
    model, parts = shared(name)
    assert parts.num_parameters == sum(p.numel() for p in model.parameters())
    assert parts.num_blocks == model.config.get_text_config().num_hidden_layers == len(parts.blocks)
    assert (parts.d_model, parts.vocab_size) == (model.config.get_text_config().hidden_size, VOCAB_SIZE)
    assert parts.context == (None if name == "bloom" else CONTEXT)
    gate = () if parts.family in UNGATED else ("gate",)
    network = () if parts.routing else (*gate, "up", "down")
    assert parts.matrix_kinds == ("q", "k", "v", "o", *network)
    attentionless = 4 * len(parts.mixers)
    assert len(parts.matrices) == parts.num_blocks * len(parts.matrix_kinds) - attentionless
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    assert parts.tied == (len({id(module.weight) for module in ends}) == 1)
    assert model.get_submodule(parts.embedding) is model.get_input_embeddings()
    assert model.get_submodule(parts.unembedding) is model.get_output_embeddings()


def test_key_value_heads_are_those_of_the_cache(name):
    if name in {*MASKED, "openai-gpt"}:
        pytest.skip("it has no cache")
    model, parts = shared(name)
    with torch.no_grad():
        cached = model(TOKENS, use_cache=True).past_key_values.layers[0].keys
    kept = parts.num_heads if name == "falcon-40b" else parts.num_kv_heads  # Falcon 40B caches repeated keys
    size = parts.d_head
    if parts.details.latent:  # it holds the code of all keys and values
        kept, size = 1, model.config.kv_lora_rank
    length = min(TOKENS.shape[1], window(model, 0) - 1)  # the newest token needs no more of the earlier ones
    assert tuple(cached.shape) == (
        2,
        kept,
        TOKENS.shape[1] if parts.family == "gpt_neo" else length,
        size,
    )


def test_every_matrix_has_its_shape_and_is_the_linear_map_of_its_module(name):
    model, parts = shared(name)
    with taps(model, *(m.module for m in parts.matrices.values())) as seen:
        logits(model)
    for matrix in parts.matrices.values():
        w = matrix.read(weight(model, matrix))
        assert tuple(w.shape) == matrix.shape
        x, y = seen[matrix.module]
        torch.testing.assert_close(matrix.of_output(y), x @ w.T + bias_part(model, matrix))


def test_matrices_divide_their_parameters_without_rest(name):
    model, parts = shared(name)
    covered: dict[str, list[int]] = {}
    for matrix in parts.matrices.values():
        stored = weight(model, matrix).shape[1 if matrix.transposed else 0]
        covered.setdefault(matrix.weight, []).extend(matrix.of_output(torch.arange(stored)).tolist())
    for path, rows in covered.items():
        if path.endswith("q_proj.weight") and parts.is_gated(Site(0, "q")):  # after each head its gate
            rows += [row + parts.d_head for row in rows]
        stored = max(rows) + 1
        assert sorted(rows) == list(range(stored))
        assert stored in model.get_parameter(path).shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write_of_read_changes_no_bit(name, dtype):
    model = tiny(name, dtype)
    before = fingerprint(model)
    for matrix in anatomy(model).matrices.values():
        matrix.write_(weight(model, matrix), matrix.read(weight(model, matrix)).clone())
    assert fingerprint(model) == before


def test_zeroing_one_matrix_touches_it_alone_and_is_felt(name):
    model = tiny(name)
    parts, state, before = (
        anatomy(model),
        {k: v.clone() for k, v in model.state_dict().items()},
        logits(model),
    )
    for site, matrix in parts.matrices.items():
        matrix.write_(weight(model, matrix), torch.zeros(matrix.shape, dtype=torch.float64))
        assert not torch.allclose(logits(model), before, atol=1e-4), f"{site} does not matter"
        for other in parts.matrices.values():
            expected = torch.zeros(matrix.shape) if other is matrix else other.read(state[other.weight])
            assert torch.equal(other.read(weight(model, other)), expected), f"{site} wrote into {other.site}"
        weight(model, matrix).copy_(state[matrix.weight])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("silent", ["q", "k"])
def test_without_queries_or_keys_attention_is_the_mean_of_the_values(name, silent):
    if name in BIASED_NORMS:
        pytest.skip("norms of queries and keys have biases")
    model = tiny(name, torch.float64)
    parts = anatomy(model)
    if parts.details.latent and silent == "k":
        pytest.skip("a part of keys is of all heads")
    for block in parts.attending:
        silence_(model, parts.matrix(Site(block, silent)))
    repeats = parts.num_heads // parts.num_kv_heads
    for block in parts.attending:
        v, o = parts.matrix(Site(block, "v")), parts.matrix(Site(block, "o"))
        q = parts.matrix(Site(block, "q"))
        with taps(model, v.module, o.module, q.module) as seen:
            logits(model)
        read = seen[v.module][0].reshape(*TOKENS.shape, -1)  # a code has a dimension of one head
        values = read @ v.read(weight(model, v)).T + bias_part(model, v)
        heads = values.unflatten(-1, (parts.num_kv_heads, parts.d_head)).repeat_interleave(repeats, dim=2)
        sinks = dict(model.get_submodule(parts.attention(block)).named_parameters()).get("sinks")
        attention = attention_without_scores(name, parts, TOKENS.shape[1], window(model, block), sinks)
        expected = torch.einsum("htj,bjhd->bthd", attention, heads).flatten(2)
        if name == "bitnet":
            expected = model.get_submodule(parts.attention(block)).attn_sub_norm(expected)
        if parts.is_gated(q.site):
            gates = seen[q.module][1].unflatten(-1, (parts.num_heads, 2, parts.d_head))[..., 1, :]
            expected = expected * gates.flatten(2).sigmoid()
        torch.testing.assert_close(seen[o.module][0], expected, rtol=1e-5, atol=1e-6)


def changed_where(model: nn.Module, parts: Anatomy, kind: str, head: int, position: int) -> Tensor:
    """(t, heads) of the last o input: what moves when a head of `kind` is pushed at one position."""
    block = parts.num_blocks - 1
    matrix, o = parts.matrix(Site(block, kind)), parts.matrix(Site(block, "o"))
    module = model.get_submodule(matrix.module)

    def push(_module: nn.Module, _args: object, y: Tensor) -> Tensor:
        size = parts.widths[block].head.of(kind)
        rows = matrix.of_output(torch.arange(y.shape[-1]))[head * size : (head + 1) * size]
        y = y.clone()
        y.view(*TOKENS.shape, -1)[:, position, rows] += torch.linspace(-2, 3, size, dtype=y.dtype)
        return y

    def inputs() -> Tensor:
        with taps(model, o.module) as seen:
            logits(model)
        return seen[o.module][0].unflatten(-1, (parts.num_heads, parts.d_head))

    before, handle = inputs(), module.register_forward_hook(push)
    try:
        return ((inputs() - before).abs() > 1e-7).any(-1).any(0)
    finally:
        handle.remove()


def test_a_query_head_acts_at_its_own_position_and_a_key_or_value_head_where_it_is_seen(name):
    model, parts = shared(name)
    length, position, repeats = TOKENS.shape[1], 4, parts.num_heads // parts.num_kv_heads
    times = torch.arange(length)[:, None]
    for kind in "qkv":
        for head in range(parts.num_heads if kind == "q" else parts.num_kv_heads):
            owner = torch.arange(parts.num_heads) // (1 if kind == "q" else repeats)
            reach = window(model, parts.num_blocks - 1)
            seen = (times >= position) & (times < position + reach)
            seen |= (name in MASKED) & ((times - position).abs() < reach)
            when = times == position if kind == "q" else seen
            shared_norm = (
                "heads" in parts.indivisible
                and name not in ("codegen", "stablelm-12b")
                and (kind != "v" or name == "bitnet")
            )
            expected = when & ((owner == head) | shared_norm)
            assert torch.equal(changed_where(model, parts, kind, head, position), expected), (
                f"{kind} head {head}"
            )


def test_feed_forward_by_hand(name):
    model, parts = shared(name)
    if name in OF_THEIR_OWN or parts.routing:
        pytest.skip("the activation has parameters, or the network is none that is cut")
    act = activation(parts.family.removesuffix(MULTIMODAL))
    for block in range(parts.num_blocks):
        up, down = parts.matrix(Site(block, "up")), parts.matrix(Site(block, "down"))
        with taps(model, up.module, down.module) as seen:
            logits(model)
        x = seen[up.module][0]
        hidden = x @ up.read(weight(model, up)).T + bias_part(model, up)
        if parts.family not in UNGATED:
            gate = parts.matrix(Site(block, "gate"))
            hidden = act(x @ gate.read(weight(model, gate)).T + bias_part(model, gate)) * hidden
        else:
            hidden = act(hidden)
        if name == "bitnet":
            hidden = model.get_submodule(parts.mlps[block]).ffn_sub_norm(hidden)
        torch.testing.assert_close(seen[down.module][0], hidden, rtol=1e-6, atol=1e-6)


def activation(family: str) -> Callable[[Tensor], Tensor]:
    if family in TANH_GELU:
        return lambda x: F.gelu(x, approximate="tanh")
    if family in SQUARED_RELU:
        return lambda x: F.relu(x).square()
    if family in {"gpt_neox", "falcon", "biogpt", "mpt", "xglm", *MASKED} or family.endswith("-decoder"):
        return F.gelu
    return {"ctrl": F.relu, "opt": F.relu}.get(family, F.silu)


def test_mlps_map_one_tensor_to_one_tensor(name):
    model, parts = shared(name)
    without = {"opt", "bloom", "biogpt", "mpt", *DECODERS, *MASKED}
    without -= {"codegen", "ctrl", "distilbert", "modernbert", "openai-gpt"}
    assert (parts.mlps is None) == bool({parts.family, name} & without or parts.routing)
    calls: list[tuple[tuple, dict, object]] = []
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True
        )
        for path in parts.mlps or ()
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    assert len(calls) == len(parts.mlps or ())
    for args, kwargs, out in calls:
        assert (len(args), kwargs) == (1, {})
        assert out.shape == args[0].shape == (*TOKENS.shape, parts.d_model)


def test_blocks_run_in_order_and_the_final_norm_feeds_the_head(name):
    model, parts = shared(name)
    order: list[str] = []
    paths = [*parts.blocks, *([parts.final_norm] if parts.final_norm else []), parts.unembedding]
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _m, _a, _o, path=path: order.append(path))
        for path in paths
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    assert order == paths


def test_what_a_foldable_network_gives_enters_the_stream_as_it_is(name):
    """A map of it is then a map of its part of the stream; a norm or a scale between would make it another."""
    model, parts = shared(name)
    if parts.routing:
        assert not parts.foldable
        return
    down = parts.matrix(Site(parts.num_blocks - 1, "down"))
    added = torch.linspace(-1, 2, parts.d_model, dtype=torch.float64)

    def leaves() -> Tensor:
        with taps(model, parts.blocks[-1]) as seen:
            logits(model)
        return seen[parts.blocks[-1]][1]

    before = leaves()
    handle = model.get_submodule(down.module).register_forward_hook(lambda _m, _a, y: y + added)
    try:
        moved = leaves() - before
    finally:
        handle.remove()
    assert torch.allclose(moved, added.expand_as(moved), atol=1e-9) == parts.foldable


def test_learned_positions_end_where_the_anatomy_says():
    for name in ("gpt2", "opt"):
        model, parts = shared(name)
        model(torch.ones(1, parts.context, dtype=torch.long))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.ones(1, parts.context + 1, dtype=torch.long))


def test_the_anatomy_needs_no_weights(name):
    model, parts = shared(name)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    assert anatomy(skeleton) == parts


@pytest.mark.parametrize("name", by_layout(OF_ALL_KINDS))
def test_fingerprint_follows_every_bit_and_nothing_else(name):
    model = tiny(name)
    before = fingerprint(model)
    assert before == fingerprint(tiny(name))
    assert len(before) == 32
    assert before != fingerprint(tiny(name, torch.bfloat16))
    for parameter in model.parameters():
        last = parameter.view(-1)[-1].clone()
        parameter.view(-1)[-1] = torch.nextafter(last, torch.tensor(9.0, dtype=last.dtype))
        assert fingerprint(model) != before
        parameter.view(-1)[-1] = last
    assert fingerprint(model) == before


def test_unknown_site_gets_the_nearest_names():
    parts = shared("gpt2")[1]
    with pytest.raises(UnknownName, match=r"no matrix b1\.gate.*b1\."):
        parts.matrix(Site(1, "gate"))
    with pytest.raises(UnknownName, match=r"no matrix b7\.q"):
        parts.matrix(Site(7, "q"))


class LoraLinear(nn.Module):
    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def test_modules_that_the_table_does_not_name_are_refused_by_name():
    model = tiny("llama")
    block = model.model.layers[1]
    block.self_attn.side = nn.Linear(32, 32)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.side \(Linear\)"):
        anatomy(model)
    del block.self_attn.side
    block.mlp.up_proj = LoraLinear(block.mlp.up_proj)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj is a LoraLinear"):
        anatomy(model)
    del block.mlp
    with pytest.raises(ModelError, match=r"no module model\.layers\.1\.mlp"):
        anatomy(model)


def test_widths_that_do_not_fit_the_config_are_refused():
    model = tiny("qwen2")
    model.config.num_key_value_heads = 4
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.k_proj is \(16, 32\).*\(32, 32\)"):
        anatomy(model)
    model.config.num_key_value_heads = 3
    with pytest.raises(ModelError, match="4 query heads cannot share 3"):
        anatomy(model)


def test_a_fused_class_from_elsewhere_is_refused():
    model = tiny("phi3")
    foreign = type("Phi3ForCausalLM", (type(model),), {"__module__": "modeling_custom"})
    model.__class__ = foreign
    with pytest.raises(ModelError, match="modeling_custom is not transformers' own"):
        anatomy(model)
