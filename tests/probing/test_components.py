"""Readings of several tasks at several numbers of shots: each is what it is alone, on prompts one could type."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import CONTEXT, tiny
from scipy.stats import spearmanr, ttest_1samp

import secateur as package
from secateur.core.plan import Drop
from secateur.core.site import Site
from secateur.errors import OutputError, PlanError, TaskError, UnknownName
from secateur.options import Options
from secateur.session import open_session
from secateur.tasks.load import load_task
from secateur.tasks.shots import with_shots

SHOTS = (0, 1, 5)


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("components")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "a.jsonl", questions(seed=1))
    write_rows(place / "b.jsonl", questions(seed=2))
    write_rows(place / "long.jsonl", long_questions())
    return place


def long_questions() -> list[dict]:
    """Of 4 to 12 words, so that some fit the context with five shots and some do not."""
    rows = questions()
    return [row | {"prompt": " ".join([row["prompt"]] + ["w5"] * (n % 9))} for n, row in enumerate(rows)]


def read(place, *tasks, **more):
    return package.probe(str(place / "m"), [str(place / f"{task}.jsonl") for task in tasks], **more)


@pytest.fixture(scope="module")
def several(place):
    return read(place, "a", "b", what="heads", shots=SHOTS)


# -------------------------------------------------------------------------------------------------- what a record holds


def test_there_is_one_reading_for_each_task_and_number_of_shots(several):
    assert (several["what"], several["tasks"], several["shots"]) == (["heads"], ["a", "b"], [0, 1, 5])
    readings = several["components"]["heads"]["readings"]
    assert [(r["task"], r["shots"], r["n"], r["of"]) for r in readings] == [
        (task, shots, 104, 104) for task in "ab" for shots in SHOTS
    ]
    assert [r["name"] for r in readings][:2] == ["a, 0-shot", "a, 1-shot"]
    assert all(list(r["values"]) == [f"b{b}.attn.h{h}" for b in range(2) for h in range(4)] for r in readings)


def test_a_reading_among_several_is_the_reading_alone(place, several):
    for reading in several["components"]["heads"]["readings"][1::2]:
        alone = read(place, reading["task"], what="heads", shots=reading["shots"])
        assert reading["values"] == {row["site"]: row["importance"] for row in alone["rows"]}
        shots = reading["shots"]
        assert alone["task"] == (f"{reading['task']} ({shots}-shot)" if shots else reading["task"])


def test_the_order_in_which_tasks_and_shots_are_given_changes_no_value(place, several):
    turned = read(place, "b", "a", what="heads", shots=SHOTS[::-1])
    by_name = {r["name"]: r["values"] for r in turned["components"]["heads"]["readings"]}
    for reading in several["components"]["heads"]["readings"]:
        assert by_name[reading["name"]] == reading["values"]


def test_mean_and_overlap_are_those_of_numpy_and_scipy(several):
    heads = several["components"]["heads"]
    values = np.array([list(reading["values"].values()) for reading in heads["readings"]])
    np.testing.assert_allclose(list(heads["mean"].values()), values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(heads["overlap"]["rho"], spearmanr(values, axis=1).statistic, atol=1e-12)
    assert (heads["overlap"]["n"], heads["unit"]) == (8, "nats/token")
    assert (
        np.abs(np.array(heads["overlap"]["rho"]) - 1).max() > 0.1
    )  # they do differ, so equality says something


def test_few_shot_prompts_are_read_as_if_written_in_a_file(place, words):
    """The same ids give the same splits, so a file of ready prompts at 0 shots reads as the bare one with shots."""
    rows = {row["id"]: row for row in questions(seed=1)}
    shot = with_shots(load_task(str(place / "a.jsonl"), tokenizer=words), 2, 0)
    typed = [rows[e.id] | {"prompt": e.prompt} for e in shot.examples]
    write_rows(place / "typed.jsonl", typed)
    by_hand = read(place, "typed", what="heads")["rows"]
    assert by_hand == read(place, "a", what="heads", shots=2)["rows"]
    assert by_hand != read(place, "a", what="heads")["rows"]


def test_what_does_not_fit_is_left_out_and_counted(place, words):
    with pytest.raises(TaskError, match="--skip-long leaves it out"):
        read(place, "long", what="heads", shots=SHOTS)
    found = read(place, "long", what="heads", shots=SHOTS, skip_long=True)
    plain = load_task(str(place / "long.jsonl"), tokenizer=words)
    for reading, shots in zip(found["components"]["heads"]["readings"], SHOTS, strict=True):
        shot = with_shots(plain, shots, 0)
        asked = shot.of(shot.split("select"))
        lengths = [max(len(words(e.prompt + choice).input_ids) for choice in e.choices) for e in asked]
        assert (reading["n"], reading["of"]) == (sum(length <= CONTEXT for length in lengths), 104)
    assert found["components"]["heads"]["readings"][0]["n"] == 104
    assert 0 < found["components"]["heads"]["readings"][2]["n"] < 80


def test_ablation_gives_networks_attentions_and_blocks(place):
    record = read(place, "a", "b", what="ffns")["components"]
    assert list(record) == ["ffns", "attentions", "blocks"]
    rows = {row["site"]: row for row in read(place, "a", what="ffns")["rows"]}
    for kind, part in (("ffns", ".mlp"), ("attentions", ".attn"), ("blocks", "")):
        assert list(record[kind]["mean"]) == [f"b0{part}", f"b1{part}"]
        assert record[kind]["unit"] == "nats/token"
        first = record[kind]["readings"][0]
        assert first["values"] == {site: rows[site]["loss"] for site in record[kind]["mean"]}


def test_several_things_are_read_together(place):
    record = read(place, "a", what=["heads", "ffns", "induction"], layers=(1, 2))["components"]
    scores = ["prefix_matching", "copying", "copying_beyond_sink"]
    behavior = {*scores, "attention_sink", "induction_overlap"}
    assert set(record) == {"heads", "ffns", "attentions", "blocks"} | behavior
    assert record["heads"]["overlap"] is None  # one reading
    named = [record["heads"]["mean"], *(record[name] for name in scores)]
    rho = spearmanr([list(values.values()) for values in named], axis=1).statistic
    np.testing.assert_allclose(record["induction_overlap"]["rho"], rho, atol=1e-12)
    assert record["induction_overlap"]["names"] == [
        "importance",
        *(name.replace("_", " ") for name in scores),
    ]


def test_each_ablation_has_the_interval_of_its_paired_differences(place):
    """Against scipy's own interval of the mean of the losses with the part missing less those of the whole model."""
    session = open_session(Options(model=str(place / "m"), task=str(place / "a.jsonl")), None)
    examples = session.task.split("select")
    assert len(set(session.task.groups(examples))) == len(examples), "each is a group of its own"
    whole, without = session.empty, session.empty + Drop(Site.parse("b1.mlp"))
    losses = {plan: rows["loss"] for plan, rows in session.judge()([whole, without], examples).items()}
    expected = ttest_1samp(losses[without] - losses[whole], 0).confidence_interval(0.95)
    (row,) = [row for row in read(place, "a", what="ffns")["rows"] if row["site"] == "b1.mlp"]
    np.testing.assert_allclose(row["loss_ci"], list(expected), rtol=1e-9)
    assert row["loss_ci"][0] < row["loss"] < row["loss_ci"][1]


