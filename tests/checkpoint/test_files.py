"""Files that anybody may have written, names that anybody may have given: nothing in them stops, hangs or fools us."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch
from fixtures.folders import contents, done_in, questions, save_model, secateur, write_rows
from fixtures.forked import in_terminal, limited
from fixtures.marks import slow_but
from fixtures.zoo import tiny
from safetensors.torch import load_file, save_file

from secateur.cli.terminal import Terminal, one_line, plain
from secateur.core.ledger import Ledger
from secateur.core.reading import read_json
from secateur.errors import LedgerError, SecateurError, lacks_memory

DEEP = "[" * 100_000
SECATEUR = [sys.executable, "-m", "secateur"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, words):
    """A model, the same in shards, a task, and what each verb leaves."""
    place = tmp_path_factory.mktemp("made")
    save_model(place / "m", tiny("llama"), words)
    save_model(place / "shards", tiny("llama"), words, max_shard_size="20kB")
    write_rows(place / "q.jsonl", questions())
    small = ["--task", "q.jsonl", "--side", "q.jsonl"]
    return done_in(
        place,
        ["prune", "m", *small, "--layers", "1", "--matrices", "down", "-o", "out"],
        ["prune", "m", *small, "--method", "depth", "--blocks", "1", "--form", "linear", "-o", "depth"],
        ["finetune", "m", "--task", "q.jsonl", "--max-steps", "1", "-o", "tuned"],
        ["heal", "depth", *small, "--max-steps", "1", "-o", "healed"],
        ["apply", "m", "--edit", "b1.mlp.n3=drop", "-o", "carved"],
    )


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of all of it to break; the current folder."""
    place = shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(place)
    return place


def refused(*typed, says=()):
    told = secateur(*typed)
    assert told.exit_code == 2, (typed, told.stdout, told.stderr, told.exception)
    assert told.stdout == ""
    assert told.stderr.startswith("secateur: "), told.stderr
    assert told.stderr.count("\n") == 1, told.stderr
    for piece in [says] if isinstance(says, str) else says:
        assert piece in told.stderr, told.stderr
    return told.stderr


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


EVAL = ["eval", "m", "--task", "q.jsonl"]
PRUNE = [
    "prune",
    "m",
    "--task",
    "q.jsonl",
    "--side",
    "q.jsonl",
    "--layers",
    "1",
    "--matrices",
    "down",
    "-o",
    "out",
]
READS = {  # a JSON file, and the commands that read it
    "m/config.json": [EVAL, ["apply", "m", "--edit", "b1.down=3", "-o", "new"]],
    "m/tokenizer.json": [EVAL],
    "m/tokenizer_config.json": [EVAL],
    "shards/model.safetensors.index.json": [["eval", "shards", "--task", "q.jsonl"]],
    "carved/config.json": [["eval", "carved", "--task", "q.jsonl"]],
    "out/plan.json": [["apply", "m", "--plan", "out", "-o", "new"], ["bench", "out"], ["report", "out"]],
    "depth/plan.json": [["heal", "depth", "--task", "q.jsonl", "-o", "new"]],
    "out/verdict.json": [["show", "out"], ["report", "out"], PRUNE, [*PRUNE, "--json"]],
    "out/analysis.json": [["report", "out"]],
    "depth/analysis.json": [["heal", "depth", "--task", "q.jsonl", "--max-steps", "1", "-o", "new"]],
    "healed/heal.json": [["report", "healed"]],
    "map.json": [[*EVAL, "--device-map", "map.json"]],
}


