"""Options are looked at before torch is imported: numbers, words and which go together, of every verb and option."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys

import pytest
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import tiny
from typer.main import get_command

import secateur as package
from secateur.cli.app import app
from secateur.errors import SecateurError
from secateur.methods.registry import method_options, methods, read_options
from secateur.options import Options

BASE = {  # the least that each verb with options needs
    "prune": ["m", "--task", "q.jsonl", "-o", "out"],
    "plan-cost": ["m", "--task", "q.jsonl"],
    "eval": ["m", "--task", "q.jsonl"],
    "probe": ["m", "--task", "q.jsonl"],
    "transfer": ["m", "m", "--task", "q.jsonl", "--ledger", "l.sqlite"],
    "map": ["m", "--task", "q.jsonl", "-o", "out"],
    "apply": ["m", "--edit", "b1.down=3", "-o", "out"],
    "finetune": ["m", "--task", "q.jsonl", "-o", "out"],
    "heal": ["m", "--task", "q.jsonl", "-o", "out"],
    "train": ["text:t.txt", "--tokenizer", "m", "-o", "out"],
    "bench": ["m", "--against", "m"],
    "export": ["m", "--gguf"],
    "demo": ["-o", "out"],
    "chat": ["m", "--prompt", "w5"],
    "show": ["m"],
    "tasks": ["--check", "q.jsonl", "--model", "m"],
    "models": ["m"],
}
HUGE, NOT_WHOLE = "100000000000000000000", ("1e20", "nan", "0.5", "x", "")
COUNTED = ("-1", "0", HUGE, *NOT_WHOLE)  # of what there must be at least one
FROM_ZERO = ("-1", HUGE, *NOT_WHOLE)
POSITIVE = ("-1", "0", "nan", "inf", "-inf", "x", "")  # real numbers
NOT_NEGATIVE = ("-0.1", "nan", "inf", "x", "")
SHARES = ("-0.1", "0", "1.5", "150%", "nan", "inf", "x", "", "%")
WORDS = ("", "nonsense")
OF_TASK = {
    "--seed": FROM_ZERO, "--split-seed": FROM_ZERO, "--limit": COUNTED, "--seqlen": ("1", *COUNTED),
    "--task": WORDS, "--test-task": WORDS,
}  # fmt: skip
SHOTS = {"--shots": FROM_ZERO}
WRITTEN = {
    "--extract": ("(", "[a"),
    "--max-new-tokens": (*tuple(f"--extract number --max-new-tokens={n}" for n in COUNTED), "1"),
}
GGUF = ("", "x", "x.gguf", "../x.gguf", "/x.gguf")
MACHINE = {"--gguf-file": GGUF, "--dtype": WORDS, "--device": (*WORDS, "cuda:x", "cuda:²", "cpu:-1")}
OFFLOAD = {
    "--device-map": (*WORDS, "none.json", "--device cpu --device-map auto"), "--offload-folder": ("", "x"),
    "--max-memory": ("", "8GB", "--device-map auto --max-memory cpu=-1GB", "--device-map auto --max-memory cpu=nanGB"),
    "--spectra": ("",), "--batch-size": ("-1", "0", "x", "", HUGE), "--revision": ("",),
}  # fmt: skip
CUT = {
    "--report": WORDS,
    "--method": WORDS, "--objective": WORDS, "--matrices": (*WORDS, ","), "--grid": WORDS, "--side": WORDS,
    "--layers": (*WORDS, "-1:2", "2:2", "3:1", "1:2:3", "²", "9" * 5000, "99:100", "2"),
    "--target": SHARES, "--step": SHARES, "--params": (*SHARES, "1"), "--max-loss": NOT_NEGATIVE,
    "--random-orders": FROM_ZERO, "--vote": (*COUNTED, "33"),
    "--protocol": WORDS, "--blocks": COUNTED, "--attentions": COUNTED, "--by": WORDS,
    "--form": WORDS, "--rank": COUNTED, "--goal": WORDS, "--kinds": WORDS, "--kv-bytes": (*SHARES, "1"),
    "--latency": (*SHARES, "1"),
    **{flag: (*tuple(f"--latency 80% {flag}={n}" for n in COUNTED), "64") for flag in ("--prompt", "--new")},
    "": (
        "--zeroed --factorize", "--method heads --portable --zeroed", "--method depth --zeroed", "--rank 3",
        "--method depth --rank 3", "--target 10%", "--method heads --exhaustive", "--task q.jsonl", "--ranks-once",
        "--method directions --protocol paper --max-loss 0.1", "--task t.jsonl --test-task q.jsonl",
    ),
}  # fmt: skip
METHODS = {  # the one that listens
    "--target": "heads", "--step": "heads", "--params": "heads", "--max-loss": "heads", "--random-orders": "heads",
    "--vote": "heads", "--protocol": "directions", "--blocks": "depth", "--attentions": "attention", "--by": "depth",
    "--form": "depth",
    "--rank": "depth --form linear", "--kinds": "budget", "--kv-bytes": "budget",
    "--latency": "budget", "--prompt": "budget", "--new": "budget",
}  # fmt: skip
RAY = {
    "--ray": ("local:0", "local:-1", "local:x", "local:" + HUGE, "somewhere", "host:99999999", "ray://x", ""),
    "--workers": (*tuple(f"--ray local:2 --workers {n}" for n in ("0", "-1", "3", HUGE)), "2"),
    "--cpus-per-worker": tuple(f"--ray local:1 --cpus-per-worker {n}" for n in ("0", "-1", "nan", "inf", "9999")),
    "--gpus-per-worker": tuple(f"--ray local:1 --gpus-per-worker {n}" for n in ("-1", "nan", "inf")),
}  # fmt: skip
TUNED = {
    "--lr": POSITIVE, "--batch-size": COUNTED, "--weight-decay": NOT_NEGATIVE, "--warmup": (*NOT_NEGATIVE, "1", "2"),
}  # fmt: skip
TAUGHT = {
    "--split": (*WORDS, "test", "probe,test"), "--epochs": COUNTED, "--max-steps": COUNTED, "--lora": COUNTED,
    "--lora-alpha": (*tuple(f"--lora 2 --lora-alpha={n}" for n in POSITIVE), "1"),
    "--lora-targets": ("--lora 2 --lora-targets nonsense", "q"),
}  # fmt: skip
WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    "prune": OF_TASK | SHOTS | WRITTEN | MACHINE | OFFLOAD | CUT | RAY,
    "plan-cost": OF_TASK | SHOTS | WRITTEN | MACHINE | OFFLOAD | CUT | {
        "--devices": COUNTED, "--tflops": (*tuple(f"--bandwidth 1 --tflops={n}" for n in POSITIVE), "1"),
        "--bandwidth": (*tuple(f"--tflops 1 --bandwidth={n}" for n in POSITIVE), "1"),
        "--utilization": (*POSITIVE, "2"), "--memory": POSITIVE,
    },
    "eval": OF_TASK | SHOTS | WRITTEN | MACHINE | OFFLOAD | {
        "--split": (*WORDS, "test"), "--plan": ("none.json", ""), "--edit": ("", "b1", "b1=x", "b1.down=-1", "b1.x=1"),
    },
    "transfer": OF_TASK | SHOTS | WRITTEN | MACHINE | OFFLOAD | {"--objective": WORDS},
    "map": {k: v for k, v in OF_TASK.items() if k != "--test-task"} | SHOTS | MACHINE | OFFLOAD | {
        "--what": (*WORDS, "heads,nonsense", "induction"), "--split": (*WORDS, "test"), "--checks": FROM_ZERO,
        "--layers": ("x", "2:2", "1:3"), "--objective": WORDS,
    },
    "probe": {k: v for k, v in OF_TASK.items() if k != "--test-task"} | MACHINE | OFFLOAD | {
        "--what": (*WORDS, "heads,nonsense", "heads,tail", "tail"), "--split": (*WORDS, "test"),
        "--shots": ("-1", "x", "", "0,,1", HUGE), "--top": ("0", "-1", "x"), "--matrices": WORDS, "--grid": WORDS,
        "--layers": ("x", "2:2", "2", "--what heads --layers 2"),
        "--finer": ("--what linearity --finer nonsense", "heads"),
        "--also": ("--what linearity --also nowhere/at/all", "--what linearity --also m", "m"),
        "--revisions": ("a",), "--edit": ("--what heads --edit b1.down=3",),
    },
    "apply": MACHINE | {
        "--edit": ("", "b1", "b1=x", "b1.down=-1", "b²=drop", "b1.down=" + "9" * 5000, "b" + "9" * 5000 + "=drop"),
        "--plan": ("none.json",), "--shard-size": ("", "5", "-5GB", "0GB", "nanGB", "infGB", "xGB", "1e400GB"),
        "--svd": WORDS, "--check": WORDS, "": ("--zeroed --portable",),
    },
    "finetune": OF_TASK | SHOTS | MACHINE | TUNED | TAUGHT,
    "heal": OF_TASK | SHOTS | MACHINE | TUNED | TAUGHT | {
        "--stage": WORDS, "--temperature": POSITIVE, "--hidden": NOT_NEGATIVE, "--side": WORDS,
        "": ("--stage layers --lora 2",),
    },
    "train": TUNED | {
        "--seed": FROM_ZERO, "--seqlen": ("1", "99999", *COUNTED), "--device": WORDS, "--layers": COUNTED,
        "--d-model": (*COUNTED, "7"), "--heads": (*COUNTED, "3"), "--kv-heads": (*COUNTED, "3"), "--d-ff": COUNTED,
        "--context": (*COUNTED, "1"), "--steps": COUNTED, "--save-steps": ("-1", "x", "9999", HUGE, "1,,2"),
        "--regulariser": WORDS, "--weight": NOT_NEGATIVE, "--tokenizer": ("", "nowhere"),
    },
    "bench": MACHINE | {f"--{name}": COUNTED for name in ("prompt", "new", "batch", "repeats", "threads")},
    "export": {"--type": WORDS, "--gguf-file": GGUF, "--out": (".", "no/where.gguf")},
    "demo": {"--seed": FROM_ZERO},
    "tasks": {k: v for k, v in OF_TASK.items() if k not in ("--seed", "--task")} | SHOTS | WRITTEN | {
        "--check": WORDS, "--model": ("", "nowhere/at/all"), "--gguf-file": GGUF, "--revision": ("",),
    },
    "chat": {"--device": WORDS, "--dtype": WORDS, "--max-new-tokens": COUNTED},
    "show": {"--top": ("0", "-1", "x")},
    "models": {"--gguf-file": GGUF},
}  # fmt: skip
ELSEWHERE = {  # switches, places, and what has a test of its own
    "--help", "--json", "--quiet", "--overwrite", "--out", "--ledger", "--each", "--exhaustive", "--compose",
    "--keep-unproven",
    "--chat", "--join", "--rescore", "--portable", "--zeroed", "--factorize", "--per-head", "--overall", "--dynamic",
    "--weakest", "--parts", "--second-order", "--whitened", "--contiguous", "--allow-small", "--skip-long",
    "--trust-remote-code", "--dry-run", "--bf16", "--calibrate", "--teacher", "--against", "--also",
    "--revision", "--plan", "--edit", "--revisions", "--gguf", "--log", "--push", "--save-recipe",
    "--private", "--optuna", "--prompt",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """A folder with a model, also one that was cut, with a task and a text."""
    place = tmp_path_factory.mktemp("asked")
    save_model(place / "m", tiny("llama"), words)
    origin = {"provenance": {"command": {"model": "m", "revision": None, "dtype": "auto"}}}
    (place / "m/plan.json").write_text(json.dumps(origin))
    write_rows(place / "q.jsonl", questions())
    (place / "t.txt").write_text("w5 w6 w7 " * 5000)
    return place


def commands(verb: str) -> list[list[str]]:
    """Every wrong use of every option of a verb."""
    found = []
    for option, values in WRONG[verb].items():
        for value in values:
            more = value.split() if value.startswith("--") or not option else [f"{option}={value}"]
            listens = METHODS.get(option, "") if verb in ("prune", "plan-cost") else ""
            found.append([verb, *BASE[verb], *(["--method", *listens.split()] if listens else []), *more])
    return found


def test_every_option_of_every_verb_is_tried():
    verbs = get_command(app).commands
    for verb, command in verbs.items():
        options = {max(one.opts, key=len) for one in command.params if one.param_type_name == "option"}
        missing = options - ELSEWHERE - set(WRONG.get(verb, {}))
        assert not missing, (verb, missing)


ALL_AT_ONCE = """
import contextlib, io, json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, NoTorch())
from typer.main import get_command
from secateur.cli.app import app
command = get_command(app)
for words in json.load(sys.stdin):
    out, said, code = io.StringIO(), io.StringIO(), "none"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            command.main(words, "secateur")
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([words, code, out.getvalue(), said.getvalue()]))
"""


def test_what_cannot_be_is_refused_without_torch(place):
    """In one message, with exit code 2 and nothing left behind, in a process in which torch cannot be imported."""
    before, asked = sorted(place.rglob("*")), [words for verb in WRONG for words in commands(verb)]
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, *_ in results] == asked
    for words, code, out, said in results:
        assert code == 2, (words, code, out, said)
        assert out == "", (words, out)
        usage = said.startswith("Usage: ")  # of what is no number at all
        assert usage or (said.startswith("secateur: ") and said.count("\n") == 1), (words, said)
    assert sorted(place.rglob("*")) == before


COMMON = {
    name: field.metadata["range"]
    for name, field in Options.__dataclass_fields__.items()
    if "range" in field.metadata
}
LISTENING = {name: methods[0] for name, (_, methods) in method_options().items()}
FIELDS = COMMON | {
    name: field.metadata["range"]
    for method in methods().values()
    for name, field in method.Config.__dataclass_fields__.items()
    if "range" in field.metadata
}


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1, -0.5, 10**20, "x", "", True, pytest.param(object(), id="object")],
    ids=repr,
)
@pytest.mark.parametrize("name", FIELDS)
def test_python_is_told_the_same(name, value, place):
    """A number of no option's range is a `SecateurError`, whatever its type."""
    many = name in ("layers", "fractions", "small_ranks")
    given = {name: (value,) if many else value, "method": LISTENING.get(name, "laser")}
    given |= {"form": "linear"} if name == "rank" else {}
    if value in FIELDS[name]:
        pytest.skip("in range")
    with pytest.raises(SecateurError, match=r"give a|write a(uto| share)|write full"):
        package.prune(str(place / "m"), str(place / "q.jsonl"), place / "never", **given)
    assert not (place / "never.run").exists()


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ({"matrices": "mlp"}, {"matrices": ("mlp",)}),
        ({"matrices": "q, v"}, {"matrices": ("q", "v")}),
        ({"matrices": ["q", "v"]}, {"matrices": ("q", "v")}),
        ({"layers": "1:3"}, {"layers": (1, 3)}),
        ({"layers": "2"}, {"layers": (2, 3)}),
        ({"layers": [1, 3]}, {"layers": (1, 3)}),
        ({"side": "other.jsonl"}, {"side": ("other.jsonl",)}),
        ({"method": "heads", "target": "70%"}, {"method": "heads", "target": 0.7}),
        ({"method": "heads", "params": "0.6"}, {"method": "heads", "params": 0.6}),
    ],
    ids=str,
)
def test_python_takes_the_words_of_the_command_line(typed, value):
    assert read_options("m", "q.jsonl", **typed) == read_options("m", "q.jsonl", **value)
    chosen = read_options("m", "q.jsonl", **typed)
    held = vars(chosen) | vars(chosen.config)
    assert {name: held[name] for name in value} == value


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ({"layers": "1-3"}, "write FROM:TO"),
        ({"layers": "b1"}, "write FROM:TO"),
        ({"matrices": "m,l,p"}, "'m'"),
        ({"matrices": ""}, "names none"),
        ({"method": "heads", "target": "most"}, "write a share"),
    ],
    ids=str,
)
def test_words_that_cannot_be_read(typed, says):
    with pytest.raises(SecateurError, match=says):
        read_options("m", "q.jsonl", **typed)


