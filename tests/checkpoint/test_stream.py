"""Plans streamed from mapped files to new ones: to the byte what the cut in memory saves, killed or not."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from fixtures.cuts import KINDS, edits_of, factorized
from fixtures.folders import contents, save_model, secateur
from fixtures.marks import slow_but
from fixtures.zoo import FEWEST, by_layout, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from secateur import api
from secateur.checkpoint import stream
from secateur.checkpoint.save import save_and_reload
from secateur.checkpoint.stream import (
    JOURNAL,
    FinishedShard,
    Journal,
    mapped,
    shards_of,
    write_index,
    write_shard,
)
from secateur.core.form import Form
from secateur.core.machine import shard_bytes
from secateur.core.plan import Plan
from secateur.errors import ModelError, OutputError, SecateurError, UnknownName
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import load_model
from secateur.surgery.materialize import cut, cut_model
from secateur.surgery.operations import decompose

EDITS = ["b0.q=2", "b1.down=3", "b1.attn.h1=drop", "b0.mlp.n3=drop"]
STORED = [  # kinds that store tensors of other shapes, under other names, or fewer
    "uneven heads", "KV groups everywhere", "attention of block 0", "neurons", "mixed", "rank 3",
    "directions of attention", "last block linear", "folded",
]  # fmt: skip
SMALL = "20KB"  # several files even of a tiny model


def weights(folder: Path) -> dict[str, bytes]:
    kinds = (".safetensors", ".index.json")
    return {name: data for name, data in contents(folder).items() if name.endswith(kinds)}


# ------------------------------------------------------------------------------------------- the same to the byte


@pytest.mark.parametrize("name", by_layout(first=FEWEST))
def test_every_kind_of_cut_is_streamed_as_it_is_saved(name, words, tmp_path):
    """In every family, in several files, index and names included; and nothing of the original is in memory."""
    folder = save_model(tmp_path / "m", tiny(name), words)
    whole = load_model(str(folder), device="cpu")
    with mapped(str(folder), tmp_path) as loaded:
        assert loaded.fingerprint == whole.fingerprint
        assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}
        for kind in KINDS if name in ("llama", "gpt2") else STORED:
            plan = Plan(whole.fingerprint, tuple(edits_of(kind, whole.anatomy)))
            how = {"factorize": factorized(kind)}
            saved, streamed = tmp_path / kind / "saved", tmp_path / kind / "streamed"
            cut(whole, plan, **how).save_pretrained(saved, max_shard_size=20_000)
            streamed.mkdir()
            left = cut_model(loaded, plan, **how)
            shards, find = shards_of(left.model, 20_000), left.tensors_of(loaded.model)
            for shard in shards:
                write_shard(shard, find, streamed, lambda _: None)
            write_index(left.model, shards, streamed)
            assert weights(streamed) == weights(saved), kind
            assert {s.file: s.num_bytes for s in shards} == {
                path.name: path.stat().st_size for path in saved.glob("*.safetensors")
            }


@pytest.mark.parametrize("form", [Form(), Form(zeroed=True), Form(factorize=True)], ids=str)
@pytest.mark.parametrize(
    "name", slow_but(["gpt2", "phi3"], ["llama-tied-biased", "gpt2", "gpt-neox", "phi3", "opt-projected"])
)
def test_apply_writes_what_prune_would_have_written(name, form, words, tmp_path):
    """Every file of it: config, generation config, tokenizer and modelling file too."""
    folder = save_model(tmp_path / "m", tiny(name, torch.bfloat16), words)
    whole = load_model(str(folder), device="cpu")
    plan = Plan(whole.fingerprint, tuple(api.read_edits(EDITS)))
    asked = {"zeroed": form.zeroed, "factorize": form.factorize}
    api.apply(str(folder), plan, tmp_path / "out", device="cpu", **asked)
    rows = [range(8)]
    save_and_reload(whole, plan, tmp_path / "saved", rows=rows, form=form, decompose=decompose)
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "saved")
    assert set(ours) - set(theirs) == {"README.md", "plan.json"}
    assert {name: ours[name] for name in theirs} == theirs


def test_shards_are_read_by_the_stock_class(words, tmp_path):
    folder = save_model(tmp_path / "m", tiny("qwen2"), words, max_shard_size="10kB")
    one, several = (tmp_path / which for which in ("one", "several"))
    api.apply(str(folder), ["b1.down=3"], one, device="cpu")
    done = secateur(
        "apply", folder, "--edit", "b1.down=3", "-o", several, "--device", "cpu", "--shard-size", SMALL
    )
    assert done.exit_code == 0, done.stderr
    files = sorted(several.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (several / "model.safetensors").exists()
    largest = max(t.numel() * t.element_size() for t in load_file(one / "model.safetensors").values())
    for file in files:
        assert file.stat().st_size < max(20_000, largest) + 10_000, "the header is beside the size asked for"
    first, second = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (one, several))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "several.run").exists()


# ------------------------------------------------------------------------------------------------- names in the files


def test_names_without_the_models_prefix_are_understood(words, tmp_path):
    """As GPT-2 lies on the hub: `h.0.attn...` for `transformer.h.0.attn...`."""
    folder = save_model(tmp_path / "m", tiny("gpt2"), words)
    expected = fingerprint(tiny("gpt2"))
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    with mapped(str(folder), tmp_path) as loaded:
        assert loaded.fingerprint == expected
    api.apply(str(folder), ["b1.down=3"], tmp_path / "out", device="cpu")
    assert load_file(tmp_path / "out/model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_another_dtype_is_cast_as_transformers_casts(dtype, words, tmp_path):
    folder = save_model(tmp_path / "m", tiny("gemma3", torch.bfloat16), words)
    whole = load_model(str(folder), dtype=dtype, device="cpu")
    plan = Plan(whole.fingerprint, tuple(api.read_edits(EDITS)))
    api.apply(str(folder), plan, tmp_path / "out", dtype=dtype, device="cpu")
    cut(whole, plan).save_pretrained(tmp_path / "saved")
    assert weights(tmp_path / "out") == weights(tmp_path / "saved")


def test_damaged_weights_are_refused(words, tmp_path):
    folder = save_model(tmp_path / "m", tiny("llama"), words)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    bad = tensors[name].clone()
    bad[0, 0] = float("nan")
    for change, says in (
        ({name: bad}, "holds NaN"),
        ({name: bad[1:].contiguous()}, "1 of the wrong shape"),
        ({"more": bad}, "1 unexpected"),
    ):
        save_file(tensors | change, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=says):
            api.apply(str(folder), ["b0.q=1"], tmp_path / "out", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


# ------------------------------------------------------------------------------------------------ killed, and going on


@pytest.fixture(scope="module")
def original(words, tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("original") / "m", tiny("llama"), words)


@pytest.fixture(scope="module")
def undisturbed(original, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    applied(original, out)
    assert len(list(out.glob("model-*.safetensors"))) > 3
    return contents(out)


def applied(original: Path, out: Path, **how: object) -> api.Result:
    asked = {"shard_size": SMALL, "check": "digests", "device": "cpu"} | how
    return api.apply(str(original), EDITS, out, **asked)


def inodes(out: Path) -> dict[str, int]:
    place = out.with_name(out.name + ".run") / "shards"
    return {path.name: path.stat().st_ino for path in place.glob("*.safetensors")}


DYING = """
import os, signal
from secateur import api
from secateur.checkpoint import stream
write, written = stream.write_shard, []
def mortal(shard, find, folder, count):
    if len(written) == 2:
        def count(_):
            os.kill(os.getpid(), signal.SIGKILL)
    written.append(shard)
    return write(shard, find, folder, count)
