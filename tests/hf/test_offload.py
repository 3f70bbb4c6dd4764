"""Models larger than a device: what is read, judged, cut and proven of a model whose weights lie on disk is what it is
of the same model in memory, bit for bit; and no file is written to on the way."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.marks import slow_but
from fixtures.zoo import ZOO, by_layout, tiny

import secateur as api
from secateur.checkpoint.save import save_and_reload
from secateur.core.form import Form
from secateur.core.plan import Plan, parse_edits
from secateur.errors import ModelError, SecateurError, UnknownName
from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded, load_model
from secateur.hf.weights import Weights, is_offloaded, open_door_, reread
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import decompose, resolve

LAYOUTS = ("llama", "gpt2", "llama-tied-biased", "bloom", "falcon-40b", "gemma2", "opt-projected")
EDITS = (("b0.q=3", "b1.down=2"), ("b0=drop",), ("b0.mlp=drop",), ("b0.attn=drop",))
SLOW = pytest.mark.slow
TOKENS = torch.arange(3, 15)[None]


@pytest.fixture(scope="module")
def place(tmp_path_factory, words) -> Path:
    place = tmp_path_factory.mktemp("offload")
    for name in ZOO:
        save_model(place / name, tiny(name), words, max_shard_size="20KB")
    write_rows(place / "q.jsonl", questions())
    return place


def both(place: Path, name: str, **how: str) -> tuple[Loaded, Loaded]:
    """A model in memory, and from disk at every call."""
    given = {"device_map": "disk", "offload_folder": str(place / "offload")} | how
    return load_model(str(place / name), device="cpu"), load_model(str(place / name), **given)


def logits(loaded: Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(input_ids=TOKENS).logits


# ------------------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize("name", by_layout())
def test_a_model_on_disk_is_the_model_in_memory(place, name):
    here, there = both(place, name)
    assert is_offloaded(there.model)
    assert not is_offloaded(here.model)
    assert all(parameter.is_meta for parameter in there.model.parameters())
    assert torch.equal(logits(there), logits(here))
    assert (there.fingerprint, there.anatomy) == (here.fingerprint, here.anatomy)
    assert (
        there.device.type,
        str(there.parameter(there.anatomy.matrices[next(iter(there.anatomy.matrices))].weight).device),
    ) == ("cpu", "cpu")


def test_a_limit_on_memory_leaves_the_rest_on_disk(place):
    here, there = both(place, "qwen2", device_map="auto", max_memory="cpu=60KB")
    kinds = {parameter.device.type for parameter in there.model.parameters()}
    assert kinds == {"cpu", "meta"}
    assert torch.equal(logits(there), logits(here))
    assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_are_cast_as_they_are_read(place, dtype):
    here = load_model(str(place / "llama"), device="cpu", dtype=dtype)
    there = load_model(
        str(place / "llama"), dtype=dtype, device_map="disk", offload_folder=str(place / "offload")
    )
    assert there.fingerprint == here.fingerprint
    assert torch.equal(logits(there), logits(here))


def test_a_map_says_where_each_module_goes(place, tmp_path):
    file = tmp_path / "map.json"
    modules = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu"}
    file.write_text(json.dumps(modules | {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}))
    here, there = both(place, "llama", device_map=str(file))
    off = {name for name, parameter in there.model.named_parameters() if parameter.is_meta}
    assert off == {
        n for n, _ in here.model.named_parameters() if n.startswith(("model.layers.0.", "lm_head"))
    }
    assert torch.equal(logits(there), logits(here))


def test_the_working_folder_goes_with_the_model(place, tmp_path):
    _, there = both(place, "llama", offload_folder=str(tmp_path / "work"))
    assert len(list((tmp_path / "work").iterdir())) == 1
    del there
    gc.collect()
    assert list((tmp_path / "work").iterdir()) == []


def test_nan_on_disk_is_refused(tmp_path, words):
    model = tiny("llama")
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = float("nan")
    save_model(tmp_path / "m", model, words)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        load_model(str(tmp_path / "m"), device_map="disk", offload_folder=str(tmp_path / "work"))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"device_map": "disk"}, ModelError, "Give --offload-folder DIR"),
        ({"device_map": "auto", "max_memory": "cpu=60KB"}, ModelError, "Give --offload-folder DIR"),
        ({"device_map": "auto", "device": "cpu"}, ModelError, "contradict"),
        ({"offload_folder": "somewhere"}, ModelError, "--offload-folder is for --device-map"),
        ({"max_memory": "cpu=1GB"}, ModelError, "--max-memory is for --device-map"),
        ({"device_map": "cpu", "max_memory": "cpu=1GB"}, ModelError, "a map that is worked out"),
        ({"device_map": "auto", "max_memory": "cpu:1GB"}, ModelError, "write sizes by device"),
        ({"device_map": "auto", "max_memory": "disc=1GB"}, ModelError, "disc=..."),
        ({"device_map": "atuo"}, UnknownName, "auto"),
        ({"device_map": "missing.json"}, ModelError, "cannot be read"),
    ],
)
def test_what_cannot_be_placed_is_refused(place, given, error, said):
    with pytest.raises(error, match=said):
        load_model(str(place / "qwen2"), **given)


def test_a_map_that_is_none_is_refused(place, tmp_path):
    for text, said in (
        ("[1]", "write"),
        ('{"model": "cqu"}', "cpu"),
        ('{"model": "disk"}', "lm_head"),
        ('{"": "cpu", "foo": "cpu"}', "no module 'foo'"),
        ('{"model.layers.0": "cpu"}', "says nothing of"),
    ):
        (tmp_path / "map.json").write_text(text)
        with pytest.raises(SecateurError, match=said):
            both(place, "llama", device_map=str(tmp_path / "map.json"))


# ------------------------------------------------------------------------------------------------------------ surgery


@pytest.mark.parametrize("edits", EDITS, ids=",".join)
@pytest.mark.parametrize("name", slow_but(["gpt2", "bloom", "gemma2"], LAYOUTS))
def test_mask_and_cut_of_a_model_on_disk(place, tmp_path, name, edits):
    here, there = both(place, name)
    before, files, plain = contents(place / name), contents(place / "offload"), logits(there)
    plan = Plan(here.fingerprint, parse_edits(edits))
    operations = resolve(plan, here.anatomy, here.fingerprint)
    with masked(here.model, operations), masked(there.model, operations):
        expected = logits(here)
        assert torch.equal(logits(there), expected)
    assert not torch.equal(expected, plain)
    assert torch.equal(logits(there), plain)
    written = [
        save_and_reload(one, plan, tmp_path / str(n), rows=[range(8)], form=Form(), decompose=decompose)
        for n, one in enumerate((here, there))
    ]
    assert written[0].fingerprint == written[1].fingerprint
    assert is_offloaded(written[1].model)
    assert torch.equal(logits(written[1]), cut(there, plan)(input_ids=TOKENS).logits)
    assert (contents(place / name), contents(place / "offload")) == (before, files)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_zeros_in_the_shapes_of_a_model_on_disk(place, tmp_path, name):
    here, there = both(place, name)
    plan = Plan(here.fingerprint, parse_edits(["b0.mlp=drop", "b1.q=3"]))
    how = {"rows": [range(8)], "form": Form(zeroed=True), "decompose": decompose}
    written = [save_and_reload(m, plan, tmp_path / str(n), **how) for n, m in enumerate((here, there))]
    assert written[0].fingerprint == written[1].fingerprint


def test_masks_nest(place):
    _, there = both(place, "llama")
    one, two = (
        resolve(Plan(there.fingerprint, parse_edits([e])), there.anatomy, there.fingerprint)
        for e in ("b0.attn.h0=drop", "b0.attn.h1=drop")
    )
    name = there.anatomy.matrices[next(s for s in there.anatomy.matrices if str(s) == "b0.o")].weight
    whole = there.parameter(name)
    with masked(there.model, one):
        once = there.parameter(name)
        with masked(there.model, two):
            twice = there.parameter(name)
        assert torch.equal(there.parameter(name), once)
    assert torch.equal(there.parameter(name), whole)
    assert [int((w == 0).all(0).sum()) for w in (whole, once, twice)] == [0, 8, 16]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_weights_offloaded_to_memory(place, name):
    """As beside a GPU: what is offloaded comes from memory, not from a file. Here that takes a device by another name,
    on which nothing is computed."""
    here = load_model(str(place / name), device="cpu")
    model = tiny(name)
    children = dict.fromkeys((child for child, _ in model.named_children()), "cpu")
    dispatch_model(model, children, main_device="cpu:0", force_hooks=True)
    for module in model.modules():
        if hasattr(module, "_hf_hook"):
            module._hf_hook.execution_device = torch.device("cpu")
    open_door_(model)
    there = replace(here, model=model, anatomy=anatomy(model), fingerprint=fingerprint(model))
    assert is_offloaded(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (there.fingerprint, there.anatomy) == (here.fingerprint, here.anatomy)
    operations = resolve(Plan(here.fingerprint, parse_edits(EDITS[0])), here.anatomy, here.fingerprint)
    with masked(here.model, operations), masked(model, operations):
        assert torch.equal(logits(there), logits(here))
    assert torch.equal(logits(there), logits(here))
    assert fingerprint(model) == here.fingerprint


# ------------------------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize("name", slow_but(["gpt2"], ["llama", "gpt2", "llama-tied-biased"]))
@pytest.mark.parametrize(
    "what",
    [
        "heads,ffns,neurons",
        pytest.param("induction", marks=SLOW),
        "linearity",
        "spectrum",
        "directions",
        "curves",
        "tail",
    ],
)
def test_every_probe_reads_a_model_on_disk(place, name, what):
    how = {"what": what.split(","), "limit": 40, "allow_small": True, "layers": (1, 2)}
    if what == "tail":
        how["plan"] = ["b1.down=2"]
    if what == "induction":
        how |= {"limit": 10}
    here = api.probe(str(place / name), str(place / "q.jsonl"), device="cpu", **how)
    offload = {"device_map": "disk", "offload_folder": str(place / "offload")}
    there = api.probe(str(place / name), str(place / "q.jsonl"), **offload, **how)
    assert there == here


def gradients(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, light: bool) -> tuple[torch.Tensor, list[int]]:
    """Of the sum of logits with respect to what the first block gives; weights read by then, and after."""
    reads: list[str] = []
    with monkeypatch.context() as patch:
        stored = Weights.stored
        patch.setattr(Weights, "stored", lambda self, name: reads.append(name) or stored(self, name))
        leaf: list[torch.Tensor] = []

        def begin(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            leaf.append(output.detach().requires_grad_())
            return leaf[0]

        embedding = loaded.model.get_submodule(loaded.anatomy.embedding)
        handle = embedding.register_forward_hook(begin)
        with torch.enable_grad():
            if light:
                with reread(loaded.model):
                    out = loaded.model(input_ids=TOKENS).logits
            else:
                out = loaded.model(input_ids=TOKENS).logits
        handle.remove()
        counts = [len(reads)]
        (gradient,) = torch.autograd.grad(out.square().sum(), leaf)
        return gradient, [*counts, len(reads)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_read_weights_again_instead_of_keeping_them(place, name, monkeypatch):
    here, there = both(place, name)
    expected, _ = gradients(here, monkeypatch, light=True)
    kept, (forth, back) = gradients(there, monkeypatch, light=False)
    assert back == forth
    light, (forth, back) = gradients(there, monkeypatch, light=True)
    matrices = len({matrix.module for matrix in there.anatomy.matrices.values()})
    assert back - forth >= matrices
    assert torch.equal(kept, expected)
    assert torch.equal(light, expected)


# -------------------------------------------------------------------------------------------------------------- verbs


@pytest.mark.parametrize("edits", [(), ("b1.down=2", "b0.attn.h0=drop")])
def test_eval_on_disk(place, edits):
    how = {"limit": 60, "allow_small": True, "plan": list(edits)}
    here = api.evaluate(str(place / "gpt2"), str(place / "q.jsonl"), device="cpu", **how)
    there = api.evaluate(
        str(place / "gpt2"),
        str(place / "q.jsonl"),
        device_map="auto",
        max_memory="cpu=40KB",
        offload_folder=str(place / "offload"),
        **how,
    )
    assert there == here


METHODS = {
    "laser": ("--layers", "1:2", "--matrices", "down", "--keep-unproven"),
    "heads": ("--max-loss", "1", "--target", "50%", "--random-orders", "0"),
    "depth": ("--blocks", "1", "--by", "loss", "--max-loss", "9"),
}


@pytest.mark.parametrize("method", ["laser", *(pytest.param(m, marks=SLOW) for m in ("heads", "depth"))])
def test_prune_on_disk_finds_and_proves_the_same(place, tmp_path, method):
    before = contents(place / "llama")
    asked = ["prune", place / "llama", "--task", place / "q.jsonl", "--method", method, *METHODS[method]]
    asked += ["--limit", "100", "--allow-small", "--quiet"]
    offload = ["--device-map", "auto", "--max-memory", "cpu=40KB", "--offload-folder", place / "offload"]
    for out, more in (("here", ["--device", "cpu"]), ("there", offload)):
        done = secateur(*asked, *more, "-o", tmp_path / out)
        assert done.exit_code == 0, done.output
    here, there = (contents(tmp_path / out) for out in ("here", "there"))
    plans = [json.loads(files["plan.json"])["edits"] for files in (here, there)]
    assert plans[0] == plans[1] != []
    verdicts = [json.loads(files["verdict.json"]) for files in (here, there)]
    changing = ("seconds", "opened", "stages")
    first, second = ({k: v for k, v in one.items() if k not in changing} for one in verdicts)
    assert first == second
    assert {k: v for k, v in here.items() if k.endswith(".safetensors")} == {
        k: v for k, v in there.items() if k.endswith(".safetensors")
    }
    assert contents(place / "llama") == before
