"""Recipes: read with line numbers before anything heavy, written so that they say the same again, run step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fixtures.gguf_files import llama_folder
from fixtures.places import ROOT
from typer.testing import CliRunner

import secateur
from secateur import api
from secateur.cli.app import app
from secateur.core.recipe_file import recipe_text
from secateur.errors import SecateurError
from secateur.methods.registry import methods, read_options
from secateur.recipe.keys import VERBS, example_of, keys_of, opposites, recipe_schema
from secateur.recipe.steps import Step, read_recipe

FLAT = "model: builtin:facts\ntask: builtin:facts\nout: out\n"
SMALL = FLAT + "matrices: mlp\nlayers: 2:3\nlimit: 260\n"
TIMED = ("seconds", "gains")  # of a verdict: they differ from run to run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, name: str = "r.yaml") -> list[Step]:
    Path(name).write_text(text, encoding="utf-8")
    return read_recipe(name)


def refusal(text: str) -> str:
    with pytest.raises(SecateurError) as caught:
        read(text)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("verb", VERBS)
def test_keys_are_the_flags_of_the_command_line(verb: str) -> None:
    command = typer.main.get_command(app).commands[verb]
    flags = {word[2:].replace("-", "_") for p in command.params for word in (*p.opts, *p.secondary_opts)
             if word.startswith("--") and not word.startswith("--no-")}  # fmt: skip
    flags -= {"help", "json", "quiet", "dry_run", "gguf", "save_recipe", "push", "goal", "log"}
    keys: set[str] = set()
    for method in methods() if verb == "prune" else ("laser",):
        found = keys_of(verb, method)
        keys |= {*found, *(key for key in opposites(found) if not key.startswith("no_"))}
    assert keys - {"model", "repo", "fractions"} == flags  # arguments, and what only Python has


@pytest.mark.parametrize(
    ("verb", "method"), [(v, "laser") for v in VERBS] + [("prune", m) for m in methods()]
)
def test_every_right_example_is_right(verb: str, method: str) -> None:
    """Read the line that an error shows as right: it is read without an error."""
    from secateur.recipe import steps

    root = {yaml.compose(example_of(one)).value[0] for one in keys_of(verb, method).values()}
    for key, node in root:
        steps._value(keys_of(verb, method)[key.value], key.value, node)


def test_values_are_those_of_the_command_line() -> None:
    (step,) = read(
        FLAT
        + "method: heads\ntarget: 60%\nlayers: 1:3\nranks-once: true\nbatch-size: 2048\nside: [builtin:recall]\n"
        "revision: 2024\nmax_loss: 1e-3\n"
    )
    options = {name: value for name, value in step.values.items() if name not in ("model", "task", "out")}
    asked = read_options("builtin:facts", *step.values["task"], **options)
    assert (asked.layers, asked.max_tokens, asked.side) == ((1, 3), 2048, ("builtin:recall",))
    config = vars(asked.config)
    assert (config["target"], config["rescore"], config["max_loss"]) == (0.6, False, 0.001)
    assert asked.revision == "2024"  # text, whatever it looks like
    assert step.command_line == (
        "secateur prune builtin:facts --task builtin:facts --out out --method heads --target 0.6 --layers 1:3 "
        "--ranks-once --batch-size 2048 --side builtin:recall --revision 2024 --max-loss 0.001"
    )


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (FLAT + "maxloss: 0.02\n", 4, "unknown key 'maxloss' in prune"),
        (FLAT + "method: heads\nmaxloss: 0.02\n", 5, "Did you mean max_loss? Right: `max_loss: 0.02`"),
        (FLAT + "target: 60%\n", 4, "not for method laser, but for directions, heads, ffns, components or experts"),
        (FLAT + "epochs: 2\n", 4, "a key of finetune or heal, not of prune. Put it below `finetune:`"),
        (FLAT + "limit: many\n", 4, "limit 'many': give a whole number, 1 or more. Right: `limit: 400`"),
        (FLAT + "limit: 0\n", 4, "--limit 0: give a whole number, 1 or more"),
        (FLAT + "layers: x\n", 4, "write FROM:TO"),
        (FLAT + "layers: 2:4\n", 1, "layers 2:4 are not in this model: it has blocks 0 to 2"),
        (FLAT + "chat: maybe\n", 4, "chat 'maybe': write true or false. Right: `chat: true`"),
        (FLAT + "limit:\n", 4, "limit has no value"),
        (FLAT + "seed: [1, 2]\n", 4, "seed has one value, and here is a list"),
        (FLAT + "limit: {a: 1}\n", 4, "here is a section of keys"),
        (FLAT + "method: head\n", 4, "unknown method 'head'. Did you mean heads?"),
        (FLAT + "report: long\n", 4, "unknown report 'long'"),
        (FLAT + "model: gpt2\n", 4, "'model' stands there twice, first in line 1"),
        (FLAT + "limit: [1\nseed: 2\n", 5, "this is no YAML"),
        (FLAT + "heal: {epochs: -1, out: h}\n", 4, "--epochs -1: give a whole number, 1 or more"),
        (FLAT + "heal:\n  out: h\n  method: heads\n", 6, "'method' is a key of prune, not of heal"),
        (FLAT + "export: {type: f17, out: x.gguf}\n", 4, "unknown type 'f17'. Did you mean f16"),
        (FLAT + "export: {type: f16}\n", 4, "export lacks 'out'. Add a line: `out: out`"),
        (FLAT + "push: nobody\n", 4, "lacks the account"),
        ("task: builtin:facts\nout: out\n", 1, "prune lacks 'model'. Add a line: `model: ./my-llama`"),
        ("model: builtin:facts\ntask: nothing.csv\nout: out\n", 1, "nothing.csv"),
        ("model: builtin:fact\ntask: builtin:facts\nout: out\n", 1, "Did you mean"),
        (FLAT + "factorize: true\nzeroed: true\n", 1, "zeroed"),
        ("model: builtin:facts\nsteps: []\n", 2, "steps is a list"),
        ("model: builtin:facts\nsteps:\n- prun: {out: x}\n", 3, "unknown step 'prun'. Did you mean prune or push?"),
        ("model: builtin:facts\nlr: 1\nsteps:\n- export: {out: x}\n", 2, "no step here has it"),
        ("model: builtin:facts\nsteps:\n- apply: {out: x}\n", 3, "apply carries out `plan` or `edit`"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_told_with_its_line(text: str, line: int, words: str) -> None:
    told = refusal(text)
    assert told.startswith(f"r.yaml, line {line}: "), told
    assert words in told
    assert "\n" not in told


def test_what_is_no_recipe_at_all() -> None:
    assert "here is a list" in refusal("- a\n- b\n")
    assert "here is nothing" in refusal("")
    assert "single document" in refusal("a: 1\n---\nb: 2\n")
    with pytest.raises(SecateurError, match="cannot be read"):
        read_recipe("missing.yaml")
    Path("latin.yaml").write_bytes("model: é".encode("latin-1"))
    with pytest.raises(SecateurError, match="not UTF-8"):
        read_recipe("latin.yaml")
    assert refusal("a: " + "[" * 5000)


def test_no_tag_constructs_anything() -> None:
    (step,) = read(
        FLAT + "join: !!python/object/apply:os.system ['touch x']\n".replace("['touch x']", "touch")
    )
    assert step.values["join"] == "touch"
    assert not Path("x").exists()


def test_a_wrong_recipe_is_told_before_torch_is_imported() -> None:
    Path("r.yaml").write_text(FLAT + "limt: 3\n", encoding="utf-8")
    run = (
        "import sys; sys.argv = ['secateur', 'run', 'r.yaml']; from secateur.cli import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
    assert done.stdout.strip() == "2 False", done.stderr
    assert "r.yaml, line 4: unknown key 'limt' in prune. Did you mean limit?" in done.stderr
    assert "Right: `limit: 400`" in done.stderr


# ---------------------------------------------------------------------------------------------------------------- steps

STEPS = """\
model: builtin:facts
task: builtin:facts
seed: 3
revision: main
steps:
- prune: {method: depth, blocks: 1, out: cut, revision: v1}
- heal: {out: healed, seed: 4}
- export: {out: h.gguf}
- push: me/healed
"""


def test_a_step_takes_what_stands_above_and_what_was_written_last() -> None:
    prune, heal, export, push = read(STEPS)
    assert (prune.values["model"], prune.values["seed"], prune.values["revision"]) == (
        "builtin:facts",
        3,
        "v1",
    )
    assert heal.values == {"task": "builtin:facts", "seed": 4, "out": "healed", "model": "cut"}
    assert export.values == {"model": "healed", "out": "h.gguf"}
    assert push.values == {"model": "healed", "repo": "me/healed"}
    assert [str(step.place) for step in (prune, push)] == ["r.yaml, line 6", "r.yaml, line 9"]
    assert export.command_line == "secateur export healed --gguf --out h.gguf"


def test_o_is_of_a_recipe_of_one_step() -> None:
    read(STEPS)
    with pytest.raises(SecateurError, match="has 4 steps"):
        read_recipe("r.yaml", "other")
    read(FLAT)
    (step,) = read_recipe("r.yaml", "other", overwrite=True)
    assert (step.values["out"], step.values["overwrite"]) == ("other", True)


def test_paths_are_relative_to_the_recipe() -> None:
    Path("data").mkdir()
    Path("data/q.csv").write_text("question,answer\n", encoding="utf-8")
    Path("data/book.txt").write_text("text", encoding="utf-8")
    text = (
        "model: builtin:facts\ntask: [q.csv, builtin:facts]\nside: text:book.txt\nout: ../out\nspectra: s\n"
    )
    (step,) = read(text, "data/r.yaml")
    assert step.values["task"] == ["data/q.csv", "builtin:facts"]
    assert step.values["side"] == ["text:data/book.txt"]
    assert (step.values["out"], step.values["spectra"]) == ("out", "data/s")
    again = recipe_text(step.values, Path("data"))
    assert yaml.safe_load(again) == yaml.safe_load(text) | {"side": ["text:book.txt"]}


# --------------------------------------------------------------------------------------------------------------- schema


def test_the_schema_says_what_is_read() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    right = [FLAT, SMALL, STEPS, FLAT + "method: heads\ntarget: 60%\nranks-once: true\npush: me/x\n"]
    for text in right:
        read(text)
        assert valid(yaml.safe_load(text)), text
    wrong = [
        "maxloss: 1",
        "target: 60%",
        "epochs: 2",
        "limit: many",
        "limit: 0",
        "chat: maybe",
        "method: head",
    ]
    for line in wrong:
        assert refusal(FLAT + line + "\n")
        assert not valid(yaml.safe_load(FLAT + line)), line


@pytest.mark.parametrize("name", ["better", "smaller"])
def test_the_examples_are_right(name: str) -> None:
    steps = read_recipe(ROOT / f"examples/{name}.yaml")
    assert steps[0].verb == "prune"
    jsonschema = pytest.importorskip("jsonschema")
    text = (ROOT / f"examples/{name}.yaml").read_text(encoding="utf-8")
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(yaml.safe_load(text))


# -------------------------------------------------------------------------------------------------------------- running


def invoke(*words: str) -> Any:
    found = CliRunner().invoke(app, [*words])
    assert found.exit_code == 0, found.output
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["better", "smaller"])
def test_a_dry_run_of_the_examples(name: str) -> None:
    told = json.loads(invoke("run", str(ROOT / f"examples/{name}.yaml"), "--dry-run", "--json").stdout)
    assert told["steps"][0]["forecast"]["baseline"]["n"] > 0
    assert [step["step"] for step in told["steps"]] == (["prune"] if name == "better" else ["prune", "heal"])
    assert list(Path().iterdir()) == []  # nothing is written


def told(folder: Path, file: str) -> dict[str, Any]:
    return json.loads((folder / file).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_recipe_of_a_checkpoint_makes_its_plan_again() -> None:
    command = "prune builtin:facts --task builtin:facts --matrices mlp --layers 2:3 --limit 260 -o here/out"
    Path("r").mkdir()
    invoke(*command.split(), "--save-recipe", "r/saved.yaml", "--device", "cpu")
    saved = yaml.safe_load(Path("r/saved.yaml").read_text(encoding="utf-8"))
    assert (saved["out"], saved["device"], saved["layers"]) == ("../here/out", "cpu", "2:3")
    again = json.loads(invoke("run", "r/saved.yaml", "--json").stdout)["steps"][0]
    assert again["result"]["already"]  # the same command, which is done
    (result,) = secateur.run("here/out/recipe.yaml", "other")
    assert result.out == Path("other")
    was, now = Path("here/out"), Path("other")
    assert result.plan.edits
    assert told(was, "plan.json")["edits"] == told(now, "plan.json")["edits"]
    first, second = (
        {key: value for key, value in told(folder, "verdict.json").items() if key not in TIMED}
        for folder in (was, now)
    )
    assert first == second
    keys = [{**yaml.safe_load((folder / "recipe.yaml").read_text()), "out": "."} for folder in (was, now)]
    assert keys[0] == keys[1]
    assert "device" not in keys[0]  # which changes no result


@pytest.mark.slow
def test_steps_run_in_order_and_a_finished_one_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    llama_folder(Path("float"))
    Path("r.yaml").write_text(
        "model: float\nsteps:\n- apply: {edit: b0.up=3, out: cut}\n- export: {out: cut.gguf}\n"
        "- push: me/cut\n",
        encoding="utf-8",
    )
    pushed: list[object] = []
    monkeypatch.setattr(api, "push", lambda folder, repo, **how: pushed.append((str(folder), repo)) or {
        "repo": repo, "url": "u", "files": [{"name": "x", "bytes": 1}]})  # fmt: skip
    shown = invoke("run", "r.yaml").stdout
    heads = [line for line in shown.splitlines() if line.startswith("step ")]
    assert [line.split(": ")[1].split()[1] for line in heads] == ["apply", "export", "push"]
    assert pushed == [("cut", "me/cut")]
    made = Path("cut.gguf").stat().st_mtime_ns, Path("cut/plan.json").stat().st_mtime_ns
    time.sleep(0.05)
    results = [step["result"] for step in json.loads(invoke("run", "r.yaml", "--json").stdout)["steps"]]
    assert [results[0]["already"], results[1]["already"]] == [True, True]
    assert made == (Path("cut.gguf").stat().st_mtime_ns, Path("cut/plan.json").stat().st_mtime_ns)
    os.utime("cut.gguf", (0, 0))  # older than its checkpoint
    with pytest.raises(SecateurError, match=r"r\.yaml, line 4: .*cut\.gguf"):
        secateur.run("r.yaml")


@pytest.mark.slow
def test_push_tells_its_upload_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"repo": "me/x", "private": False, "url": "https://hub/x", "files": [{"name": "a", "bytes": 1}]}
    monkeypatch.setattr(api, "push", lambda folder, repo, **how: files)
    command = "prune builtin:facts --task builtin:facts --matrices mlp --layers 2:3 --limit 260 -o out --json"
    found = json.loads(invoke(*command.split(), "--push", "me/x").stdout)
    assert found["handed_over"]["holds"] == "cut"
    assert found["push"] == files
    assert "push" not in json.loads(invoke(*command.split()).stdout)
