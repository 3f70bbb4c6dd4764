"""The map of a model: readings against slow independent code, planted useless parts, its page, and going on."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.zoo import ZOO, tiny
from reference.test_truncation_probe import EXAMPLES, PACKING, margin
from scipy.stats import spearmanr

import secateur as package
from secateur.core.plan import Drop, Plan, Truncate
from secateur.core.records.map import MapRecord
from secateur.core.site import MAPPED, Site
from secateur.errors import SecateurError, TaskError, UnknownName
from secateur.forecast.dry_run import Judged, Read, map_work
from secateur.methods.registry import read_options
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import first_order_effects
from secateur.probing.map import checked_components
from secateur.probing.map_page import render_map, trust_words
from secateur.session import early_session
from secateur.surgery.spectra import Spectra

DEAD = ("b0.attn.h1", "b1.mlp")  # what the planted model does not need


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A model with a head and a feed-forward network that do nothing, and a task."""
    place = tmp_path_factory.mktemp("map")
    model = tiny("llama")
    layers = model.model.layers
    width = layers[0].self_attn.head_dim
    layers[0].self_attn.o_proj.weight[:, width : 2 * width] = 0
    layers[1].mlp.down_proj.weight[:] = 0
    save_model(place / "m", model, words)
    write_rows(place / "q.jsonl", questions())
    return place


@pytest.fixture(scope="module")
def record(place):
    found = package.need_map(str(place / "m"), str(place / "q.jsonl"), place / "out", limit=160)
    return MapRecord.model_validate(found)


def kinds_of(record):
    return {kind.kind: kind for kind in record.kinds}


# ------------------------------------------------------------------------------------------------------------ readings


def test_every_component_has_every_reading(record):
    kinds = kinds_of(record)
    sizes = {"blocks": 2, "attentions": 2, "ffns": 2, "groups": 4, "heads": 8, "neurons": 16, "matrices": 42}
    assert {name: len(kind.readings["in_block"]) for name, kind in kinds.items()} == sizes
    common = {"in_block", "first_order", "second_order"}
    assert set(kinds["matrices"].readings) == common
    assert set(kinds["blocks"].readings) == common | {"importance", "cosine", "nonlinearity"}
    assert set(kinds["heads"].readings) == common | {"importance", "prefix_matching", "copying"}
    for kind in kinds.values():
        names = list(kind.readings["in_block"])
        assert all(list(values) == names for values in kind.readings.values())
    assert not record.notes


def test_what_does_nothing_is_needed_least(record):
    kinds = kinds_of(record)
    for name, kind in zip(DEAD, ("heads", "ffns"), strict=True):
        for reading in ("in_block", "first_order", "second_order", "importance"):
            values = kinds[kind].readings[reading]
            assert values[name] == pytest.approx(0, abs=1e-9)
            assert min(map(abs, values.values())) == abs(values[name])
        assert kinds[kind].check.rise[name] == pytest.approx(0, abs=1e-6)


def test_rises_are_those_of_a_model_with_zeros(place, record, words):
    """The log-loss among the choices, by zeroing weights of the model itself and running it one question at a time."""
    from secateur.tasks.load import load_task

    task = load_task(str(place / "q.jsonl"), tokenizer=words, limit=160, allow_small=True)
    chosen = [task.examples[i] for i in task.split("select")]
    assert kinds_of(record)["heads"].check.examples == len(chosen) < 100

    def loss(model) -> float:
        total = 0.0
        for example in chosen:
            scores = []
            for choice in example.choices:
                ids, start = words(example.prompt + choice).input_ids, len(words(example.prompt).input_ids)
                logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                scores.append(sum(float(logp[at - 1, ids[at]]) for at in range(start, len(ids))))
            total += float(np.logaddexp.reduce(scores)) - scores[example.gold]
        return total / len(chosen)

    def without(name) -> float:
        model = tiny("llama")
        layers, site = model.model.layers, Site.parse(name)
        width = layers[0].self_attn.head_dim
        layers[0].self_attn.o_proj.weight[:, width : 2 * width] = 0
        layers[1].mlp.down_proj.weight[:] = 0
        if site.unit == "h":
            layers[site.block].self_attn.o_proj.weight[:, site.index * width : (site.index + 1) * width] = 0
        elif site.part == "mlp":
            layers[site.block].mlp.down_proj.weight[:] = 0
        return loss(model)

    whole = without("b1.mlp")
    for kind, names in (("heads", ["b0.attn.h0", "b1.attn.h3"]), ("ffns", ["b0.mlp", "b1.mlp"])):
        rise = kinds_of(record)[kind].check.rise
        for name in names:
            assert rise[name] == pytest.approx(without(name) - whole, abs=2e-5)


