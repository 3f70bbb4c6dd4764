"""The Python API takes models in memory, rows and texts, and its signatures name every option."""

from __future__ import annotations

import inspect
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from fixtures.folders import questions, save_model, write_rows
from fixtures.places import ROOT
from fixtures.zoo import tiny

import secateur
from secateur.errors import ModelError, TaskError, UnknownName
from secateur.hf.fingerprint import fingerprint
from secateur.hf.memory import borrowed

SMALL = {"matrices": "down", "layers": "0:1", "exhaustive": True}
VERBS = (
    "prune",
    "prune_each",
    "plan_cost",
    "evaluate",
    "probe",
    "apply",
    "preview",
    "report",
    "bench",
    "load",
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache, empty."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "secateur" / "tasks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words):
    """The folder of a model, with a task beside it."""
    place = tmp_path_factory.mktemp("given")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions())
    return place


def same_but_names(one: dict, other: dict) -> None:
    """Two verdicts of the same model and task, which may be named otherwise."""
    for verdict in (one, other):
        assert verdict["n"] > 50
    keys = ("verdict", "before", "after", "difference", "p_value", "cut", "candidates_tried", "secondary")
    assert {k: one[k] for k in keys} == {k: other[k] for k in keys}
    assert one["model"]["fingerprint"] == other["model"]["fingerprint"]
    assert one["task"]["hash"] == other["task"]["hash"]


# -------------------------------------------------------------------------------------------------------------- models


def test_a_model_in_memory_is_pruned_as_from_its_folder_and_given_back_as_it_was(folder, tmp_path, words):
    by_name = secateur.prune(folder / "m", folder / "q.jsonl", tmp_path / "a", **SMALL)
    model = tiny("llama").train()
    model.lm_head.requires_grad_(True)
    before, modes = fingerprint(model), [module.training for module in model.modules()]
    result = secateur.prune(model, questions(), tmp_path / "b", tokenizer=words, **SMALL)
    same_but_names(by_name.verdict, result.verdict)
    assert result.plan == by_name.plan
    assert fingerprint(model) == before
    assert [module.training for module in model.modules()] == modes
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["lm_head.weight"]
    cut = secateur.load(tmp_path / "b")
    assert cut.fingerprint == secateur.load(tmp_path / "a").fingerprint


def test_what_load_returned_is_the_model_of_that_name_until_its_weights_change(folder, tmp_path, words):
    loaded = secateur.load(folder / "m")
    result = secateur.prune(loaded, folder / "q.jsonl", tmp_path / "out", **SMALL)
    command = json.loads((tmp_path / "out/plan.json").read_text())["provenance"]["command"]
    assert command["model"] == str(folder / "m")
    assert command["dtype"] == "float32"
    assert secateur.prune(loaded, folder / "q.jsonl", tmp_path / "out", **SMALL).already
    again = secateur.prune(folder / "m", folder / "q.jsonl", tmp_path / "out", dtype="float32", **SMALL)
    assert again.already
    assert again.plan == result.plan
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(1.5)
    with pytest.raises(secateur.SecateurError, match="another command"):
        secateur.prune(loaded, folder / "q.jsonl", tmp_path / "out", **SMALL)
    with borrowed(loaded) as changed:
        assert changed.name.startswith("memory:m@")
        assert changed.fingerprint == fingerprint(loaded.model) != loaded.fingerprint


def test_the_name_of_a_model_in_memory_changes_with_all_that_results_depend_on(words):
    def name(model, tokenizer=words):
        with borrowed(model, tokenizer) as loaded:
            return loaded.name

    first, other = tiny("llama"), tiny("llama")
    assert name(first) == name(other)
    other.config.rms_norm_eps = 1e-3
    assert name(first) != name(other)
    changed = type(words).from_pretrained(_saved(words))
    changed.add_tokens(["w95 w94"])
    assert name(first) != name(first, changed)


def _saved(words) -> str:
    import tempfile

    place = tempfile.mkdtemp()
    words.save_pretrained(place)
    return place


