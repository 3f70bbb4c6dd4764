"""Singular directions taken out of a model, against hooks on an unmodified one: numpy decompositions, what each layer
gave less of and what it gives always, and the rows of fused matrices counted out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fixtures.folders import save_model, secateur
from fixtures.zoo import ZOO, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import secateur as api
from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Plan, RemoveDirections
from secateur.core.site import Site
from secateur.errors import PlanError, SecateurError, UnknownName
from secateur.hf.load import Loaded
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import num_directions, resolve
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of, stock_config

TOKENS = torch.tensor([[5, 17, 40, 3, 88, 61, 23], [90, 4, 4, 55, 12, 7, 66]])
WIDE = {"gpt2", "gpt2-untied-wide", "opt", "opt-projected", "phi"}  # all others compute parts in float32

# ----------------------------------------------------------------------------------------------- the references


@dataclass
class Taken:
    """What an edit does to one layer: `less` (out, in) of its weight, `more` (out,), at `rows` of its output."""

    module: str
    rows: list[int]
    less: np.ndarray
    more: np.ndarray


def places(loaded: Loaded, site: Site) -> list[int]:
    """Output rows of a matrix in its layer, counted out."""
    a = loaded.anatomy
    d, heads, groups = a.d_head, a.num_heads, a.num_kv_heads
    name, part = loaded.model.config.model_type, site.part
    if part in "qkv" and name in ("gpt2", "phi3"):  # q, then k, then v
        sizes = {"q": heads * d, "k": groups * d, "v": groups * d}
        start = {"q": 0, "k": sizes["q"], "v": sizes["q"] + sizes["k"]}[part]
        return list(range(start, start + sizes[part]))
    if part in ("gate", "up") and name == "phi3":
        return list(range(a.d_ff)) if part == "gate" else list(range(a.d_ff, 2 * a.d_ff))
    if part in "qkv" and name in (
        "gpt_neox",
        "bloom",
        "falcon",
    ):  # group by group: its queries, its key, its value
        kinds = ["q"] * (heads // groups) + ["k", "v"]
        order = [kind for _ in range(groups) for kind in kinds for _ in range(d)]
        return [row for row, kind in enumerate(order) if kind == part]
    return list(range(a.matrix(site).shape[0]))


def stored(loaded: Loaded, site: Site) -> np.ndarray:
    module = loaded.model.get_submodule(loaded.anatomy.matrix(site).module)
    weight = module.weight.detach().double().numpy()
    weight = weight.T if type(module).__name__ == "Conv1D" else weight
    return weight[places(loaded, site)]


def slices(loaded: Loaded, site: Site, per_head: bool) -> list[tuple[slice, slice]]:
    """(rows, columns) of each piece of a matrix."""
    a = loaded.anatomy
    if not per_head:
        return [(slice(None), slice(None))]
    count = a.num_heads if site.part in "qo" else a.num_kv_heads
    ranges = [slice(h * a.d_head, (h + 1) * a.d_head) for h in range(count)]
    return [(slice(None), r) if site.part == "o" else (r, slice(None)) for r in ranges]


def taken(loaded: Loaded, edit: RemoveDirections) -> Taken:
    """Σ u uᵀ W over the directions that go, direction by direction."""
    w, pieces = stored(loaded, edit.matrix), slices(loaded, edit.matrix, edit.per_head)
    less = np.zeros_like(w)
    for h, (rows, columns) in enumerate(pieces):
        piece = w[rows, columns]
        left = np.linalg.svd(piece, full_matrices=False)[0]
        if edit.fold is not None and "u" in edit.fold.arrays:
            left = edit.fold.arrays["u"][h].astype(np.float64)
        for number in edit.directions:
            head, index = divmod(number, min(piece.shape))
            if head == h:
                u = left[:, index]
                less[rows, columns] += np.outer(u, u @ piece)
    more = np.zeros(len(w)) if edit.fold is None else less @ edit.fold.arrays["mean"]
    return Taken(loaded.anatomy.matrix(edit.matrix).module, places(loaded, edit.matrix), less, more)


@contextmanager
def hooked(model: PreTrainedModel, found: Sequence[Taken]) -> Iterator[None]:
    def hook(one: Taken) -> Callable:
        def less_and_more(_, args: tuple, y: Tensor) -> Tensor:
            y = y.clone()
            change = torch.from_numpy(one.more) - args[0].double() @ torch.from_numpy(one.less).T
            y[..., one.rows] += change.to(y.dtype)
            return y

        return less_and_more

    with ExitStack() as stack:
        for one in found:
            stack.callback(model.get_submodule(one.module).register_forward_hook(hook(one)).remove)
        yield


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS).logits


def mask(loaded: Loaded, *edits) -> Tensor:
    operations = resolve(Plan(loaded.fingerprint, edits), loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, operations):
        return logits(loaded.model)


def distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


def mean_for(loaded: Loaded, site: Site) -> np.ndarray:
    return np.random.default_rng(len(str(site))).normal(size=loaded.anatomy.matrix(site).shape[1])


def count_of(loaded: Loaded, site: Site, per_head: bool) -> int:
    found = slices(loaded, site, per_head)
    return len(found) * min(stored(loaded, site)[found[0]].shape)


def removal(
    loaded: Loaded, text: str, per_head: bool, fold: bool = True, gone=(0, 1, -1)
) -> RemoveDirections:
    """Some directions from both ends, in the first and the last head."""
    site = Site.parse(text)
    count = count_of(loaded, site, per_head)
    fitted = Fitted.of({"mean": mean_for(loaded, site)}) if fold else None
    return RemoveDirections(site, tuple(number % count for number in gone), per_head, fitted)


# ------------------------------------------------------------------------------------------------------ against


@pytest.mark.parametrize("per_head", [False, True], ids=["whole", "per head"])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_matrix_alone(name, per_head, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    whole = logits(loaded.model)
    sites = [s for s in loaded.anatomy.matrices if s.block == 1 and (not per_head or s.part in "qkvo")]
    assert len(sites) >= 4
    for site in sites:
        edit = removal(loaded, str(site), per_head)
        with hooked(loaded.model, [taken(loaded, edit)]):
            expected = logits(loaded.model)
        got = mask(loaded, edit)
        assert distance(got, expected) < (1e-10 if name in WIDE else 1e-5), edit
        assert distance(got, whole) > 1e-4, edit
    assert torch.equal(logits(loaded.model), whole)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "phi3", "llama", "falcon-40b", "gemma3", "opt"])
def test_several_at_once_some_folded_some_not(name, as_loaded):
    """Of one fused parameter too, whole and per head side by side."""
    loaded = as_loaded(tiny(name, torch.float64))
    edits = []
    for number, site in enumerate(loaded.anatomy.matrices):
        edits.append(removal(loaded, str(site), number % 2 == 0 and site.part in "qkvo", number % 3 > 0))
    with hooked(loaded.model, [taken(loaded, edit) for edit in edits]):
        expected = logits(loaded.model)
    for order in (edits, edits[::-1]):
        assert distance(mask(loaded, *order), expected) < (1e-10 if name in WIDE else 1e-5)
    model = cut(loaded, Plan(loaded.fingerprint, tuple(edits)))
    assert distance(logits(model), expected) < (1e-10 if name in WIDE else 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
@pytest.mark.parametrize("per_head", [False, True], ids=["whole", "per head"])
def test_a_basis_of_ones_own_is_taken_as_it_is(name, per_head, as_loaded):
    """As whitened directions are: orthonormal in the output, and not those of the weights."""
    loaded = as_loaded(tiny(name, torch.float64))
    draw = np.random.default_rng(3)
    for text in ("b0.k", "b0.o", "b1.v", "b1.q") if per_head else ("b0.k", "b0.o", "b1.up", "b1.down"):
        plain = removal(loaded, text, per_head)
        pieces = [stored(loaded, plain.matrix)[piece] for piece in slices(loaded, plain.matrix, per_head)]
        bases = [np.linalg.qr(draw.normal(size=(len(p), min(p.shape))))[0] for p in pieces]
        fold = Fitted.of({"mean": mean_for(loaded, plain.matrix), "u": np.stack(bases)})
        edit = RemoveDirections(plain.matrix, plain.directions, per_head, fold)
        with hooked(loaded.model, [taken(loaded, edit)]):
            expected = logits(loaded.model)
        assert distance(mask(loaded, edit), expected) < (1e-10 if name in WIDE else 1e-5)
        assert distance(mask(loaded, plain), expected) > 1e-4


def outputs_of(loaded: Loaded, site: str, *edits) -> Tensor:
    """What a layer gives, (rows, positions, out)."""
    found: list[Tensor] = []
    module = loaded.anatomy.matrix(Site.parse(site)).module
    operations = resolve(Plan(loaded.fingerprint, edits), loaded.anatomy, loaded.fingerprint)
    with masked(loaded.model, operations):
        layer = loaded.model.get_submodule(module)
        handle = layer.register_forward_hook(lambda *seen: found.append(seen[2]))
        logits(loaded.model)
        handle.remove()
    return found[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox-serial"])
def test_what_is_folded_is_one_vector_for_all_positions(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    for text in ("b0.k", "b1.o", "b1.up"):
        folded, bare = (removal(loaded, text, False, fold) for fold in (True, False))
        difference = outputs_of(loaded, text, folded) - outputs_of(loaded, text, bare)
        one = taken(loaded, folded)
        expected = torch.zeros(difference.shape[-1], dtype=torch.float64)
        expected[one.rows] = torch.from_numpy(one.more)
        assert one.more.any()
        torch.testing.assert_close(difference, expected.expand_as(difference), rtol=1e-9, atol=1e-12)


def test_folded_or_not_is_the_same_where_the_mean_is_zero(as_loaded):
    loaded = as_loaded(tiny("llama", torch.float64))
    bare = removal(loaded, "b1.v", True, fold=False)
    zero = RemoveDirections(bare.matrix, bare.directions, True, Fitted.of({"mean": np.zeros(32)}))
    assert torch.equal(mask(loaded, bare), mask(loaded, zero))


def test_all_directions_are_all_of_the_matrix(as_loaded):
    """Nothing of the weights stays; folded, its layer gives what it gave to the mean, whatever it reads."""
    loaded = as_loaded(tiny("llama", torch.float64))
    for text, per_head in (("b1.down", False), ("b1.k", True), ("b0.o", True), ("b1.gate", False)):
        site = Site.parse(text)
        mean = mean_for(loaded, site)
        gone = tuple(range(count_of(loaded, site, per_head)))
        edit = RemoveDirections(site, gone, per_head, Fitted.of({"mean": mean}))
        given = outputs_of(loaded, text, edit)
        expected = torch.from_numpy(stored(loaded, site) @ mean).expand_as(given)
        torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-11)


def test_what_read_as_the_mean_is_not_changed(as_loaded):
    """A model whose input is the mean everywhere does not notice."""
    loaded = as_loaded(tiny("gpt2", torch.float64))
    module = loaded.model.get_submodule(loaded.anatomy.matrix(Site(0, "k")).module)
    mean = mean_for(loaded, Site(0, "k"))
    handle = module.register_forward_pre_hook(lambda _, args: (torch.from_numpy(mean).expand_as(args[0]),))
    whole, got = logits(loaded.model), mask(loaded, removal(loaded, "b0.k", False))
    handle.remove()
    torch.testing.assert_close(got, whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_narrow_weights_are_decomposed_wide_and_rounded_once(name, as_loaded):
    """Each bfloat16 weight is the nearest to what float64 gives, or its neighbor."""
    loaded = as_loaded(tiny(name, torch.bfloat16))
    for text, per_head in (("b0.k", True), ("b1.o", False), ("b1.down", False)):
        edit = removal(loaded, text, per_head)
        one = taken(loaded, edit)
        expected = stored(loaded, edit.matrix) - one.less
        matrix = loaded.anatomy.matrix(edit.matrix)
        bias = (
            None
            if matrix.bias is None
            else loaded.model.get_parameter(matrix.bias).double().numpy()[one.rows]
        )
        operations = resolve(Plan(loaded.fingerprint, (edit,)), loaded.anatomy, loaded.fingerprint)
        with masked(loaded.model, operations):
            # the decomposition is float32: by processor it errs by 1e-6 and more, which small numbers show
            np.testing.assert_allclose(stored(loaded, edit.matrix), expected, rtol=2**-8, atol=5e-6)
            if bias is not None:
                now = loaded.model.get_parameter(matrix.bias).double().numpy()[one.rows]
                np.testing.assert_allclose(now, bias + one.more, rtol=2**-8, atol=1e-6)
        double = as_loaded(loaded.model.double())
        with hooked(double.model, [one]):
            expected_logits = logits(double.model)
        loaded = as_loaded(tiny(name, torch.bfloat16))
        got = mask(loaded, edit)
        assert got.dtype == torch.bfloat16
        assert distance(got.double(), expected_logits) < 0.05


def test_heads_and_directions_go_together(as_loaded):
    """Heads that are dropped are silent in what is left of an o; what was folded stays."""
    loaded = as_loaded(tiny("gpt2", torch.float64))
    edit = removal(loaded, "b1.o", False)
    one = taken(loaded, edit)
    width = loaded.anatomy.d_head
    left = stored(loaded, edit.matrix) - one.less
    left[:, 2 * width : 3 * width] = 0
    one.less = stored(loaded, edit.matrix) - left
    with hooked(loaded.model, [one]):
        expected = logits(loaded.model)
    got = mask(loaded, edit, Drop(Site.parse("b1.attn.h2")))
    assert distance(got, expected) < 1e-10


# ------------------------------------------------------------------------------------------------------ refusals


def refuse(loaded: Loaded, edit: RemoveDirections, *words: str, error: type[Exception] = PlanError) -> None:
    with pytest.raises(error) as caught:
        resolve(Plan(loaded.fingerprint, (edit,)), loaded.anatomy, loaded.fingerprint)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_directions_that_there_are_none_of(as_loaded):
    """llama: 4 query heads and 2 key/value heads of width 8, 40 neurons."""
    loaded = as_loaded(tiny("llama"))
    for text, per_head, count in (("q", False, 32), ("q", True, 32), ("k", False, 16), ("k", True, 16),
                                  ("o", True, 32), ("down", False, 32), ("gate", False, 32)):  # fmt: skip
        site = Site.parse(f"b0.{text}")
        resolve(
            Plan(loaded.fingerprint, (RemoveDirections(site, (count - 1,), per_head),)),
            loaded.anatomy,
            loaded.fingerprint,
        )
        refuse(
            loaded,
            RemoveDirections(site, (0, count), per_head),
            f"b0.{text} has {count} directions, counted from 0",
        )
    for part in ("gate", "up", "down"):
        refuse(loaded, RemoveDirections(Site(0, part), (0,), True), f"b0.{part} has no heads")
    refuse(loaded, RemoveDirections(Site(7, "q"), (0,)), "no matrix b7.q", error=UnknownName)
    refuse(
        as_loaded(tiny("gpt2")),
        RemoveDirections(Site(0, "gate"), (0,)),
        "no matrix b0.gate",
        error=UnknownName,
    )


@pytest.mark.parametrize(
    ("text", "per_head", "arrays", "words"),
    [
        ("k", False, {"mean": (31,)}, "mean is (31,), where it should be (32,)"),
        ("k", False, {"mean": (1, 32)}, "where it should be (32,)"),
        ("down", False, {"mean": (32,)}, "where it should be (40,)"),
        ("k", False, {}, "no mean input"),
        ("k", False, {"u": (1, 16, 16)}, "no mean input"),
        ("k", False, {"mean": (32,), "u": (2, 8, 8)}, "u is (2, 8, 8), where it should be (1, 16, 16)"),
        ("k", True, {"mean": (32,), "u": (1, 16, 16)}, "where it should be (2, 8, 8)"),
        ("o", True, {"mean": (32,), "u": (4, 8, 8)}, "where it should be (4, 32, 8)"),
        ("k", False, {"mean": (32,), "bias": (16,)}, "bias is (16,), where it should be None"),
    ],
    ids=str,
)
def test_fitted_tensors_that_do_not_fit(text, per_head, arrays, words, as_loaded):
    fold = Fitted.of({name: np.ones(shape, np.float32) for name, shape in arrays.items()})
    refuse(
        as_loaded(tiny("llama")),
        RemoveDirections(Site(0, text), (0,), per_head, fold),
        f"b0.{text} without",
        words,
    )


def test_fitted_tensors_that_are_not_there(as_loaded):
    edit = RemoveDirections(Site(0, "k"), (0,), fold=Fitted("0" * 32))
    refuse(
        as_loaded(tiny("llama")),
        edit,
        "0" * 32,
        "Read the plan from the folder that holds tensors/ beside it",
    )


# ------------------------------------------------------------------------------------------------ what is written


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("models")
    return lambda name: (
        save_model(place / name, tiny(name), words) if not (place / name).exists() else place / name
    )


def plan_on(folder, texts: Sequence[str], fold: bool = True, per_head: bool = False) -> tuple[Loaded, Plan]:
    loaded = api.load(str(folder))
    return loaded, Plan(loaded.fingerprint, tuple(removal(loaded, text, per_head, fold) for text in texts))


def test_zeroed_writes_into_biases_that_are_there(folder, tmp_path):
    loaded, plan = plan_on(folder("gpt2"), ["b0.k", "b0.o", "b1.down"])
    api.apply(str(folder("gpt2")), plan, tmp_path / "out", zeroed=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with hooked(loaded.model, [taken(loaded, edit) for edit in plan.edits]):
        assert distance(logits(model), logits(loaded.model)) < 1e-5
    shapes = {name: p.shape for name, p in loaded.model.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert type(model) is type(loaded.model)


def test_zeroed_is_refused_without_a_bias_and_fine_without_a_fold(folder, tmp_path):
    for name in ("llama", "gpt-neox-serial"):
        _, plan = plan_on(folder(name), ["b0.k"])
        with pytest.raises(
            PlanError, match=r"--zeroed keeps the original's shapes, and this model has no bias"
        ):
            api.apply(str(folder(name)), plan, tmp_path / name, zeroed=True)
        assert not (tmp_path / name).exists()
    loaded, plan = plan_on(folder("llama"), ["b0.k"], fold=False)
    api.apply(str(folder("llama")), plan, tmp_path / "bare", zeroed=True)
    with hooked(loaded.model, [taken(loaded, edit) for edit in plan.edits]):
        assert distance(logits(api.load(str(tmp_path / "bare")).model), logits(loaded.model)) < 1e-5


@pytest.mark.parametrize(
    ("name", "texts", "switches"),
    [
        ("llama", ["b0.k"], {"attention_bias": True}),
        ("llama", ["b1.gate"], {"mlp_bias": True}),
        ("llama", ["b0.k", "b1.down"], {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", ["b0.o"], {"attention_bias": True}),
        ("gemma2", ["b0.v"], {"attention_bias": True}),
        ("gemma3", ["b0.v"], {"attention_bias": True}),
        ("gpt-neox-serial", ["b0.k"], {"attention_bias": True}),
        ("gpt2", ["b0.k", "b0.down"], {}),
        ("qwen2", ["b0.k"], {}),
        ("phi", ["b0.up"], {}),
        ("falcon-7b", ["b0.q"], {"bias": True}),
        ("qwen3", ["b0.down"], "no place for a bias of down"),
        ("gemma2", ["b0.up"], "no place for a bias of up"),
        ("mistral", ["b0.k"], "no place for a bias of k"),
        ("qwen2", ["b0.o"], "no place for a bias of o"),
        ("phi3", ["b0.k"], "no place for a bias of k"),
        ("gptj", ["b0.k"], "no place for a bias of k"),
    ],
    ids=str,
)
def test_where_a_bias_has_a_place(name, texts, switches, folder):
    """Switched on by the config where the family has a switch; zeros everywhere but where something was folded."""
    loaded, plan = plan_on(folder(name), texts)
    changes = stock_config(shape_of(plan, loaded.anatomy), loaded.anatomy)
    if isinstance(switches, str):
        assert switches in changes
        assert type(cut(loaded, plan)).__name__ == "SecateurForCausalLM"
        return
    assert changes == switches
    model = cut(loaded, plan)
    assert type(model) is type(loaded.model)
    old, new = dict(loaded.model.named_parameters()), dict(model.named_parameters())
    added = {name: p for name, p in new.items() if name not in old}
    folded = {f"{loaded.anatomy.matrix(edit.matrix).module}.bias" for edit in plan.edits}
    assert bool(added) == bool(switches)
    assert {name for name, p in added.items() if p.any()} == (folded if switches else set())


def test_nothing_folded_is_stock_everywhere(folder):
    for name in ("mistral", "phi3", "qwen3"):
        loaded, plan = plan_on(folder(name), ["b0.k", "b1.down"], fold=False)
        assert type(cut(loaded, plan)) is type(loaded.model)


def test_the_nearest_portable_plan_leaves_out_what_has_no_place(folder, tmp_path):
    loaded, plan = plan_on(folder("qwen3"), ["b0.k", "b0.down", "b1.o"])
    nearest = portable_plan(plan, loaded)
    assert [str(edit.site) for edit in nearest.edits] == ["b0.k", "b1.o"]
    assert nearest.edits == tuple(edit for edit in plan.edits if edit.matrix.part != "down")
    told = api.preview(str(folder("qwen3")), plan)
    assert told["portable"] == str(nearest)
    assert told["loads"]["form"] == "carved"
    assert "no place for a bias of down" in told["loads"]["why"]
    assert told["cut_summary"] == "9 singular directions of 3 matrices"
    assert (
        told["parameters"]["after"] - told["parameters"]["before"] == 24 + 32 + 32
    )  # two kv heads of 12; d_model
    api.apply(str(folder("qwen3")), plan, tmp_path / "out", portable=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    with hooked(loaded.model, [taken(loaded, edit) for edit in nearest.edits]):
        assert distance(logits(model), logits(loaded.model)) < 1e-5
    _, homeless = plan_on(folder("mistral"), ["b0.k"])
    assert api.preview(str(folder("mistral")), homeless)["portable"] is None
    with pytest.raises(PlanError, match="--portable"):
        api.apply(str(folder("mistral")), homeless, tmp_path / "none", portable=True)


def test_what_is_portable_already_stays(folder):
    loaded, plan = plan_on(folder("llama"), ["b0.k", "b1.down"])
    assert portable_plan(plan, loaded) is plan
    assert api.preview(str(folder("llama")), plan)["portable"] is None


def test_by_hand_on_the_command_line(folder, tmp_path):
    """`without` folds nothing; refusals come with an exit code of 2 and nothing written."""
    done = secateur("apply", folder("llama"), "--edit", "b0.k=without:0,2", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "b0.k without directions 0, 2" in done.stdout
    assert not (tmp_path / "out/tensors").exists()
    assert json.loads((tmp_path / "out/plan.json").read_text())["edits"] == [
        {"kind": "remove_directions", "matrix": "b0.k", "directions": [0, 2], "per_head": False, "fold": None}
    ]
    loaded = api.load(str(folder("llama")))
    with hooked(loaded.model, [taken(loaded, RemoveDirections(Site(0, "k"), (0, 2)))]):
        assert distance(logits(api.load(str(tmp_path / "out")).model), logits(loaded.model)) < 1e-5
    for edits, words in (
        (["b0.k=without:16"], "b0.k has 16 directions"),
        (["b0.k=without:0", "b0.k=3"], "two edits claim b0.k"),
        (["b0.k=without:0", "b0.attn=drop"], "b0.attn"),
        (["b0.k=without"], "is not an edit"),
    ):
        flags = [word for edit in edits for word in ("--edit", edit)]
        done = secateur("apply", folder("llama"), *flags, "-o", tmp_path / "not")
        assert done.exit_code == 2
        assert words in done.stderr
        assert not (tmp_path / "not").exists()


def test_low_rank_that_is_left_is_stored_as_factors_where_smaller(folder, tmp_path):
    """All but two directions of a 32 × 40 matrix: 2 · 72 numbers and a bias of 32, for 1280."""
    loaded, site = api.load(str(folder("llama"))), Site(0, "down")
    fold = Fitted.of({"mean": mean_for(loaded, site)})
    plan = Plan(loaded.fingerprint, (RemoveDirections(site, tuple(range(2, 32)), fold=fold),))
    api.apply(str(folder("llama")), plan, tmp_path / "out", factorize=True)
    written = api.load(str(tmp_path / "out"))
    assert loaded.anatomy.num_parameters - written.anatomy.num_parameters == 1280 - 144 - 32
    with hooked(loaded.model, [taken(loaded, edit) for edit in plan.edits]):
        assert distance(logits(written.model), logits(loaded.model)) < 1e-5
    with pytest.raises(SecateurError, match="contradict each other"):
        api.apply(str(folder("llama")), plan, tmp_path / "both", factorize=True, zeroed=True)


def test_directions_are_counted_as_they_are_removed(as_loaded):
    for name in ("llama", "gemma3", "falcon-7b", "bloom"):
        loaded = as_loaded(tiny(name))
        for site, matrix in loaded.anatomy.matrices.items():
            for heads in {1, loaded.anatomy.heads_in(site) or 1}:
                assert heads * num_directions(matrix, heads) == count_of(loaded, site, heads > 1)
