"""`probe --what linearity` from folders: what is recorded, drawn and printed, series of checkpoints, what is refused.
The scores themselves are checked in reference/test_linearity_probe.py."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
from fixtures.encoders import ENCODERS, WITH_HEAD
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import tiny
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import secateur as package
from secateur.errors import ModelError, OutputError, PlanError, SecateurError, TaskError, UnknownName
from secateur.hf import blank, load
from secateur.hf.readable import load_readable, readable_from
from secateur.hf.source import ModelSource, read_config
from secateur.probes.linearity import linearity
from secateur.tasks.load import load_task


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("linearity")
    for name in ("gpt2", "llama", "gpt2-untied-wide", "opt-projected"):
        save_model(place / name, tiny(name), words)
    for name in ("bert", "roberta", "t5"):
        save_model(place / name, WITH_HEAD[name](), words)
    save_model(place / "bare", ENCODERS["bert"](), words)
    draw = random.Random(0)
    rows = [{"text": " ".join(f"w{draw.randrange(3, 90)}" for _ in range(30))} for _ in range(260)]
    write_rows(place / "text.jsonl", rows)
    write_rows(place / "q.jsonl", questions())
    return place


def read(place: Path, name: str, task: str = "text.jsonl", **options):
    spec = f"text:{place / task}" if task.startswith("text") else str(place / task)
    return package.probe(str(place / name), spec, what="linearity", **options)


def rows_of(model: dict) -> dict:
    return {row["site"]: row for row in model["rows"]}


# -------------------------------------------------------------------------------------------------------------- records


def test_one_model(place, words):
    found = read(place, "gpt2-untied-wide")
    assert (found["what"], found["task"], found["split"]) == ("linearity", "text", "select")
    (model,) = found["models"]
    assert (model["kind"], model["norms"], model["n"], model["of"]) == ("decoder", {"": "pre"}, 104, 104)
    assert model["held_out"] == 26
    assert list(rows_of(model)) == ["b0", "b1", "b2"]
    task = load_task(f"text:{place / 'text.jsonl'}", tokenizer=words)
    tokens = sum(len(task.examples[number].tokens) for number in task.split("select"))
    assert {row["num_tokens"] for row in model["rows"]} == {tokens}
    assert all(abs(row["num_fit"] / tokens - 0.75) < 0.02 for row in model["rows"])
    assert json.loads(json.dumps(found)) == found


def test_sequences_and_sides_are_what_the_probe_is_given(place, words):
    """Every token of the split; whole documents are held out."""
    task = load_task(f"text:{place / 'text.jsonl'}", tokenizer=words)
    sequences = [task.examples[number].tokens for number in task.split("select")]
    groups = sorted(task.examples[number].group for number in task.split("select"))
    random.Random(0).shuffle(groups)
    held_out = [task.examples[number].group in groups[:26] for number in task.split("select")]
    wanted = linearity(load_readable(str(place / "gpt2")), sequences, held_out)
    (model,) = read(place, "gpt2")["models"]
    for row, one in zip(model["rows"], wanted.rows, strict=True):
        assert row["stream"] == pytest.approx([one.stream.in_sample, one.stream.held_out], abs=1e-6)
        assert row["added"] == pytest.approx([one.added.in_sample, one.added.held_out], abs=1e-6)


def test_the_same_again_and_on_other_splits(place):
    assert read(place, "llama") == read(place, "llama")
    assert read(place, "llama", split_seed=1) != read(place, "llama")
    assert read(place, "llama", split="probe", allow_small=True)["models"][0]["n"] == 26


def test_questions_are_read_with_their_right_answers(place, words):
    task = load_task(str(place / "q.jsonl"), tokenizer=words)
    asked = [task.examples[number] for number in task.split("select")]
    (model,) = read(place, "gpt2", "q.jsonl")["models"]
    assert model["n"] == len(asked)
    texts = [example.prompt + example.choices[example.gold] for example in asked]
    assert model["rows"][0]["num_tokens"] == sum(len(words.encode(text)) for text in texts)
    shots = read(place, "gpt2", "q.jsonl", shots=2)["models"][0]
    assert shots["rows"][0]["num_tokens"] > 2 * model["rows"][0]["num_tokens"]


def test_what_does_not_fit_is_left_out_when_asked(place):
    rows = questions()
    longer = " w5" * 90
    rows = [row | {"prompt": row["prompt"] + longer * (n % 10 == 0)} for n, row in enumerate(rows)]
    write_rows(place / "long.jsonl", rows)
    with pytest.raises(TaskError, match="context of 64"):
        read(place, "gpt2", "long.jsonl")
    model = read(place, "gpt2", "long.jsonl", skip_long=True)["models"][0]
    assert 0 < model["n"] < model["of"]


def test_some_layers(place):
    (model,) = read(place, "gpt2-untied-wide", layers=(1, 2))["models"]
    assert list(rows_of(model)) == ["b1"]
    with pytest.raises(UnknownName, match="blocks 0 to 1"):
        read(place, "gpt2", layers=(1, 3))


def test_parts(place):
    (model,) = read(place, "llama", parts=True)["models"]
    assert list(rows_of(model)) == ["b0", "b0.attn", "b0.mlp", "b1", "b1.attn", "b1.mlp"]
    post = rows_of(read(place, "opt-projected")["models"][0])
    assert post["b0"]["added"] is None
    assert "norm sits on the stream" in post["b0"]["reason"]
    assert post["b0.mlp"]["stream"] is None
    assert post["b0.mlp"]["added"] is not None


# ------------------------------------------------------------------------------------------------ encoders from folders


@pytest.mark.parametrize("name", ["bert", "roberta", "t5"])
def test_encoders_with_a_head_are_read_without_it(name, place):
    readable = load_readable(str(place / name))
    base = WITH_HEAD[name]().base_model if name != "t5" else WITH_HEAD[name]().state_dict()
    inner = readable.runs.state_dict()
    known = base if isinstance(base, dict) else base.state_dict()
    read_keys = [key for key in inner if key in known]
    assert sum(key.count("block.") + key.count("layer.") for key in read_keys) > 20
    assert all(torch.equal(inner[key], known[key]) for key in read_keys)
    sites = list(rows_of(read(place, name)["models"][0]))
    assert sites[:3] == ["enc.b0", "enc.b0.attn", "enc.b0.mlp"]
    assert ("dec.b2.cross" in sites) == (name == "t5")


def test_an_encoder_in_memory_is_the_same(place, words):
    sequences = [tuple(range(3, 40))] * 4 + [tuple(range(40, 80))] * 4
    held_out = [False, True] * 4
    found = [
        linearity(readable, sequences, held_out)
        for readable in (load_readable(str(place / "bare")), readable_from(ENCODERS["bert"](), words))
    ]
    assert found[0] == found[1]


def test_what_is_read_is_still_not_cut(place, tmp_path):
    task = f"text:{place / 'text.jsonl'}"
    for attempt in (
        lambda: package.prune(str(place / "bare"), task, tmp_path / "out"),
        lambda: package.apply(str(place / "bare"), ["b0=drop"], tmp_path / "out"),
        lambda: package.probe(str(place / "bare"), task, what="spectrum"),
    ):
        with pytest.raises(ModelError, match="and is not read"):
            attempt()


def test_contexts_of_encoders(place):
    assert [load_readable(str(place / n)).context for n in ("bert", "roberta", "t5")] == [64, 64, None]
    draw = random.Random(0)
    rows = [{"text": " ".join(f"w{draw.randrange(3, 90)}" for _ in range(70))} for _ in range(260)]
    write_rows(place / "text70.jsonl", rows)
    for name in ("bert", "roberta"):
        with pytest.raises(TaskError, match="context of 64"):
            read(place, name, "text70.jsonl")
        assert read(place, name, "text70.jsonl", seqlen=64)["models"][0]["n"] == 208


def test_encoders_read_text_alone(place):
    with pytest.raises(TaskError, match="is an encoder, which is read on text alone"):
        read(place, "bert", "q.jsonl")


def broken(place: Path, to: Path, change) -> Path:
    to.mkdir()
    for path in (place / "bert").iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_encoders_with_gaps_are_refused(place, tmp_path, words):
    name = "bert.encoder.layer.1.output.dense.weight"
    changes = {
        "gone": lambda tensors: tensors.pop(name),
        "wide": lambda tensors: tensors.update({name: torch.zeros(5, 5)}),
        "more": lambda tensors: tensors.update({name.replace(".1.", ".7."): torch.zeros(5, 5)}),
        "nan": lambda tensors: tensors[name].fill_(torch.nan),
    }
    for how, change in changes.items():
        folder = broken(place, tmp_path / how, change)
        with pytest.raises(ModelError, match="NaN" if how == "nan" else "do not fit its config"):
            load_readable(str(folder))


# --------------------------------------------------------------------------------------------------------------- series


def test_a_series_of_folders(place):
    found = read(place, "gpt2", also=[str(place / "llama"), str(place / "t5")])
    assert [Path(model["name"]).name for model in found["models"]] == ["gpt2", "llama", "t5"]
    assert found["models"][1] == read(place, "llama")["models"][0]


def test_revisions_of_a_hub_model(place, monkeypatch, tmp_path):
    """Each is fetched by its name; here folders stand for them."""
    folders = {"step1": place / "gpt2", "step2": place / "gpt2-untied-wide"}

    def hub_source(name: str, revision: str | None) -> ModelSource:
        if revision not in folders:
            raise UnknownName(f"{name} has no revision {revision!r} on the hub.")
        return ModelSource(
            name, folders[revision], read_config(folders[revision]), revision=f"commit-{revision}"
        )

    (tmp_path / "models--some--model").mkdir()  # the cache has something of it, so that the hub is not asked
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "hub_source", hub_source)
    for module in (load, blank):
        monkeypatch.setattr(module, "download", lambda source, **how: source)
    task, done = f"text:{place / 'text.jsonl'}", []
    found = package.probe(
        "some/model", task, what="linearity", revisions=["step1", "step2"], progress=lambda *p: done.append(p)
    )
    assert [(m["name"], m["revision"]) for m in found["models"]] == [
        ("some/model@step1", "commit-step1"), ("some/model@step2", "commit-step2")
    ]  # fmt: skip
    assert found["models"][1]["rows"] == read(place, "gpt2-untied-wide")["models"][0]["rows"]
    assert [p for p in done if p[0] == "models"] == [("models", n, 2) for n in range(3)]
    done.clear()
    with pytest.raises(UnknownName, match="no revision 'step3'"):
        package.probe(
            "some/model",
            task,
            what="linearity",
            revisions=["step1", "step3"],
            progress=lambda *p: done.append(p),
        )
    assert not done, "found out before anything was read"


def test_what_a_series_refuses(place):
    with pytest.raises(ModelError, match="local folder"):
        read(place, "gpt2", revisions=["step1"])
    with pytest.raises(UnknownName, match="given twice"):
        read(place, "gpt2", also=[str(place / "gpt2")])
    with pytest.raises(UnknownName, match="no folder"):
        read(place, "gpt2", also=["./nowhere"])


# ---------------------------------------------------------------------------------------------------------- what is not


def test_what_is_refused(place):
    text = f"text:{place / 'text.jsonl'}"
    with pytest.raises(TaskError, match="give --task"):
        package.probe(str(place / "gpt2"), what="linearity")
    with pytest.raises(TaskError, match="one --task"):
        package.probe(str(place / "gpt2"), [text, str(place / "q.jsonl")], what="linearity")
    with pytest.raises(TaskError, match="one --task"):
        package.probe(str(place / "gpt2"), text, what="linearity", shots=[0, 1])
    with pytest.raises(TaskError, match="reads one thing"):
        package.probe(str(place / "gpt2"), text, what=["linearity", "heads"])
    with pytest.raises(PlanError, match="as it is"):
        package.probe(str(place / "gpt2"), text, what="linearity", plan=["b0=drop"])
    with pytest.raises(TaskError, match="one verdict"):
        package.probe(str(place / "gpt2"), text, what="linearity", split="test")
    for more in ({"also": ["x"]}, {"revisions": ["x"]}, {"parts": True}):
        with pytest.raises(TaskError, match="are for --what linearity"):
            package.probe(str(place / "gpt2"), text, what="spectrum", **more)


def test_too_few_sequences_to_hold_some_out(place, tmp_path):
    """Ten chunks of a .txt file are one group."""
    path = tmp_path / "short.txt"
    path.write_text(" ".join(f"w{n % 80 + 3}" for n in range(100)), encoding="utf-8")
    for seqlen in (256, 8):
        with pytest.raises(TaskError, match=r"too few groups|has 1 group of sequences|has 0 group"):
            package.probe(
                str(place / "gpt2"),
                f"text:{path}",
                what="linearity",
                seqlen=seqlen,
                allow_small=True,
                out=tmp_path / "new/out",
            )
        assert list(tmp_path.iterdir()) == [path], "no empty folders are left"


def test_a_name_that_no_folder_can_have_is_refused(place, tmp_path):
    told = secateur(
        "probe",
        place / "gpt2",
        "--what",
        "linearity",
        "--task",
        "builtin:facts",
        "-o",
        tmp_path / ("x" * 300),
    )
    assert told.exit_code == 2
    assert "name too long" in " ".join(told.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_when_nothing_is_read(place, tmp_path):
    for name in ("heads", "linearity"):
        with pytest.raises(SecateurError):
            package.probe(str(place / "nowhere"), "builtin:facts", what=name, out=tmp_path)
        assert tmp_path.is_dir()
        with pytest.raises(SecateurError):
            package.probe(str(place / "nowhere"), "builtin:facts", what=name, out=tmp_path / "new")
        assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- files and the page


def test_files(place, tmp_path):
    found = read(place, "gpt2", also=[str(place / "t5")], out=tmp_path / "out")
    assert found.pop("written") == [str(tmp_path / "out" / name) for name in ("probe.json", "probe.html")]
    record = json.loads((tmp_path / "out/probe.json").read_text(encoding="utf-8"))
    assert record.pop("versions")["secateur"] == package.__version__
    assert record == found
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError):
        read(place, "gpt2", out=tmp_path / "file")


def figures_of(page: str) -> dict[str, dict]:
    raw = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, flags=re.S)[1]
    return {figure["id"]: figure for figure in json.loads(raw)}


def test_the_page_draws_the_numbers(place, tmp_path):
    found = read(place, "gpt2-untied-wide", also=[str(place / "bert")], out=tmp_path / "out")
    page = (tmp_path / "out/probe.html").read_text(encoding="utf-8")
    figures = figures_of(page)
    assert set(figures) == {"linearity-0", "linearity-1", "shape-0", "shape-1", "shape-2"}
    for figure in figures.values():
        go.Figure(figure["data"], figure["layout"])  # raises where plotly's schema is not kept
        assert f'id="{figure["id"]}"' in page
    solid, dashed = (
        [t for t in figures["linearity-0"]["data"] if t["line"]["dash"] == d] for d in ("solid", "dash")
    )
    for traces, side in ((solid, 1), (dashed, 0)):
        for trace, model in zip(traces, found["models"], strict=True):
            blocks = [row for row in model["rows"] if row["stream"]]
            assert trace["y"] == [row["stream"][side] for row in blocks]
            assert trace["x"] == list(range(len(blocks)))
    assert len(figures["linearity-1"]["data"]) == 2, "of BERT what a block adds is not defined"
    assert "norm sits on the stream" in page
    assert "<script src" not in page


def test_names_are_escaped_on_the_page(place, tmp_path, words):
    save_model(tmp_path / "a<b>&", tiny("gpt2"), words)
    package.probe(
        str(tmp_path / "a<b>&"), f"text:{place / 'text.jsonl'}", what="linearity", out=tmp_path / "out"
    )
    assert "a<b>&" not in (tmp_path / "out/probe.html").read_text(encoding="utf-8").replace("\\u003c", "<!")


# --------------------------------------------------------------------------------------------------------- command line


def test_the_table_of_one_model(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    task = f"text:{place / 'text.jsonl'}"
    done = secateur("probe", place / "opt-projected", "--task", task, "--what", "linearity", "-q")
    assert done.exit_code == 0, done.output
    row = rows_of(read(place, "opt-projected")["models"][0])["b1"]
    wanted = rf"b1 +{row['stream'][0]:.4f} +{row['stream'][1]:.4f} +{row['cosine']:.3f} "
    assert re.search(wanted, done.output)
    assert re.search("note: b.*: .*the norm sits on the stream", done.output)


def test_the_table_of_a_series(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    words = ["probe", place / "gpt2", "--also", place / "gpt2-untied-wide", "--what", "linearity", "-q"]
    words += ["--task", f"text:{place / 'text.jsonl'}"]
    shown, raw = secateur(*words), secateur(*words, "--json")
    assert (shown.exit_code, raw.exit_code) == (0, 0), shown.output
    models = json.loads(raw.stdout)["models"]
    first, second = (rows_of(model) for model in models)
    for name in ("stream", "added"):
        assert re.search(rf"b1 +{first['b1'][name][1]:.4f} +{second['b1'][name][1]:.4f}", shown.output)
        assert re.search(rf"b2 +{second['b2'][name][1]:.4f}", shown.output)
    assert shown.output.count("held out") == 2


def test_few_tokens_are_told(place):
    done = secateur(
        "probe", place / "gpt2", "--task", place / "q.jsonl", "--what", "linearity", "--limit", "125", "-q"
    )
    assert "not to be trusted: b0, b1" in done.output