@pytest.mark.parametrize(
    "text",
    slow_but(
        [DEEP, "{", "null", "\ud800"],
        [DEEP, '{"a":' * 100_000, "{", "", "7", "null", "[1]", '"x"', "\ud800", "{}"],
    ),
    ids=["deep", "deep objects", "open", "empty", "7", "null", "list", "text", "half", "{}"],
)
@pytest.mark.parametrize("file", READS)
def test_json_that_is_none_of_ours(file, text, place):
    (place / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    harmless = {"m/tokenizer_config.json", "map.json", "out/analysis.json", "depth/analysis.json"}
    for typed in READS[file] if (text, file in harmless) != ("{}", True) else ():
        if (text, file, typed[0]) != ("{}", "out/plan.json", "report"):
            refused(*typed)


@pytest.mark.parametrize("file", READS)
def test_json_that_is_no_file(file, place):
    (place / file).unlink(missing_ok=True)
    os.mkfifo(place / file)
    for typed in READS[file]:
        if file != "m/tokenizer_config.json":
            refused(*typed, says=file.rpartition("/")[2])


def test_a_device_is_no_file(place):
    refused("apply", "m", "--plan", "/dev/zero", "-o", "new", says="a device")
    refused("eval", "m", "--task", "text:/dev/zero", says="a device")
    (place / "z.jsonl").symlink_to("/dev/zero")
    refused("eval", "m", "--task", "z.jsonl", says="a device")
    refused(*EVAL, "--split", "test", "--ledger", "/dev/zero", says="a device")
    refused("runs", "/dev/null", says="a device")
    refused("show", "/dev/zero", says="a device")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "generation_config.json", "extra.txt"]
)
def test_a_pipe_among_the_files_of_a_model(name, place):
    (place / "m" / name).unlink(missing_ok=True)
    os.mkfifo(place / "m" / name)
    refused(*EVAL, says=[name, "a pipe"])


@pytest.mark.parametrize("name", ["q.jsonl", "text:q.jsonl", "cb:q.jsonl", "text:t.txt"])
def test_a_pipe_as_a_task(name, place):
    file = place / name.rpartition(":")[2]
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    refused("eval", "m", "--task", name, says="a pipe")


# ------------------------------------------------------------------------------------------------ an index of weights


@pytest.mark.parametrize(
    "shard",
    [
        7,
        None,
        ["a"],
        {},
        True,
        "",
        ".",
        "..",
        "../m/model.safetensors",
        "x/y",
        "/etc/passwd",
        "a\0b",
        "x" * 5000,
    ],
)
def test_shards_lie_beside_their_index(shard, place):
    """Nothing elsewhere is opened, though it be the very weights."""
    index = place / "shards/model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"] |= {"lm_head.weight": shard}
    index.write_text(json.dumps(told))
    says = "is missing from" if shard == "x" * 5000 else "which is no name of a file beside it"
    refused("eval", "shards", "--task", "q.jsonl", says=says)
    refused("apply", "shards", "--edit", "b1.down=3", "-o", "new", says=says)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_one_whole_tensor_is_not_cast_in_silence(dtype, place):
    file, name = place / "m/model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(file)
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    refused(*EVAL, says=[name, "quantized?"])
    refused("apply", "m", "--edit", "b0.down=3", "-o", "new", says=[name, "quantized?"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 10**6}, "more blocks than any model has"),
        ({"num_hidden_layers": 10**12}, "more blocks than any model has"),
        ({"num_hidden_layers": 5000}, "states 5000 blocks and the weights are"),
        ({"vocab_size": 10**12}, "not of one model"),
        ({"intermediate_size": 10**9}, "not of one model"),
        ({"hidden_size": -1}, "cannot be used"),
        ({"pad_token_id": 96}, "cannot be used"),
        ({"model_type": ["llama"]}, "model_type"),
    ],
)
def test_a_config_of_another_model_is_refused_at_once(changes, says, place):
    change(place / "m/config.json", **changes)
    started = time.perf_counter()
    refused(*EVAL, says=says)
    assert time.perf_counter() - started < 5  # not the hours and the memory that such a model would take


def test_tokens_beyond_the_embeddings(place):
    told = json.loads((place / "m/tokenizer.json").read_text())
    told["model"]["vocab"]["w5"] = 500
    (place / "m/tokenizer.json").write_text(json.dumps(told))
    refused(*EVAL, says=["id 500", "vocab_size is 96"])


# ------------------------------------------------------------------------------------------------ plans and records


@pytest.mark.parametrize(
    "rank", ["Infinity", "NaN", "1e400", "3.5", '"3"', "true", "null", "[]", "-1", "1" + "0" * 400]
)
def test_a_rank_is_a_whole_number(rank, place):
    """5.5 is no 5, and "5" no 5."""
    (place / "p.json").write_text(
        f'{{"version": 1, "model": "x", "edits": [{{"kind": "truncate", "matrix": "b1.down", "rank": {rank}}}]}}'
    )
    refused("apply", "m", "--plan", "p.json", "-o", "new", says="p.json")


