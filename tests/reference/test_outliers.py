"""Linearity with and without outlier tokens, which are planted, against numpy on all activations gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from fixtures.encoders import ENCODERS
from fixtures.zoo import tiny, variant
from test_linearity_probe import HELD_OUT, SEQUENCES, anisotropy, gathered, of, ran, scores
from test_linearity_units import t5_run
from transformers import PreTrainedModel

from secateur.core.plan import Plan
from secateur.evaluation.batching import Packing
from secateur.hf.readable import Readable, readable_from, readable_of
from secateur.methods.depth.readings import block_similarity
from secateur.probes import outliers
from secateur.probes.hooks import hook_points
from secateur.probes.linearity import Linearity, intrinsic_dimension, linearity
from secateur.probes.outliers import TIMES, median_norms
from secateur.tasks.encode import Encoded

Pairs = list[tuple[np.ndarray, np.ndarray]]  # of each sequence X and Y


# ------------------------------------------------------------------------------------------------------ what is planted


def first_token_massive(name: str) -> PreTrainedModel:
    """At position 0 the stream carries a thousand times what it does elsewhere, in one direction."""
    model = tiny(name, torch.float64)
    model.transformer.wpe.weight[0, 3] += 1000 * float(model.transformer.wpe.weight.norm(dim=1).median())
    return model


def word_massive(block: int = 1, token: int = 11) -> PreTrainedModel:
    """The feed-forward network of one Llama block makes one word's stream massive, wherever it stands."""
    model = variant("llama", num_hidden_layers=3).double()
    inner = model.model
    inner.embed_tokens.weight[:, 5] = 0
    inner.embed_tokens.weight[token, 5] = 3 * inner.embed_tokens.weight.norm(dim=1).median()
    for layer in inner.layers:  # nobody else writes what tells the word apart
        layer.self_attn.o_proj.weight[5] = 0
        layer.mlp.down_proj.weight[5] = 0
    mlp = inner.layers[block].mlp
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight[0] = 0
        linear.weight[0, 5] = 20
    mlp.down_proj.weight[:, 0] = 0
    mlp.down_proj.weight[7, 0] = 50
    return model


# --------------------------------------------------------------------------------------------------------- the slow way


