"""Checkpoints of cut models: they load where the planner says that they load, and compute what the cut model did.

Every kind of cut in seven families, and one in each of the others, is written by `apply` and read three times: by
secateur, by a process that has transformers and no secateur (see `without_secateur.py`), and by that process again
after `save_pretrained`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.cuts import drops, edits_of, factorized
from fixtures.folders import contents, questions, refused, save_model, secateur, write_rows
from fixtures.marks import slow_but
from fixtures.rotary import ROTARY
from fixtures.zoo import HYBRIDS, MORE, tiny, variant
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur import api
from secateur.checkpoint.loadability import RAN_LM_EVAL, RAN_REMOTE, where_it_loads
from secateur.core.form import Form
from secateur.core.plan import Plan, Truncate, parse_edits
from secateur.core.site import Site
from secateur.errors import PlanError
from secateur.hf.load import Loaded, load_model
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of, stock_config

OLD = ["bert-decoder", "codegen", "ctrl", "openai-gpt", "xglm"]
FAMILIES = ["llama", "gpt2", "opt", "bloom", "falcon-rw", "gemma3", "phi3"]
KINDS = [
    "one head", "uneven heads", "KV groups everywhere", "attention of block 0", "FFN of block 0", "neurons",
    "block 0", "mixed", "rank 3", "directions of attention", "directions and parts",
    "linear of rank 2", "all but one linear", "folded",
]  # fmt: skip
EVERY_KIND = ("llama",)  # of the others some, in turn
OF_MORE = ("apertus", "gpt-bigcode", "gpt-neo", "olmo2", "smollm3")


def cases() -> Iterator[Any]:
    """Yield every 'family, kind', slow but for those of `EVERY_KIND` and a fifth of the rest."""
    for turn, family in enumerate(FAMILIES):
        for number, kind in enumerate(KINDS):
            first = family in EVERY_KIND or (turn + number) % 5 == 0
            yield pytest.param(f"{family}, {kind}", marks=[] if first else pytest.mark.slow)


CASES = [*cases()]
FEW_CASES = [
    *slow_but(
        [f"{family}, mixed" for family in OF_MORE], [f"{family}, mixed" for family in sorted([*MORE, *OLD])]
    ),
    *slow_but(["smollm3, block 0"], ["smollm3, block 0", "gpt-neo, block 0", "cwm, block 0"]),
    *slow_but(
        ["lfm2, mixed", "qwen3.5, rank 3"],
        [
            *(f"{family}, mixed" for family in HYBRIDS),
            "lfm2, neurons everywhere",
            "qwen3.5, block 0",
            "qwen3.5, rank 3",
        ],
    ),
]
HARNESS = ["llama, mixed", "llama, block 0"]  # a carved one and a stock one
GROUPED = {"llama", "gemma3", "phi3"}  # of these a config can state any number of heads
TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 96  # those of `without_secateur.py`


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS).logits


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, by norms."""
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


@dataclass(frozen=True)
class Made:
    """A checkpoint, what it was made from, and the logits of the model that was cut in memory."""

    folder: Path
    loaded: Loaded
    plan: Plan
    form: Form
    expected: Tensor

    @property
    def said(self) -> Mapping[str, Any]:
        """Where it loads, as its plan.json has it."""
        return json.loads((self.folder / "plan.json").read_text())["provenance"]["loads"]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())


@pytest.fixture(scope="module")
def originals(words, tmp_path_factory) -> dict[str, Loaded]:
    place = tmp_path_factory.mktemp("originals")
    return {
        name: load_model(str(save_model(place / name, tiny(name), words)), device="cpu")
        for name in (*FAMILIES, *MORE, *OLD, *HYBRIDS)
    }


class WhenAsked(dict[str, Made]):
    """Checkpoints by 'family, kind', each made when it is first asked for."""

    def __init__(self, place: Path, originals: Mapping[str, Loaded]) -> None:
        super().__init__()
        self._place, self._originals = place, originals

    def __missing__(self, case: str) -> Made:
        self[case] = make(self._place / re.sub(r"\W+", "_", case), self._originals, *case.split(", "))
        return self[case]


@pytest.fixture(scope="module")
def made(originals, tmp_path_factory) -> WhenAsked:
    return WhenAsked(tmp_path_factory.mktemp("made"), originals)


