"""`make versus`: the page is that of the rows, and each peer cuts what its paper says, computed here another way."""

from __future__ import annotations

import copy
import importlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from fixtures.folders import save_model, write_rows
from fixtures.places import BENCHMARKS, ROOT, SHARED
from fixtures.planted import spoken
from fixtures.zoo import variant
from torch.nn import ModuleList
from torch.nn.functional import cross_entropy

from secateur.core.plan import Linearize
from secateur.methods.registry import read_options
from secateur.methods.removal import kept_share
from secateur.session import open_session

BLOCKS = 5


@pytest.fixture(autouse=True)
def in_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def session(tmp_path_factory, words):
    place, model = tmp_path_factory.mktemp("peers"), variant("llama", num_hidden_layers=BLOCKS)
    save_model(place / "m", model, words)
    write_rows(place / "text.jsonl", spoken(model, 40))
    options = read_options(
        str(place / "m"),
        f"text:{place / 'text.jsonl'}",
        method="depth",
        allow_small=True,
        device="cpu",
        dtype="float32",
    )
    return open_session(options, None)


@pytest.fixture(scope="module")
def rows(session):
    """Each calibration text as token ids, of which the model reads all but the last."""
    numbers = [*session.task.split("probe"), *session.task.split("select")]
    pairs = [session.encoded[number].pairs[0] for number in numbers]
    return [torch.tensor([[*context, *answer]]) for context, answer in pairs]


def choose(name, session, count):
    return importlib.import_module("peers").PEERS[name].choose(session, count)


def hidden(model, rows):
    """Return the input of block 0 and the output of each block, (tokens, d_model) each, row by row."""
    kept = [[] for _ in range(BLOCKS + 1)]
    layers = model.model.layers
    handles = [layers[0].register_forward_pre_hook(lambda m, a: kept[0].append(a[0][0]))]
    for number, layer in enumerate(layers):

        def note(m, a, out, number=number):
            kept[number + 1].append((out[0] if isinstance(out, tuple) else out)[0])

        handles.append(layer.register_forward_hook(note))
    with torch.no_grad():
        for row in rows:
            model(row[:, :-1])
    for handle in handles:
        handle.remove()
    return [torch.cat(some).double().numpy() for some in kept]


def cosine(x, y):
    return ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()


def gone(plan):
    return {site.block for site in plan.dropped}


def test_shortgpt_drops_the_blocks_that_turn_the_stream_least(session, rows):
    streams = hidden(session.loaded.model, rows)
    order = np.argsort([-cosine(*pair) for pair in pairwise(streams)])
    assert gone(choose("shortgpt", session, 2)) == set(order[:2].tolist())


def test_sleb_drops_by_the_loss_of_what_is_left(session):
    model, left = copy.deepcopy(session.loaded.model), list(range(BLOCKS))
    probe = session.task.split("probe")
    numbers = [*probe, *session.shuffled("select")[: len(probe)]]
    pairs = [session.encoded[number].pairs[0] for number in numbers]
    read_on = [torch.tensor([[*context, *answer]]) for context, answer in pairs]
    layers = list(model.model.layers)

    def loss(blocks):
        model.model.layers = ModuleList(layers[block] for block in blocks)
        with torch.no_grad():
            losses = [
                cross_entropy(model(r, use_cache=False).logits[0, :-1], r[0, 1:], reduction="sum")
                for r in read_on
            ]
        return float(sum(losses))

    for _ in range(2):
        left.remove(min(left, key=lambda block: loss([other for other in left if other != block])))
    assert gone(choose("sleb", session, 2)) == set(range(BLOCKS)) - set(left)


def test_replaceme_solves_for_the_output_of_the_network_before_the_run(session, rows):
    streams, layers = hidden(session.loaded.model, rows), session.loaded.model.model.layers
    first = max(range(1, BLOCKS - 1), key=lambda block: cosine(streams[block], streams[block + 2]))
    given = []
    handle = layers[first - 1].mlp.register_forward_hook(lambda m, a, out: given.append(out[0]))
    with torch.no_grad():
        for row in rows:
            session.loaded.model(row[:, :-1])
    handle.remove()
    m = torch.cat(given).double().numpy()
    map_ = np.linalg.lstsq(m, streams[first + 2] - (streams[first] - m), rcond=None)[0]
    (edit,) = choose("replaceme", session, 2).edits
    assert isinstance(edit, Linearize)
    assert (edit.blocks, edit.form) == ((first, first + 1), "fold")
    np.testing.assert_allclose(edit.fitted.content["weight"], map_.T, rtol=1e-3, atol=1e-4)


def test_neurons_go_by_weights_and_by_weights_times_inputs(session, rows):
    layers, count = session.loaded.model.model.layers, 1
    inputs = [[] for _ in layers]
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, a, own=own: own.append(a[0][0]))
        for layer, own in zip(layers, inputs, strict=True)
    ]
    with torch.no_grad():
        for row in rows:
            session.loaded.model(row[:, :-1])
    for handle in handles:
        handle.remove()
    plans = {name: choose(name, session, count) for name in ("magnitude", "wanda")}
    for block, layer in enumerate(layers):
        gate, up, down = (
            m.weight.detach().double().abs().numpy()
            for m in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        norms = np.linalg.norm(torch.cat(inputs[block]).double().numpy(), axis=0)
        scores = {"magnitude": gate.sum(1) + up.sum(1) + down.sum(0), "wanda": (down * norms).sum(0)}
        for name, score in scores.items():
            here = {site.index for site in plans[name].dropped if site.block == block}
            assert here == set(np.argsort(score, kind="stable")[: len(here)].tolist())
            assert len(here) == len(plans[name].dropped) / BLOCKS
    block = session.loaded.anatomy.widths[0].num_parameters / session.loaded.anatomy.num_parameters
    assert all(
        1 - count * block - 0.02 < kept_share(session, plan) <= 1 - count * block for plan in plans.values()
    )


def test_the_page_is_that_of_the_finished_rows():
    versus = importlib.import_module("versus")
    found = versus.rows_in(versus.ROWS)
    assert found
    assert versus.page(found, versus.refused_in(versus.ROWS)) == (ROOT / "docs" / "versus.md").read_text(
        encoding="utf-8"
    ), "python benchmarks/versus.py --write"
    sizes = {(row.asked, row.method): row.parameters for row in found if row.method != "whole"}
    for (share, name), size in sizes.items():
        if not versus.METHODS[name].options:
            assert sizes[share, versus.OURS] <= size + 1e-9, "ours is no larger than a peer's"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the texts are not there")
def test_a_finished_row_is_not_measured_again(tmp_path, monkeypatch):
    versus = importlib.import_module("versus")
    names = ["whole", "budget", "shortgpt", "wanda"]
    found = versus.smoke(tmp_path, names)
    assert {row.method for row in found} == set(names)
    monkeypatch.setattr(versus, "measured", None)  # would raise
    ring = versus.open_ring(str(SHARED / "models" / "stories260K"), "float32", tmp_path, versus.SMOKE)
    versus.fill(tmp_path / "rows", ring, names, [0.8])
    assert "| budget |" in versus.page(found)
