"""Linearity of blocks against a slow way that shares nothing with the probe: one sequence at a time, all activations
gathered, numpy's lstsq; and blocks of which the answer is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.cuts import KINDS, edits_of
from fixtures.encoders import ENCODERS
from fixtures.marks import slow_but
from fixtures.zoo import by_layout, tiny, variant
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.core.plan import Plan
from secateur.errors import ModelError, TaskError
from secateur.hf.readable import Readable, readable_from, readable_of
from secateur.probes.linearity import Linearity, Profile, linearity
from secateur.surgery.materialize import cut

WIDE = {"gpt2", "gpt2-untied-wide", "opt", "opt-projected", "phi"}  # all others compute parts in float32
_draw = random.Random(0)
SEQUENCES = [tuple(_draw.randrange(3, 96) for _ in range(_draw.randrange(3, 40))) for _ in range(50)]
HELD_OUT = [number % 4 == 1 for number in range(50)]
Pairs = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # site → of each sequence X and Y


# ------------------------------------------------------------------------------------------------------- the slow way


def gathered(model: nn.Module, run: Callable[[Sequence[int]], Any], paths: Sequence[str]) -> list[dict]:
    """Of each sequence: (path, "in" or "out") → float64 (tokens, d)."""
    found: list[dict] = []

    def keep(path: str, end: str, value: Tensor) -> None:
        found[-1][path, end] = value.reshape(-1, value.shape[-1]).double().numpy().copy()

    def before(path: str) -> Callable:
        return lambda _, args, kwargs: keep(path, "in", args[0] if args else kwargs["hidden_states"])

    def after(path: str) -> Callable:
        return lambda _, args, out: keep(path, "out", out[0] if isinstance(out, tuple) else out)

    handles = []
    for path in dict.fromkeys(paths):
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after(path)))
    for ids in SEQUENCES:
        found.append({})
        with torch.no_grad():
            run(ids)
    for handle in handles:
        handle.remove()
    return found


def solved(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map and its intercept."""
    fitted = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=1e-7)[0]
    return fitted, y.mean(0) - x.mean(0) @ fitted


