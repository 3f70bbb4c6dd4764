"""Carry out a plan on a checkpoint that may be larger than memory: its weights stay in their files, and the cut model
is made and written tensor by tensor.

Finished files are kept in `OUT.run/shards` until all are, so that a killed command goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Unpack

import torch

from secateur.checkpoint.companions import write_companions
from secateur.checkpoint.save import assert_same, check_form, check_space, logits_on
from secateur.checkpoint.stream_shards import (
    CountBytes,
    FinishedShard,
    Journal,
    Shard,
    check_digest,
    digest_of,
    shards_of,
    write_index,
    write_shard,
)
from secateur.core.form import Form, Way
from secateur.core.machine import Loading
from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.core.records.plan import DecompositionRecord
from secateur.core.site import Site
from secateur.core.writing import writing
from secateur.errors import ModelError, OutputError
from secateur.hf.load import Loaded, load_model, quiet
from secateur.hf.placement import torch_device
from secateur.hf.running import FEW, check_runs
from secateur.surgery.mask import masked
from secateur.surgery.materialize import CutModel, cut_model
from secateur.surgery.operations import resolve
from secateur.surgery.spectra import Decompositions, Spectra


@contextmanager
def mapped(model: str, run: Path, **loading: Unpack[Loading]) -> Iterator[Loaded]:
    """Load MODEL with its weights left in their files.

    Tensors that a family stores in another form are stored again, in a folder of `run` that is removed at the end.

    Raises: as `load_model`.
    """
    offloaded = run / "offloaded"
    try:
        how: Loading = {**loading, "device_map": "disk", "offload_folder": str(offloaded)}
        yield load_model(model, **how)
    finally:
        shutil.rmtree(offloaded, ignore_errors=True)


class Streamed(NamedTuple):
    """The record of streaming a checkpoint: each matrix that was decomposed, and the check that was made."""

    svd: list[DecompositionRecord]
    check: str


def stream(
    loaded: Loaded,
    plan: Plan,
    run: Path,
    folder: Path,
    *,
    form: Form,
    way: Way,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Streamed:
    """Write the cut model to `folder` as a Hugging Face checkpoint and read it back.

    In memory there is at most one matrix and, where it is decomposed, about 5 times its float32 size.

    Args:
        loaded: A model of `mapped`.
        run: The run folder, which keeps finished files until all are.

    Raises: `OutputError` where the disk has no room, or the checkpoint does not hold or compute what it should.
    """
    operations = resolve(plan, loaded.anatomy, loaded.fingerprint)
    check_form(form, operations)
    check = way.check
    if check == "auto":  # logits where the model is small against the memory that is free
        size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        check = "logits" if 4 * size <= _free_memory() else "digests"
    decompose = Decompositions(plan, way.svd, torch_device(way.device))
    kept = Spectra(2**30, decompose) if check == "logits" else decompose
    left = cut_model(loaded, plan, factorize=form.factorize, zeroed=form.zeroed, decompose=kept)
    shards = shards_of(left.model, way.shard_size)
    place, rows = run / "shards", [range(min(FEW, loaded.anatomy.vocab_size))]
    if check == "logits":
        check_runs(loaded, rows)
    with _keeping_finished(place), writing(folder):
        journal = Journal(place, _job(loaded, plan, form, way, shards))
        for name, finished in list(journal.done.items()):  # files of a killed run may have been damaged since
            if not (place / name).exists() or digest_of(place / name, lambda _: None) != finished.sha256:
                del journal.done[name]
        _write_shards(shards, left, loaded, place, journal, decompose, progress)
        if check == "digests":
            count = _counting("check", shards, progress)
            for shard in shards:
                check_digest(place / shard.file, journal.done[shard.file].sha256, count)
        with quiet():
            shutil.rmtree(folder, ignore_errors=True)
            left.model.save_pretrained(folder, state_dict={})  # all of a checkpoint but its weights
            write_companions(loaded.tokenizer, loaded.copied, folder)
        write_index(left.model, shards, folder)
        for shard in shards:
            os.rename(place / shard.file, folder / shard.file)
    shutil.rmtree(place)
    if check == "logits":
        with masked(loaded.model, operations, kept):
            expected = logits_on(loaded, rows)
    with quiet(), _read_back(folder, run, loaded, trust_remote_code) as written:
        if check == "logits":
            assert_same(expected, logits_on(written, rows), folder)
    matrices = {matrix.matrix: matrix for shard in journal.done.values() for matrix in shard.matrices}
    return Streamed([matrices[site] for site in sorted(matrices, key=Site.parse)], check)


def _free_memory() -> int:
    """Return the bytes that can be used without swapping, in this control group; half of all where the kernel does not
    say."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_left_in_group()])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield the bytes that a container may still take, where it has a limit; pages of files, which it gives back, count
    as taken."""
    most, now = root / "memory.max", root / "memory.current"
    if most.exists() and (limit := most.read_text().strip()) != "max":
        yield int(limit) - int(now.read_text())


def _job(loaded: Loaded, plan: Plan, form: Form, way: Way, shards: list[Shard]) -> str:
    """Return the digest of everything that the content of the files depends on."""
    layout = [hashlib.sha256(shard.header).hexdigest() for shard in shards]
    device = str(torch_device(way.device))
    deciding = [loaded.fingerprint, plan.to_json(), asdict(form), way.svd, device, torch.__version__, layout]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@contextmanager
def _keeping_finished(place: Path) -> Iterator[None]:
    """Remove the folder after a failure, unless it holds finished files that the next run can use."""
    try:
        yield
    except BaseException:
        if not any(place.glob("*.safetensors")):
            shutil.rmtree(place, ignore_errors=True)
        raise


def _write_shards(
    shards: list[Shard],
    left: CutModel,
    loaded: Loaded,
    place: Path,
    journal: Journal,
    decompose: Decompositions,
    progress: Progress,
) -> None:
    missing = [shard for shard in shards if shard.file not in journal.done]
    check_space(place, sum(shard.num_bytes for shard in missing))
    find = left.tensors_of(loaded.model)
    count = _counting("write", missing, progress)
    for shard in missing:
        before = set(decompose.records)
        digest = write_shard(shard, find, place, count)
        matrices = [
            DecompositionRecord.model_validate(record)
            for site, record in decompose.records.items()
            if site not in before
        ]
        journal.add(FinishedShard(file=shard.file, sha256=digest, matrices=matrices))


def _counting(stage: str, shards: list[Shard], progress: Progress) -> CountBytes:
    """Return a callable that reports the progress of a stage in bytes."""
    total, done = sum(shard.num_bytes for shard in shards), 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(stage, done, total)

    return count


@contextmanager
def _read_back(folder: Path, run: Path, like: Loaded, trust_remote_code: bool) -> Iterator[Loaded]:
    """Load the written checkpoint. Raises: `OutputError` where it cannot be loaded."""
    dtype = str(like.model.dtype).removeprefix("torch.")
    try:
        with mapped(str(folder), run, dtype=dtype, trust_remote_code=trust_remote_code) as written:
            yield written
    except ModelError as error:
        raise OutputError(f"what was written cannot be read, and was not published: {error}") from error