@pytest.mark.parametrize(
    "edit",
    [
        [], "x", 5, {"kind": ["truncate"]}, {"kind": "truncate", "matrix": 5, "rank": 1},
        {"kind": "drop", "site": "b" + "9" * 5000}, {"kind": "drop", "site": "b٣"},
        {"kind": "remove_directions", "matrix": "b0.k", "directions": [1.5], "per_head": False, "fold": None},
        {"kind": "remove_directions", "matrix": "b0.k", "directions": [1], "per_head": "no", "fold": None},
        {"kind": "remove_directions", "matrix": "b0.k", "directions": 7, "per_head": False, "fold": None},
        {"kind": "linearize", "blocks": ["0"], "form": "linear", "fold": "x"},
        {"kind": "linearize", "blocks": [0], "form": "linear", "fold": "../../etc/passwd"},
        {"kind": "linearize", "blocks": [0], "form": "linear", "fold": "a" * 5000},
    ],
)  # fmt: skip
def test_edits_that_are_none(edit, place):
    (place / "p.json").write_text(json.dumps({"version": 1, "model": "x", "edits": [edit]}))
    refused("apply", "m", "--plan", "p.json", "-o", "new")


@pytest.mark.parametrize("value", ["x", [], {}, True, "1e-3"])
def test_numbers_of_a_verdict_that_are_none(value, place):
    """All of what a verdict says is printed, or nothing."""
    for name in ("p_value", "before", "secondary", "n"):
        shutil.copy(place / "out/verdict.json", place / "kept.json")
        change(place / "out/verdict.json", **{name: value})
        for typed in (["report", "out"], ["show", "out"], PRUNE):
            told = secateur(*typed)
            assert told.exit_code in (0, 2), (typed, name, told.exception)
            assert told.exit_code == 0 or (told.stdout == "" and "not as secateur writes it" in told.stderr)
        shutil.copy(place / "kept.json", place / "out/verdict.json")
    change(place / "out/verdict.json", before=value)
    refused("show", "out", says="not as secateur writes it")


def test_report_of_no_folder(place):
    refused("report", "q.jsonl", says="q.jsonl is no folder")
    refused("report", "nowhere", says="nowhere is no folder")
    refused("report", "m", says="verdict.json is missing")
    refused("report", "x" * 300, says="is no folder")


@pytest.mark.parametrize("typed", [
    ["eval", "NAME", "--task", "q.jsonl"], ["eval", "m", "--task", "NAME.jsonl"], ["eval", "m", "--task", "NAME"],
    ["eval", "m", "--task", "text:NAME"], ["apply", "m", "--edit", "b1.down=3", "-o", "NAME"], ["show", "NAME"],
    ["apply", "m", "--plan", "NAME", "-o", "new"], ["runs", "NAME"], ["report", "NAME"], ["bench", "NAME"],
    ["heal", "NAME", "--task", "q.jsonl", "-o", "new"], ["train", "text:q.jsonl", "--tokenizer", "NAME", "-o", "new"],
    ["eval", "m", "--task", "q.jsonl", "--split", "test", "--ledger", "NAME"],
    ["eval", "m", "--task", "q.jsonl", "--device-map", "NAME.json"], ["probe", "NAME", "--task", "q.jsonl"],
], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 2500, "a" * 5000, "~nobody/x", "\x1b[31m", "m\nm", " ", "q.jsonl/x"]
)
def test_names_that_nothing_can_have(typed, name, place):
    words = [word.replace("NAME", name) for word in typed]
    if typed[-1] == "NAME" and typed[0] in ("apply", "eval") and len(name) < 10 and "/" not in name:
        return  # what is new may be called so
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", refused(*words))


# ------------------------------------------------------------------------------------------------ ledgers


def broken(path, statement, *values):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute(statement, values)
    db.close()