def scores(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """In-sample over all tokens, and held out."""
    found = []
    fit = [pair for pair, out in zip(pairs, HELD_OUT, strict=True) if not out]
    for fitted_on, scored_on in (
        (pairs, pairs),
        (fit, [p for p, o in zip(pairs, HELD_OUT, strict=True) if o]),
    ):
        weight, bias = solved(*(np.concatenate(side) for side in zip(*fitted_on, strict=True)))
        x, y = (np.concatenate(side) for side in zip(*scored_on, strict=True))
        found.append(float(1 - ((x @ weight + bias - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()))
    return found[0], found[1]


def difference(seen: Sequence[dict], path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(one[path, "in"], one[path, "out"] - one[path, "in"]) for one in seen]


def leaving(seen: Sequence[dict], path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(one[path, "in"], one[path, "out"]) for one in seen]


def check(row: Linearity, stream: Any, added: Any, tolerance: float) -> None:
    for score, pairs in ((row.stream, stream), (row.added, added)):
        assert (score is None) == (pairs is None), row.site
        if score is not None:
            wanted = scores(pairs)
            assert (score.in_sample, score.held_out) == pytest.approx(wanted, abs=tolerance), row.site


def of(profile: Profile) -> dict[str, Linearity]:
    return {row.site: row for row in profile.rows}


def read(model: PreTrainedModel, as_loaded: Callable, **options: Any) -> Profile:
    return linearity(readable_of(as_loaded(model)), SEQUENCES, HELD_OUT, **options)


def ran(model: nn.Module) -> Callable[[Sequence[int]], None]:
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False)


# ------------------------------------------------------------------------------------------------- against the slow way


@pytest.mark.parametrize("name", by_layout())
def test_blocks_of_every_family(name: str, as_loaded: Callable) -> None:
    model = tiny(name, torch.float64)
    profile = read(model, as_loaded)
    paths, last = as_loaded(model).anatomy.blocks, profile.last[""]
    seen = gathered(model, ran(model), paths)
    rows = [row for row in profile.rows if "." not in row.site]
    post = profile.norms[""] == "post"
    assert post == (name == "opt-projected")
    for number, (path, row) in enumerate(zip(paths, rows, strict=True)):
        assert row.site == f"b{number}"
        tolerance = 1e-9 if name in WIDE else 1e-5
        check(row, leaving(seen, path), None if post else difference(seen, path), tolerance)
        x, y = (np.concatenate([one[path, end] for one in seen]) for end in ("in", "out"))
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert row.cosine == pytest.approx(cosine.mean(), abs=1e-6)
        assert (row.num_tokens, row.d) == x.shape
        assert row.num_fit == sum(len(ids) for ids, out in zip(SEQUENCES, HELD_OUT, strict=True) if not out)
        assert row.anisotropy == pytest.approx(anisotropy(x), abs=1e-6)
    assert last.anisotropy == pytest.approx(anisotropy(y), abs=1e-6)


def anisotropy(x: np.ndarray) -> float:
    sigma = np.linalg.svd(x - x.mean(0), compute_uv=False)
    return float(sigma[0] ** 2 / (sigma**2).sum())


def test_intrinsic_dimension_of_all_tokens_where_they_are_few(as_loaded: Callable) -> None:
    model = tiny("gpt2", torch.float64)
    few = SEQUENCES[:30]
    profile = linearity(readable_of(as_loaded(model)), few, HELD_OUT[:30])
    seen = gathered(model, ran(model), ["transformer.h.1"])[:30]
    for end, found in (
        ("in", of(profile)["b1"].intrinsic_dimension),
        ("out", profile.last[""].intrinsic_dimension),
    ):
        points = np.concatenate([one["transformer.h.1", end] for one in seen])
        assert 500 < len(points) < 1000, "a sample is taken of more"
        points = np.unique(points.round(9), axis=0)  # the same token at the beginning
        near = np.sort(cdist(points, points), axis=1)[:, 1:3]
        ratios = np.sort(np.log(near[:, 1] / near[:, 0]))[: len(points) // 5]
        heights = -np.log(1 - np.arange(1, len(ratios) + 1) / len(points))
        assert found == pytest.approx(ratios @ heights / (ratios @ ratios), rel=1e-6)


AFTER_NORMS = {  # by family: block → (part, what is read, what was added, from the stream itself)
    "gemma2": lambda b: {
        "attn": (f"{b}.input_layernorm", (f"{b}.pre_feedforward_layernorm", "in"), (b, "in")),
        "mlp": (f"{b}.pre_feedforward_layernorm", (b, "out"), (f"{b}.pre_feedforward_layernorm", "in")),
    },
    "opt-projected": lambda b: {
        "attn": (None, (f"{b}.self_attn_layer_norm", "in"), (b, "in")),
        "mlp": (
            f"{b}.self_attn_layer_norm",
            (f"{b}.final_layer_norm", "in"),
            (f"{b}.self_attn_layer_norm", "out"),
        ),
    },
    "bert": lambda b: {
        "attn": (None, (f"{b}.attention.output.LayerNorm", "in"), (b, "in")),
        "mlp": (
            f"{b}.attention.output.LayerNorm",
            (f"{b}.output.LayerNorm", "in"),
            (f"{b}.attention.output.LayerNorm", "out"),
        ),
    },
    "t5": lambda b: {
        name: (f"{b}.layer.{n}.layer_norm", (f"{b}.layer.{n}", "out"), (f"{b}.layer.{n}", "in"))
        for n, name in enumerate(("attn", "mlp") if b.startswith("enc") else ("attn", "cross", "mlp"))
    },
}
AFTER_NORMS |= {
    "gemma3": AFTER_NORMS["gemma2"],
    "roberta": AFTER_NORMS["bert"],
    "t5-gated": AFTER_NORMS["t5"],
}
AFTER_NORMS |= {"xlm-roberta": AFTER_NORMS["bert"], "mt5": AFTER_NORMS["t5"]}


def check_parts(name: str, model: nn.Module, readable: Readable, run: Callable, tolerance: float) -> None:
    """Parts, from the stream before and after them."""
    rows = of(linearity(readable, SEQUENCES, HELD_OUT))
    for stack in readable.stacks:
        for number, block in enumerate(stack.blocks):
            parts = AFTER_NORMS[name](block.path)
            paths = [p for entry in parts.values() for p in (entry[0], entry[1][0], entry[2][0]) if p]
            seen = gathered(readable.runs, run, [block.path, *paths])
            post = stack.norm == "post"
            added = None if post else difference(seen, block.path)
            check(rows[stack.site(number)], leaving(seen, block.path), added, tolerance)
            for part, (reads, after, before) in parts.items():
                x = (block.path, "in") if reads is None else (reads, "out")
                pairs = [(one[x], one[after] - one[before]) for one in seen]
                check(rows[stack.site(number, part)], None, pairs, tolerance)
    parts_read = {site.rpartition(".")[2] for site in rows if site.rpartition(".")[2][0] != "b"}
    assert parts_read == ({"attn", "mlp", "cross"} if "t5" in name else {"attn", "mlp"})


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "opt-projected"])
def test_parts_where_norms_follow(name: str, as_loaded: Callable) -> None:
    model = tiny(name, torch.float64)
    readable = readable_of(as_loaded(model))
    check_parts(name, model, readable, ran(readable.runs), 1e-9 if name in WIDE else 1e-5)


@pytest.mark.parametrize("name", slow_but(["bert", "t5"], sorted(ENCODERS)))
def test_encoders_and_encoder_decoders(name: str) -> None:
    model = ENCODERS[name]().double()
    readable = readable_from(model, None)

    def run(ids: Sequence[int]) -> None:
        half = (len(ids) + 1) // 2
        if "t5" not in name:
            model(input_ids=torch.tensor([ids]))
        else:
            model(input_ids=torch.tensor([ids[:half]]), decoder_input_ids=torch.tensor([[0, *ids[half:-1]]]))

    assert readable.kind == ("encoder-decoder" if "t5" in name else "encoder")
    check_parts(name, model, readable, run, 1e-5)  # T5 takes its softmax in float32


def test_parts_of_a_plain_decoder_are_read_when_asked_for(as_loaded: Callable) -> None:
    model = tiny("opt", torch.float64)
    rows = of(read(model, as_loaded, parts=True))
    seen = gathered(
        model,
        ran(model),
        [f"model.decoder.layers.1.{p}" for p in ("self_attn", "fc1", "fc2", "final_layer_norm")],
    )
    base = "model.decoder.layers.1"
    mlp = [(one[f"{base}.fc1", "in"], one[f"{base}.fc2", "out"]) for one in seen]
    attention = [(one[f"{base}.self_attn", "in"], one[f"{base}.self_attn", "out"]) for one in seen]
    check(rows["b1.mlp"], None, mlp, 1e-9)
    check(rows["b1.attn"], None, attention, 1e-9)


@pytest.mark.parametrize(
    "kind",
    slow_but(
        ["linear block 0"], ["attention of block 0", "FFN of block 0", "linear block 0", "uneven heads"]
    ),
)
@pytest.mark.parametrize("name", ["llama-tied-biased", "gpt2-untied-wide"])
def test_carved_models(name: str, kind: str, as_loaded: Callable) -> None:
    """Also with a linear map in a block's place: it lies before the next block, inside what the hook sees."""
    assert kind in KINDS
    dense = as_loaded(tiny(name, torch.float64))
    model = cut(dense, Plan(dense.fingerprint, edits_of(kind, dense.anatomy)))
    rows = of(read(model, as_loaded, parts=True))
    paths = as_loaded(model).anatomy.blocks
    seen = gathered(model, ran(model), paths)
    for number, path in enumerate(paths):
        check(rows[f"b{number}"], leaving(seen, path), difference(seen, path), 1e-5)
    assert ("b0.attn" in rows) == (kind != "attention of block 0")
    assert ("b0.mlp" in rows) == (kind != "FFN of block 0")


# ------------------------------------------------------------------------------------------------------ known answers


def silence(model: PreTrainedModel, block: int) -> None:
    for part in ("attn.c_proj", "mlp.c_proj"):
        for parameter in model.get_submodule(f"transformer.h.{block}.{part}").parameters():
            parameter.zero_()


class Mapped(nn.Module):
    """x → W x + b in a block's place, called as a block is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = torch.randn(width, width, generator=draw, dtype=torch.float64)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states @ self.weight + 3


def test_a_block_that_does_nothing_is_found_first(as_loaded: Callable) -> None:
    model = tiny("gpt2-untied-wide", torch.float64)
    silence(model, 1)
    rows = of(read(model, as_loaded))
    planted = rows.pop("b1")
    assert planted.stream.in_sample == pytest.approx(1, abs=1e-10)
    assert planted.stream.held_out == pytest.approx(1, abs=1e-10)
    assert planted.cosine == pytest.approx(1, abs=1e-12)
    assert planted.added is None
    assert "rounding" in planted.reason
    assert all(row.stream.held_out < 0.99 for row in rows.values())


def test_an_exactly_linear_block_swapped_in_is_found_first(as_loaded: Callable) -> None:
    model = tiny("gpt2-untied-wide", torch.float64)
    loaded = as_loaded(model)
    model.transformer.h[1] = Mapped(32)
    rows = of(linearity(readable_of(loaded), SEQUENCES, HELD_OUT))
    assert max(rows, key=lambda site: rows[site].stream.held_out) == "b1"
    for score in (rows["b1"].stream, rows["b1"].added):
        assert (score.in_sample, score.held_out) == pytest.approx((1, 1), abs=1e-10)
    seen = gathered(model, ran(model), [f"transformer.h.{n}" for n in range(3)])
    for number in (0, 2):
        path = f"transformer.h.{number}"
        check(rows[f"b{number}"], leaving(seen, path), difference(seen, path), 1e-9)


class Random(nn.Module):
    """Gives noise, whatever it reads."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.randn(
            hidden_states.shape, generator=torch.Generator().manual_seed(int(hidden_states.numel()))
        )


