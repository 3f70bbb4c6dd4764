"""Effects of singular directions against finite differences and true removal, by code that shares nothing with the
probe: numpy decompositions, weights written over, an offset added to the layer's output, one example at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.zoo import FEWEST, by_layout, tiny
from scipy.stats import spearmanr
from torch import Tensor

import secateur
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing
from secateur.evaluation.forward import swapped_forward
from secateur.hf.load import Loaded
from secateur.methods.directions.effects import MatrixEffects, directions_effects
from secateur.methods.registry import read_options
from secateur.session import open_session
from secateur.tasks.encode import Encoded

PACKING = Packing(2048, 2048, pad=0)
WIDE = {"gpt2", "gpt2-untied-wide", "opt", "opt-projected", "phi"}  # all others compute parts in float32
EXAMPLES = {  # lengths that differ, a wrong answer beside the gold one, one token, text beyond a window of 16
    2: Encoded((((5, 9, 17, 30), (41, 8)),), 0, (1,)),
    3: Encoded((((7, 3), (60, 61)), ((11, 12, 13, 14, 15, 0, 16), (70, 71, 72))), 1, (1, 1)),
    7: Encoded((((90,), tuple(range(20, 39))),), 0, (1,)),
    8: Encoded((((33,), (44,)),), 0, (1,)),
}
Direction = tuple[np.ndarray, float, np.ndarray]  # u, σ, v of the full matrix's height and width


# ----------------------------------------------------------------------------------------------- the references


def weight_of(loaded: Loaded, site: Site) -> Tensor:
    matrix = loaded.anatomy.matrix(site)
    return matrix.read(loaded.model.get_parameter(matrix.weight)).clone()


def heads_of(loaded: Loaded, site: Site) -> int:
    """1 for what has no heads."""
    own = loaded.anatomy.widths[site.block]
    return {"q": own.num_heads, "o": own.num_heads, "k": own.num_kv_heads, "v": own.num_kv_heads}.get(
        site.part, 1
    )


def direction(loaded: Loaded, site: Site, head: int | None, index: int) -> Direction:
    """By numpy, of the whole matrix or of one head's rows or columns of it."""
    w = weight_of(loaded, site).double().numpy()
    size = w.shape[site.part == "o"] // heads_of(loaded, site)
    rows = columns = slice(None)
    if head is not None and site.part == "o":
        columns = slice(head * size, head * size + size)
    elif head is not None:
        rows = slice(head * size, head * size + size)
    left, sigma, right = np.linalg.svd(w[rows, columns], full_matrices=False)
    u, v = np.zeros(w.shape[0]), np.zeros(w.shape[1])
    u[rows], v[columns] = left[:, index], right[index]
    return u, sigma[index], v


def tokens_of(encoded: Encoded) -> tuple[list[int], list[int]]:
    """What is run, and the answer."""
    context, answer = encoded.pairs[encoded.gold]
    return [*context, *answer[:-1]], list(answer)


def loss(loaded: Loaded, encoded: Encoded) -> float:
    tokens, answer = tokens_of(encoded)
    with torch.no_grad():
        logits = loaded.model(torch.tensor([tokens])).logits[0, -len(answer) :].double()
    return float(-logits.log_softmax(-1)[torch.arange(len(answer)), answer].mean())


def inputs_of(loaded: Loaded, site: Site, examples: Mapping[int, Encoded] = EXAMPLES) -> np.ndarray:
    """Every token's true input, one example at a time: (tokens, in)."""
    found: list[Tensor] = []
    module = loaded.model.get_submodule(loaded.anatomy.matrix(site).module)
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, -2)))
    for encoded in examples.values():
        loss(loaded, encoded)
    handle.remove()
    return torch.cat(found).double().numpy()


