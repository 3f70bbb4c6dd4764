"""Decompositions in a folder: the very bits of those computed, computed once for all runs, and never half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.folders import contents, questions, save_model, secateur, write_rows
from fixtures.zoo import ZOO, tiny
from safetensors import SafetensorError

import secateur as package
from secateur.core.plan import Plan, RemoveDirections, Truncate
from secateur.core.site import Site
from secateur.errors import OutputError
from secateur.hf.anatomy import anatomy
from secateur.linalg.spectrum import spectrum
from secateur.methods.registry import read_options
from secateur.session import open_session
from secateur.surgery.mask import masked
from secateur.surgery.operations import decompose, resolve
from secateur.surgery.spectra import SpectraFolder, spectra_of

SMALL = {"matrices": ("up", "down"), "layers": (0, 2), "allow_small": True}


def no_more(_):
    raise AssertionError("decomposed again")


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def counted(monkeypatch):
    """The shapes that are decomposed."""
    shapes = []

    def count(matrix):
        shapes.append(tuple(matrix.shape))
        return spectrum(matrix)

    monkeypatch.setattr("secateur.surgery.operations.spectrum", count)
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "falcon-rw", "phi3"])
def test_what_is_read_has_the_bits_of_what_was_computed(name, dtype, tmp_path, monkeypatch):
    model = tiny(name, dtype)
    parts = anatomy(model)
    computed = {m: decompose(m, model.get_parameter(m.weight)) for m in parts.matrices.values()}
    for written in (False, True):
        stored = SpectraFolder(tmp_path / "spectra")
        for matrix, expected in computed.items():
            found = stored(matrix, model.get_parameter(matrix.weight))
            for part in ("u", "sigma", "vh"):
                assert torch.equal(getattr(found, part), getattr(expected, part)), (matrix.site, written)
            for rank in range(expected.full_rank + 1):
                for side in ("top", "tail"):
                    assert torch.equal(found.truncate(rank, side), expected.truncate(rank, side))
                assert all(map(torch.equal, found.factors(rank), expected.factors(rank)))
        monkeypatch.setattr("secateur.surgery.operations.spectrum", no_more)
    distinct = {m.read(model.get_parameter(m.weight)).numpy(force=True).tobytes() if dtype != torch.bfloat16
                else m.read(model.get_parameter(m.weight)).float().numpy(force=True).tobytes()
                for m in parts.matrices.values()}  # fmt: skip
    assert len(files(tmp_path / "spectra")) == len(distinct)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_mask_from_the_folder_is_the_mask(name, tmp_path):
    """Every matrix truncated or without some directions, where parameters are fused and shared too."""
    model = tiny(name)
    parts = anatomy(model)
    edits = [
        Truncate(site, 2) if n % 2 else RemoveDirections(site, (0, 3))
        for n, site in enumerate(sorted(parts.matrices))
    ]
    operations = resolve(Plan("m", tuple(edits)), parts, "m")
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        with masked(model, operations):
            expected = model(input_ids=tokens).logits
        for room in (0, 2**20):
            with masked(model, operations, spectra_of(room, str(tmp_path))):
                assert torch.equal(model(input_ids=tokens).logits, expected)


def test_a_file_serves_the_same_matrix_wherever_it_is_and_no_other(tmp_path, counted):
    parts = anatomy(tiny("llama"))
    for seed, block, dtype, expected in (
        (0, 0, torch.float32, 1),
        (0, 1, torch.float32, 1),
        (1, 0, torch.float32, 2),
        (0, 1, torch.bfloat16, 3),
    ):
        matrix = parts.matrix(Site(block, "down"))
        weight = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for copy in (weight, weight.clone()):
            found = SpectraFolder(tmp_path)(matrix, copy)
            assert torch.equal(found.sigma, spectrum(weight).sigma)
        assert len(counted) == len(files(tmp_path)) == expected


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "zeros", "bit", "another"])
def test_a_damaged_file_is_said_and_made_again(damage, tmp_path, counted, caplog):
    model = tiny("llama")
    matrix = anatomy(model).matrix(Site(0, "up"))
    weight = model.get_parameter(matrix.weight)
    expected = decompose(matrix, weight)
    SpectraFolder(tmp_path)(matrix, weight)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    other = anatomy(model).matrix(Site(0, "down"))
    SpectraFolder(tmp_path / "other")(other, model.get_parameter(other.weight))
    [another] = (tmp_path / "other").iterdir()
    header = 8 + int.from_bytes(whole[:8], "little")
    file.write_bytes(
        {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "noise": os.urandom(500),
            "zeros": whole[:header] + bytes(len(whole) - header),
            "bit": whole[:-1] + bytes([whole[-1] ^ 64]),
            "another": another.read_bytes(),
        }[damage]
    )
    counted.clear()
    found = SpectraFolder(tmp_path)(matrix, weight)
    assert len(counted) == 1
    assert "decomposed again" in caplog.text
    assert torch.equal(found.vh, expected.vh)
    assert file.read_bytes() == whole


def test_what_cannot_be_read_back_is_still_there(tmp_path, monkeypatch, caplog):
    """As on a disk from which nothing can be mapped."""

    def unmapped(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr("secateur.surgery.spectra.safe_open", unmapped)
    model = tiny("llama")
    matrix = anatomy(model).matrix(Site(0, "up"))
    weight = model.get_parameter(matrix.weight)
    assert torch.equal(SpectraFolder(tmp_path)(matrix, weight).u, decompose(matrix, weight).u)
    assert "cannot be read" in caplog.text


def test_a_folder_is_named_whole_for_workers_are_elsewhere(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = read_options(str(place / "m"), str(place / "q.jsonl"), spectra="s", allow_small=True)
    assert open_session(options, None).judge().limits.spectra == str(tmp_path / "s")


def test_a_full_disk_is_said_and_nothing_half_written(tmp_path, monkeypatch):
    def full(tensors, path, *_):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })")

    monkeypatch.setattr("secateur.surgery.spectra.save_file", full)
    model = tiny("llama")
    matrix = anatomy(model).matrix(Site(0, "up"))
    with pytest.raises(OutputError, match=r"no space left .*another --spectra"):
        SpectraFolder(tmp_path / "s")(matrix, model.get_parameter(matrix.weight))
    assert files(tmp_path / "s") == []


def test_what_is_no_folder_is_refused(place, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    told = secateur(
        "eval", place / "m", "--task", place / "q.jsonl", "--edit", "b0.up=1", "--allow-small",
        "--spectra", tmp_path / "file",
    )  # fmt: skip
    assert told.exit_code == 2
    assert "another --spectra" in " ".join(told.output.split())


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_leaves_no_file_that_is_read(tmp_path):
    code = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fixtures.zoo import tiny
from secateur.hf.anatomy import anatomy
from secateur.surgery import spectra
save = spectra.save_file
def dying(tensors, path, *more):
    save(tensors, path, *more)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
spectra.save_file = dying
model = tiny("llama")
matrix = next(iter(anatomy(model).matrices.values()))
spectra.SpectraFolder(Path(sys.argv[2]))(matrix, model.get_parameter(matrix.weight))
"""
    here = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(here), str(tmp_path / "s")], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [name.endswith(".part") for name in files(tmp_path / "s")] == [True]
    model = tiny("llama")
    matrix = next(iter(anatomy(model).matrices.values()))
    found = SpectraFolder(tmp_path / "s")(matrix, model.get_parameter(matrix.weight))
    assert torch.equal(found.u, decompose(matrix, model.get_parameter(matrix.weight)).u)


