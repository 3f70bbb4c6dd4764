"""Read the header of a GGUF file: which model it holds, and how it is stored.

Reads no tensor and imports no torch. A header states how long its file must be, so a truncated one is told at once.

Source: the format as of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from secateur.core.reading import check_file
from secateur.errors import ModelError

MAGIC = b"GGUF"
ORIGINAL = "Or give the folder of the original float checkpoint (config.json, model.safetensors, tokenizer)."
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_LAST_DIMENSIONS = 4  # of ggml
_ALIGNMENT = 32

Number: TypeAlias = int | float | bool
Value: TypeAlias = Number | str | list[Number]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor by its header: shape as torch has it, ggml's name of its type, and where it lies in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Hold the header of a GGUF file: its values and tensors. Of arrays of strings `values` has the length."""

    path: Path
    values: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture, such as `llama`."""
        return str(self.values["general.architecture"])

    @property
    def kind(self) -> str:
        """Return the type that most numbers are stored in, such as `Q4_1`, in the file's own word where it has one."""
        from gguf.constants import LlamaFileType

        count: Counter[str] = Counter()
        for tensor in self.tensors:
            count[tensor.kind] += math.prod(tensor.shape)
        most = count.most_common(1)[0][0]
        names: dict[Value | None, str] = {int(kind): kind.name for kind in LlamaFileType}  # 3 is MOSTLY_Q4_1
        stated = names.get(self.values.get("general.file_type"), "")
        stated = stated.removeprefix("MOSTLY_").removeprefix("ALL_")
        return stated if stated.startswith(most.removesuffix("_K")) else most

    def text(self, key: str) -> str | None:
        """Return a value that is text; None where it is not there."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | float | None:
        """Return a value of this architecture that is a number; None where it is not there."""
        value = self.values.get(f"{self.architecture}.{key}")
        return None if isinstance(value, str | list | bool) else value

    def has(self, tensor: str) -> bool:
        """Return True where the file holds a tensor of this name."""
        return any(one.name == tensor for one in self.tensors)

    def floats(self, tensor: str) -> tuple[float, ...]:
        """Return the numbers of a small tensor in float32. Raises: `ModelError` for one stored otherwise."""
        one = next(one for one in self.tensors if one.name == tensor)
        if one.kind != "F32":
            raise ModelError(f"{self.path} stores {tensor} as {one.kind}, where F32 is expected: damaged?")
        with self.path.open("rb") as file:
            file.seek(one.offset)
            return struct.unpack(f"<{one.num_bytes // 4}f", file.read(one.num_bytes))


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises: `ModelError` for a file that is none, is damaged, truncated, one piece of several, or without tensors; and
    where the package `gguf` is missing.
    """
    check_file(path, ModelError)
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> GgufHeader:
    """Read a header once as long as the file's size and time of change are the same."""
    _block_sizes(path)  # before anything is read: the package may be missing
    with path.open("rb") as file:
        start = file.read(24)
        if start.startswith(b"version "):
            raise ModelError(
                f"{path} is not the model but a pointer to it (Git LFS): git lfs pull fetches it."
            )
        if start[:4] != MAGIC:
            raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF. {ORIGINAL}")
        if size < 24:
            raise _truncated(path, size)
        version, tensors, keys = struct.unpack("<IQQ", start[4:])
        if version not in _VERSIONS:
            raise ModelError(
                f"{path} is GGUF of version {version}; versions 2 and 3 are read. Make it again with today's "
                "llama.cpp."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _parsed(_Cursor(path, content), keys, tensors)
    _check(header, size)
    return header


class _Cursor:
    """Read one value after another, never beyond the end of the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 24

    def take(self, count: int) -> bytes:
        """Return the next bytes. Raises: `ModelError` where there are fewer."""
        self.skip(count)
        return self.content[self.at - count : self.at]

    def skip(self, count: int) -> None:
        """Pass over bytes. Raises: `ModelError` where there are fewer."""
        if count > len(self.content) - self.at:
            raise _truncated(self.path, len(self.content))
        self.at += count

    def numbers(self, form: str, count: int = 1) -> list[Number]:
        """Return numbers in the letter of `struct`."""
        if count > len(self.content):
            raise _truncated(self.path, len(self.content))
        return list(struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(f"<{form}"))))

    def whole(self, form: str) -> int:
        """Return one whole number."""
        return int(self.numbers(form)[0])

    def string(self) -> str:
        """Return a string. Raises: `ModelError` for bytes that are not UTF-8."""
        try:
            return self.take(self.whole("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{self.path}: its header is damaged (text that is not UTF-8). Copy it again."
            ) from error

    def value(self) -> Value:
        """Return one value of the metadata."""
        kind = self.whole("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(self._form(kind))[0]
        kind, count = self.whole("I"), self.whole("Q")
        if kind != _STRING:
            return self.numbers(self._form(kind), count)
        for _ in range(count):
            self.skip(self.whole("Q"))
        return count

    def _form(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise ModelError(f"{self.path}: its header is damaged (a value of type {kind}). Copy it again.")
        return _NUMBERS[kind]


def _parsed(cursor: _Cursor, keys: int, tensors: int) -> GgufHeader:
    values: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.string()
        values[key] = cursor.value()
    described = [_tensor(cursor) for _ in range(tensors)]
    stated = values.get("general.alignment", _ALIGNMENT)
    alignment = stated if isinstance(stated, int) and stated > 0 else _ALIGNMENT
    begin = -(-cursor.at // alignment) * alignment
    return GgufHeader(cursor.path, values, tuple(_placed(cursor.path, begin, *one) for one in described))


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.string(), cursor.whole("I")
    if dimensions > _LAST_DIMENSIONS:
        raise ModelError(
            f"{cursor.path}: its header is damaged ({name[:80]} has {dimensions} dimensions). Copy it again."
        )
    shape = tuple(int(size) for size in reversed(cursor.numbers("Q", dimensions)))
    return name, shape, cursor.whole("I"), cursor.whole("Q")


def _placed(path: Path, begin: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    sizes = _block_sizes(path)
    if kind not in sizes:
        raise ModelError(
            f"{path} stores {name[:80]} in a way (ggml type {kind}) that the package gguf here does not know."
        )
    word, elements, size = sizes[kind]
    return GgufTensor(name, shape, word, begin + offset, math.prod(shape) // elements * size)


def _check(header: GgufHeader, size: int) -> None:
    path, pieces = header.path, header.values.get("split.count", 1)
    if isinstance(pieces, int) and pieces > 1:
        raise ModelError(
            f"{path} is one of {pieces} pieces, and transformers reads a GGUF only whole. Join them: llama-gguf-split "
            f"--merge FIRST-PIECE WHOLE.gguf. {ORIGINAL}"
        )
    if not isinstance(header.values.get("general.architecture"), str):
        raise ModelError(
            f"{path} does not say what model it holds (general.architecture): damaged, or no model."
        )
    if not header.tensors:
        raise ModelError(f"{path} holds no tensors, perhaps only a vocabulary. {ORIGINAL}")
    if max(tensor.offset + tensor.num_bytes for tensor in header.tensors) > size:
        raise _truncated(path, size)


def _truncated(path: Path, size: int) -> ModelError:
    return ModelError(
        f"{path} ({size} bytes) is shorter than its header states: truncated or damaged. Copy it again."
    )


def _block_sizes(path: Path) -> Mapping[int, tuple[str, int, int]]:
    """Return ggml type → its name, elements of a block, bytes of a block. Raises: `ModelError` without `gguf`."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise ModelError(
            f"{path} is read with the package gguf, which is not here: pip install secateur[gguf]. {ORIGINAL}"
        ) from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file; read once as long as its size and time of change are the same."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


def unread_keys(header: GgufHeader, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the keys about the architecture that are not among those that are known, without the prefix."""
    prefix = f"{header.architecture}."
    for key in header.values:
        if key.startswith(prefix) and key.removeprefix(prefix) not in known:
            yield key.removeprefix(prefix)
