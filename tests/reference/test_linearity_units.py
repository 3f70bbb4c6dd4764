"""Linearity of heads and matrices against a slow way: a head's contribution is what the output projection gives with
all other heads silenced, the stream before a norm what leaves a block less what was added; known answers on T5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from fixtures.cuts import edits_of, factorized
from fixtures.encoders import ENCODERS
from fixtures.marks import slow_but
from fixtures.zoo import FEWEST, by_layout, tiny
from test_linearity_probe import HELD_OUT, SEQUENCES, WIDE, check, gathered, of, ran
from torch import nn
from transformers import PreTrainedModel

from secateur.core.place import ReadableSite
from secateur.core.plan import Plan
from secateur.core.site import Site
from secateur.hf.anatomy import Anatomy
from secateur.hf.readable import Readable, readable_from, readable_of
from secateur.linalg.least_squares import JointMoments, PairMoments
from secateur.probes.linearity import Linearity, linearity
from secateur.surgery.materialize import cut

PARALLEL = {
    "gptj",
    "gpt-neox",
    "phi",
    "falcon-7b",
    "falcon-40b",
}  # the feed-forward network reads what the block does
Rows = dict[str, Linearity]
Seen = list[dict]


def read(readable: Readable, finer: Sequence[str] = ("heads", "matrices"), **options) -> Rows:
    return of(linearity(readable, SEQUENCES, HELD_OUT, finer=finer, **options))


def contribution(dense: nn.Module, contexts: np.ndarray, head: int, count: int) -> np.ndarray:
    """What the output projection gives of one head's context, less what it gives of nothing."""
    values, d_head = torch.from_numpy(contexts), contexts.shape[1] // count
    silenced = torch.zeros_like(values)
    mine = slice(head * d_head, (head + 1) * d_head)
    silenced[:, mine] = values[:, mine]
    with torch.no_grad():
        return (dense(silenced) - dense(torch.zeros_like(values))).numpy()


def check_heads(
    rows: Rows, seen: Seen, dense: nn.Module, paths: tuple[str, str], site: str, count: int
) -> None:
    """`paths` of what the attention reads, and of its output projection `dense`."""
    assert sum(name.startswith(f"{site}.h") for name in rows) == count
    for head in range(count):
        pairs = [(one[paths[0], "in"], contribution(dense, one[paths[1], "in"], head, count)) for one in seen]
        silent = not any(y.any() for _, y in pairs)  # what a cut leaves where others need the head's keys
        check(rows[f"{site}.h{head}"], None, None if silent else pairs, 1e-5)  # softmax is in float32 mostly


# ------------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("name", by_layout(first=FEWEST))
def test_decoders(name: str, as_loaded: Callable) -> None:
    loaded = as_loaded(tiny(name, torch.float64))
    readable, anatomy = readable_of(loaded), loaded.anatomy
    rows = read(readable, blocks=range(1, 2))
    places = [ReadableSite.parse(site) for site in rows]
    assert {place.kind for place in places if place.is_matrix} == set(anatomy.matrix_kinds) - {"o", "down"}
    assert {place.block for place in places} == {1}
    block, paths = (
        readable.stacks[0].blocks[1],
        {k: inside(readable, anatomy, k) for k in anatomy.matrix_kinds},
    )
    mlp, post = block.parts[1].writes, readable.stacks[0].norm == "post"
    seen = gathered(readable.runs, ran(readable.runs), [block.path, mlp, *paths.values()])
    dense = readable.runs.get_submodule(paths["o"])
    check_heads(rows, seen, dense, (paths["q"], paths["o"]), "b1.attn", anatomy.num_heads)
    for kind in sorted(set(paths) - {"o", "down"}):
        matrix, path = anatomy.matrices[Site(1, kind)], paths[kind]
        given = [matrix.of_output(torch.from_numpy(one[path, "out"])).numpy() for one in seen]
        if kind in "qkv" or name in PARALLEL:
            entered = [one[block.path, "in"] for one in seen]
        else:
            entered = [one[path, "in"] if post else one[block.path, "out"] - one[mlp, "out"] for one in seen]
        row = rows[f"b1.{kind}"]
        check(row, None, list(zip(entered, given, strict=True)), 1e-9 if name in WIDE else 1e-5)
        assert ("by construction" in row.reason) == post
        assert (row.added.held_out == pytest.approx(1, abs=1e-9)) == post


def inside(readable: Readable, anatomy: Anatomy, kind: str) -> str:
    """A matrix's module in the model without its head."""
    path = anatomy.matrices[Site(1, kind)].module
    return path[path.index(readable.stacks[0].blocks[1].path) :]