def test_evaluate_probe_and_plan_cost_take_a_model_in_memory(folder, words):
    model, task = tiny("llama"), questions()
    mine = secateur.evaluate(model, task, tokenizer=words)
    named = secateur.evaluate(folder / "m", folder / "q.jsonl")
    assert mine["scores"] == named["scores"]
    for how in (
        {"what": "spectrum", "matrices": "down"},
        {"what": "curves", "matrices": "down", "layers": "0:1"},
    ):
        rows = [
            secateur.probe(m, t, **how, **more)["rows"]
            for m, t, more in ((model, task, {"tokenizer": words}), (folder / "m", folder / "q.jsonl", {}))
        ]
        assert rows[0] == rows[1]
    parts = [
        secateur.probe(m, [t, "builtin:recall"][:1], what=("heads", "neurons"), layers="0:1", **more)[
            "components"
        ]
        for m, t, more in ((model, task, {"tokenizer": words}), (folder / "m", folder / "q.jsonl", {}))
    ]
    assert parts[0]["neurons"]
    assert _without_tasks(parts[0]) == _without_tasks(parts[1])
    assert secateur.probe(model, what="induction", tokenizer=words)["rows"]
    straight = secateur.probe(model, task, what="linearity", tokenizer=words, also=[str(folder / "m")])
    assert straight["models"][0]["last"] == straight["models"][1]["last"]
    for calibrate in (False, True):
        cost = secateur.plan_cost(model, task, tokenizer=words, calibrate=calibrate, **SMALL)
        assert cost["parameters"] == sum(p.numel() for p in model.parameters())


def _without_tasks(value):
    """A record without the names of tasks."""
    if isinstance(value, dict):
        return {name: _without_tasks(one) for name, one in value.items() if name not in ("task", "name")}
    return [_without_tasks(one) for one in value] if isinstance(value, list) else value


def test_prune_each_takes_a_model_in_memory(folder, tmp_path, words):
    other = questions(seed=1)
    results = secateur.prune_each(tiny("llama"), [questions(), other], tmp_path, tokenizer=words, **SMALL)
    alone = secateur.prune(folder / "m", other, tmp_path / "alone", **SMALL)
    same_but_names(results[1].verdict, alone.verdict)


@pytest.mark.parametrize(
    ("model", "how", "said"),
    [
        (lambda m, words: m, {}, "has no tokenizer"),
        (lambda m, words: m, {"tokenizer": "m"}, "a str is no tokenizer"),
        (lambda m, words: "m", {"tokenizer": True}, "read with its own"),
        (lambda m, words: torch.nn.Linear(2, 2), {}, "not a Linear"),
        (lambda m, words: m, {"tokenizer": True, "dtype": "float16"}, "dtype= says how a model is loaded"),
        (lambda m, words: m.to("meta"), {"tokenizer": True}, "lies on meta"),
        (lambda m, words: m.model, {"tokenizer": True}, "LlamaModel"),
    ],
)
def test_what_is_no_model_is_refused(model, how, said, words, tmp_path):
    how = {name: words if value is True else value for name, value in how.items()}
    with pytest.raises(secateur.SecateurError, match=said):
        secateur.prune(model(tiny("llama"), words), questions(), tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_with_nan_is_refused_and_given_back(words):
    model = tiny("llama").train()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"lm_head\.weight holds NaN"):
        secateur.evaluate(model, questions(), tokenizer=words)
    assert model.training