def make(folder: Path, originals: Mapping[str, Loaded], family: str, kind: str) -> Made:
    loaded, form = originals[family], Form(factorize=factorized(kind))
    plan = Plan(loaded.fingerprint, tuple(edits_of(kind, loaded.anatomy)))
    api.apply(loaded.source, plan, folder, device="cpu", factorize=form.factorize)
    expected = logits(cut(loaded, plan, factorize=form.factorize))
    assert distance(expected, logits(loaded.model)) > 1e-3, "a cut that does nothing shows nothing"
    return Made(folder, loaded, plan, form, expected)


@pytest.fixture(scope="module")
def elsewhere(request, made, tmp_path_factory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read every folder that a test of this run asks for in a process without secateur: findings, and logits."""
    place = tmp_path_factory.mktemp("elsewhere")
    of_here = (
        item for item in request.session.items if item.path == request.path and "case" in item.fixturenames
    )
    asked = {case: made[case] for case in dict.fromkeys(item.callspec.params["case"] for item in of_here)}
    jobs = [
        {
            "name": case,
            "folder": str(one.folder),
            "original": one.loaded.source,
            "stock": type(one.loaded.model).__name__,
            "harness": case in HARNESS and find_spec("lm_eval") is not None,
        }
        for case, one in asked.items()
    ]
    (place / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "without_secateur.py"
    words = [sys.executable, "-I", "-S", script, sysconfig.get_path("purelib"), place / "jobs.json", place]
    own = {"HF_HOME": place / "hf", "HF_MODULES_CACHE": place / "modules", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | {key: str(value) for key, value in own.items()} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "found.json").read_text()), load_file(place / "logits.safetensors")


# ------------------------------------------------------------------------------------------------ where it loads


@pytest.mark.parametrize("case", [*CASES, *FEW_CASES])
def test_secateur_loads_it_and_runs_no_code_of_it(case, made, tmp_path):
    folder = shutil.copytree(made[case].folder, tmp_path / "copy")
    (folder / "modeling_secateur.py").write_text("raise SystemExit('code of a checkpoint was run')")
    loaded = api.load(str(folder), device="cpu")
    assert torch.equal(logits(loaded.model), made[case].expected)


@pytest.mark.parametrize("case", [*CASES, *FEW_CASES])
def test_transformers_alone_loads_it(case, made, elsewhere):
    found, outputs = elsewhere[0][case], elsewhere[1]
    expected = made[case].expected
    assert distance(outputs[f"{case}/plain"], expected) < 1e-6
    assert distance(outputs[f"{case}/again"], expected) < 1e-6, "save_pretrained and from_pretrained again"
    assert distance(outputs[f"{case}/device map"], expected) < 1e-4  # perhaps on an accelerator
    assert distance(outputs[f"{case}/bfloat16"], expected) < 0.05
    always_float32 = ["torch.float32"] if case.startswith("olmo-hybrid") else []  # rates of its recurrence
    assert found["dtypes"] == ["torch.bfloat16", *always_float32]
    assert found["generated"] == found["one by one"]
    one = made[case]
    shape = shape_of(one.plan, one.loaded.anatomy, factorize=one.form.factorize)
    assert found["parameters"] == shape.num_parameters(one.loaded.anatomy)


@pytest.mark.parametrize("case", CASES)
def test_it_loads_where_the_plan_says_it_does(case, made, elsewhere):
    """Before the cut, in plan.json, and in truth."""
    one, found = made[case], elsewhere[0][case]
    loads = where_it_loads(one.plan, one.loaded, one.form, read_back=True)
    assert json.loads(json.dumps(loads.to_json())) == one.said
    stock = type(one.loaded.model).__name__
    is_stock = isinstance(one.said["why"], str) and not one.said["why"]
    assert one.said["form"] == ("stock" if is_stock else "carved")
    assert found["class"] == (stock if is_stock else "SecateurForCausalLM")
    assert found["config"] == (type(one.loaded.model.config).__name__ if is_stock else "SecateurConfig")
    places = {place["place"]: place for place in one.said["where"]}
    assert places["vLLM"]["loads"] is is_stock
    assert places["GGUF (llama.cpp)"]["evidence"] == "no", "the converter takes no WordLevel tokenizer"
    assert all(place["how"] in (one.folder / "README.md").read_text() for place in one.said["where"])
    assert one.said["why"] in (one.folder / "README.md").read_text()


def test_families_said_to_be_run_are_those_that_are_run_here(originals):
    assert {loaded.anatomy.family for loaded in originals.values()} == RAN_REMOTE.families
    assert {originals[case.split(", ")[0]].anatomy.family for case in HARNESS} == RAN_LM_EVAL.families


@pytest.mark.parametrize("case", CASES)
def test_without_trust_it_refuses_and_gives_no_wrong_weights(case, made, elsewhere):
    one, found = made[case], elsewhere[0][case]
    refusals = ["untrusted", "unasked", "by name", "again by name"]
    if one.said["form"] == "stock":
        assert {found[key] for key in (*refusals, "of another attention")} == {""}
        return
    for key in refusals:
        assert "trust_remote_code=True" in found[key], key
    assert "negative dimension" in found["of another attention"]
    assert one.config["architectures"] == ["SecateurForCausalLM"]
    assert "AutoConfig" in one.config["auto_map"]


@pytest.mark.parametrize("case", CASES)
def test_its_tokenizer_is_the_originals_and_runs_no_code(case, made, elsewhere):
    """Nobody is asked whether code may run, and the class is the one by which the original's files are read."""
    found = elsewhere[0][case]
    assert found["asked"] == []
    (original, again), here, saved_again = found["tokenizers"]
    assert original == again
    assert here == [original, original]
    assert saved_again == [original, original]
    files, read = contents(made[case].folder), contents(Path(made[case].loaded.source))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert files[name] == read[name]


@pytest.mark.parametrize("case", HARNESS)
def test_the_harness_scores_it(case, made, elsewhere):
    """Its log-likelihoods of continuations are sums over our own log probabilities."""
    pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
    one = made[case]
    model = cut(one.loaded, one.plan)
    asked = [((5, 6, 7), (8, 9)), ((44,), (3,)), ((30, 31), (62, 73, 84))]
    expected = [log_likelihood(model, *pair) for pair in asked]
    assert elsewhere[0][case]["harness"] == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    ids = torch.tensor([[*context, *continuation]])
    table = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(table[len(context) - 1 + i, token]) for i, token in enumerate(continuation))