@contextmanager
def removed(
    loaded: Loaded, site: Site, gone: Direction, mean: np.ndarray | None, share: float
) -> Iterator[None]:
    """Inside, `share` of the direction is out of the weight, and what it gives at the mean is added to the output; of
    an expert, whose mean is None, nothing is."""
    matrix, (u, sigma, v) = loaded.anatomy.matrix(site), gone
    weight, before = loaded.model.get_parameter(matrix.weight), weight_of(loaded, site)
    places = matrix.stored_rows(range(matrix.shape[0]))
    offset = None if mean is None else torch.from_numpy(share * sigma * u * (v @ mean)).to(before)

    def add(module, args, output):
        if offset is None:
            return output
        shifted = output.clone()
        shifted[..., places] += offset
        return shifted

    handle = loaded.model.get_submodule(matrix.module).register_forward_hook(add)
    try:
        matrix.write_(weight, before - share * sigma * torch.from_numpy(np.outer(u, v)).to(before))
        yield
    finally:
        matrix.write_(weight, before)
        handle.remove()


def by_differences(
    loaded: Loaded, site: Site, gone: Direction, mean: np.ndarray | None, step: float
) -> np.ndarray:
    """d loss / d share of every example. Five points: the error is of fourth order in `step`."""
    at = {}
    for k in (-2, -1, 1, 2):
        with removed(loaded, site, gone, mean, k * step):
            at[k] = np.array([loss(loaded, encoded) for encoded in EXAMPLES.values()])
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)


def effects(loaded: Loaded, sites: Sequence[Site] | None = None, **changes):
    examples = changes.pop("examples", list(EXAMPLES))
    sites = list(loaded.anatomy.matrices) if sites is None else sites
    packing = replace(PACKING, switches=loaded.anatomy.switches)
    return directions_effects(loaded, EXAMPLES, examples, sites, **({"packing": packing} | changes))


def vector(found) -> np.ndarray:
    return np.concatenate([one.predicted for one in found.matrices])


