"""What directions say, against weights read in the vocabulary by plain numpy: norms, unembedding, heads by hand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from fixtures.zoo import ZOO, tiny

from secateur.core.fitted import Fitted
from secateur.core.plan import RemoveDirections
from secateur.core.site import Site
from secateur.hf.load import Loaded
from secateur.methods.directions.readings import MOST, Words, direction_words

SILENT = {
    "gemma2",
    "gemma3",
    "opt-projected",
}  # norms behind what is written, or the unembedding reads another width


def numpy_of(loaded: Loaded, site: Site) -> np.ndarray:
    matrix = loaded.anatomy.matrix(site)
    return matrix.read(loaded.model.get_parameter(matrix.weight)).detach().double().numpy()


def seen(loaded: Loaded, vector: np.ndarray) -> np.ndarray:
    """Logits along a vector in the stream: the final norm without its bias, then the unembedding without its own."""
    norm = loaded.model.get_submodule(loaded.anatomy.final_norm)
    gain, eps = (
        norm.weight.detach().double().numpy(),
        getattr(norm, "variance_epsilon", getattr(norm, "eps", None)),
    )
    if isinstance(norm, torch.nn.LayerNorm):
        vector = vector - vector.mean()
    normed = vector / np.sqrt((vector**2).mean() + eps) * gain
    return loaded.model.get_submodule(loaded.anatomy.unembedding).weight.detach().double().numpy() @ normed


def written(loaded: Loaded, edit: RemoveDirections, number: int) -> np.ndarray:
    """What a direction puts into the stream, up to its sign."""
    a, site = loaded.anatomy, edit.matrix
    w, d = numpy_of(loaded, site), a.d_head
    pieces = [w]
    if edit.per_head and site.part == "o":
        pieces = [w[:, h * d : (h + 1) * d] for h in range(a.num_heads)]
    elif edit.per_head:
        pieces = [w[h * d : (h + 1) * d] for h in range(a.num_kv_heads)]
    head, index = divmod(number, min(pieces[0].shape))
    u = np.linalg.svd(pieces[head], full_matrices=False)[0][:, index]
    if site.part != "v":
        return u
    values = np.zeros(len(w))
    values[head * len(u) : (head + 1) * len(u)] = u
    o, queries = numpy_of(loaded, Site(site.block, "o")), a.num_heads // a.num_kv_heads
    repeated = np.concatenate([values[h // queries * d : (h // queries + 1) * d] for h in range(a.num_heads)])
    return o @ repeated


def assert_says(words: Words, logits: np.ndarray) -> None:
    """The largest and the smallest logits, each with its own token; or all the other way round."""
    first, value = words.more[0]
    logits = logits if abs(logits[int(first[1:])] - value) < abs(logits[int(first[1:])] + value) else -logits
    order = np.sort(logits)
    for said, end in ((words.more, order[::-1][:MOST]), (words.less, order[:MOST])):
        np.testing.assert_allclose([v for _, v in said], end, rtol=2e-3, atol=1e-4)
        own = [logits[int(token[1:])] for token, _ in said]
        np.testing.assert_allclose(own, end, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("per_head", [False, True], ids=["whole", "per head"])
@pytest.mark.parametrize("name", sorted(set(ZOO) - SILENT))
def test_they_are_the_vocabulary_seen_through_the_final_norm(name, per_head, as_loaded):
    loaded = as_loaded(tiny(name))
    for part in ("o", "v") if per_head else ("o", "v", "down"):
        site = Site(1, part)
        edit = RemoveDirections(site, (0, 1), per_head)
        numbers = [0, 3, numpy_of(loaded, site).shape[1 if part == "o" else 0] - 1 if per_head else 5]
        for number, words in zip(numbers, direction_words(loaded, edit, numbers), strict=True):
            assert_says(words, seen(loaded, written(loaded, edit, number)))


@pytest.mark.parametrize("name", sorted(SILENT))
def test_where_the_stream_is_not_what_the_unembedding_reads_nothing_is_said(name, as_loaded):
    """Gemma norms what it writes, OPT-350m norms the stream in each block and projects it to another width."""
    loaded = as_loaded(tiny(name))
    for part in ("o", "down", "v"):
        assert direction_words(loaded, RemoveDirections(Site(0, part), (0,)), [0]) == []


@pytest.mark.parametrize("part", ["q", "k", "gate", "up"])
def test_what_does_not_reach_the_stream_by_linear_maps_says_nothing(part, as_loaded):
    assert direction_words(as_loaded(tiny("llama")), RemoveDirections(Site(0, part), (0,)), [0]) == []


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_a_direction_that_writes_one_token_says_it(name, as_loaded):
    """A large rank-one part whose output is, through the final norm, one token's own row of the unembedding."""
    model = tiny(name)
    loaded, token = as_loaded(model), 41
    unembedding = model.get_submodule(loaded.anatomy.unembedding).weight
    gain = model.get_submodule(loaded.anatomy.final_norm).weight
    wanted = unembedding[token] / gain
    wanted = wanted - wanted.mean()
    matrix = loaded.anatomy.matrix(Site(1, "down"))
    weight = model.get_parameter(matrix.weight)
    reads = torch.nn.functional.normalize(torch.ones(matrix.shape[1]), dim=0)
    matrix.write_(weight, matrix.read(weight) + 50 * torch.outer(wanted / wanted.norm(), reads))
    (words,) = direction_words(as_loaded(model), RemoveDirections(matrix.site, (0,)), [0])
    assert "w41" in (words.more[0][0], words.less[0][0])


def test_a_basis_of_ones_own_is_what_speaks(as_loaded):
    loaded = as_loaded(tiny("llama"))
    u = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)
    fold = Fitted.of({"mean": np.zeros(40, np.float32), "u": u[None]})
    numbers = [0, 17]
    found = direction_words(loaded, RemoveDirections(Site(0, "down"), (0, 17), fold=fold), numbers)
    for number, words in zip(numbers, found, strict=True):
        assert_says(words, seen(loaded, u[:, number].astype(np.float64)))


def test_both_ends_are_in_order_and_survive_json(as_loaded):
    (words,) = direction_words(as_loaded(tiny("llama")), RemoveDirections(Site(0, "o"), (0,)), [0])
    assert len(words.more) == len(words.less) == MOST
    up, down = ([value for _, value in end] for end in (words.more, words.less))
    assert up == sorted(up, reverse=True)
    assert down == sorted(down)
    assert asdict(words) == {"more": words.more, "less": words.less}
    assert direction_words(as_loaded(tiny("llama")), RemoveDirections(Site(0, "o"), (0,)), []) == []
