"""Maps that stand for blocks, against numpy's least squares on activations that are gathered whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from zoo import ZOO, tiny

from secateur.core.plan import Plan, parse_edits
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.hf.anatomy import anatomy
from secateur.hf.load import Loaded
from secateur.judge.rows import Packing
from secateur.probes import maps
from secateur.probes.maps import Run, fit_maps
from secateur.probes.similarity import block_similarity
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


@pytest.fixture
def unshrunk(monkeypatch):
    monkeypatch.setattr(maps, "RIDGES", (0.0,))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_maps_are_least_squares(name, texts, unshrunk):
    loaded = loaded_of(tiny(name, torch.float64))
    last = loaded.anatomy.num_blocks - 1
    runs = [Run((last,), "linear"), Run(tuple(range(1, last + 1)), "linear"), Run((0,), "linear")]
    runs += [Run((last,), "fold"), Run(tuple(range(1, last + 1)), "fold")]
    runs = list(dict.fromkeys(runs))
    empty = Plan("tiny")
    found = fit_maps(loaded, texts, list(texts), runs, under=empty, packing=SMALL)
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
    runs = [Run((1,), "linear"), Run((1,), "fold"), Run((0,), "linear", 3)]
    each = [fit_maps(loaded, texts, list(texts), runs, under=Plan("tiny"), packing=p) for p in (SMALL, LARGE)]
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
    run = Run((1, 2), "linear")
    arrays = fit_maps(loaded, texts, list(texts), [run], under=plan, packing=SMALL)[run].fitted.arrays
    x = np.concatenate(gathered(loaded, texts, plan)["in1"])
    y = np.concatenate(gathered(loaded, texts, Plan("tiny"))["out2"])
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    np.testing.assert_allclose(arrays["weight"].T, solved[:-1], atol=1e-6)


def test_low_rank_is_the_best_of_its_rank(texts, unshrunk):
    """Reduced-rank regression: no other map of that rank has a smaller error on the data."""
    loaded = loaded_of(tiny("llama", torch.float64))
    full, low = Run((1,), "linear"), Run((1,), "linear", 4)
    found = fit_maps(loaded, texts, list(texts), [full, low], under=Plan("tiny"), packing=SMALL)
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
    run, empty = Run((1,), "linear"), Plan("tiny")
    seen = dict(gathered(loaded, texts, empty).items())
    x, y = (np.concatenate([seen[key][n] for n in rest]) for key in ("in1", "out1"))

    def error():
        arrays = fit_maps(loaded, texts, few, [run], under=empty, packing=SMALL)[run].fitted.arrays
        return np.square(x @ arrays["weight"].T + arrays["bias"] - y).mean()

    shrunk = error()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "RIDGES", (0.0,))
        plain = error()
    assert shrunk < plain


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
        fit_maps(loaded, texts, list(texts), [Run((1,), "linear")], under=Plan("tiny"), packing=SMALL)
    assert replace(loaded, name="x").model is model