@pytest.mark.parametrize("kind", ["uneven heads", "ranks and heads"])
def test_heads_that_a_cut_left(kind: str, as_loaded: Callable) -> None:
    """Also of an output projection that is stored as two factors, whose factors are not read."""
    dense = as_loaded(tiny("llama", torch.float64))
    plan = Plan(dense.fingerprint, edits_of(kind, dense.anatomy))
    loaded = as_loaded(cut(dense, plan, factorize=factorized(kind)))
    readable = readable_of(loaded)
    rows = read(readable)
    for number, block in enumerate(readable.stacks[0].blocks):
        attn, count = block.parts[0], loaded.anatomy.widths[number].num_heads
        seen = gathered(readable.runs, ran(readable.runs), [attn.reads, attn.projects])
        projection = readable.runs.get_submodule(attn.projects)
        check_heads(rows, seen, projection, (attn.reads, attn.projects), f"b{number}.attn", count)
    assert ("b1.q" in rows) == (kind == "uneven heads")


# ------------------------------------------------------------------------------------------- encoders, encoder-decoders


def t5_run(model: PreTrainedModel) -> Callable[[Sequence[int]], None]:
    def run(ids: Sequence[int]) -> None:
        half = (len(ids) + 1) // 2
        model(input_ids=torch.tensor([ids[:half]]), decoder_input_ids=torch.tensor([[0, *ids[half:-1]]]))

    return run


def t5_places(name: str) -> Iterator[tuple[str, tuple[str, str], str]]:
    """Site, where its stream is seen (module, in or out), the module of the matrix; for one block of each stack."""
    up = {"up": "wi"} if name == "t5" else {"gate": "wi_0", "up": "wi_1"}
    for stack, path, layer in (("enc.", "encoder.block.1", 1), ("dec.", "decoder.block.2", 2)):
        number = path[-1]
        for kind in "qkv":
            yield (
                f"{stack}b{number}.{kind}",
                (f"{path}.layer.0", "in"),
                f"{path}.layer.0.SelfAttention.{kind}",
            )
        for kind, module in up.items():
            inner = f"{path}.layer.{layer}.DenseReluDense.{module}"
            yield f"{stack}b{number}.{kind}", (f"{path}.layer.{layer}", "in"), inner
    cross = "decoder.block.2.layer.1"
    yield "dec.b2.cross.q", (cross, "in"), f"{cross}.EncDecAttention.q"
    for kind in "kv":
        yield f"dec.b2.cross.{kind}", ("encoder.block.1", "out"), f"{cross}.EncDecAttention.{kind}"