def test_agreement_with_the_truth_is_spearmans(record):
    for kind in record.kinds:
        check = kind.check
        names = list(check.rise)
        for reading, found in check.agreement.items():
            read = [kind.readings[reading][name] for name in names]
            if found.rho is not None:
                assert found.rho == pytest.approx(spearmanr(read, list(check.rise.values())).statistic)
        if kind.trusted:
            worth = {n: a.rho for n, a in check.agreement.items() if n not in ("prefix_matching", "copying")}
            assert worth[kind.trusted] == max(rho for rho in worth.values() if rho is not None)
            assert check.agreement[kind.trusted].ci[0] > 0


def test_first_orders_add_up(record):
    """To first order a block is its attention and its network, an attention its heads, a network its neurons."""
    kinds = {name: kind.readings["first_order"] for name, kind in kinds_of(record).items()}
    importance = {name: kind.readings.get("importance", {}) for name, kind in kinds_of(record).items()}
    for block in range(2):
        for found in (kinds, importance):
            both = found["attentions"][f"b{block}.attn"] + found["ffns"][f"b{block}.mlp"]
            assert found["blocks"][f"b{block}"] == pytest.approx(both, rel=1e-4, abs=1e-7)
            for whole, parts, mark in (
                ("attentions", "heads", "attn"),
                ("ffns", "neurons", "mlp"),
                ("attentions", "groups", "attn"),
            ):
                sums = sum(v for name, v in found[parts].items() if name.startswith(f"b{block}."))
                assert found[whole][f"b{block}.{mark}"] == pytest.approx(sums, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "falcon-40b", "gemma2"])
def test_first_order_is_the_slope_of_the_margin(name, as_loaded):
    """Against the whole model's weights scaled by 1 − ε where the plan takes them away: a finite difference."""
    assert name in ZOO
    loaded = as_loaded(tiny(name, torch.float64))
    anatomy, empty = loaded.anatomy, Plan(loaded.fingerprint)
    last = anatomy.num_blocks - 1
    sites = [
        Site(last, "attn", "h", 1),
        Site(0, "attn"),
        Site(0, "mlp"),
        Site(last, "mlp", "n", 3),
        Site(last),
    ]
    plans = [empty + Drop(site) for site in sites] + [empty + Truncate(Site(0, "v"), 2)]
    examples = list(EXAMPLES)
    found = first_order_effects(
        AnswerMargin.of(loaded, EXAMPLES, examples, True),
        examples,
        plans,
        spectra=Spectra(2**24),
        packing=PACKING,
    )

    def margins(changed: dict[str, torch.Tensor]) -> np.ndarray:
        kept = {n: p.clone() for n, p in loaded.model.named_parameters() if n in changed}
        with torch.no_grad():
            for n, p in loaded.model.named_parameters():
                if n in changed:
                    p += changed[n]
            got = np.array([float(margin(loaded.model, e, True)) for e in EXAMPLES.values()])
            for n, p in loaded.model.named_parameters():
                if n in kept:
                    p.copy_(kept[n])
        return got

    largest = 0.0
    for plan in plans:
        step = 1e-2  # Llama's norms compute in float32, whatever the model's precision
        slope = (margins(_towards(loaded, plan, step)) - margins(_towards(loaded, plan, -step))) / (2 * step)
        np.testing.assert_allclose(found.changes[plan], slope, rtol=5e-3, atol=5e-4)
        largest = max(largest, np.abs(slope).max())
    assert largest > 0.1


def _towards(loaded, plan: Plan, step: float) -> dict[str, torch.Tensor]:
    """Return what to add to the parameters to go `step` of the way to the plan."""
    anatomy, (edit,) = loaded.anatomy, plan.edits
    named = dict(loaded.model.named_parameters())
    changed: dict[str, torch.Tensor] = {}
    if isinstance(edit, Truncate):
        matrix = anatomy.matrix(edit.matrix)
        weight = matrix.read(named[matrix.weight])
        u, s, v = np.linalg.svd(weight.numpy(), full_matrices=False)
        lower = torch.from_numpy((u[:, : edit.rank] * s[: edit.rank]) @ v[: edit.rank])
        target = named[matrix.weight].clone()
        matrix.write_(target, lower)
        return {matrix.weight: step * (target - named[matrix.weight])}
    for part, letter in (("attn", "o"), ("mlp", "down")):
        if edit.site.part in ("", part):
            matrix = anatomy.matrix(Site(edit.site.block, letter))
            weight = named[matrix.weight]
            gone = torch.zeros(matrix.shape, dtype=weight.dtype)
            size = anatomy.d_head if edit.site.unit == "h" else 1
            columns = (
                slice(edit.site.index * size, (edit.site.index + 1) * size) if edit.site.unit else slice(None)
            )
            gone[:, columns] = matrix.read(weight)[:, columns]
            target = torch.zeros_like(weight)
            matrix.write_(target, gone)
            changed[matrix.weight] = -step * target
            if matrix.bias is not None and not edit.site.unit:
                changed[matrix.bias] = -step * named[matrix.bias]
    return changed