def test_the_order_of_heads_is_checked_against_taking_them_out(place):
    """All 8 heads fit the sample; each is taken out by an edit of its own, on all examples of the split."""
    found = read(place, "a", what="heads", limit=260)
    rows = {row["site"]: row for row in found["rows"]}
    check = found["check"]
    assert set(check["rise"]) == set(rows)
    word = str(place / "a.jsonl")
    whole = package.evaluate(str(place / "m"), word, split="select", limit=260)
    metric = "choice_loss"
    for site in ("b0.attn.h1", "b1.attn.h3"):
        cut = package.evaluate(str(place / "m"), word, split="select", limit=260, plan=[f"{site}=drop"])
        value, base = (
            next(score["value"] for score in e["scores"] if score["metric"] == metric) for e in (cut, whole)
        )
        if check["examples"] == found["n"]:
            assert check["rise"][site] == pytest.approx(value - base, abs=1e-6)
    for name in ("expected_rise", "importance"):
        rho = spearmanr([rows[site][name] for site in check["rise"]], list(check["rise"].values())).statistic
        low, high = check["agreement"][name]["ci"]
        assert check["agreement"][name]["rho"] == pytest.approx(rho, abs=1e-12)
        assert low < rho < high


# ----------------------------------------------------------------------------------------------------- layers, no task


