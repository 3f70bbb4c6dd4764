"""A plan carried out on a checkpoint that may be larger than memory: mapped, made and written tensor by tensor.

What is finished is kept in `OUT.run/shards` until the whole is, so that a killed command goes on where it was.
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
from typing import Any

import torch

from secateur.checkpoint.companions import write_companions
from secateur.checkpoint.save import assert_same, check_form, check_space, logits_on
from secateur.checkpoint.stream_journal import Journal
from secateur.checkpoint.stream_shards import (
    Count,
    Shard,
    check_digest,
    digest_of,
    shards_of,
    write_index,
    write_shard,
)
from secateur.core.form import Form, Way
from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
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
def mapped(model: str, run: Path, **loading: Any) -> Iterator[Loaded]:
    """MODEL with its weights left in their files; only what a family stores in another form is stored again, in a
    folder of `run` that is gone at the end. Raises as `load_model`."""
    offloaded = run / "offloaded"
    try:
        yield load_model(model, device_map="disk", offload_folder=str(offloaded), **loading)
    finally:
        shutil.rmtree(offloaded, ignore_errors=True)


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
) -> dict[str, Any]:
    """Writes the cut model to `folder` as a Hugging Face checkpoint and reads it back. Gives how: `svd`, a record for
    each decomposed matrix, and which `check` was made.

    `loaded` is `mapped`. In memory there is at most one matrix and, where it is decomposed, about 5 times its float32
    size. Raises `OutputError` where the disk has no room, or the checkpoint is not what it should be.
    """
    operations = resolve(plan, loaded.anatomy, loaded.fingerprint)
    check_form(form, operations)
    check = _check_of(loaded) if way.check == "auto" else way.check
    decompose = Decompositions(plan, way.svd, torch_device(way.device))
    kept = Spectra(2**30, decompose) if check == "logits" else decompose
    left = cut_model(loaded, plan, factorize=form.factorize, zeroed=form.zeroed, decompose=kept)
    shards = shards_of(left.model, way.shard_size)
    place, rows = run / "shards", [range(min(FEW, loaded.anatomy.vocab_size))]
    if check == "logits":
        check_runs(loaded, rows)
    with _keeping_what_is_finished(place), writing(folder):
        journal = Journal(place, _job(loaded, plan, form, way, shards))
        _drop_damaged(journal, place)
        _write_shards(shards, left, loaded, place, journal, decompose, progress)
        if check == "digests":
            _check_digests(shards, journal, place, progress)
        _save_the_rest(left, loaded, shards, folder)
        for shard in shards:
            os.rename(place / shard.file, folder / shard.file)
    shutil.rmtree(place)
    if check == "logits":
        with masked(loaded.model, operations, kept):
            expected = logits_on(loaded, rows)
    with quiet(), _read_back(folder, run, loaded, trust_remote_code) as written:
        if check == "logits":
            assert_same(expected, logits_on(written, rows), folder)
    told = {told["matrix"]: told for record in journal.done.values() for told in record["matrices"]}
    return {"svd": [told[site] for site in sorted(told, key=Site.parse)], "check": check}


def _check_of(loaded: Loaded) -> str:
    """Logits where the model is small against the memory that is free."""
    size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    return "logits" if 4 * size <= _free_memory() else "digests"


def _free_memory() -> int:
    """Bytes that can be had without swapping, in this control group; half of all where the kernel does not say."""
    told = Path("/proc/meminfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_left_in_group()])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What a container may still take, where it has a limit; pages of files, which it gives back, count as taken."""
    most, now = root / "memory.max", root / "memory.current"
    if most.exists() and (limit := most.read_text().strip()) != "max":
        yield int(limit) - int(now.read_text())


def _job(loaded: Loaded, plan: Plan, form: Form, way: Way, shards: list[Shard]) -> str:
    """The digest of all that decides what is in the files."""
    layout = [hashlib.sha256(shard.header).hexdigest() for shard in shards]
    device = str(torch_device(way.device))
    asked = [loaded.fingerprint, plan.to_json(), asdict(form), way.svd, device, torch.__version__, layout]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@contextmanager
def _keeping_what_is_finished(place: Path) -> Iterator[None]:
    """After a failure nothing is left that the next run could not use."""
    try:
        yield
    except BaseException:
        if not any(place.glob("*.safetensors")):
            shutil.rmtree(place, ignore_errors=True)
        raise


def _drop_damaged(journal: Journal, place: Path) -> None:
    """Of files that a killed run left finished, those that are not as they were."""
    for name, record in list(journal.done.items()):
        path = place / name
        if not path.exists() or digest_of(path, lambda _: None) != record["sha256"]:
            del journal.done[name]


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
        new = [record for site, record in decompose.records.items() if site not in before]
        journal.add({"file": shard.file, "sha256": digest, "matrices": new})


def _check_digests(shards: list[Shard], journal: Journal, place: Path, progress: Progress) -> None:
    count = _counting("check", shards, progress)
    for shard in shards:
        check_digest(place / shard.file, journal.done[shard.file]["sha256"], count)


def _counting(stage: str, shards: list[Shard], progress: Progress) -> Count:
    """Tells the progress in bytes."""
    total, done = sum(shard.num_bytes for shard in shards), 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(stage, done, total)

    return count


def _save_the_rest(left: CutModel, loaded: Loaded, shards: list[Shard], folder: Path) -> None:
    """All of a checkpoint but its weights."""
    with quiet():
        shutil.rmtree(folder, ignore_errors=True)
        left.model.save_pretrained(folder, state_dict={})
        write_companions(loaded.tokenizer, loaded.copied, folder)
    write_index(left.model, shards, folder)


@contextmanager
def _read_back(folder: Path, run: Path, like: Loaded, trust_remote_code: bool) -> Iterator[Loaded]:
    """Raises `OutputError` where what was written cannot be loaded."""
    dtype = str(like.model.dtype).removeprefix("torch.")
    try:
        with mapped(str(folder), run, dtype=dtype, trust_remote_code=trust_remote_code) as written:
            yield written
    except ModelError as error:
        raise OutputError(f"what was written cannot be read, and was not published: {error}") from error