# -------------------------------------------------------------------------------------- groups of splits that are read


SMALL = 60  # examples, each a group: probe has 6, select 24, test 30


@pytest.mark.parametrize(
    ("verb", "split", "enough"),
    [
        ("probe", "select", 0),
        ("probe", "probe", 0),
        ("eval", "select", 50),
        ("eval", "probe", 50),
    ],
)
def test_only_the_split_that_is_read_needs_groups(verb, split, enough, place, monkeypatch):
    """Nothing of test is looked at, so nothing is asked of its size."""
    monkeypatch.chdir(place)
    write_rows(place / "few.jsonl", questions(SMALL))
    told = secateur(verb, "m", "--task", "few.jsonl", "--split", split)
    assert told.exit_code == (2 if enough else 0), told.stderr
    if enough:
        assert f"{split} needs {enough}: at least" in told.stderr
        assert "--allow-small" in told.stderr


# --------------------------------------------------------------------------------------- before the weights are read


UNREADABLE = [
    (["eval", "m", "--task", "none.jsonl"], "none.jsonl: cannot be read"),
    (["eval", "m", "--task", "small.jsonl"], "too few groups"),
    (["eval", "m", "--task", "broken.jsonl"], "line 3: not JSON"),
    (["eval", "m", "--task", "q.jsonl", "--edit", "b9.down=3"], "no matrix b9.down"),
    (["eval", "m", "--task", "q.jsonl", "--shots", "40"], "40 shots"),
    (["eval", "m", "--task", "text:t.txt", "--seqlen", "65", "--allow-small"], "context of 64"),
    (["probe", "m", "--task", "q.jsonl", "--layers", "99:100"], "layers 99:100 are not in this model"),
    (["probe", "m", "--task", "q.jsonl", "--what", "heads", "--layers", "99:100"], "layers 99:100"),
    (["probe", "m", "--task", "q.jsonl", "--what", "paraphrases"], "no paraphrases"),
    (["probe", "m", "--task", "text:t.txt", "--what", "linearity", "--layers", "7"], "layers 7:8"),
    (["apply", "m", "--edit", "b9.down=3", "-o", "out"], "no matrix b9.down"),
    (["apply", "m", "--edit", "b1.down=33", "-o", "out"], "at most 32"),
    (["finetune", "m", "--task", "small.jsonl", "-o", "out"], "too few groups"),
    (["finetune", "m", "--task", "q.jsonl", "--lora", "2", "--lora-targets", "up,gate,nope", "-o", "out"], "'nope'"),
    *(
        (["prune", "m", "--task", "q.jsonl", "-o", "out", *more.split()], says)
        for more, says in {
            "--layers 99:100": "layers 99:100 are not in this model",
            "--side small.jsonl --objective text_loss": "--objective text_loss",
            "--method depth --blocks 2": "--blocks 2: from 1 to 1",
            "--method depth --form linear --rank 99": "--rank 99: from 1 to 32",
            "--method heads --params 1%": "--params 0.01: without any of these parts",
            "--method heads --layers 5": "layers 5:6",
            "--method directions --zeroed": "has no bias",
            "--chat": "chat template",
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "says"), UNREADABLE, ids=str)
def test_what_the_config_and_the_task_tell_is_told_before_weights_are_read(typed, says, place, monkeypatch):
    """The weights are not there at all here, but for their headers."""
    monkeypatch.chdir(place)
    write_rows(place / "small.jsonl", questions(60))
    (place / "broken.jsonl").write_text('{"id": "a", "prompt": "w3", "answer": " w4"}\n\n{"id"\n')
    monkeypatch.setattr("secateur.hf.load._weights", _refuse_to_read)
    told = secateur(*typed)
    assert told.exit_code == 2, (told.stdout, told.stderr, told.exception)
    assert says in told.stderr
    assert not (place / "out").exists()
    assert not (place / "out.run").exists()


def _refuse_to_read(*_):
    raise AssertionError("weights were read")


def test_signatures_keep_their_defaults():
    """The command line and Python agree on what is left out."""
    for verb, function in {"prune": None, "finetune": package.finetune, "heal": package.heal, "train": package.train,
                           "bench": package.bench}.items():  # fmt: skip
        command = {one.name: one.default for one in get_command(app).commands[verb].params}
        named = vars(Options) if function is None else {
            name: one.default for name, one in inspect.signature(function).parameters.items()
        }  # fmt: skip
        for name in (
            "seed",
            "split_seed",
            "seqlen",
            "epochs",
            "lr",
            "batch_size",
            "steps",
            "prompt",
            "weight_decay",
        ):
            if name in command and name in named and isinstance(named[name], int | float):
                assert command[name] == named[name], (verb, name)