@pytest.mark.parametrize("what", ["heads", "ffns", "neurons", "induction"])
def test_layers_are_those_asked_for_and_their_values_the_same(place, what):
    whole, last = (read(place, "a", what=what, layers=layers)["rows"] for layers in (None, (1, 2)))
    kept = [row for row in whole if row["site"].startswith("b1")]
    without_rank = [[{k: v for k, v in row.items() if k != "rank"} for row in rows] for rows in (kept, last)]
    assert without_rank[0] == without_rank[1]
    assert 0 < len(last) == len(whole) / 2
    with pytest.raises(UnknownName, match="layers 2:3 are not in this model"):
        read(place, "a", what=what, layers=(2, 3))


def test_induction_needs_no_task_and_shows_importance_beside_it_with_one(place):
    alone, beside = read(place, what="induction"), read(place, "a", what="induction")
    assert (alone["task"], alone["overlap"]) == (None, None)
    scores = {"prefix_matching", "copying", "copying_beyond_sink", "attention_sink"}
    assert set(alone["rows"][0]) == {"site"} | scores
    importance = {row["site"]: row["importance"] for row in read(place, "a", what="heads")["rows"]}
    assert beside["rows"] == [row | {"importance": importance[row["site"]]} for row in alone["rows"]]
    assert beside["overlap"]["names"][0] == "importance"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("tasks", "more", "error", "message"),
    [
        ((), {"what": "heads"}, TaskError, "give --task"),
        ((), {"what": ["heads", "induction"]}, TaskError, "give --task"),
        ((), {}, TaskError, "give --task"),
        (("a", "a"), {"what": "heads"}, TaskError, "two tasks are called 'a'"),
        (("a", "b"), {"what": "spectrum"}, TaskError, "reads one thing"),
        (("a",), {"what": "curves", "shots": (0, 1)}, TaskError, "reads one thing"),
        (("a",), {"what": ["heads", "tail"]}, TaskError, "reads one thing"),
        (("a",), {"what": ["heads", "head"]}, UnknownName, "Did you mean heads"),
        (("a",), {"what": []}, UnknownName, "unknown probe"),
        (("a",), {"what": "heads", "plan": ["b1.down=3"]}, PlanError, "leave out --plan"),
        (("a",), {"what": "heads", "split": "test"}, TaskError, "one verdict"),
        (("a",), {"what": "heads", "shots": 40}, TaskError, "need 40 other groups .* which has 2[56]"),
    ],
)
def test_what_cannot_be_read_is_refused(place, tasks, more, error, message):
    with pytest.raises(error, match=message):
        read(place, *tasks, **more)


def test_losses_of_text_and_of_answers_are_not_averaged(place):
    (place / "t.txt").write_text("w5 w6 w7 w8 " * 4500, encoding="utf-8")
    tasks = [f"text:{place / 't.txt'}", str(place / "a.jsonl")]
    with pytest.raises(TaskError, match="different losses"):
        package.probe(str(place / "m"), tasks, what="ffns", seqlen=6)
    found = package.probe(str(place / "m"), tasks, what="heads", seqlen=6)
    assert [r["task"] for r in found["components"]["heads"]["readings"]] == ["t", "a"]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(place):
    with pytest.raises(OutputError, match="lies in"):
        read(place, "a", what="heads", out=place / "m" / "config.json" / "o")


# ---------------------------------------------------------------------------------------------------- the command line