# ------------------------------------------------------------------------------------------------------------ the verbs


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("spectra")
    save_model(place / "m", tiny("llama"), words)
    write_rows(place / "q.jsonl", questions(120))
    return place


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"exhaustive": True, "compose": False}, marks=pytest.mark.slow),
        pytest.param({"method": "directions"}, marks=pytest.mark.slow),
        pytest.param({"method": "directions", "protocol": "paper"}, marks=pytest.mark.slow),
    ],
)
def test_a_prune_with_a_folder_is_the_same_and_the_next_one_decomposes_nothing(
    options, place, tmp_path, counted, monkeypatch
):
    """Also where nothing has room in memory."""
    monkeypatch.setattr("secateur.evaluation.evaluator.spectra_bytes", lambda _: 0)
    asked = str(place / "m"), str(place / "q.jsonl")
    plain = package.prune(*asked, tmp_path / "plain", **SMALL, **options)
    alone = len(counted)
    counted.clear()
    first = package.prune(*asked, tmp_path / "first", spectra=str(tmp_path / "s"), **SMALL, **options)
    assert len(counted) == len(files(tmp_path / "s")) <= 4 < alone
    counted.clear()
    again = package.prune(*asked, tmp_path / "again", spectra=str(tmp_path / "s"), **SMALL, **options)
    assert counted == []
    for other in (first, again):
        assert other.plan == plain.plan
        assert contents(other.out)["model.safetensors"] == contents(plain.out)["model.safetensors"]
        assert other.verdict["after"] == plain.verdict["after"]


def test_what_a_probe_says_of_directions_is_what_it_said(place, tmp_path):
    asked = {"what": "directions", "matrices": ("down",), "allow_small": True}
    plain = package.probe(str(place / "m"), str(place / "q.jsonl"), **asked)
    for _ in range(2):
        found = package.probe(str(place / "m"), str(place / "q.jsonl"), spectra=str(tmp_path), **asked)
        assert found["rows"] == plain["rows"]
    assert len(files(tmp_path)) == anatomy(tiny("llama")).num_blocks


def test_plan_cost_counts_each_decomposition_once(place, tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.forecast.record.spectra_bytes", lambda _: 0)
    asked = str(place / "m"), str(place / "q.jsonl")
    how = SMALL | {"calibrate": False}
    plain = package.plan_cost(*asked, **how)
    kept = package.plan_cost(*asked, **how, spectra=str(tmp_path))
    for case, counts in kept["total"]["counts"].items():
        assert counts["svds"] == 4 < plain["total"]["counts"][case]["svds"]
        assert counts["evaluations"] == plain["total"]["counts"][case]["evaluations"]
    assert any(said.startswith("--spectra") for said in kept["assumptions"])
    measured = package.plan_cost(*asked, **SMALL, spectra=str(tmp_path))
    assert measured["total"]["counts"]["expected"]["seconds"] > 0
    assert not files(tmp_path), "one decomposition is timed, and none of the search's is made"