@pytest.mark.parametrize("name", slow_but(["t5-gated"], ["t5", "t5-gated", "mt5"]))
def test_encoder_decoders(name: str) -> None:
    model = ENCODERS[name]().double()
    rows, places = read(readable_from(model, None)), list(t5_places(name))
    attentions = {
        "enc.b1.attn": "encoder.block.1.layer.0.SelfAttention",
        "dec.b2.attn": "decoder.block.2.layer.0.SelfAttention",
        "dec.b2.cross": "decoder.block.2.layer.1.EncDecAttention",
    }
    paths = [path for _, (stream, _), inner in places for path in (stream, inner)]
    paths += [f"{path}.{kind}" for path in attentions.values() for kind in "qo"]
    seen = gathered(model, t5_run(model), paths)
    for site, stream, inner in places:
        check(rows[site], None, [(one[stream], one[inner, "out"]) for one in seen], 1e-5)
        assert 0 < rows[site].added.held_out < 0.9999, "a norm lies between"
    for site, path in attentions.items():
        dense = model.get_submodule(f"{path}.o")
        check_heads(rows, seen, dense, (f"{path}.q", f"{path}.o"), site, model.config.num_heads)
    tokens = sum((len(ids) + 1) // 2 for ids in SEQUENCES)
    assert rows["dec.b2.cross.k"].num_tokens == tokens, "of the encoder"
    blocks = {site.partition(".b")[2][0] for site in rows if ".cross.k" in site}
    assert blocks == {"0", "1", "2"}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_encoders(name: str) -> None:
    model = ENCODERS[name]().double()
    rows = read(readable_from(model, None))
    path = "encoder.layer.1.attention"
    query, dense = f"{path}.self.query", f"{path}.output.dense"
    seen = gathered(model, lambda ids: model(input_ids=torch.tensor([ids])), [query, dense])
    check_heads(rows, seen, model.get_submodule(dense), (query, dense), "enc.b1.attn", 4)
    for kind in ("q", "k", "v", "up"):
        assert rows[f"enc.b1.{kind}"].added.held_out == pytest.approx(1, abs=1e-9)
        assert "reads the stream itself" in rows[f"enc.b1.{kind}"].reason


# -------------------------------------------------------------------------------------------------------- known answers


def test_a_head_that_attends_to_its_own_token_is_linear() -> None:
    """T5's positions are biases: one that forbids all but the token itself leaves o v z, whatever the block."""
    model = ENCODERS["t5"]().double()
    bias = model.get_submodule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias").weight
    bias[:, 2] = -1e4
    bias[0, 2] = 0
    rows = read(readable_from(model, None), ["heads"])
    for block in range(2):
        scores = {head: rows[f"enc.b{block}.attn.h{head}"].added for head in range(4)}
        planted = scores.pop(2)
        assert (planted.in_sample, planted.held_out) == pytest.approx((1, 1), abs=1e-9)
        assert all(score.held_out < 0.9 for score in scores.values())


def test_a_token_of_the_same_norm_always_passes_a_norm_linearly() -> None:
    """Of embeddings of ±1, T5's norm is one and the same multiple of its gains."""
    model = ENCODERS["t5"]().double()
    model.shared.weight.copy_(torch.where(model.shared.weight > 0, 1.0, -1.0))
    rows = read(readable_from(model, None), ["matrices"])
    for kind in "qkv":
        assert rows[f"enc.b0.{kind}"].added.held_out == pytest.approx(1, abs=1e-10)
        assert rows[f"enc.b1.{kind}"].added.held_out < 0.999


def cross_without_queries() -> PreTrainedModel:
    """Its cross-attention attends evenly to all that the encoder read."""
    model = ENCODERS["t5"]().double()
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.q.weight.zero_()
    return model


def test_even_cross_attention_scores_by_what_the_decoder_knows_of_the_sequence() -> None:
    """One vector a sequence: what varies is between sequences, of which the decoder's first block has seen nothing."""
    model = cross_without_queries()
    rows = read(readable_from(model, None), ["heads"])
    path = "decoder.block.0.layer.1.EncDecAttention"
    seen = gathered(model, t5_run(model), [f"{path}.q", f"{path}.o"])
    assert all(np.ptp(one[f"{path}.o", "in"], axis=0).max() < 1e-6 for one in seen), (
        "the same at every position"
    )
    check_heads(rows, seen, model.get_submodule(f"{path}.o"), (f"{path}.q", f"{path}.o"), "dec.b0.cross", 4)
    for head in range(4):
        row = rows[f"dec.b0.cross.h{head}"]
        assert row.added.in_sample < 3 * row.d / row.num_tokens, "d/n is noise"
        assert row.added.held_out < 0.05


def test_what_does_not_vary_has_no_score() -> None:
    """The same text to the encoder always, and attention that asks for nothing: a constant."""
    readable = readable_from(cross_without_queries(), None)
    same = [(*range(3, 11), *(5 + (n * k) % 80 for k in range(7))) for n in range(40)]
    held_out = [n % 4 == 0 for n in range(40)]
    rows = of(linearity(readable, same, held_out, finer=["heads"]))
    for head in range(4):
        assert rows[f"dec.b0.cross.h{head}"].added is None
        assert "varies no more than rounding" in rows[f"dec.b0.cross.h{head}"].reason
        assert rows[f"dec.b0.attn.h{head}"].added is not None


# ------------------------------------------------------------------------------------------------- how it is computed


def test_moments_of_a_map_of_y() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=draw, dtype=torch.float64)
    y = torch.randn(200, 6, generator=draw, dtype=torch.float64) + 7 + x[:, :1]
    weight = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    whole, plain = JointMoments(), PairMoments()
    for part in (slice(0, 60), slice(60, 200)):
        whole.add(x[part], y[part])
        plain.add(x[part], y[part, 2:5] @ weight.T)
    found = whole.through(weight, slice(2, 5))
    assert (found.count, found.rank) == (plain.count, plain.rank)
    assert found.spread_y == pytest.approx(plain.spread_y, rel=1e-12)
    assert found.score() == pytest.approx(plain.score(), abs=1e-12)
    torch.testing.assert_close(found.fit().weight, plain.fit().weight)
    torch.testing.assert_close(found.fit().bias, plain.fit().bias)
    assert whole.spread_y == pytest.approx(float(((y - y.mean(0)) ** 2).sum()), rel=1e-12)


def test_passes_and_batches_do_not_matter() -> None:
    readable = readable_from(ENCODERS["t5"]().double(), None)
    one = {"blocks": range(1, 2)}
    whole = read(readable, max_tokens=10**6, **one)
    for other in (read(readable, max_tokens=64, **one), read(readable, max_tokens=10**6, room=1, **one)):
        assert list(other) == list(whole)
        for site, row in whole.items():
            assert other[site].added.held_out == pytest.approx(row.added.held_out, abs=1e-7), site


def test_what_was_read_before_stays_as_it_was(as_loaded: Callable) -> None:
    """Heads and matrices come beside the parts, in the same order."""
    readable = readable_of(as_loaded(tiny("gpt2", torch.float64)))
    parts = of(linearity(readable, SEQUENCES, HELD_OUT, parts=True))
    whole = read(readable)
    assert [site for site in whole if site in parts] == list(parts)
    assert all(whole[site] == row for site, row in parts.items())
    assert list(whole)[:9] == ["b0", "b0.attn", *(f"b0.attn.h{h}" for h in range(4)), "b0.q", "b0.k", "b0.v"]