def test_a_cut_of_a_model_in_memory_says_that_its_original_has_no_place(tmp_path, words):
    result = secateur.prune(tiny("llama"), questions(), tmp_path / "out", tokenizer=words, **SMALL)
    assert result.verdict["model"]["name"].startswith("memory:LlamaForCausalLM@")
    with pytest.raises(UnknownName, match="was a model in memory"):
        secateur.bench(tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- tasks


def test_rows_become_a_file_of_the_cache_that_only_its_owner_reads(cache, folder):
    rows = questions()
    first = secateur.evaluate(folder / "m", rows)
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    for same in (iter(rows), tuple(rows), datasets.Dataset.from_list(rows)):
        assert secateur.evaluate(folder / "m", same) == first
    assert list(cache.iterdir()) == [file]
    written = file.stat().st_mtime_ns
    secateur.evaluate(folder / "m", rows)
    assert file.stat().st_mtime_ns == written
    file.write_text("damaged")
    assert secateur.evaluate(folder / "m", rows) == first


def test_a_table_may_have_nulls_where_a_row_has_nothing(folder):
    rows = questions()
    rows[3]["group"] = "together"
    rows[4]["group"] = "together"
    rows[5]["paraphrases"] = ["w5 w6"]
    table = datasets.Dataset.from_list([{"group": None, "paraphrases": None} | row for row in rows])
    assert secateur.evaluate(folder / "m", table)["scores"] == secateur.evaluate(folder / "m", rows)["scores"]


def test_the_recorded_command_can_be_run_again(folder, tmp_path):
    result = secateur.prune(folder / "m", questions(), tmp_path / "out", **SMALL)
    command = json.loads((tmp_path / "out/plan.json").read_text())["provenance"]["command"]
    assert secateur.prune(command["model"], command["task"], tmp_path / "out", **SMALL).already
    assert result.verdict["task"]["name"].startswith("rows-")


BROKEN = {
    "task[2]: 'answer' is missing; the row has id, prompt, choices. Right would be {": lambda rows: rows[
        2
    ].pop("answer"),
    "task[2]: unknown key 'answr'. Did you mean answer?": lambda rows: rows[2].update(answr="x"),
    "task[2]: the answer 3 is beyond the 2 choices, whose places are 0 to 1": lambda rows: rows[2].update(
        answer=3
    ),
    "task[2]: id 'q0' was already used in task[0].": lambda rows: rows[2].update(id="q0"),
    "task[2]: it has no choices, and the rows before have them. Use two tasks.": lambda rows: rows[2].pop(
        "choices"
    ),
    "task[2] is a str, and a dict is wanted.": lambda rows: rows.__setitem__(2, "facts"),
    "task[2]: Object of type Path": lambda rows: rows[2].update(meta={"a": object()}),
}


@pytest.mark.parametrize("said", BROKEN)
def test_broken_rows_are_named(said, cache):
    rows = questions()
    BROKEN[said](rows)
    with pytest.raises(TaskError) as caught:
        secateur.evaluate("m", rows)
    assert said.partition("Path")[0] in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (lambda: questions()[0], "a dict is no task"),
        (
            lambda: datasets.DatasetDict({"train": datasets.Dataset.from_list(questions())}),
            r"task\['train'\]",
        ),
        (lambda: 7, "a int is no task"),
        (lambda: ["builtin:facts", questions()[0]], "lists? of their own"),
        (lambda: [], "one task is wanted here, and 0 are given"),
        (lambda: ["builtin:facts", "builtin:recall"], "one task is wanted here, and 2 are given"),
    ],
)
def test_what_is_no_task_is_refused(task, said):
    with pytest.raises(TaskError, match=said):
        secateur.evaluate("builtin:facts", task())