LEDGERS = {
    "no table": ("DROP TABLE memos",),
    "no column": ("ALTER TABLE runs DROP COLUMN status",),
    "no JSON": ("UPDATE runs SET command = 'x'",),
    "deep JSON": ("UPDATE runs SET command = ?", DEEP),
    "other JSON": ("UPDATE runs SET command = '[1]'",),
    "lacking JSON": ("UPDATE runs SET command = '{}'",),
    "no text": ("UPDATE runs SET command = ?", b"\xff\xfe"),
    "no UTF-8": ("UPDATE runs SET status = CAST(? AS TEXT)", b"\xff\xfe"),
    "a plan that is none": ("UPDATE plans SET body = '{\"version\": 1}'",),
    "a plan that is a number": ("UPDATE plans SET body = '7'",),
    "seconds that are none": ("UPDATE trials SET seconds = 'x'",),
}


@pytest.mark.parametrize("kind", LEDGERS)
def test_ledgers_that_are_damaged(kind, place):
    broken(place / "out.run/ledger.sqlite", *LEDGERS[kind])
    before = contents(place / "out.run")
    for typed in (["runs"], ["show", "out"]):
        told = secateur(*typed)
        assert told.exit_code in (0, 2), told.exception
        if told.exit_code == 2:
            assert "ledger.sqlite" in told.stderr
            assert told.stdout == ""
    refused("show", "out", says="ledger.sqlite")
    assert contents(place / "out.run")["ledger.sqlite"] == before["ledger.sqlite"]


@pytest.mark.parametrize("column", ["loss", "correct", "rank", "tokens"])
def test_outcomes_that_no_model_had(column, place):
    for value in ("x", b"\xff", 10**15):
        shutil.copy(place / "out.run/ledger.sqlite", place / "l.sqlite")
        broken(place / "l.sqlite", f"UPDATE outcomes SET {column} = ?", value)
        if (column, value) in {("loss", 10**15), ("rank", 10**15), ("tokens", 10**15)}:
            continue  # a number that might be
        with Ledger.open(place / "l.sqlite") as ledger:
            (scope,) = ledger._read("SELECT name FROM scopes JOIN trials ON scopes.id = scope LIMIT 1")[0]
            with pytest.raises(LedgerError, match="damaged"):  # noqa: PT012  in one of both
                for trial in ledger.trials(scope):
                    ledger.known(scope, trial.plan, range(300))


def test_what_a_ledger_remembers_is_read_with_care(place):
    """A reading of another shape than it was written in is told, not computed with."""
    broken(place / "out.run/ledger.sqlite", "UPDATE memos SET value = '[7]' WHERE key LIKE 'screen%'")
    shutil.rmtree(place / "out")
    refused(*PRUNE, says="ledger.sqlite: a row is not as secateur writes it")


# ------------------------------------------------------------------------------------------------ chat templates


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set n = namespace(x='aaaaaaaaaaaaaaaa') %}"
    "{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
)
TEMPLATES = {
    "{% if %}": "cannot be applied",
    "{{ messages": "cannot be applied",
    "{{ messages.__class__.__mro__ }}": "unsafe",
    "{{ raise_exception('no system role') }}": "no system role",
    "{{ 1 // 0 }}": "cannot be applied",
    "{{ messages[7].content }}": "cannot be applied",
    "{{ messages + 1 }}": "cannot be applied",
    "{% for i in range(10**9) %}x{% endfor %}": "cannot be applied",
    "{% include 'x' %}": "cannot be applied",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}": "cannot be applied",
    ENDLESS: "did not end within",
    GROWING: "for one message",
}


@pytest.mark.parametrize(
    "template",
    slow_but(["{% if %}", "{{ messages.__class__.__mro__ }}", ENDLESS], TEMPLATES),
    ids=lambda t: t[:40],
)
def test_chat_templates_that_cannot_be_applied(template, place, monkeypatch):
    monkeypatch.setattr("secateur.hf.chat.SECONDS", 6.0)
    (place / "m/chat_template.jinja").write_text(template)
    refused(*EVAL, "--chat", says=TEMPLATES[template])


def test_every_verb_looks_at_the_chat_template(place):
    (place / "m/chat_template.jinja").write_text("{% if %}")
    for typed in (["prune", "m", "--task", "q.jsonl", "-o", "new"], ["probe", "m", "--task", "q.jsonl"]):
        refused(*typed, "--chat", says=TEMPLATES["{% if %}"])
    assert not (place / "new.run").exists()