def usual(*kinds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each sequence which tokens are no outliers by any of these vectors (tokens, d), each a list over sequences."""
    kept = [np.ones(len(one), dtype=bool) for one in kinds[0]]
    for kind in kinds:
        norms = [np.sqrt((one**2).sum(axis=1)) for one in kind]
        every = np.sort(np.concatenate(norms))
        median = every[(len(every) - 1) // 2]
        kept = [own & (one <= TIMES * median) for own, one in zip(kept, norms, strict=True)]
    return kept


def only(pairs: Pairs, kept: Sequence[np.ndarray]) -> Pairs:
    return [(x[own], y[own]) for (x, y), own in zip(pairs, kept, strict=True)]


def check_without(
    row: Linearity, kept: Sequence[np.ndarray], stream: Pairs | None, added: Pairs | None
) -> None:
    """Counts, names and scores, with and without."""
    gone = [(number, at) for number, own in enumerate(kept) for at in np.flatnonzero(~own)]
    assert row.outliers.count == len(gone), row.site
    assert row.without.num_tokens == row.num_tokens - len(gone)
    fitted = [number for number, out in enumerate(HELD_OUT) if not out]
    assert row.without.num_fit == sum(int(kept[number].sum()) for number in fitted)
    for pairs, whole, rest in (
        (stream, row.stream, row.without.stream),
        (added, row.added, row.without.added),
    ):
        if pairs is not None:
            assert (whole.in_sample, whole.held_out) == pytest.approx(scores(pairs), abs=1e-6), row.site
            wanted = scores(only(pairs, kept))
            assert (rest.in_sample, rest.held_out) == pytest.approx(wanted, abs=1e-6), row.site


def of_block(seen: Sequence[dict], path: str) -> tuple[Pairs, Pairs, list[np.ndarray]]:
    stream = [(one[path, "in"], one[path, "out"]) for one in seen]
    added = [(x, y - x) for x, y in stream]
    return stream, added, usual([x for x, _ in stream], [y for _, y in stream], [y for _, y in added])


# --------------------------------------------------------------------------------------------------------------- blocks


def test_a_massive_first_token_is_read_with_and_without(as_loaded: Callable) -> None:
    model = first_token_massive("gpt2-untied-wide")
    loaded = as_loaded(model)
    rows = of(linearity(readable_of(loaded), SEQUENCES, HELD_OUT))
    seen = gathered(model, ran(model), loaded.anatomy.blocks)
    for number, path in enumerate(loaded.anatomy.blocks):
        row, (stream, added, kept) = rows[f"b{number}"], of_block(seen, path)
        assert [np.flatnonzero(~own).tolist() for own in kept] == [[0]] * len(SEQUENCES)
        check_without(row, kept, stream, added)
        assert row.outliers.positions == ((0, len(SEQUENCES), len(SEQUENCES)),)
        assert sum(token.num_outliers for token in row.outliers.tokens) <= len(SEQUENCES)
        assert row.stream.in_sample > 0.999
        assert row.stream.in_sample - row.without.stream.in_sample > 0.01
        x, y = (np.concatenate(side) for side in zip(*only(stream, kept), strict=True))
        assert row.without.anisotropy == pytest.approx(anisotropy(x), abs=1e-9)
        assert row.anisotropy > 0.99 > row.without.anisotropy
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert row.without.cosine == pytest.approx(cosine.mean(), abs=1e-9)
        assert row.condition > 30 * row.without.condition
        assert row.outliers.largest > 100


def test_a_word_is_named_wherever_it_stands_and_only_where_it_is_massive(as_loaded: Callable) -> None:
    model = word_massive()
    loaded = as_loaded(model)
    rows = of(linearity(readable_of(loaded), SEQUENCES, HELD_OUT, parts=True))
    seen = gathered(model, ran(model), loaded.anatomy.blocks)
    wanted = [
        (number, at) for number, ids in enumerate(SEQUENCES) for at, token in enumerate(ids) if token == 11
    ]
    for block in (1, 2):
        row, (stream, added, kept) = rows[f"b{block}"], of_block(seen, loaded.anatomy.blocks[block])
        assert [(n, at) for n, own in enumerate(kept) for at in np.flatnonzero(~own)] == wanted
        check_without(row, kept, stream, added)
        assert row.outliers.tokens == ((11, len(wanted), len(wanted)),)
        for position, count, every in row.outliers.positions:
            assert count == sum(at == position for _, at in wanted)
            assert every == sum(len(ids) > position for ids in SEQUENCES)
        assert len(row.outliers.positions) == min(10, len({at for _, at in wanted}))
    assert rows["b0"].outliers is None
    assert rows["b0"].without is None
    assert rows["b1.attn"].outliers is None, "its network makes them, after the attention"
    assert rows["b1.mlp"].outliers.tokens == ((11, len(wanted), len(wanted)),)
    assert rows["b2.mlp"].outliers is None, "behind the norm they are as long as others"


def test_the_last_stream_is_described_without_them_too(as_loaded: Callable) -> None:
    model = first_token_massive("gpt2")
    profile = linearity(readable_of(as_loaded(model)), SEQUENCES[:30], HELD_OUT[:30])
    seen = gathered(model, ran(model), ["transformer.h.1"])[:30]
    points = np.concatenate([one["transformer.h.1", "out"][1:] for one in seen])
    last = profile.last[""]
    assert last.outliers.count == 30
    assert last.without.anisotropy == pytest.approx(anisotropy(points), abs=1e-9)
    assert last.without.intrinsic_dimension == pytest.approx(
        intrinsic_dimension(torch.from_numpy(points)), rel=1e-6
    )


# ----------------------------------------------------------------------------------------------- parts, heads, matrices


def test_inside_the_blocks(as_loaded: Callable) -> None:
    """A place's outliers are those of what it reads and gives: matrices read the stream, heads what is normed."""
    model = word_massive()
    loaded = as_loaded(model)
    rows = of(linearity(readable_of(loaded), SEQUENCES, HELD_OUT, finer=["heads", "matrices"]))
    base = "model.layers.2"
    q, gate, mlp_out = ((f"{base}.{name}", "out") for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp"))
    seen = gathered(model, ran(model), [base, *(path for path, _ in (q, gate, mlp_out))])
    kept = usual([one[base, "in"] for one in seen])
    assert not all(own.all() for own in kept)
    check_without(rows["b2.q"], kept, None, [(one[base, "in"], one[q]) for one in seen])
    inner = [one[base, "out"] - one[mlp_out] for one in seen]
    kept = usual(inner)
    check_without(rows["b2.gate"], kept, None, list(zip(inner, [one[gate] for one in seen], strict=True)))
    assert {rows[f"b2.attn.h{head}"].outliers for head in range(loaded.anatomy.num_heads)} == {None}


def test_encoder_decoders_name_tokens_of_the_stack_they_are_in() -> None:
    """T5's decoder begins with one token always: in its stream alone that one is made massive."""
    model = ENCODERS["t5"]().double()
    assert not any(0 in ids for ids in SEQUENCES)
    model.shared.weight[0] = 0
    model.shared.weight[0, 0] = 50
    rows = of(linearity(readable_from(model, None), SEQUENCES, HELD_OUT))
    seen = gathered(model, t5_run(model), ["decoder.block.1", "encoder.block.1"])
    row, (stream, added, kept) = rows["dec.b1"], of_block(seen, "decoder.block.1")
    check_without(row, kept, stream, added)
    assert row.outliers.tokens == row.outliers.positions == ((0, len(SEQUENCES), len(SEQUENCES)),)
    assert rows["enc.b1"].outliers is None


# --------------------------------------------------------------------------------------------------- how it is computed


def read(readable: Readable, **how: int) -> dict[str, Linearity]:
    return of(linearity(readable, SEQUENCES, HELD_OUT, **how))


def test_batches_and_passes_do_not_matter(as_loaded: Callable) -> None:
    readable = readable_of(as_loaded(word_massive()))
    whole = read(readable, max_tokens=10**6)
    for other in (read(readable, max_tokens=64), read(readable, room=1)):
        assert [row.outliers is None for row in other.values()] == [True, False, False]
        for site in ("b1", "b2"):
            found, wanted = other[site], whole[site]
            assert found.outliers.tokens == wanted.outliers.tokens
            assert found.outliers.positions == wanted.outliers.positions
            for one, same in ((found, wanted), (found.without, wanted.without)):
                assert one.stream.held_out == pytest.approx(same.stream.held_out, abs=1e-9)


def test_without_outliers_nothing_is_said(as_loaded: Callable) -> None:
    for row in read(readable_of(as_loaded(tiny("gpt2", torch.float64)))).values():
        assert (row.outliers, row.without) == (None, None)


def test_a_block_that_adds_nothing_has_no_outliers_in_what_it_adds(as_loaded: Callable) -> None:
    """A median of 0 says nothing."""
    model = tiny("gpt2-untied-wide", torch.float64)
    for part in ("attn.c_proj", "mlp.c_proj"):
        for parameter in model.get_submodule(f"transformer.h.1.{part}").parameters():
            parameter.zero_()
    assert read(readable_of(as_loaded(model)))["b1"].outliers is None


def test_medians_of_a_long_text_are_over_whole_sequences_drawn_by_seed(
    as_loaded: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "SAMPLE", 200)
    model = tiny("gpt2", torch.float64)
    readable = readable_of(as_loaded(model))
    places, packing = hook_points(readable), Packing(10**6, 10**6, 0)
    shown: list[int] = []
    how = {"packing": packing, "progress": lambda _, done, of: shown.append(of)}
    drawn = outliers._drawn(SEQUENCES, 3)
    assert 200 <= sum(len(SEQUENCES[number]) for number in drawn) < 240
    found = median_norms(readable, SEQUENCES, places, seed=3, **how)
    assert shown == [1]
    seen = gathered(model, ran(model), ["transformer.h.0"])
    entered = np.concatenate([seen[number]["transformer.h.0", "in"] for number in drawn])
    every = np.sort(np.linalg.norm(entered, axis=1))
    assert found[places[0]][0] == pytest.approx(every[(len(every) - 1) // 2], rel=1e-9)
    assert median_norms(readable, SEQUENCES, places, seed=3, **how) == found
    assert median_norms(readable, SEQUENCES, places, seed=4, **how) != found


# ---------------------------------------------------------------------------------------------------- what ranks blocks


def test_depth_ranks_blocks_without_outlier_tokens(as_loaded: Callable) -> None:
    """With them the order is another: what adds little to a massive token is not what is linear."""
    model = first_token_massive("gpt2-untied-wide")
    loaded = as_loaded(model)
    texts = {n: Encoded(((ids[:1], ids[1:]),), 0, (1,)) for n, ids in enumerate(SEQUENCES)}
    found = block_similarity(
        loaded, texts, list(texts), range(3), under=Plan(loaded.fingerprint), packing=Packing(96, 10**6, 0)
    )
    inner = [ids[:-1] for ids in SEQUENCES]
    rows = of(linearity(readable_of(loaded), inner, HELD_OUT))
    for block, one in found.items():
        row = rows[f"b{block}"]
        assert one.linearity == pytest.approx(row.without.stream.in_sample, abs=1e-9)
        assert one.cosine == pytest.approx(row.cosine, abs=1e-9), "ShortGPT's, of all tokens"
        assert one.linearity < 0.999 < row.stream.in_sample
