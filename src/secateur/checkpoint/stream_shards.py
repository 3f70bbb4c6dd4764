"""Safetensors files written tensor by tensor, in the very order and form of the safetensors library.

Knows names, shapes and bytes; no plan. A file appears under its name when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel

from secateur.checkpoint.folder import write_json
from secateur.errors import OutputError
from secateur.hf.build import Find, as_stored, fitting
from secateur.hf.source import INDEX

KINDS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
PIECE = 2**26  # bytes written and hashed at a time

Count = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its name there, its name in the model, and a blank one of its shape and dtype."""

    name: str
    own: str
    blank: Tensor

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self.blank)


@dataclass(frozen=True)
class Shard:
    """One file to be, with its tensors in the order in which they lie there."""

    file: str
    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(entry.num_bytes for entry in self.entries)

    @property
    def header(self) -> bytes:
        """The length of what follows, and JSON that says what lies where, padded to a multiple of 8."""
        told: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for entry in self.entries:
            place = [start, start := start + entry.num_bytes]
            kind, shape = KINDS[entry.blank.dtype], list(entry.blank.shape)
            told[entry.name] = {"dtype": kind, "shape": shape, "data_offsets": place}
        text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def shards_of(model: PreTrainedModel, shard_size: int) -> list[Shard]:
    """The files that `save_pretrained` would write, for shards of `shard_size` bytes; the model may be blank."""
    stored = as_stored(model)
    split = split_state_dict_into_shards_factory(
        {name: blank for name, (_, blank) in stored.items()},
        get_storage_size=_num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_size,
    )
    return [
        Shard(file, tuple(sorted((Entry(name, *stored[name]) for name in names), key=_place)))
        for file, names in split.filename_to_tensors.items()
    ]


def _place(entry: Entry) -> tuple[int, str]:
    return list(KINDS).index(entry.blank.dtype), entry.name


def _num_bytes(blank: Tensor) -> int:
    return blank.numel() * blank.element_size()


def write_index(model: PreTrainedModel, shards: list[Shard], folder: Path) -> None:
    """Which file has which tensor; nothing where there is one file."""
    if len(shards) > 1:
        total = sum(entry.num_bytes for shard in shards for entry in shard.entries)
        named = {entry.name: shard.file for shard in shards for entry in shard.entries}
        about = {"total_parameters": model.num_parameters(), "total_size": total}
        write_json(folder / INDEX, {"metadata": about, "weight_map": dict(sorted(named.items()))})


def write_shard(shard: Shard, find: Find, folder: Path, count: Count) -> str:
    """The SHA-256 of the file, which is whole and on the disk. `find` gives each tensor when it is its turn; `count`
    is told how many bytes were written. Raises `OSError`."""
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
        tensor = fitting(find, entry.own, entry.blank)
        assert tensor.dtype == entry.blank.dtype, f"{entry.own} is {tensor.dtype}, not {entry.blank.dtype}"
        _refuse_nonfinite(entry, tensor)
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, len(flat), PIECE):
            yield memoryview(flat[start : start + PIECE].numpy())


def _refuse_nonfinite(entry: Entry, tensor: Tensor) -> None:
    """Raises `OutputError` for what nobody could compute with, copied or computed here."""
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        narrow = (
            " float16 ends at 65,504: try --dtype bfloat16 or float32."
            if tensor.dtype == torch.float16
            else ""
        )
        raise OutputError(
            f"{entry.name} of the cut model would hold NaN or infinity, and was not written.{narrow}"
        )


def digest_of(path: Path, count: Count) -> str:
    """The SHA-256 of what is in a file now, on the disk where the system lets us ask for that."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if "posix_fadvise" in vars(os):  # what was just written would come from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(PIECE):
            digest.update(piece)
            count(len(piece))
    return digest.hexdigest()


def check_digest(path: Path, expected: str, count: Count) -> None:
    """Raises `OutputError` where a file does not hold what was written to it."""
    if digest_of(path, count) != expected:
        raise OutputError(
            f"{path} does not hold what was written to it: the disk is not to be trusted. It was not published; run "
            "the same command again, or give another -o."
        )
