"""Write safetensors files tensor by tensor, in the order and form of the safetensors library, and keep a journal of the
finished ones, so that a killed command goes on with the others.

Knows names, shapes and bytes; no plan. A file appears under its name when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from pydantic import Field, JsonValue
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint.folder import write_json
from secateur.core.reading import parse_json
from secateur.core.records.plan import DecompositionRecord
from secateur.core.records.record import Record
from secateur.errors import OutputError
from secateur.hf.build import Find, as_stored, fitting
from secateur.hf.source import INDEX

KINDS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
PIECE = 2**26  # bytes written and hashed at a time
JOURNAL = "journal.jsonl"

CountBytes = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its name there, its name in the model, and a blank tensor of its shape and dtype."""

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
    """Return the files that `save_pretrained` would write, for shards of `shard_size` bytes; the model may be blank."""
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
