"""Carry out a plan on a checkpoint that may be larger than memory: its weights stay in their files, and the cut model
is made and written tensor by tensor.

Finished files are kept in `OUT.run/shards` until all are, with a journal, so that a killed command goes on where it
was. They are written in the order and form of the safetensors library, and appear when they are whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from pydantic import Field, JsonValue
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint.companions import write_companions
from secateur.checkpoint.folder import write_json
from secateur.checkpoint.save import assert_same, check_form, check_space, logits_on
from secateur.core.form import Form, Way
from secateur.core.machine import Loading
from secateur.core.plan import Plan
from secateur.core.progress import Progress, silent
from secateur.core.reading import parse_json
from secateur.core.records.plan import DecompositionRecord
from secateur.core.records.record import Record
from secateur.core.site import Site
from secateur.core.writing import writing
from secateur.errors import ModelError, OutputError
from secateur.hf.build import Find, as_stored, finding_stored, fitting
from secateur.hf.load import Loaded, load_model, quiet
from secateur.hf.placement import torch_device
from secateur.hf.running import check_runs, few_tokens
from secateur.hf.source import INDEX
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

    In memory there is at most one matrix and, where it is decomposed, about 5 times its float32 size; of a mixture all
    experts of a network.

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
    place, rows = run / "shards", [few_tokens(loaded.anatomy)]
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
    find = finding_stored(left.model, left.tensors_of(loaded.model))
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


KINDS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
PIECE = 2**26  # bytes written and hashed at a time
JOURNAL = "journal.jsonl"

CountBytes = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its name there, its name in the model, and a blank tensor of its shape and dtype.

    What is only a part of a tensor of the model has its name in the file for both.
    """

    name: str
    name_in_model: str
    blank: Tensor

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self.blank)


@dataclass(frozen=True)
class Shard:
    """A file to write, with its tensors in the order in which they lie there."""

    file: str
    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of the file."""
        return len(self.header) + sum(entry.num_bytes for entry in self.entries)

    @property
    def header(self) -> bytes:
        """Return the length of the rest, and JSON that says which tensor lies where, padded to a multiple of 8."""
        layout: dict[str, JsonValue] = {"__metadata__": {"format": "pt"}}
        start = 0
        for entry in self.entries:
            place: list[JsonValue] = [start, start := start + entry.num_bytes]
            kind, shape = KINDS[entry.blank.dtype], list(entry.blank.shape)
            layout[entry.name] = {"dtype": kind, "shape": [*shape], "data_offsets": place}
        text = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def shards_of(model: PreTrainedModel, shard_size: int) -> list[Shard]:
    """Return the files that `save_pretrained` would write.

    Args:
        model: May be blank.
        shard_size: Bytes of a file at most; a tensor that is larger has a file of its own.
    """
    stored = as_stored(model)
    split = split_state_dict_into_shards_factory(
        {name: blank for name, (_, blank) in stored.items()},
        get_storage_size=_num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_size,
    )

    def order(entry: Entry) -> tuple[int, str]:
        return list(KINDS).index(entry.blank.dtype), entry.name

    return [
        Shard(file, tuple(sorted((Entry(name, *stored[name]) for name in names), key=order)))
        for file, names in split.filename_to_tensors.items()
    ]


def _num_bytes(blank: Tensor) -> int:
    return blank.numel() * blank.element_size()


def write_index(model: PreTrainedModel, shards: list[Shard], folder: Path) -> None:
    """Write which file has which tensor; nothing where there is one file."""
    if len(shards) > 1:
        total = sum(entry.num_bytes for shard in shards for entry in shard.entries)
        named = {entry.name: shard.file for shard in shards for entry in shard.entries}
        about = {"total_parameters": model.num_parameters(), "total_size": total}
        write_json(folder / INDEX, {"metadata": about, "weight_map": dict(sorted(named.items()))})


def write_shard(shard: Shard, find: Find, folder: Path, count: CountBytes) -> str:
    """Write a file and return its SHA-256; it is whole and on the disk then.

    Args:
        find: Returns a tensor of the model by its name there; called for one tensor after the other.
        count: Called with the number of bytes that were written.

    Raises: `OSError`; `OutputError` for a tensor that is not finite.
    """
    digest, unfinished = hashlib.sha256(), folder / f"{shard.file}.part"
    with unfinished.open("wb") as file:
        for piece in _pieces(shard, find):
            file.write(piece)
            digest.update(piece)
            count(len(piece))
        file.flush()
        os.fsync(file.fileno())
    os.rename(unfinished, folder / shard.file)
    return digest.hexdigest()


def _pieces(shard: Shard, find: Find) -> Iterator[bytes | memoryview]:
    yield shard.header
    for entry in shard.entries:
        tensor = fitting(find, entry.name_in_model, entry.blank)
        assert tensor.dtype == entry.blank.dtype, (
            f"{entry.name_in_model} is {tensor.dtype}, not {entry.blank.dtype}"
        )
        if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            float16 = " float16 ends at 65,504: try --dtype bfloat16 or float32."
            narrow = float16 if tensor.dtype == torch.float16 else ""
            raise OutputError(
                f"{entry.name} of the cut model would hold NaN or infinity, and was not written.{narrow}"
            )
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, len(flat), PIECE):
            yield flat[start : start + PIECE].numpy().data


def digest_of(path: Path, count: CountBytes) -> str:
    """Return the SHA-256 of a file as it is now, on the disk where the system allows to read past its cache."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if "posix_fadvise" in vars(os):  # else the bytes just written would come from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(PIECE):
            digest.update(piece)
            count(len(piece))
    return digest.hexdigest()


def check_digest(path: Path, expected: str, count: CountBytes) -> None:
    """Raise `OutputError` where a file does not hold what was written to it."""
    if digest_of(path, count) != expected:
        raise OutputError(
            f"{path} does not hold what was written to it: the disk is not to be trusted. It was not published; run "
            "the same command again, or give another -o."
        )


# ------------------------------------------------------------------------------------------------- the journal


class FinishedShard(Record):
    """A finished file, as the journal has it."""

    file: str = Field(description="its name")
    sha256: str = Field(description="of its content")
    matrices: list[DecompositionRecord] = Field(description="the matrices that were decomposed for it")


class Journal:
    """Keep the finished files of one job; `done` has them by name.

    The first line of the journal says which job it is. Another job's files are removed; a last line that was being
    written when the process was killed does not count.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._path = folder / JOURNAL
        finished = self._finished(job)
        if finished is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.done = {shard.file: shard for shard in finished or ()}
        # written again without a torn last line, which the next one would be glued to
        new = self._path.with_suffix(".new")
        lines = [{"job": job}, *(shard.model_dump() for shard in self.done.values())]
        new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(new, self._path)

    def _finished(self, job: str) -> list[FinishedShard] | None:
        """Return the files that are noted as finished, up to the first damaged line; None for another job."""
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        finished: list[FinishedShard] | None = None
        for line in text.splitlines():
            try:
                value = parse_json(line)
                if finished is not None:
                    finished.append(FinishedShard.model_validate(value))
                elif value == {"job": job}:
                    finished = []
                else:
                    return None
            except ValueError:
                break
        return finished

    def add(self, shard: FinishedShard) -> None:
        """Note a finished file; the note is on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(shard.model_dump()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[shard.file] = shard