# ------------------------------------------------------------------------------------------- zeroed and portable


@pytest.mark.parametrize("kind", ["one head", "attention of block 0", "FFN of block 0", "mixed", "rank 3"])
@pytest.mark.parametrize("family", slow_but(["llama", "gpt2", "phi3"], FAMILIES))
def test_zeroed_is_the_stock_model_with_zeros(family, kind, originals, tmp_path):
    loaded = originals[family]
    plan = Plan(loaded.fingerprint, tuple(edits_of(kind, loaded.anatomy)))
    api.apply(loaded.source, plan, tmp_path / "out", device="cpu", zeroed=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is type(loaded.model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in loaded.model.state_dict().items()}
    with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
        assert torch.equal(logits(model), logits(loaded.model))
    assert not torch.equal(logits(model), logits(loaded.model)), "nothing was zeroed"
    said = json.loads((tmp_path / "out/plan.json").read_text())["provenance"]["loads"]
    assert (said["form"], said["why"]) == ("zeroed", "")


def test_a_whole_block_cannot_be_zeroed(originals, tmp_path):
    plan = Plan(originals["llama"].fingerprint, tuple(drops("b0")))
    with pytest.raises(PlanError, match="block cannot be zeroed"):
        api.apply(originals["llama"].source, plan, tmp_path / "out", device="cpu", zeroed=True)
    assert list(tmp_path.iterdir()) == []


def test_a_portable_plan_that_takes_nothing_is_refused(originals, tmp_path):
    """BLOOM's class fixes both the number of heads and the width."""
    loaded = originals["bloom"]
    with pytest.raises(PlanError, match="takes nothing"):
        api.apply(loaded.source, ["b0.mlp.n1=drop", "b1.attn=drop"], tmp_path / "out", portable=True)


def test_phi3_with_longrope_has_no_stock_class_of_fewer_heads(words, tmp_path):
    """Its config wants a factor for each of the channels that the number of heads implies, not for those that are."""
    name, changes, _ = ROTARY["phi3 longrope"]
    folder = save_model(tmp_path / "m", variant(name, **deepcopy(changes)), words)
    loaded = load_model(str(folder), device="cpu")
    plan = gone_plan(loaded, ["b0.attn.g0", "b1.attn.g1"])
    with pytest.raises(PlanError, match="takes nothing"):
        api.apply(str(folder), plan, tmp_path / "out", device="cpu", portable=True)
    api.apply(str(folder), plan, tmp_path / "out", device="cpu")
    said = json.loads((tmp_path / "out/plan.json").read_text())["provenance"]["loads"]
    assert (said["form"], said["why"][:28]) == ("carved", "Phi3ForCausalLM fixes the si")
    with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
        expected = logits(loaded.model)
    assert distance(logits(load_model(str(tmp_path / "out"), device="cpu").model), expected) < 1e-4


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bloom"])
def test_a_portable_result_is_a_stock_model_of_what_the_plan_left(family, originals, tmp_path):
    """12 of 96 neurons and so on: three in the mean, of which those the plan names go first."""
    loaded, gone = originals[family], [f"b0.mlp.n{n}" for n in (1, 4, 7, 30)] + ["b1.mlp.n5", "b1.attn"]
    api.apply(loaded.source, gone_plan(loaded, gone), tmp_path / "out", device="cpu", portable=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is type(loaded.model)
    written = json.loads((tmp_path / "out/plan.json").read_text())
    plan, said = Plan.from_json(written), written["provenance"]["loads"]
    assert said["form"] == "stock"
    assert torch.equal(logits(model), logits(cut(loaded, plan)))
    again = load_model(str(tmp_path / "out"), device="cpu").anatomy
    d_ff = loaded.anatomy.d_ff - (0 if loaded.anatomy.details.width is None else 2)  # 4 and 1: 2.5, 2 is even
    assert {block.d_ff for block in again.widths} == {d_ff}
    groups = loaded.anatomy.num_kv_heads - (family in GROUPED)  # 0 of 2 and 2 of 2
    assert {block.num_kv_heads for block in again.widths} == {groups}
    assert {block.num_heads for block in again.widths} == {
        groups * loaded.anatomy.num_heads // loaded.anatomy.num_kv_heads
    }


def gone_plan(loaded: Loaded, sites: Sequence[str]) -> Plan:
    return Plan(loaded.fingerprint, tuple(drops(*sites)))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["llama-tied-biased", "gemma3", "qwen3", "opt"])
def test_a_portable_plan_is_near_the_one_it_stands_for(name, seed, as_loaded):
    """Counts are equal in all blocks, the total is as asked to half a unit a block, and in every block the plan's own
    go first; then those whose outputs weigh least."""
    loaded, draw = as_loaded(tiny(name)), random.Random(seed)
    a = loaded.anatomy
    heads = [f"b{b}.attn.h{h}" for b in range(a.num_blocks) for h in range(a.num_heads)]
    neurons = [f"b{b}.mlp.n{n}" for b in range(a.num_blocks) for n in range(a.d_ff)]
    asked = draw.sample(heads, draw.randrange(1, len(heads) // 2)) + draw.sample(
        neurons, draw.randrange(1, 30)
    )
    plan = gone_plan(loaded, asked)
    found = portable_plan(plan, loaded)
    assert not isinstance(stock_config(shape_of(found, a), a), str)
    if found == plan:
        assert not isinstance(stock_config(shape_of(plan, a), a), str)
        return
    queries = a.num_heads // a.num_kv_heads
    for unit, size, words in (("g", queries, heads), ("n", 1, neurons)):
        lost = [[s for s in found.dropped if s.block == b and s.unit == unit] for b in range(a.num_blocks)]
        assert len({len(sites) for sites in lost}) == 1, "the same in every block"
        if name == "opt" and unit == "g":
            assert not any(lost), "OPT fixes the number of its heads"
            continue
        wanted = len(set(asked) & set(words)) / size / a.num_blocks
        most = (a.num_kv_heads if unit == "g" else a.d_ff) - 1
        assert abs(len(lost[0]) - wanted) <= 0.5 or len(lost[0]) == most < wanted
        for block, sites in enumerate(lost):
            assert sites == sorted(first(loaded, block, unit, set(asked))[: len(sites)])
    assert {site.unit for site in found.dropped} <= {"g", "n"}


def first(loaded: Loaded, block: int, unit: str, asked: set[str]) -> list[Site]:
    """KV groups or neurons of one block in the order in which they should go, by slow means."""
    a, ranked = loaded.anatomy, []
    matrix = a.matrices[Site(block, "o" if unit == "g" else "down")]
    weight = matrix.read(loaded.model.get_parameter(matrix.weight)).double()
    count = a.num_kv_heads if unit == "g" else a.d_ff
    width = weight.shape[1] // count
    for index in range(count):
        heads = [
            f"b{block}.attn.h{h}" for h in range(a.num_heads) if h * a.num_kv_heads // a.num_heads == index
        ]
        named = heads if unit == "g" else [f"b{block}.mlp.n{index}"]
        share = sum(word in asked for word in named) / len(named)
        norm = float(weight[:, index * width : (index + 1) * width].pow(2).sum())
        ranked.append((-share, norm, Site(block, "attn" if unit == "g" else "mlp", unit, index)))
    return [site for _, _, site in sorted(ranked)]


def test_importance_decides_where_it_is_given(as_loaded):
    loaded = as_loaded(tiny("llama-tied-biased"))
    plan = gone_plan(loaded, ["b0.attn.h1", "b1.attn.h2", "b1.attn.h3"])  # one a block in the mean
    important = {
        Site(b, "attn", "g", g): float((g - 2) % 4) for b in range(3) for g in range(4)
    }  # the least is 2
    found = portable_plan(plan, loaded, important | dict.fromkeys(neurons_of(loaded), 1.0))
    assert list(map(str, found.dropped)) == ["b0.attn.g1", "b1.attn.g2", "b2.attn.g2"]


def neurons_of(loaded: Loaded) -> list[Site]:
    return [
        Site(b, "mlp", "n", n) for b in range(loaded.anatomy.num_blocks) for n in range(loaded.anatomy.d_ff)
    ]


def test_a_plan_that_is_portable_already_stays(as_loaded):
    loaded = as_loaded(tiny("llama"))
    for kind in ("KV groups everywhere", "neurons everywhere", "block 0"):
        plan = Plan(loaded.fingerprint, tuple(edits_of(kind, loaded.anatomy)))
        assert portable_plan(plan, loaded) == plan


def test_whole_blocks_and_ranks_go_as_planned(as_loaded):
    loaded = as_loaded(tiny("llama-tied-biased"))
    edits = [*drops("b1", "b0.attn.h3", "b2.attn.h0", "b2.mlp.n7"), Truncate(Site(2, "down"), 3)]
    found = portable_plan(Plan(loaded.fingerprint, tuple(edits)), loaded)
    expected = [*drops("b1", "b0.attn.g3", "b2.attn.g0"), Truncate(Site(2, "down"), 3)]
    assert found == Plan(loaded.fingerprint, tuple(expected))


def test_a_carved_model_cannot_be_made_portable(made, tmp_path):
    folder = made["llama, attention of block 0"].folder
    with pytest.raises(PlanError, match="shapes of its own already"):
        api.apply(str(folder), ["b1.attn.h0=drop"], tmp_path / "out", device="cpu", portable=True)
    assert list(tmp_path.iterdir()) == []


def test_a_carved_checkpoint_is_carved_again_and_zeroed(made, tmp_path):
    """From a folder, with no code of it run; the form follows the shapes, not the wish."""
    first, edits = made["llama, attention of block 0"], ["b1.mlp.n3=drop", "b1.attn.h2=drop"]
    expected = logits(cut(first.loaded, Plan(first.plan.model, (*first.plan.edits, *parse_edits(edits)))))
    for number, zeroed in enumerate((False, True)):
        api.apply(str(first.folder), edits, tmp_path / str(number), device="cpu", zeroed=zeroed)
        loaded = api.load(str(tmp_path / str(number)), device="cpu")
        torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-5)
        said = json.loads((tmp_path / str(number) / "plan.json").read_text())["provenance"]["loads"]
        assert said["form"] == "carved"


# ----------------------------------------------------------------------------------------------------- bad input


def changed(**carving: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["carving"].update(carving)


def first_operation(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["carving"]["operations"][0].update(values)


BAD_CONFIGS = {
    "version": (changed(version=99), ["config.json", "carved by version 99", "reads version 1"]),
    "no version": (lambda c: c["carving"].pop("version"), ["config.json", "no 'version'", "damaged"]),
    "operations": (changed(operations=3), ["config.json", "no 'operations'", "damaged"]),
    "operation": (first_operation(op="melt"), ["'melt'", "cannot do"]),
    "path": (first_operation(path="model.layers.7.self_attn"), ["cannot be used", "`7`"]),
    "carving": (lambda c: c.pop("carving"), ["config.json", "no 'carving'", "damaged"]),
    "stock": (lambda c: c.pop("stock"), ["config.json", "no 'stock'", "damaged"]),
    "no family": (lambda c: c["carving"].pop("family"), ["config.json", "no 'family'", "damaged"]),
    "unknown family": (changed(family="lllama"), ["'lllama'", "does not know"]),
    "family": (changed(family="cpmant"), ["unknown family CpmAntForCausalLM"]),
    "nothing carved": (changed(operations=[]), ["do not fit its config.json", "missing"]),
    "blocks": (lambda c: c["stock"].update(num_hidden_layers=3), ["do not fit its config.json", "missing"]),
}


@pytest.fixture
def damaged(made, tmp_path) -> Path:
    return shutil.copytree(made["llama, mixed"].folder, tmp_path / "damaged")


def is_refused(folder: Path, *pieces: str) -> None:
    """By `eval`, and the folder is as it was."""
    task, before = write_rows(folder.with_name("q.jsonl"), questions()), contents(folder.parent)
    refused(secateur("eval", folder, "--task", task, "--device", "cpu"), *pieces)
    assert contents(folder.parent) == before


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_damaged_configs(what, damaged):
    change, pieces = BAD_CONFIGS[what]
    config = json.loads((damaged / "config.json").read_text())
    change(config)
    (damaged / "config.json").write_text(json.dumps(config))
    is_refused(damaged, *pieces)


def test_damaged_weights(damaged):
    file, name = damaged / "model.safetensors", "model.layers.1.self_attn.o_proj.weight"
    whole = file.read_bytes()
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if key != name}, file, {"format": "pt"})
    is_refused(damaged, "1 missing", name)
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, file, {"format": "pt"})
    is_refused(damaged, "1 of the wrong shape", name)
    file.write_bytes(whole[:-5])
    is_refused(damaged, "model.safetensors", "truncated")