def test_a_chat_template_that_is_one(place):
    (place / "m/chat_template.jinja").write_text("{% for m in messages %}w3 {{ m.content }} {% endfor %}")
    done = secateur(*EVAL, "--chat")
    assert done.exit_code == 0, done.stderr


# ------------------------------------------------------------------------------------------------ the terminal

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202eback\r\x08\x7f"
HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_text_is_plain():
    assert plain("a\tb\nc") == "a\tb\nc"
    assert not HARMFUL.search(plain(EVIL))
    assert len(plain(EVIL)) == len(EVIL)
    assert one_line("a\nb") == "a␊b"
    assert plain("→ ✓ ␛ é 𝔘 日本") == "→ ✓ ␛ é 𝔘 日本"


def test_rich_writes_its_own_styles_and_nobody_elses(tmp_path):
    from rich.table import Table
    from rich.text import Text

    with open(tmp_path / "shown", "w", encoding="utf-8") as file:
        console = Terminal(file=file, force_terminal=True, width=60)
        table = Table(EVIL)
        table.add_row(Text(EVIL, style="bold"))
        console.print(table, Text(EVIL), EVIL)
    shown = (tmp_path / "shown").read_text(encoding="utf-8")
    assert "\x1b[1m" in shown
    assert not HARMFUL.search(re.sub(r"\x1b\[[0-9;]*m", "", shown))
    assert "\x1b[31m" not in shown


SHOWN = [  # what is refused or listed takes a moment, what runs a model seconds
    ["eval", "MODEL", "--task", "none"], ["eval", "none", "--task", "TASK"], ["runs"], ["tasks", "TASK"],
    ["show", "MODEL"], ["apply", "MODEL", "--edit", "TASK", "-o", "OUT"],
]  # fmt: skip
RUN = [
    ["eval", "MODEL", "--task", "TASK.jsonl"], ["probe", "MODEL", "--task", "TASK.jsonl", "--what", "heads"],
    ["apply", "MODEL", "--edit", "b1.down=3", "-o", "OUT"],
]  # fmt: skip


@pytest.mark.parametrize("typed", slow_but(SHOWN[:2], [*SHOWN, *RUN]), ids=str)
def test_names_reach_the_terminal_as_text(typed, place, forks):
    """Of models, tasks, examples and folders; a newline in one begins a line at most."""
    evil = EVIL.replace("/", "")
    shutil.copytree(place / "m", place / evil)
    rows = [row | {"id": f"{row['id']}{EVIL}"} for row in questions()]
    write_rows(place / f"{evil}.jsonl", rows)
    words = [word.replace("MODEL", evil).replace("TASK", evil).replace("OUT", f"o{evil}") for word in typed]
    done = forks.run(place, words)
    shown = done.stdout + done.stderr
    assert done.returncode in (0, 2), shown
    assert "Traceback" not in shown
    assert not HARMFUL.search(shown), repr(shown)


@pytest.mark.slow
def test_a_terminal_that_lacks_letters(place):
    words = [*SECATEUR, "apply", "m", "--edit", "b1.down=3", "--dry-run"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, cwd=place, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"b1.down" in done.stdout


def test_a_name_that_is_no_text(place, forks):
    """Of bytes that are no UTF-8: the libraries below cannot open it."""
    for model, out in ((b"m\xff", b"new"), (b"m", b"\xfe")):
        done = forks.run(place, ["apply", os.fsdecode(model), "--edit", "b1.down=3", "-o", os.fsdecode(out)])
        assert done.returncode == 2
        assert "the name is not UTF-8" in done.stderr


def interrupted(forks, place, words, times, pause):
    """The command in a terminal, with Ctrl-C so many times once it has begun."""

    def act(process, shown):
        nonlocal sent, last
        if b"training" in shown and sent < times and (not sent or time.monotonic() - last > pause):
            process.send_signal(signal.SIGINT)
            sent, last = sent + 1, time.monotonic()

    sent, last = 0, time.monotonic()
    return in_terminal(forks, place, words, act)


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        (2, 0.0),
        *(pytest.param(n, pause, marks=pytest.mark.slow) for n, pause in ((1, 0), (4, 0.2))),
    ],
)
def test_ctrl_c_again_and_again_leaves_no_traceback(times, pause, place, forks):
    words = [
        "train",
        "text:q.jsonl",
        "--tokenizer",
        "m",
        "--steps",
        "100000",
        "--seqlen",
        "16",
        "--batch-size",
        "2",
    ]
    (place / "t.txt").write_text("w5 w6 w7 w8 " * 3000)
    words[1] = "text:t.txt"
    code, shown = interrupted(forks, place, [*words, "-o", "long"], times, pause)
    assert code == 130, shown[-2000:]
    assert "Traceback" not in shown
    assert not (place / "long").exists()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"