def test_noise_scores_in_sample_and_not_held_out(as_loaded: Callable) -> None:
    model = tiny("gpt2")
    loaded = as_loaded(model)
    model.transformer.h[1] = Random()
    row = of(linearity(readable_of(loaded), SEQUENCES, HELD_OUT, max_tokens=1))[
        "b1"
    ]  # noise of its own for each
    assert row.stream.in_sample == pytest.approx(row.d / row.num_tokens, abs=0.02)
    assert row.stream.held_out < 0.01


# -------------------------------------------------------------------------------------------------- how it is computed


def near(one: Profile, other: Profile, tolerance: float) -> None:
    for a, b in zip(one.rows, other.rows, strict=True):
        assert a.site == b.site
        numbers = [
            (r.stream.in_sample, r.stream.held_out, r.added.held_out, r.cosine, r.intrinsic_dimension)
            for r in (a, b)
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=tolerance)


def test_batches_passes_and_the_room_do_not_matter(as_loaded: Callable) -> None:
    model = tiny("gpt2", torch.float64)
    whole = read(model, as_loaded, max_tokens=10**6)
    near(read(model, as_loaded, max_tokens=64), whole, 1e-9)
    passes: list[tuple[int, int]] = []
    alone = read(model, as_loaded, room=1, max_tokens=10**6, progress=lambda _, a, b: passes.append((a, b)))
    near(alone, whole, 1e-12)
    assert passes[-1] == (3 * 2, 3 * 2), "two blocks and what leaves them, on both sides"


