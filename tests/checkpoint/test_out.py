"""What -o may be: apart from all that a command reads, and a place where a folder can appear; told before the work."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.zoo import tiny

from secateur.checkpoint.folder import Folder
from secateur.checkpoint.out import check_apart
from secateur.core.ledger import Ledger
from secateur.errors import OutputError


@pytest.fixture(scope="module")
def models(tmp_path_factory, words):
    """A model, and the same cut by two edits."""
    place = tmp_path_factory.mktemp("models")
    save_model(place / "m", tiny("llama"), words)
    made = secateur("apply", place / "m", "--edit", "b1.mlp.n3=drop", "-o", place / "cut")
    assert made.exit_code == 0, made.stderr
    return place


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A folder of one's own with both, a task and a text; the current one."""
    place = tmp_path / "here"
    shutil.copytree(models, place)
    plan = place / "cut/plan.json"
    plan.write_text(plan.read_text().replace(str(models), str(place)))
    write_rows(place / "q.jsonl", questions())
    (place / "t.txt").write_text("w5 w6 w7 " * 500)
    monkeypatch.chdir(place)
    return place


def seen(place):
    """Every file with its content, every folder and every link."""
    files = contents(place)
    return files, {str(p): os.readlink(p) if p.is_symlink() else p.is_dir() for p in place.rglob("*")}


def refused(place, *typed, says):
    before = seen(place)
    told = secateur(*typed)
    assert told.exit_code == 2, (typed, told.stdout, told.stderr, told.exception)
    assert told.stdout == ""
    assert told.stderr.startswith("secateur: ")
    assert told.stderr.count("\n") == 1
    assert says in told.stderr, (typed, told.stderr)
    assert seen(place) == before


WRITING = {
    "prune": ["prune", "m", "--task", "q.jsonl", "--layers", "1", "--matrices", "down"],
    "each": ["prune", "m", "--task", "q.jsonl", "--each"],
    "apply": ["apply", "m", "--edit", "b1.down=3"],
    "finetune": ["finetune", "m", "--task", "q.jsonl", "--max-steps", "1"],
    "heal": ["heal", "cut", "--task", "q.jsonl", "--max-steps", "1"],
    "train": ["train", "text:t.txt", "--tokenizer", "m", "--steps", "1"],
    "demo": ["demo"],
    "probe": ["probe", "m", "--task", "q.jsonl", "--what", "heads"],
}
BY_RENAME = [verb for verb in WRITING if verb not in ("probe", "each")]


# -------------------------------------------------------------------------------------------- apart from what is read


@pytest.mark.parametrize("verb", [verb for verb in WRITING if verb not in ("demo", "each")])
def test_out_is_not_what_is_read_nor_around_or_in_it(verb, place):
    model = "cut" if verb == "heal" else "m"
    more = [] if verb == "probe" else ["--overwrite"]
    (place / "link").symlink_to(place)
    shutil.copytree(place / model, place / "around/deep/model")
    words = [word if word != model else "around/deep/model" for word in WRITING[verb]]
    for out, says in {
        "around/deep/model": "itself",
        "./around/../around/deep/model/": "itself",
        "link/around/deep/model": "itself",
        "around": "contains",
        "around/deep": "contains",
        "link/around": "contains",
        "around/deep/model/out": "lies in",
        "link/around/deep/model/a/b/out": "lies in",
    }.items():
        refused(place, *words, "-o", out, *more, says=says)


@pytest.mark.parametrize("guest", ["a/plan.json", "a/b/heal.json", "all.sqlite", "a.run/lock"])
def test_another_checkpoint_in_an_old_out_survives(guest, place):
    """Whatever lies in OUT goes with it, so nothing of ours may."""
    shutil.copytree(place / "cut", place / "old")
    (place / "old" / guest).parent.mkdir(parents=True, exist_ok=True)
    (place / "old" / guest).write_text("{}")
    says = f"old holds old/{guest.partition('/lock')[0]}"
    refused(place, "apply", "m", "--edit", "b1.down=3", "-o", "old", "--overwrite", says=says)