@pytest.mark.parametrize(
    "after",
    [
        "",
        "with deferred_interrupt():\n        signal.raise_signal(signal.SIGINT)\n        deliver_interrupt()",
    ],
    ids=["ended", "deferred"],
)
def test_ctrl_c_after_the_end_or_after_a_deferred_one_ends_the_process_at_once(after):
    body = f"""
import signal
from contextlib import suppress
from secateur.cli.terminal import guarded_interrupts
from secateur.training.contexts import deferred_interrupt, deliver_interrupt
with suppress(KeyboardInterrupt), guarded_interrupts():
    {after or "pass"}
try:
    signal.raise_signal(signal.SIGINT)
finally:
    print("in order")
"""
    if after:  # the second one comes while the command is still ending
        body = body.replace(
            "with suppress(KeyboardInterrupt), guarded_interrupts():",
            "guarded_interrupts().__enter__()\nwith suppress(KeyboardInterrupt):",
        )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), "Traceback" in done.stderr) == (130, "", False), done.stderr


# ------------------------------------------------------------------------------------------------ memory and disk


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (MemoryError("Cannot allocate memory (os error 12)"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "No such file"), False),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (ImportError("No module named x"), False),
        (RuntimeError("unable to mmap 538090408 bytes from file <x>: Cannot allocate memory (12)"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            True,
        ),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_too_little_memory(error, is_so):
    assert lacks_memory(error) is is_so


@pytest.mark.slow
def test_too_little_address_space_is_told(place):
    """Amid the imports, or amid the work: wherever it ends, it ends in words."""
    limits = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (n := int(sys.argv.pop(1)), n));"
    code = limits + "from secateur.cli import main; sys.argv[0] = 'secateur'; main()"
    told = []
    for mebibytes in (400, 600, 900):
        done = subprocess.run(
            [sys.executable, "-c", code, str(mebibytes * 2**20), *EVAL],
            cwd=place,
            capture_output=True,
            text=True,
        )
        if done.returncode >= 0:  # else a library ended the process itself
            assert done.returncode in (0, 2), done.stderr
            assert "Traceback" not in done.stderr, done.stderr
            told.append("out of memory" in done.stderr)
    assert any(told)


@pytest.mark.parametrize(
    "typed", [["probe", "m", "--task", "q.jsonl", "--what", "heads", "-o", "read"]], ids=["probe"]
)
def test_a_full_disk_leaves_no_file_that_looks_whole(typed, place, forks):
    done = forks.run(place, typed, limited(200))
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr
    assert not (place / "read").exists()
    (place / "read").mkdir()
    (place / "read/probe.json").write_text("older")
    again = forks.run(place, typed, limited(200))
    assert again.returncode == 2
    assert contents(place / "read") == {"probe.json": b"older"}


def test_a_full_disk_leaves_the_old_report(place, forks):
    before = contents(place / "out")
    done = forks.run(place, ["report", "out"], limited(2000))
    assert done.returncode == 2, done.stderr
    assert contents(place / "out") == before


def test_json_is_read_or_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert read_json(tmp_path / "x.json", SecateurError) == {}
    for text in (DEEP, "nope", "", "\x00"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(SecateurError, match=r"x\.json: cannot be read as JSON"):
            read_json(tmp_path / "x.json", SecateurError)
    with pytest.raises(SecateurError, match="No such file"):
        read_json(tmp_path / "none.json", SecateurError)
    with pytest.raises(SecateurError, match="a folder"):
        read_json(tmp_path, SecateurError)