def test_texts_are_measured_as_a_file_of_texts(folder, tmp_path):
    texts = [row["prompt"] * 3 for row in questions(150)]
    mine = secateur.evaluate(folder / "m", secateur.texts(texts), seqlen=16)
    write_rows(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    named = secateur.evaluate(folder / "m", f"text:{tmp_path / 't.jsonl'}", seqlen=16)
    assert mine["scores"] == named["scores"]
    table = secateur.texts(datasets.Dataset.from_dict({"text": texts}))
    assert secateur.evaluate(folder / "m", table, seqlen=16) == mine
    one = secateur.texts(" ".join(texts * 16))
    assert secateur.evaluate(folder / "m", one, seqlen=16)["scores"][0]["metric"] == "text_loss"
    with pytest.raises(TaskError, match=r"texts\[1\]: 'text' is the number 3"):
        secateur.evaluate(folder / "m", secateur.texts(["w5", {"text": 3}]))


def test_other_tasks_may_be_rows_too(folder, tmp_path):
    rows, more = questions(), questions(seed=1)
    how = {"test_task": [row | {"id": f"t{row['id']}"} for row in more], "side": [more]}
    result = secateur.prune(folder / "m", rows, tmp_path / "out", **how, **SMALL)
    assert result.verdict["task"]["splits"]["test"] == len(more)
    assert any("rows-" in effect["name"] for effect in result.verdict["side_effects"])


def test_a_list_of_tasks_may_hold_rows_paths_and_texts(folder, tmp_path):
    tasks = [folder / "q.jsonl", questions(seed=1)]
    result = secateur.prune(folder / "m", tasks, tmp_path / "out", **SMALL)
    assert result.verdict["tasks"][0]["name"] == "q"
    assert len(result.verdict["tasks"]) == 2


# ---------------------------------------------------------------------------------------------------------- signatures


def test_types_of_options_are_those_of_their_descriptions():
    sys.path.insert(0, str(ROOT / "dev"))
    try:
        from write_keywords import FILE, keywords_text
    finally:
        sys.path.pop(0)
    assert FILE.read_text(encoding="utf-8") == keywords_text(), "run python dev/write_keywords.py"


def test_signatures_say_every_option_with_its_default():
    shown = inspect.signature(secateur.prune).parameters
    assert {name: shown[name].default for name in ("layers", "seed", "compose", "target", "step", "method")} == {
        "layers": None, "seed": 0, "compose": True, "target": None, "step": 0.1, "method": None,
    }  # fmt: skip
    for name in (*VERBS, "finetune", "heal", "train"):
        parameters = inspect.signature(getattr(secateur, name)).parameters.values()
        assert not [p for p in parameters if p.kind is p.VAR_KEYWORD], name
    assert "matrices" not in inspect.signature(secateur.finetune).parameters


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: secateur.prune("m", "q", "out", overwite=True),
            "no option 'overwite'. Did you mean overwrite",
        ),
        (lambda: secateur.prune("m", "q", "out", layer="1:2"), "no option 'layer'. Did you mean layers"),
        (lambda: secateur.load("m", dtyp="float16"), "load has no option 'dtyp'. Did you mean dtype"),
        (lambda: secateur.apply("m", "p", "out", zeroes=True), "no option 'zeroes'. Did you mean zeroed"),
        (lambda: secateur.finetune("m", "q", "out", epoch=2), "no option 'epoch'. Did you mean epochs"),
        (lambda: secateur.train("t", "k", "out", layer=2), "no option 'layer'. Did you mean layers"),
        (lambda: secateur.probe("m", "q", wat="heads"), "no option 'wat'. Did you mean what"),
    ],
)
def test_wrong_names_are_errors_with_the_nearest_right_one(call, said):
    with pytest.raises(UnknownName) as caught:
        call()
    assert said in str(caught.value)


def test_the_front_door_is_known_to_checkers():
    text = Path(secateur.__file__).read_text(encoding="utf-8")
    for name in secateur.__all__:
        assert name == "__version__" or f" {name} as {name}" in text, name


def test_no_torch_is_imported_before_options_and_tasks_are_looked_at(tmp_path):
    code = """
import secateur, sys
for call in (
    lambda: secateur.prune("builtin:facts", [{"id": "a"}], "out"),
    lambda: secateur.prune("builtin:facts", "builtin:facts", "out", layers="x"),
    lambda: secateur.evaluate("builtin:facts", secateur.texts([3])),
):
    try:
        call()
    except secateur.SecateurError:
        pass
    else:
        raise AssertionError
assert not {"torch", "transformers"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A real, small run that cuts something."""
    out = tmp_path_factory.mktemp("result") / "out<1>"
    return secateur.prune("builtin:facts", "builtin:facts", out, layers="2:3", matrices="mlp", limit=400)


def test_a_result_is_shown_in_a_line_and_in_a_few_of_html(result):
    shown, verdict = repr(result), result.verdict
    assert "\n" not in shown
    assert len(shown) < 250
    cut = "layer 2, MLP gate projection: 1 of 96 components kept (b2.gate)"
    for piece in (verdict["verdict"], verdict["metric"], cut, str(result.out)):
        assert piece in shown
    page = result._repr_html_()
    assert "<b>improves</b>" in page
    assert "out&lt;1&gt;" in page
    assert "out<1>" not in page


def test_a_verdict_is_a_dictionary_and_shown_as_a_table(result):
    verdict = result.verdict
    assert json.loads(json.dumps(verdict)) == verdict
    assert "\n" not in repr(verdict)
    assert repr(verdict).startswith(f"Verdict({verdict['verdict']}: {verdict['metric']} ")
    page = verdict._repr_html_()
    assert f"{100 * verdict['before']['value']:.1f}\u00a0%" in page
    assert page.count('<th scope="row">') == 1 + len(verdict["secondary"]) + len(verdict["side_effects"])
    hostile = secateur.Verdict(verdict | {"sentence": "<script>alert(1)</script>"})
    assert "&lt;script&gt;" in hostile._repr_html_()
    assert "<script>" not in hostile._repr_html_()