stream.write_shard = mortal
api.apply(MODEL, EDITS, OUT, shard_size="20KB", check="digests", device="cpu")
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_a_file(original, undisturbed, tmp_path, monkeypatch, forks):
    """Two files are finished when SIGKILL comes; the same command writes the others, and the end is the same."""
    out = tmp_path / "out"
    asked = f"MODEL, EDITS, OUT = {str(original)!r}, {EDITS!r}, {str(out)!r}"
    killed = forks.run(tmp_path, None, asked + DYING)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    kept = inodes(out)
    assert len(kept) == 2
    assert list((tmp_path / "out.run/shards").glob("*.part")), "it died while writing the third"
    write, written = stream.write_shard, []
    monkeypatch.setattr(
        stream, "write_shard", lambda shard, *more: written.append(shard) or write(shard, *more)
    )
    applied(original, out)
    assert contents(out) == undisturbed
    assert not {shard.file for shard in written} & set(kept)
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stage", ["write", "check"])
def test_ctrl_c_loses_no_finished_file(stage, original, undisturbed, tmp_path):
    out, seen = tmp_path / "out", []

    def impatient(now: str, done: int, total: int) -> None:
        seen.append((now, done, total))
        if now == stage and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        applied(original, out, progress=impatient)
    kept = inodes(out)
    assert kept
    assert not out.exists()
    applied(original, out)
    assert contents(out) == undisturbed
    assert {name: (out / name).stat().st_ino for name in kept} == kept


def test_progress_counts_the_bytes_of_the_files(original, tmp_path):
    seen = []
    applied(original, tmp_path / "out", progress=lambda *told: seen.append(told))
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    for stage in ("write", "check"):
        done = [(at, of) for now, at, of in seen if now == stage]
        assert done[-1] == (size, size)
        assert [at for at, _ in done] == sorted(at for at, _ in done)