@pytest.mark.parametrize(
    ("typed", "made"),
    [
        (["prune", "m", "--task", "old/q.jsonl"], "old/q.jsonl"),
        (["prune", "m", "--task", "q.jsonl", "--test-task", "old/q.jsonl"], "old/q.jsonl"),
        (["prune", "m", "--task", "q.jsonl", "--side", "text:old/t.txt"], "old/t.txt"),
        (["prune", "m", "--task", "q.jsonl", "--ledger", "old/all.sqlite"], "old/all.sqlite"),
        (["prune", "m", "--task", "q.jsonl", "--spectra", "old/spectra"], "old/spectra/x"),
        (["prune", "m", "--task", "q.jsonl", "--device-map", "old/map.json"], "old/map.json"),
        (["apply", "m", "--plan", "old"], None),
        (["apply", "m", "--plan", "old/plan.json"], None),
        (["finetune", "m", "--task", "text:old/t.txt"], "old/t.txt"),
        (["heal", "cut", "--task", "q.jsonl", "--teacher", "old/m"], "old/m/config.json"),
        (["heal", "cut", "--task", "q.jsonl", "--side", "old/q.jsonl"], "old/q.jsonl"),
        (["heal", "cut", "--task", "q.jsonl", "--ledger", "old/all.sqlite"], "old/all.sqlite"),
        (["train", "text:old/t.txt", "--tokenizer", "m"], "old/t.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_old_out_is_not_replaced_where_the_command_reads_in_it(typed, made, place):
    """--overwrite would take along what lies in a checkpoint, also what is written to, such as a ledger."""
    shutil.copytree(place / "cut", place / "old")
    if made is not None:
        (place / made).parent.mkdir(exist_ok=True)
        if made.endswith(".sqlite"):
            Ledger.open(place / made).close()
        elif made == "old/m/config.json":
            shutil.rmtree(place / "old/m")
            shutil.copytree(place / "m", place / "old/m")
        else:
            (place / made).write_text('{"": "cpu"}' if made.endswith(".json") else "w5")
    refused(place, *typed, "-o", "old", "--overwrite", says="Give another -o")


def test_a_model_inside_the_out_that_it_was_made_in_survives(place):
    """A training leaves OUT/step-N; a cut of one of them must not replace OUT."""
    words = ["train", "text:t.txt", "--tokenizer", "m", "--steps", "2", "--save-steps", "1", "--layers", "1"]
    made = secateur(
        *words, "--d-model", "8", "--heads", "2", "--seqlen", "16", "--context", "16", "-o", "plain"
    )
    assert made.exit_code == 0, made.stderr
    refused(
        place, "apply", "plain/step-1", "--edit", "b0.down=5", "-o", "plain", "--overwrite", says="contains"
    )


def test_the_models_inside_the_package_are_read_too(place):
    from secateur.hf.source import place_of

    for out in (
        place_of("builtin:facts"),
        place_of("builtin:facts") / "cut",
        place_of("builtin:facts").parent,
    ):
        refused(place, "apply", "builtin:facts", "--edit", "b1.down=3", "-o", out, says="Give another -o")


def test_what_lies_in_the_state_of_another_run_is_read_only(place):
    """OUT.run is emptied when OUT is finished; only a ledger and spectra are at home there."""
    shutil.copytree(place / "m", place / "out.run/train-x/m")
    refused(place, "apply", "out.run/train-x/m", "--edit", "b1.down=3", "-o", "out", says="contains")
    shutil.rmtree(place / "out.run")
    run = Folder.at(place / "out", reads=["q.jsonl"], keeps=["out.run/ledger.sqlite", "out.run/spectra"]).run
    assert run == place / "out.run"


def test_two_names_of_one_folder_are_one(place):
    """Identity decides, not spelling: what does not exist yet is compared by name."""
    (place / "other").symlink_to("m")
    with pytest.raises(OutputError, match="itself"):
        check_apart(place / "m", ["other"])
    with pytest.raises(OutputError, match="contains"):
        check_apart(place / "new", [place / "new/sub/ledger"])
    check_apart(place / "new", [place / "newer"])
    check_apart(place / "m2", [place / "m"])


# -------------------------------------------------------------------------------------------- whatever else OUT can be


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def a_file(path):
    path.write_text("mine")


def a_full_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


THINGS = {
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "out", "is a link to nowhere"),
    "a link to a folder": (lambda path: path.symlink_to("cut"), "out", "is a link to cut"),
    "a link to itself": (lambda path: path.symlink_to("out"), "out", "is a link to out"),
    "a file": (a_file, "out", "left alone"),
    "a pipe": (a_pipe, "out", "left alone"),
    "a socket": (a_socket, "out", "left alone"),
    "a folder of another": (a_full_folder, "out", "left alone"),
    "in a file": (a_file, "out/sub", "cannot write"),
    "in a file, deeper": (a_file, "out/sub/sub", "cannot write"),
    "the state is a file": (lambda path: a_file(path.with_name("out.run")), "out", "cannot write"),
    "the state is a pipe": (lambda path: a_pipe(path.with_name("out.run")), "out", "cannot write"),
    "a state's name": (lambda path: None, "out.run", "is for the state of a run that writes out"),
    "only a state's name": (lambda path: None, ".run", "is for the state of a run"),
    "a long name": (lambda path: None, "o" * 300, "File name too long"),
    "a name that is too long for its state": (lambda path: None, "o" * 253, "File name too long"),
    "a long path": (lambda path: None, "o/" * 2500 + "o", "File name too long"),
    "the folder that one is in": (lambda path: None, "../here", "contains"),
    "here": (lambda path: None, ".", "no name for a new folder"),
    "above": (lambda path: None, "..", "no name for a new folder"),
    "above, by name": (lambda path: None, "m/..", "no name for a new folder"),
    "nothing": (lambda path: None, "", "no name for a new folder"),
    "everything": (lambda path: None, "/", "no name for a new folder"),
    "no place for files": (lambda path: None, "/proc/out", "cannot write"),
}


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("thing", THINGS)
def test_out_as_other_things(thing, more, place):
    make, out, says = THINGS[thing]
    make(place / "out")
    refused(place, *WRITING["apply"], "-o", out, *more, says=says)


@pytest.mark.parametrize("verb", BY_RENAME)
def test_every_verb_refuses_them(verb, place):
    (place / "link").symlink_to("nowhere")
    a_full_folder(place / "mine")
    for out, says in {
        "link": "is a link to nowhere",
        "mine": "left alone",
        "x.run": "state of a run",
    }.items():
        refused(place, *WRITING[verb], "-o", out, says=says)


def test_the_folder_one_is_in_is_no_out_even_where_nothing_is_read_there(place, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused(
        tmp_path,
        "apply",
        "builtin:facts",
        "--edit",
        "b1.down=3",
        "-o",
        "../empty",
        says="the folder that you are in",
    )


@pytest.mark.parametrize("out", ["new/", "a/b/c", "m/../new", "../beside", "./new", "link/new"])
def test_ways_to_write_a_new_folder(out, place):
    (place / "target").mkdir()
    (place / "link").symlink_to("target")
    done = secateur(*WRITING["apply"], "-o", out)
    assert done.exit_code == 0, done.stderr
    assert (place / out / "config.json").exists()


def test_folders_that_were_made_for_a_refused_command_are_gone_again(place):
    refused(place, "apply", "m", "--edit", "b9.down=3", "-o", "a/b/out", says="no matrix b9.down")


def test_the_end_is_rehearsed(place, monkeypatch):
    """A rename that the file system refuses is refused before the model is read; what was there stays."""
    secateur(*WRITING["apply"], "-o", "out")
    rename = os.rename

    def refusing(source, target):
        if str(source).endswith("out") or str(target).endswith("out"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    monkeypatch.setattr("secateur.steps.mapped", None)
    refused(
        place,
        "apply",
        "m",
        "--edit",
        "b1.down=4",
        "-o",
        "out",
        "--overwrite",
        says="cannot write out: Permission",
    )


def test_a_killed_rehearsal_is_mended(place):
    """Between its two renames the old checkpoint lies in OUT.run."""
    made = secateur(*WRITING["apply"], "-o", "out")
    assert made.exit_code == 0, made.stderr
    before = contents(place / "out")
    (place / "out.run").mkdir()
    (place / "out").rename(place / "out.run/replaced")
    again = secateur(*WRITING["apply"], "-o", "out")
    assert again.exit_code == 0, again.stderr
    assert "already holds" in again.stdout
    assert contents(place / "out") == before
    assert not (place / "out.run").exists()


def test_what_a_death_after_both_renames_left_is_in_nobodys_way(place):
    made = secateur(*WRITING["apply"], "-o", "out")
    assert made.exit_code == 0, made.stderr
    shutil.copytree(place / "out", place / "out.run/replaced")
    again = secateur("apply", "m", "--edit", "b1.down=4", "-o", "out", "--overwrite")
    assert again.exit_code == 0, again.stderr
    assert not (place / "out.run").exists()


# -------------------------------------------------------------------------------------------- mounts and permissions

SECATEUR = f"{sys.executable} -m secateur"


def in_namespace(place, script):
    """Runs a script of bash in namespaces of its own, in which it may mount."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount in a namespace of their own")
    return subprocess.run(["unshare", "-rm", "bash", "-c", script], cwd=place, capture_output=True, text=True)


MOUNTS = {
    "tmpfs": ("mkdir mnt; mount -t tmpfs none mnt", "mnt", "is a mount point"),
    "bound": ("mkdir mnt other; mount --bind other mnt", "mnt", "is a mount point"),
    "state elsewhere": ("mkdir out.run; mount -t tmpfs none out.run", "out", "different file systems"),
    "read-only": ("mkdir mnt; mount -t tmpfs -o ro none mnt", "mnt/out", "Read-only file system"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOUNTS)
def test_mounts(kind, place):
    mount, out, says = MOUNTS[kind]
    edit = "--edit b1.down=3 -q"
    done = in_namespace(place, f"{mount} && {SECATEUR} apply m {edit} -o {out}; echo $?; ls -A {out}")
    assert done.stdout.split()[:1] == ["2"], (done.stdout, done.stderr)
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_in_a_mount_point(place):
    """What the message proposes works."""
    mount = "mkdir mnt; mount -t tmpfs none mnt"
    done = in_namespace(place, f"{mount} && {SECATEUR} apply m --edit b1.down=3 -q -o mnt/cut && ls mnt/cut")
    assert "config.json" in done.stdout.split(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["apply", "probe"])
def test_folders_that_may_not_be_written(verb, place):
    """Root may write everywhere, so this runs without that privilege."""
    for name in ("parent", "owned"):
        (place / name).mkdir()
    (place / "parent").chmod(0o555)
    (place / "owned").chmod(0o555)
    limited = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.getuid() == 0 else []
    if limited and (shutil.which("setpriv") is None or subprocess.run([*limited, "true"]).returncode):
        pytest.skip("root cannot give up its privilege here")
    for out in ["parent/new"] if verb == "apply" else ["parent/new", "owned"]:
        words = [*limited, *SECATEUR.split(), *WRITING[verb], "-o", out]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("secateur: cannot write"), done.stderr
        assert "Permission denied" in done.stderr


def test_json_of_a_claim(place):
    """What `runs` reads while a run without a ledger goes on."""
    folder = Folder.at("out", reads=[])
    with folder.claimed({"apply": []}, overwrite=False) as already:
        assert not already
        folder.note("apply", {"apply": []})
        assert json.loads((place / "out.run/command.json").read_text())["verb"] == "apply"
    assert not (place / "out.run").exists()