def probe_words(place, *more):
    return ["probe", place / "m", "--task", place / "a.jsonl", "--task", place / "b.jsonl", *more]


def test_the_tables_of_several_fit_a_narrow_terminal_and_show_the_record(place, several, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(place)
    words = ["probe", "m", "--task", "a.jsonl", "--task", "b.jsonl"]
    result = secateur(*words, "--what", "heads", "--shots", "0,1,5")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert ["6", "b,", "5-shot", "104", "104"] in lines
    heads = several["components"]["heads"]
    best = max(heads["mean"], key=heads["mean"].__getitem__)
    values = [reading["values"][best] for reading in heads["readings"]]
    shown = [f"{value:.4g}" for value in (heads["mean"][best], min(values), max(values))]
    assert [best, shown[0], "1", *shown[1:]] in lines
    row = [f"{value:.2f}" for value in heads["overlap"]["rho"][0]]
    assert ["1", *row] in lines


@pytest.mark.slow
def test_more_readings_than_fit_show_each_ones_mean_with_the_others(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shots = ",".join(map(str, range(6)))
    result, told = (
        secateur(*probe_words(place, "--what", "heads", "--shots", shots, *more)) for more in ([], ["--json"])
    )
    rho = np.array(json.loads(told.stdout)["components"]["heads"]["overlap"]["rho"])
    assert rho.shape == (12, 12)
    lines = [line.split() for line in result.stdout.splitlines()]
    for number in range(12):
        assert [str(number + 1), f"{np.delete(rho[number], number).mean():.2f}"] in lines


@pytest.mark.parametrize(("more", "count"), [((), 20), (("--top", "3"), 6), (("--top", "40"), 80)])
def test_of_neurons_the_most_and_least_important_are_printed(place, more, count):
    words = ["probe", place / "m", "--task", place / "a.jsonl", "--what", "neurons"]
    shown, told = secateur(*words, *more), secateur(*words, "--json")
    rows = sorted(json.loads(told.stdout)["rows"], key=lambda row: row["rank"])
    assert len(rows) == 80
    ends = {row["site"] for row in rows[: count // 2] + rows[-(count // 2) :]}
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert {line[0] for line in lines if line[0].startswith("b")} == ends
    assert (["…", str(80 - count), "between"] in lines) == (count < 80)


def test_what_was_left_out_is_in_the_title(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    words = [
        "probe",
        place / "m",
        "--task",
        place / "long.jsonl",
        "--shots",
        "5",
        "--skip-long",
        "--what",
        "heads",
    ]
    told = json.loads(secateur(*words, "--json").stdout)
    assert f"long (5-shot) (select), {told['n']} of 104 examples fit" in secateur(*words).stdout


def test_out_holds_the_record_and_its_page(place, several, tmp_path):
    words = probe_words(place, "--what", "heads", "--shots", "0,1,5", "-o", tmp_path / "o")
    result = secateur(*words)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "o/probe.json").read_text())
    assert {key: record[key] for key in several} == several
    assert (record["layers"], set(record["versions"]) > {"secateur", "torch"}) == (None, True)
    assert "a, 5-shot" in (tmp_path / "o/probe.html").read_text(encoding="utf-8")
    assert f"written  {tmp_path / 'o/probe.html'}" in result.stdout
    assert secateur(*words).exit_code == 0  # an older reading is replaced


def test_a_single_reading_is_written_in_the_same_shape(place, tmp_path):
    for what, files in (("heads", {"probe.json", "probe.html"}), ("neurons", {"probe.json", "probe.html"})):
        found = read(place, "a", what=what, out=tmp_path / what)
        assert {path.name for path in (tmp_path / what).iterdir()} == files
        (reading,) = json.loads((tmp_path / what / "probe.json").read_text())["components"][what]["readings"]
        assert reading["values"] == {row["site"]: row["importance"] for row in found["rows"]}


def test_a_wrong_number_of_shots_is_refused(place):
    result = secateur(*probe_words(place, "--what", "heads", "--shots", "0,-1"))
    assert (result.exit_code, "write a number, or several such as 0,1,5" in result.stderr) == (2, True)