def test_a_reading_that_ranks_shows_its_first_rows_and_escapes_names():
    rows = [{"site": f"b{n}<i>", "importance": n / 100, "rank": 30 - n, "values": [1.0]} for n in range(30)]
    found = secateur.ProbeResult(
        what="heads", model="<b>m", task="<script>", split="select", rows=rows, n=30, of=30
    )
    assert repr(found) == "ProbeResult(heads of <b>m on <script>, split select; heads: 30 rows)"
    page = found._repr_html_()
    assert page.index("b29&lt;i&gt;") < page.index("b20&lt;i&gt;")
    assert "b19" not in page
    assert "20 more rows in the dictionary" in page
    assert "values" not in page
    for name in ("<i>", "<script>", "<b>m"):
        assert name not in page
    with pytest.raises(UnknownName, match="this reading has no figure 'importance'"):
        found.plot("importance")


def test_readings_of_several_things_show_a_table_of_each_with_unit_and_interval(folder):
    found = secateur.probe(folder / "m", folder / "q.jsonl", what=("ffns", "induction"))
    page, networks = found._repr_html_(), found["components"]["ffns"]
    first = max(networks["mean"], key=networks["mean"].get)
    low, high = networks["readings"][0]["intervals"][first]
    assert f"<p>ffns, {networks['unit']}</p>" in page
    assert (
        f'<th scope="row">{first}</th><td>{networks["mean"][first]:.4g}</td><td>[{low:.4g}, {high:.4g}]'
        in page
    )
    assert "<p>what heads do, 0 to 1</p>" in page
    assert "\n" not in repr(found)
    assert "parts-0" in found.figures
    assert len(found.plot("parts").data) == len(found.figures["parts-0"].data) > 0


def test_linearity_shows_the_most_linear_block_first(folder):
    found = secateur.probe(folder / "m", folder / "q.jsonl", what="linearity")
    rows = [(row["without_outliers"] or row, row["site"]) for row in found["models"][0]["rows"]]
    best = max(rows, key=lambda pair: pair[0]["stream"][1])
    page = found._repr_html_()
    assert page.index(f">{best[1]}</th><td>{best[0]['stream'][1]:.4g}</td>") == page.index(">b")
    assert "linearity-0" in found.figures


def test_figures_of_a_result_show_the_numbers_of_its_records(result):
    figure, verdict = result.plot_intervals(), result.verdict
    sides = {trace.name: trace for trace in figure.data if trace.xaxis == "x"}
    for side in ("before", "after"):
        assert sides[side].x[0] == verdict[side]["value"]
        low, high = verdict[side]["ci"]
        assert sides[side].error_x.array[0] == pytest.approx(high - verdict[side]["value"])
        assert sides[side].error_x.arrayminus[0] == pytest.approx(verdict[side]["value"] - low)
    assert len(result.plot_effects().data) > 0
    assert len(result.plot_tasks().data) == 0  # of one task
    assert len(result.plot_frequency().data) == 3


def test_every_figure_of_the_report_can_be_drawn(result):
    page = (result.out / "report.html").read_text(encoding="utf-8")
    assert {"sweep-0", "curves-0", "spectrum-0", "screen-0", "frequency-0"} <= set(result.figures)
    for name in result.figures:
        assert f'id="{name}"' in page
        assert len(result.plot(name).data) == len(result.figures[name].data)
    with pytest.raises(UnknownName, match="no figure 'swep'"):
        result.plot("swep")
    assert result.plot("sweep") == result.plot("sweep-0")


def test_a_result_that_was_there_has_the_same_figures(result):
    again = secateur.prune(
        "builtin:facts", "builtin:facts", result.out, layers="2:3", matrices="mlp", limit=400
    )
    assert again.already
    assert again.plot_intervals().to_dict() == result.plot_intervals().to_dict()
    assert repr(again) == repr(result)


def test_what_was_not_verified_says_so(result, tmp_path):
    applied = secateur.apply("builtin:facts", result.plan, tmp_path / "cut")
    assert repr(applied) == f"Result(not verified: {result.plan}, in {tmp_path / 'cut'})"
    assert "Nothing was measured" in applied._repr_html_()
    with pytest.raises(secateur.SecateurError, match="nothing was verified"):
        applied.plot_intervals()