def test_the_same_again(as_loaded: Callable) -> None:
    assert read(tiny("llama"), as_loaded) == read(tiny("llama"), as_loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_precisions(dtype: torch.dtype, as_loaded: Callable) -> None:
    """As near as the model's own arithmetic is."""
    found, exact = of(read(tiny("gpt2", dtype), as_loaded)), of(read(tiny("gpt2", torch.float64), as_loaded))
    tolerance = 30 * torch.finfo(dtype).eps
    for site, row in found.items():
        assert row.stream.held_out == pytest.approx(exact[site].stream.held_out, abs=tolerance)


def test_some_blocks(as_loaded: Callable) -> None:
    model = tiny("gpt2-untied-wide", torch.float64)
    some, whole = read(model, as_loaded, blocks=range(1, 2)), of(read(model, as_loaded))
    assert [row.site for row in some.rows] == ["b1"]
    assert some.last == {}
    assert some.rows[0] == whole["b1"]


def test_hooks_are_gone_and_weights_as_they_were(as_loaded: Callable) -> None:
    model = tiny("gpt2")
    before = {name: p.clone() for name, p in model.named_parameters()}
    read(model, as_loaded)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --------------------------------------------------------------------------------------------------- what can go wrong


def test_a_model_of_one_block(as_loaded: Callable) -> None:
    model = variant("gpt2", n_layer=1).double()
    profile = read(model, as_loaded)
    assert [row.site for row in profile.rows] == ["b0"]
    seen = gathered(model, ran(model), ["transformer.h.0"])
    check(profile.rows[0], leaving(seen, "transformer.h.0"), difference(seen, "transformer.h.0"), 1e-9)


def test_nothing_held_out(as_loaded: Callable) -> None:
    readable = readable_of(as_loaded(tiny("gpt2")))
    for held_out in ([False] * 50, [True] * 50, []):
        with pytest.raises(TaskError, match="at least 2"):
            linearity(readable, SEQUENCES[: len(held_out)], held_out)


def test_what_is_not_finite_is_refused_by_name(as_loaded: Callable) -> None:
    model = tiny("gpt2")
    loaded = as_loaded(model)
    model.transformer.h[1].mlp.c_proj.bias[3] = torch.inf
    with pytest.raises(ModelError, match=r"^b1: what passes there is not finite.*--dtype"):
        linearity(readable_of(loaded), SEQUENCES, HELD_OUT)


def test_what_never_runs_is_refused(as_loaded: Callable) -> None:
    model = tiny("gpt2")
    loaded = as_loaded(model)
    model.transformer.h[1].mlp.forward = lambda hidden_states: hidden_states
    with pytest.raises(ModelError, match=r"h\.1\.mlp\.c_proj never ran"):
        linearity(readable_of(loaded), SEQUENCES, HELD_OUT, parts=True)


@pytest.mark.parametrize(
    ("count", "trusted", "said"), [(3, False, "tokens to fit 32 dimensions"), (50, True, "")]
)
def test_few_tokens_are_told(count: int, trusted: bool, said: str, as_loaded: Callable) -> None:
    readable = readable_of(as_loaded(tiny("gpt2")))
    rows = linearity(readable, SEQUENCES[:count], HELD_OUT[:count]).rows
    assert all(row.trusted == trusted and said in row.reason for row in rows)


def test_a_bad_condition_and_missing_directions_are_told(as_loaded: Callable) -> None:
    model = tiny("gpt2", torch.float64)
    model.transformer.wte.weight[:, 0] *= 1e7
    model.transformer.wpe.weight[:, 0] *= 1e7
    first = of(read(model, as_loaded))["b0"]
    assert not first.trusted
    assert "condition 1e+07" in first.reason
    assert first.condition == pytest.approx(1e7, rel=0.9)
    for table in (model.transformer.wte, model.transformer.wpe):
        table.weight[:, 0] = 0
    first = of(read(model, as_loaded))["b0"]
    assert (first.trusted, first.rank) == (True, 31)
    assert "31 of 32 directions" in first.reason
