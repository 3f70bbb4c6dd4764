"""Maps that stand for blocks, against numpy's least squares on activations that are gathered whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.zoo import ZOO, tiny

from secateur.core.plan import Plan, parse_edits
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing
from secateur.hf.anatomy import anatomy
from secateur.hf.load import Loaded
from secateur.methods.depth.readings import block_similarity
from secateur.probes import maps
from secateur.probes.maps import BlockRun, fit_maps, halved
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded

SMALL = Packing(48, 10**6, pad=0)
LARGE = Packing(10**5, 10**6, pad=0)


def loaded_of(model) -> Loaded:
    return Loaded("tiny", model, None, anatomy(model), "tiny", None, None)


@pytest.fixture(scope="module")
def texts() -> dict[int, Encoded]:
    """Sequences of different lengths, so that batches are padded."""
    draw = np.random.default_rng(0)
    lengths = [9, 14, 5, 20, 11, 17, 8, 23, 13, 6]
    rows = [tuple(int(t) for t in draw.integers(3, 96, length)) for length in lengths]
    return {n: Encoded(((row[:1], row[1:]),), 0, (1,)) for n, row in enumerate(rows)}


@torch.no_grad()
def gathered(loaded: Loaded, texts, plan: Plan) -> dict[str, list[np.ndarray]]:
    """One sequence at a time, without padding: what enters and leaves each block, and what each network gives."""
    found: dict[str, list[np.ndarray]] = {}

    def keep(name, value):
        value = value[0] if isinstance(value, tuple) else value
        found.setdefault(name, []).append(value.reshape(-1, value.shape[-1]).double().numpy().copy())

    model, handles = loaded.model, []
    for block, path in enumerate(loaded.anatomy.blocks):
        module = model.get_submodule(path)
        down = model.get_submodule(loaded.anatomy.matrices[Site(block, "down")].module)
        handles += [
            module.register_forward_pre_hook(lambda m, a, b=block: keep(f"in{b}", a[0])),
            module.register_forward_hook(lambda m, a, o, b=block: keep(f"out{b}", o)),
            down.register_forward_hook(lambda m, a, o, b=block: keep(f"down{b}", o)),
        ]
    with masked(model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
        for encoded in texts.values():
            context, rest = encoded.pairs[0]
            model(input_ids=torch.tensor([[*context, *rest[:-1]]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def fit(loaded, texts, runs, examples=None, *, groups=None, under=None, packing=SMALL):
    """Maps fitted to all texts, or some of them, each a group of its own unless told otherwise."""
    examples = list(texts) if examples is None else examples
    groups = range(len(examples)) if groups is None else groups
    how = {"groups": groups, "under": under or Plan("tiny"), "packing": packing}
    return fit_maps(loaded, texts, examples, runs, **how)


@pytest.fixture
def unshrunk(monkeypatch):
    monkeypatch.setattr(maps, "RIDGES", (0.0,))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_maps_are_least_squares(name, texts, unshrunk):
    loaded = loaded_of(tiny(name, torch.float64))
    last = loaded.anatomy.num_blocks - 1
    runs = [
        BlockRun((last,), "linear"),
        BlockRun(tuple(range(1, last + 1)), "linear"),
        BlockRun((0,), "linear"),
    ]
    runs += [BlockRun((last,), "fold"), BlockRun(tuple(range(1, last + 1)), "fold")]
    runs = list(dict.fromkeys(runs))
    empty = Plan("tiny")
    found = fit(loaded, texts, runs)
    seen = {key: np.concatenate(value) for key, value in gathered(loaded, texts, empty).items()}
    for run in runs:
        first, end = run.blocks[0], run.blocks[-1]
        arrays = found[run].fitted.arrays
        if run.form == "linear":
            x, y, intercept = seen[f"in{first}"], seen[f"out{end}"], True
        else:
            x = seen[f"down{first - 1}"]
            y = seen[f"out{end}"] - (seen[f"out{first - 1}"] - x)
            intercept = loaded.anatomy.matrices[Site(first - 1, "down")].bias is not None
        design = np.c_[x, np.ones(len(x))] if intercept else x
        assert ("bias" in arrays) == intercept
        ours = x @ arrays["weight"].T + arrays.get("bias", 0)  # maps may differ where the data have no extent
        solved = np.linalg.lstsq(design, y, rcond=None)[0]
        np.testing.assert_allclose(ours, design @ solved, atol=1e-6, err_msg=str(run))


def test_batches_change_nothing_beyond_rounding(texts):
    loaded = loaded_of(tiny("llama", torch.float64))
    runs = [BlockRun((1,), "linear"), BlockRun((1,), "fold"), BlockRun((0,), "linear", 3)]
    each = [fit(loaded, texts, runs, packing=p) for p in (SMALL, LARGE)]
    for run in runs:
        for key, array in each[0][run].fitted.arrays.items():
            other = each[1][run].fitted.arrays[key]
            if run.rank is None:
                np.testing.assert_allclose(array, other, atol=1e-8)
    a, b = (one[runs[2]].fitted.arrays for one in each)
    np.testing.assert_allclose(a["b"].T @ a["a"], b["b"].T @ b["a"], atol=1e-8)


def test_under_a_plan_the_target_is_still_the_original(texts, unshrunk):
    """What enters is what the cut model sends; what should leave is what the whole one sends."""
    loaded = loaded_of(tiny("gpt2-untied-wide", torch.float64))
    plan = Plan("tiny", parse_edits(["b0.attn.h1=drop", "b0.up=3"]))
    run = BlockRun((1, 2), "linear")
    arrays = fit(loaded, texts, [run], under=plan)[run].fitted.arrays
    x = np.concatenate(gathered(loaded, texts, plan)["in1"])
    y = np.concatenate(gathered(loaded, texts, Plan("tiny"))["out2"])
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    np.testing.assert_allclose(arrays["weight"].T, solved[:-1], atol=1e-6)


def test_low_rank_is_the_best_of_its_rank(texts, unshrunk):
    """Reduced-rank regression: no other map of that rank has a smaller error on the data."""
    loaded = loaded_of(tiny("llama", torch.float64))
    full, low = BlockRun((1,), "linear"), BlockRun((1,), "linear", 4)
    found = fit(loaded, texts, [full, low])
    seen = {key: np.concatenate(value) for key, value in gathered(loaded, texts, Plan("tiny")).items()}
    x, y = seen["in1"], seen["out1"]
    added = (x - x.mean(0)) @ (found[full].fitted.arrays["weight"].T - np.eye(x.shape[1]))
    _, _, vt = np.linalg.svd(added, full_matrices=False)
    best = added @ vt[:4].T @ vt[:4]
    arrays = found[low].fitted.arrays
    ours = (x - x.mean(0)) @ arrays["a"].T @ arrays["b"]
    np.testing.assert_allclose(ours, best, atol=1e-6)
    assert arrays["a"].shape == arrays["b"].shape == (4, x.shape[1])
    error = np.square(x + x @ arrays["a"].T @ arrays["b"] + arrays["bias"] - y).mean()
    others = [
        np.square(x + best + shift - y).mean() for shift in (0, (y - x).mean(0), (y - x).mean(0) + 0.01)
    ]
    assert error <= min(others) + 1e-9


def test_shrinking_helps_where_tokens_are_few(texts):
    """With fewer tokens than numbers in the stream, least squares alone fits noise."""
    loaded = loaded_of(tiny("llama", torch.float64))
    few, rest = list(texts)[:3], list(texts)[3:]
    run, empty = BlockRun((1,), "linear"), Plan("tiny")
    seen = dict(gathered(loaded, texts, empty).items())
    x, y = (np.concatenate([seen[key][n] for n in rest]) for key in ("in1", "out1"))

    def error():
        arrays = fit(loaded, texts, [run], few)[run].fitted.arrays
        return np.square(x @ arrays["weight"].T + arrays["bias"] - y).mean()

    shrunk = error()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "RIDGES", (0.0,))
        plain = error()
    assert shrunk < plain


def test_halves_are_of_whole_groups():
    assert halved(range(6), [0, 0, 0, 1, 1, 2]) == {3, 4, 5}
    assert halved(range(4), [5, 5, 7, 7]) == {2, 3}
    assert halved(range(5), [0] * 5) == {1, 3}, "of one group there is no cleaner half"
    assert halved([3], [0]) == set()
    sizes = [40, 3, 3, 3, 30]
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    second = halved(range(79), groups)
    assert all(len({n in second for n, g in enumerate(groups) if g == group}) == 1 for group in range(5))
    assert len(second) == 39


@pytest.mark.parametrize("form", ["linear", "fold"])
def test_the_ridge_is_the_best_on_the_half_that_was_not_fitted(form, texts):
    """Against maps fitted by the normal equations with every ridge, and their errors summed token by token."""
    loaded, groups = loaded_of(tiny("llama", torch.float64)), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    found = fit(loaded, texts, [BlockRun((1,), form)], groups=groups)[BlockRun((1,), form)].fitted.arrays
    seen = gathered(loaded, texts, Plan("tiny"))
    inputs = seen["in1"] if form == "linear" else seen["down0"]
    before = seen["in1"] if form == "linear" else seen["out0"]
    pairs = [(x, y - b) for x, y, b in zip(inputs, seen["out1"], before, strict=True)]
    second = halved(range(10), groups)
    sides = [[pair for n, pair in enumerate(pairs) if (n in second) == half] for half in (False, True)]
    x_all = np.concatenate(inputs)
    scale = np.square(x_all - (x_all.mean(0) if form == "linear" else 0)).sum() / x_all.shape[1]
    errors = {}
    for share in maps.RIDGES:
        errors[share] = 0.0
        for fitted_on, scored_on in (sides, sides[::-1]):
            solve = solved(fitted_on, share * scale, form == "linear")
            errors[share] += sum(np.square(solve(x) - y).sum() for x, y in scored_on)
    best = min(errors, key=errors.get)
    assert 0 < best < maps.RIDGES[-1]
    wanted = solved(pairs, best * scale, form == "linear")
    ours = x_all @ found["weight"].T + found.get("bias", 0) - x_all
    np.testing.assert_allclose(ours, wanted(x_all), atol=1e-5)


def solved(pairs, ridge, intercept):
    """The map of ridge regression, by the normal equations."""
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    mx, my = (x.mean(0), y.mean(0)) if intercept else (0, 0)
    a, b = x - mx, y - my
    weight = np.linalg.pinv(a.T @ a + ridge * np.eye(a.shape[1]), rcond=1e-13) @ a.T @ b
    return lambda x: (x - mx) @ weight + my


def test_texts_of_one_group_are_no_test_of_each_other():
    """Each text three times: to halves that split them, least squares that fits noise looks fine."""
    draw = np.random.default_rng(1)
    rows = [tuple(int(t) for t in draw.integers(3, 96, 12)) for _ in range(6)]
    told = {n: Encoded(((rows[n // 3][:1], rows[n // 3][1:]),), 0, (1,)) for n in range(18)}
    loaded, run = loaded_of(tiny("llama", torch.float64)), BlockRun((1,), "linear")
    leaky, clean = (
        fit(loaded, told, [run], groups=groups)[run].fitted.arrays["weight"]
        for groups in (range(18), [n // 3 for n in range(18)])
    )
    sizes = [np.linalg.norm(weight - np.eye(len(weight))) for weight in (leaky, clean)]
    assert sizes[1] < 0.8 * sizes[0], "held out in truth, the map shrinks more"


@pytest.mark.parametrize("name", sorted(ZOO))
def test_similarity_of_blocks(name, texts):
    loaded = loaded_of(tiny(name, torch.float64))
    blocks = list(range(loaded.anatomy.num_blocks))
    plan = Plan("tiny", parse_edits(["b0.up=3"]))
    found = block_similarity(loaded, texts, list(texts), blocks, under=plan, packing=SMALL)
    seen = {key: np.concatenate(value) for key, value in gathered(loaded, texts, plan).items()}
    for block in blocks:
        x, y = seen[f"in{block}"], seen[f"out{block}"]
        cosine = ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
        a, b = (z - z.mean(0) for z in (x, y))
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        residual = a @ np.linalg.lstsq(a, b, rcond=None)[0] - b
        assert found[block].cosine == pytest.approx(cosine, abs=1e-9)
        assert found[block].linearity == pytest.approx(1 - np.square(residual).sum(), abs=1e-8)


def test_broken_weights_are_refused(texts):
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    loaded = loaded_of(model)
    with pytest.raises(ModelError, match="not finite"):
        fit_maps(
            loaded,
            texts,
            list(texts),
            [BlockRun((1,), "linear")],
            groups=range(10),
            under=Plan("tiny"),
            packing=SMALL,
        )
    assert replace(loaded, name="x").model is model