def test_checks_look_at_all_ends_of_all_readings():
    values = {f"b{n}": float(n) for n in range(30)}
    turned = {name: -value for name, value in values.items()}
    shuffled = {name: (value * 7) % 30 for name, value in values.items()}
    chosen = checked_components({"in_block": values, "first_order": shuffled, "copying": turned}, 6)
    assert len(chosen) == len(set(chosen)) == 6
    assert {"b29", "b0", "b14"} <= set(chosen)
    assert max(shuffled, key=shuffled.get) in chosen
    assert sorted(checked_components({"in_block": values}, 99)) == sorted(values)
    assert checked_components({"in_block": values}, 0) == []


# ---------------------------------------------------------------------------------------------------- page and command


def test_the_page_shows_every_component_and_escapes(record):
    wild = record.model_copy(
        update={"model": "<script>alert(1)</script>", "task": "<b>q", "notes": ["<i>no"]}
    )
    page = render_map(wild)
    assert "<script>alert(1)" not in page
    assert "<b>q" not in page
    assert "<i>no" not in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])
    grid = next(figure for figure in figures if figure["id"] == "map-0")
    shown = sum(value is not None for row in grid["data"][0]["z"] for value in row)
    assert shown == sum(len(kind.readings["in_block"]) for kind in record.kinds)
    assert [trace["meta"] for trace in grid["data"]] == [*record.units, "measured"]
    assert [trace["visible"] for trace in grid["data"]] == [True] + [False] * len(record.units)
    for kind in record.kinds:
        assert trust_words(kind).split(":")[1][:10] in page


def test_what_is_written_is_what_is_returned(place, record):
    written = json.loads((place / "out/map.json").read_text())
    assert MapRecord.model_validate(written).kinds == record.kinds
    assert record.written == [str(place / "out/map.json"), str(place / "out/map.html")]


def test_stopped_it_goes_on_to_the_same_numbers(place, record, monkeypatch):
    import secateur.probing.map as under_test

    calls = []
    real = under_test.effects_both_ways

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(under_test, "effects_both_ways", stopping)
    asked = (str(place / "m"), str(place / "q.jsonl"), place / "stopped")
    with pytest.raises(KeyboardInterrupt):
        package.need_map(*asked, limit=160)
    again = MapRecord.model_validate(package.need_map(*asked, limit=160))
    assert len(calls) == 3  # the first of two blocks is not read again
    assert again.kinds == record.kinds


def test_a_forecast_counts_every_component_and_every_removal(place):
    session = early_session(read_options(str(place / "m"), str(place / "q.jsonl"), limit=160), needs={})
    works = map_work(session, MAPPED, "select", 4)
    (effects,) = [work.reading for work in works if isinstance(work, Read) and work.what == "edit effects"]
    assert len(effects.parts) == 2 + 2 + 2 + 4 + 8 + 16 + 42
    (removals,) = [work for work in works if isinstance(work, Judged)]
    plans = 1 + 2 + 2 + 2 + 4 * 4  # the model itself, and 4 of each kind that has so many
    assert removals.evaluations == plans * len(session.task.split("select"))


def test_the_command_prints_what_to_trust(place, caplog):
    words = [
        "map",
        place / "m",
        "--task",
        place / "q.jsonl",
        "--limit",
        160,
        "--what",
        "heads,blocks",
        "-o",
        place / "cli",
    ]
    told = secateur(*words, "--checks", 8)
    assert told.exit_code == 0, told.stderr
    assert "expected to take" in caplog.text
    assert "Heads: trust “" in told.stdout
    assert "most needed" in told.stdout
    assert f"written  {place / 'cli/map.html'}" in told.stdout
    shown = json.loads(secateur(*words, "--checks", 0, "--json").stdout)
    assert [kind["kind"] for kind in shown["kinds"]] == ["blocks", "heads"]
    assert all(kind["check"] is None and kind["trusted"] is None for kind in shown["kinds"])
    assert "secateur map gpt2 --task questions.jsonl -o map" in secateur("map", "--help").stdout


def test_text_is_read_as_any_task(place, words):
    (place / "t.txt").write_text(
        "\n\n".join(" ".join(f"w{(7 * n + k) % 90 + 3}" for k in range(40)) for n in range(40))
    )
    found = package.need_map(
        str(place / "m"), f"text:{place / 't.txt'}", place / "text", what="ffns", seqlen=16, checks=2
    )
    (kind,) = MapRecord.model_validate(found).kinds
    assert kind.check.unit == "nats/token"
    assert kind.readings["in_block"]["b1.mlp"] == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_is_refused(place, tmp_path):
    asked = (str(place / "m"), str(place / "q.jsonl"), tmp_path / "out")
    with pytest.raises(UnknownName, match=r"'head' to map.*heads"):
        package.need_map(*asked, what="head")
    with pytest.raises(TaskError, match="one verdict"):
        package.need_map(*asked, split="test")
    with pytest.raises(SecateurError, match="--checks -1"):
        package.need_map(*asked, checks=-1)
    refused(
        secateur("map", place / "m", "--task", place / "q.jsonl", "--layers", "9:10", "-o", tmp_path / "out"),
        "9:10",
    )
    assert not (tmp_path / "out").exists()