def test_a_finished_file_that_was_damaged_is_written_again(original, undisturbed, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        applied(original, out, progress=interrupted_at("check"))
    first = sorted((tmp_path / "out.run/shards").glob("*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(bytes(data))
    applied(original, out)
    assert contents(out) == undisturbed


def interrupted_at(stage: str):
    def stop(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    return stop


def test_a_disk_that_lies_is_found_out(original, tmp_path, monkeypatch):
    """What is read again is not what was written."""
    write = stream.write_shard

    def losing(shard, find, folder, count):
        digest = write(shard, find, folder, count)
        path = folder / shard.file
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        return digest

    monkeypatch.setattr(stream, "write_shard", losing)
    with pytest.raises(OutputError, match="does not hold what was written"):
        applied(original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_plan_does_not_go_on_with_these_files(original, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        applied(original, out, progress=interrupted_at("check"))
    api.apply(str(original), ["b0.q=5"], out, shard_size=SMALL, check="digests", device="cpu")
    api.apply(str(original), ["b0.q=5"], tmp_path / "fresh", shard_size=SMALL, check="digests", device="cpu")
    assert contents(out) == contents(tmp_path / "fresh")


def test_the_journal_survives_a_torn_line(tmp_path):
    journal = Journal(tmp_path / "shards", "job")
    journal.add(FinishedShard(file="one", sha256="", matrices=[]))
    with (tmp_path / "shards" / JOURNAL).open("a") as file:
        file.write('{"file": "tw')
    again = Journal(tmp_path / "shards", "job")
    assert list(again.done) == ["one"]
    again.add(FinishedShard(file="two", sha256="", matrices=[]))
    assert list(Journal(tmp_path / "shards", "job").done) == ["one", "two"]
    assert Journal(tmp_path / "shards", "another").done == {}
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [JOURNAL]


# --------------------------------------------------------------------------------------------------- what it tells


def test_it_is_written_down_how_it_was_done(original, tmp_path):
    edits = ["b0.q=2", "b1.down=3", "b1.v=tail:2"]
    for check in ("logits", "digests"):
        for svd in ("exact", "randomized"):
            api.apply(str(original), edits, tmp_path / check / svd, svd=svd, check=check, device="cpu")
            record = json.loads((tmp_path / check / svd / "plan.json").read_text())["provenance"]
            assert record["check"] == check
            told = {one["matrix"]: one for one in record["svd"]}
            assert {site: one["svd"] for site, one in told.items()} == {
                "b0.q": svd, "b1.down": svd, "b1.v": "exact"
            }  # fmt: skip
            assert told["b1.v"]["residual"] is None
            card = (tmp_path / check / svd / "README.md").read_text()
            assert ("by the randomized method" in card) == (svd == "randomized")
            assert ("compute what the cut model" in card) == (check == "logits")
    exact, near = (
        load_file(tmp_path / "logits" / svd / "model.safetensors") for svd in ("exact", "randomized")
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(exact[name], near[name])
    torch.testing.assert_close(near[name], exact[name], rtol=0, atol=1e-3)
    whole = load_file(original / "model.safetensors")[name]
    residual = float(torch.linalg.norm(whole - near[name]) / torch.linalg.norm(whole))
    randomly = json.loads((tmp_path / "logits/randomized/plan.json").read_text())["provenance"]["svd"]
    assert next(one for one in randomly if one["matrix"] == "b0.q")["residual"] == pytest.approx(
        residual, rel=1e-5
    )


def test_a_small_model_is_computed_with_and_one_beyond_memory_read_again(original, tmp_path, monkeypatch):
    for free, check in ((10**12, "logits"), (10**4, "digests")):
        monkeypatch.setattr(stream, "_free_memory", lambda free=free: free)
        applied(original, tmp_path / check, check="auto")
        assert json.loads((tmp_path / check / "plan.json").read_text())["provenance"]["check"] == check
    assert weights(tmp_path / "logits") == weights(tmp_path / "digests")


def test_free_memory_is_that_of_this_machine():
    told = Path("/proc/meminfo")
    if not told.exists():
        pytest.skip("this kernel tells nothing")
    whole = int(told.read_text().split()[1]) * 1024
    assert 10**8 < stream._free_memory() < whole


def test_a_container_has_what_its_group_may_still_take(tmp_path):
    assert list(stream._left_in_group(tmp_path)) == []
    (tmp_path / "memory.current").write_text("300\n")
    for limit, left in (("max\n", []), ("1000\n", [700])):
        (tmp_path / "memory.max").write_text(limit)
        assert list(stream._left_in_group(tmp_path)) == left


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ({"svd": "best"}, UnknownName, "auto, exact, randomized"),
        ({"check": "none"}, UnknownName, "auto, digests, logits"),
        ({"shard_size": "5 apples"}, SecateurError, "5GB or 500MB"),
        ({"shard_size": "0GB"}, SecateurError, "5GB or 500MB"),
        ({"device": "tpu"}, UnknownName, "unknown device"),
    ],
)
def test_what_is_not_understood_is_refused_first(how, kind, says, original, tmp_path):
    with pytest.raises(kind, match=says):
        applied(original, tmp_path / "out", **how)
    assert list(tmp_path.iterdir()) == []


def test_sizes():
    assert [shard_bytes(text) for text in ("5GB", "1.5 mb", "20KB", "2TB")] == [
        5 * 10**9,
        1_500_000,
        20_000,
        2 * 10**12,
    ]