def some_of(one: MatrixEffects) -> list[int]:
    """The largest σ, one in the middle, and the one with the largest effect."""
    return sorted({0, len(one.sigma) // 2, int(np.abs(one.effect).argmax())})


# ------------------------------------------------------------------------------------------------------- against


@pytest.mark.parametrize("per_head", [False, True], ids=["whole", "per head"])
@pytest.mark.parametrize("name", by_layout(first=FEWEST))
def test_effects_are_finite_differences(name, per_head, as_loaded):
    """Every kind of matrix in every family, fused layouts included; first and second order."""
    loaded = as_loaded(tiny(name, torch.float64))
    sites = [s for s in loaded.anatomy.matrices if not per_head or s.part in "qkvo"]
    found = effects(loaded, sites, per_head=per_head, second_order=True)
    assert len(found.matrices) == sum(heads_of(loaded, s) if per_head else 1 for s in sites)
    # wide enough for what is rounded to float32, or narrow enough for the kinks of OPT's ReLU
    step = 1e-5 if name in WIDE else 0.02
    means = {site: inputs_of(loaded, site).mean(0) for site in sites}
    got, expected = [], []
    for one in found.matrices:
        for index in some_of(one) if name in ("llama", "gpt2") and not per_head else some_of(one)[:1]:
            gone = direction(loaded, one.site, one.head, index)
            e = by_differences(loaded, one.site, gone, means[one.site], step)
            assert one.sigma[index] == pytest.approx(gone[1], rel=1e-9)
            got += [one.effect[index], one.curvature[index]]
            expected += [e.mean(), (e**2).mean() / 2]
    rtol, atol = (1e-4, 1e-8) if name in WIDE else (1e-3, 1e-5)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)
    assert np.abs(got).max() > 0.01  # nats: there was something to predict


@pytest.mark.parametrize("name", ["qwen3-moe", pytest.param("gpt-oss", marks=pytest.mark.slow)])
def test_effects_in_experts_are_finite_differences_without_a_mean(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    sites = [*loaded.anatomy.of_experts][::2]
    found = effects(loaded, [Site(0, "v"), *sites])  # beside a linear layer, which keeps its own reading
    np.testing.assert_allclose(found.matrices[0].effect, effects(loaded, [Site(0, "v")]).matrices[0].effect)
    largest = sorted(found.matrices[1:], key=lambda one: -np.abs(one.effect).max())[:4]
    got, expected = [], []
    for one in largest:
        index = int(np.abs(one.effect).argmax())
        gone = direction(loaded, one.site, None, index)
        e = by_differences(loaded, one.site, gone, None, 0.002)
        assert one.sigma[index] == pytest.approx(gone[1], rel=1e-9)
        assert not one.mean_input.any()
        got, expected = [*got, one.effect[index]], [*expected, e.mean()]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(got).min() > 1e-3
    assert sum(not one.effect.any() for one in found.matrices) < len(sites) / 2  # few experts got no token


@pytest.mark.parametrize("name", by_layout())
def test_mean_inputs_are_those_of_a_plain_loop(name, as_loaded):
    """Also where the batch is padded, and with a pad that occurs as a token."""
    loaded = as_loaded(tiny(name, torch.float64))
    found = effects(loaded)
    assert found.num_tokens == sum(len(tokens_of(e)[0]) for e in EXAMPLES.values()) == 34
    for one in found.matrices:
        plain = np.zeros(len(one.mean_input))
        inputs = inputs_of(loaded, one.site)
        for x in inputs:
            plain += x / len(inputs)
        rtol, atol = (1e-9, 1e-12) if name in WIDE else (1e-4, 1e-5)
        np.testing.assert_allclose(one.mean_input, plain, rtol=rtol, atol=atol)


def test_whitened_directions_are_those_of_the_outputs_energy(as_loaded):
    """σᵢ² is E (uᵢ · W x)² over the tokens; the parts uᵢ uᵢᵀ W are exact for what their sum, W itself, gives."""
    loaded = as_loaded(tiny("gpt2", torch.float64))
    sites = [Site(0, "k"), Site(1, "up"), Site(1, "down")]
    found = effects(loaded, sites, whitened=True)
    assert found.whitened
    for one in found.matrices:
        w, x = weight_of(loaded, one.site).numpy(), inputs_of(loaded, one.site)
        y = x @ w.T
        values, vectors = np.linalg.eigh(y.T @ y / len(y))
        k = len(one.sigma)
        np.testing.assert_allclose(one.sigma**2, values[::-1][:k], rtol=1e-6, atol=1e-9)
        for index in (0, 3):  # where the energy's own directions are certain
            u = vectors[:, -1 - index]
            gone = (u, 1.0, u @ w)
            e = by_differences(loaded, one.site, gone, x.mean(0), 1e-5)
            assert one.effect[index] == pytest.approx(e.mean(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("per_head", [False, True], ids=["whole", "per head"])
@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
def test_all_directions_together_are_the_whole_matrix(per_head, whitened, as_loaded):
    """First-order effects add up, and whatever the directions, their sum is W: half of it gone is half of that."""
    loaded = as_loaded(tiny("gpt-neox", torch.float64))
    plain = effects(loaded)
    found = effects(loaded, per_head=per_head, whitened=whitened)
    for one in plain.matrices:
        total = sum(m.effect.sum() for m in found.matrices if m.site == one.site)
        assert total == pytest.approx(one.effect.sum(), rel=1e-5, abs=1e-8)


def test_per_head_means_are_the_heads_own(as_loaded):
    loaded = as_loaded(tiny("llama", torch.float64))
    sites = [Site(1, "k"), Site(1, "o"), Site(1, "down")]
    whole, split = effects(loaded, sites), effects(loaded, sites, per_head=True)
    assert [one.head for one in split.matrices] == [0, 1, 0, 1, 2, 3, None]
    pieces = [split.of(Site(1, "o"), head).mean_input for head in range(4)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.of(Site(1, "o")).mean_input)
    np.testing.assert_array_equal(split.of(Site(1, "k"), 1).mean_input, whole.of(Site(1, "k")).mean_input)
    np.testing.assert_array_equal(split.of(Site(1, "down")).effect, whole.of(Site(1, "down")).effect)


@pytest.mark.parametrize(
    ("name", "site", "rho"),
    [
        pytest.param("recall", "b1.up", 0.98, marks=pytest.mark.slow),
        pytest.param("facts", "b2.o", 0.98, marks=pytest.mark.slow),
        pytest.param("facts", "b2.down", 0.98, marks=pytest.mark.slow),
        pytest.param("recall", "b0.k", 0.85, marks=pytest.mark.slow),
    ],
)
def test_against_true_removal_direction_by_direction(name, site, rho):
    """A trained model: the order of the predictions is nearly that of the truth, and in late matrices no direction
    with a large true effect has the wrong sign. In early keys the strongest direction is beyond what is first order."""
    site = Site.parse(site)
    found, truth = removal_study(f"builtin:{name}", [site], 24)
    predicted, true = found.of(site).effect, truth[site]
    assert spearmanr(predicted, true).statistic > rho
    large = np.abs(true) > 0.1 * np.abs(true).max()
    if site.part != "k":
        assert (np.sign(predicted) == np.sign(true))[large].all()


def removal_study(name: str, sites: Sequence[Site], count: int):
    """The probe on `count` examples, and the mean loss of removing each direction in truth less that of the model."""
    session = open_session(read_options(name, name, dtype="float64"), None)
    examples = session.task.split("probe")[:count]
    encoded = {e: session.encoded[e] for e in examples}
    found = directions_effects(session.loaded, encoded, examples, sites, packing=PACKING, second_order=True)
    base = np.mean([loss(session.loaded, e) for e in encoded.values()])
    truth = {}
    for site in sites:
        mean, changes = inputs_of(session.loaded, site, encoded).mean(0), []
        for index in range(len(found.of(site).sigma)):
            with removed(session.loaded, site, direction(session.loaded, site, None, index), mean, 1.0):
                changes.append(np.mean([loss(session.loaded, e) for e in encoded.values()]) - base)
        truth[site] = np.array(changes)
    return found, truth


# -------------------------------------------------------------------------------------- what must change nothing


@pytest.mark.parametrize(
    "options", [{}, {"per_head": True, "second_order": True}, {"whitened": True}], ids=str
)
@pytest.mark.parametrize("name", ["gpt2", "phi3", "bloom", "falcon-40b", "llama"])
def test_batches_order_room_and_other_matrices_do_not_matter(name, options, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    expected = vector(effects(loaded, **options))
    rtol, atol = (1e-7, 1e-10) if name in WIDE else (1e-3, 1e-5)
    if "whitened" in options:
        rtol, atol = 1e-3, 1e-5  # directions nearly without energy turn with the last digit of C
    changes = (
        {"packing": Packing(1, 1, 0)},
        {"packing": Packing(30, 9, 5)},
        {"examples": [8, 3, 2, 7]},
        {"room": 1},
    )
    for change in changes:
        np.testing.assert_allclose(
            vector(effects(loaded, **options, **change)), expected, rtol=rtol, atol=atol
        )
    alone = [vector(effects(loaded, [site], **options)) for site in loaded.anatomy.matrices]
    np.testing.assert_allclose(np.concatenate(alone), expected, rtol=rtol, atol=atol)


def test_a_single_example_has_effects(as_loaded):
    """Its mean is over its tokens, not over a batch: a roll over a batch of one would give zeros."""
    loaded = as_loaded(tiny("gpt2", torch.float64))
    found = effects(loaded, [Site(0, "k"), Site(0, "down")], examples=[3])
    assert (np.abs(vector(found)) > 1e-6).mean() > 0.9
    one_token = effects(loaded, [Site(0, "down")], examples=[8])  # which is its own mean: nothing changes
    assert np.abs(vector(one_token)).max() < 1e-12


def test_taps_sit_behind_the_norm(as_loaded):
    """A gain of the norm in front scales the mean input of q, k and v."""
    model = tiny("llama", torch.float64)
    before = effects(as_loaded(model), [Site(0, "q")]).of(Site(0, "q")).mean_input
    model.model.layers[0].input_layernorm.weight *= 3
    after = effects(as_loaded(model), [Site(0, "q")]).of(Site(0, "q")).mean_input
    np.testing.assert_allclose(after, 3 * before, rtol=1e-6)


def test_memory_does_not_grow_with_the_examples(as_loaded):
    """Numbers held by live tensors after each batch: no more after the last one than after the second."""
    loaded = as_loaded(tiny("llama"))
    draw = np.random.default_rng(0)
    many = {e: Encoded(((tuple(draw.integers(3, 96, 12).tolist()), (5, 6)),), 0, (1,)) for e in range(32)}
    held: list[int] = []

    def count(stage: str, done: int, total: int) -> None:
        gc.collect()
        live = [
            o for o in gc.get_objects() if issubclass(type(o), Tensor)
        ]  # `isinstance` asks, and wakes what is lazy
        held.append(sum(o.numel() for o in live if not isinstance(o, torch.nn.Parameter)))

    directions_effects(
        loaded, many, list(many), list(loaded.anatomy.matrices), packing=Packing(64, 64, 0),
        per_head=True, second_order=True, progress=count,
    )  # fmt: skip
    assert len(held) == 8
    assert max(held[1:]) <= held[1] * 1.01


def test_when_memory_runs_out_batches_halve_and_values_stay(as_loaded):
    loaded = as_loaded(tiny("llama", torch.float64))
    expected, refused = vector(effects(loaded)), []
    module = loaded.model.get_submodule(loaded.anatomy.matrix(Site(1, "v")).module)
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if x.shape[:-1].numel() > 50:
            refused.append(x.shape)
            raise torch.OutOfMemoryError
        return own(x)

    with swapped_forward(module, forward):
        found = vector(effects(loaded, packing=Packing(256, 256, 0)))
    assert refused
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_is_summed_wide(dtype, as_loaded):
    double, low = (as_loaded(tiny("llama", d)) for d in (torch.float64, dtype))
    expected, found = (vector(effects(one, per_head=True)) for one in (double, low))
    if dtype == torch.float32:
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4 * np.abs(expected).max())
    else:  # other singular vectors; what remains is the picture
        assert np.corrcoef(found, expected)[0, 1] > 0.9


def test_it_leaves_the_model_as_it_was(as_loaded):
    loaded = as_loaded(tiny("falcon-7b"))
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    first, second = (vector(effects(loaded, second_order=True)) for _ in range(2))
    assert np.array_equal(first, second)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not parameter.requires_grad
    for module in loaded.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in module.__dict__


def test_it_says_what_it_is(as_loaded):
    loaded, said = as_loaded(tiny("opt")), []
    found = effects(
        loaded, [Site(0, "k")], whitened=True, second_order=True, progress=lambda *step: said.append(step)
    )
    record = found.to_json()
    assert (record["split"], record["n"], record["num_tokens"], record["whitened"]) == ("probe", 4, 34, True)
    assert record["matrices"][0]["site"] == "b0.k"
    assert record["matrices"][0]["effect"] == found.of(Site(0, "k")).effect.tolist()
    assert (found.of(Site(0, "k")).curvature >= 0).all()
    assert said == [("directions", 1, 2), ("directions", 2, 2)]


def test_a_projection_that_does_not_run_as_a_module_is_refused(as_loaded):
    """BLOOM trained in slices can use its output projection's weight behind the module's back."""
    model = tiny("bloom")
    for block in model.transformer.h:
        block.self_attention.pretraining_tp, block.self_attention.slow_but_exact = 2, True
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.self_attention\.dense never ran"):
        effects(as_loaded(model), [Site(0, "o"), Site(0, "k")])


def test_the_command_reads_the_same_and_names_both_ends():
    found = secateur.probe(
        "builtin:recall",
        "builtin:recall",
        what="directions",
        split="probe",
        matrices=("o", "up"),
        layers=(1, 2),
    )
    assert [row["site"] for row in found["rows"]] == ["b1.o", "b1.up"]
    session = open_session(read_options("builtin:recall", "builtin:recall"), None)
    examples, packing = session.task.split("probe"), session.judge().packing
    for row in found["rows"]:
        read = directions_effects(
            session.loaded, session.encoded, examples, [Site.parse(row["site"])], packing=packing
        )
        effect = read.matrices[0].effect
        np.testing.assert_allclose(row["values"]["effect"], effect, rtol=1e-5, atol=1e-9)
        assert row["most_harmful"][str(effect.argmin())] == min(row["values"]["effect"])
        assert row["most_useful"][str(effect.argmax())] == max(row["values"]["effect"])
        assert (row["of"], row["harmful"]) == (64, (effect < 0).sum())