# ------------------------------------------------------------------------------------------------ planted truths


def silence_(loaded: Loaded, site: str, columns: slice = slice(None)) -> None:
    """Makes an output of a block write nothing, or one input of it count for nothing."""
    matrix = loaded.anatomy.matrix(Site.parse(site))
    weight = matrix.read(loaded.model.get_parameter(matrix.weight)).clone()
    weight[:, columns] = 0
    matrix.write_(loaded.model.get_parameter(matrix.weight), weight)
    if matrix.bias is not None and columns == slice(None):
        loaded.model.get_parameter(matrix.bias).zero_()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_nothing_can_go(family, as_loaded):
    """A head whose outputs nobody reads, a feed-forward network that writes nothing, a block that writes nothing: the
    model without them is smaller and computes the same."""
    loaded = as_loaded(tiny(family, torch.float64))
    a, whole = loaded.anatomy, logits(loaded.model)
    silence_(loaded, "b1.o", slice(2 * a.d_head, 3 * a.d_head))
    same(loaded, "b1.attn.h2", whole)
    silence_(loaded, "b1.down")
    same(loaded, "b1.mlp", whole)
    silence_(loaded, "b1.o")
    same(loaded, "b1.attn", whole)
    same(loaded, "b1", whole)


def same(loaded: Loaded, site: str, whole: Tensor) -> None:
    expected, model = logits(loaded.model), cut(loaded, gone_plan(loaded, [site]))
    assert distance(logits(model), expected) <= 1e-10
    assert distance(expected, whole) > 1e-3, "the plant changed nothing"
