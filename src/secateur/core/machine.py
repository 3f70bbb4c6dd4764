"""Parse and check the words by which options name a machine: precisions, devices, sizes of memory. Asks no machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from secateur.core.ranges import whole_number
from secateur.core.reading import read_json
from secateur.errors import ModelError, SecateurError, UnknownName, nearest

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda", "mps")
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # of modules to devices, worked out by accelerate
_UNITS = {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}


class Offloading(TypedDict, total=False):
    """The options that place a model which is larger than a device; `hf.placement.Placement` says what they are."""

    device_map: str | None
    offload_folder: str | None
    max_memory: str | None


class Loading(Offloading, total=False):
    """The arguments of `load_model` besides the name."""

    revision: str | None
    dtype: str
    device: str
    trust_remote_code: bool


class NamedModel(Loading):
    """The arguments of `load_model`."""

    name: str


def check_dtype(name: str) -> None:
    """Raise `UnknownName` where `name` is no precision and not `auto`."""
    if name not in ("auto", *DTYPES):
        raise UnknownName(f"unknown dtype {name!r}.{nearest(name, ('auto', *DTYPES))}")


def check_device(name: str, known: tuple[str, ...] = ("auto",)) -> tuple[str, int]:
    """Return the kind and the number of a device such as `cuda:1`.

    Raises: `UnknownName` for a name that is no device and not in `known`.
    """
    kind, colon, number = name.partition(":")
    index = whole_number(number) if colon else 0
    if name not in known and (kind not in DEVICES or index is None):
        raise UnknownName(f"unknown device {name!r}.{nearest(name, (*known, *DEVICES))}")
    return kind, index or 0


def check_placement(
    device: str, device_map: str | None, offload_folder: str | None, max_memory: str | None
) -> None:
    """Check that the options that place a model do not contradict each other.

    Raises: `ModelError` where they do, or cannot be parsed; `UnknownName` for an unknown device.
    """
    if device_map is None:
        for word, value in (("--offload-folder", offload_folder), ("--max-memory", max_memory)):
            if value is not None:
                raise ModelError(f"{word} is for --device-map: give --device-map auto, or leave it out.")
        check_device(device)
        return
    if device != "auto":
        raise ModelError(
            f"--device {device} and --device-map {device_map} contradict each other: give one of them."
        )
    if offload_folder == "":
        raise ModelError("--offload-folder is empty: give a folder, or leave it out.")
    read_map(device_map)
    if max_memory is not None:
        if device_map not in MAPS:
            raise ModelError(f"--max-memory is for a map that is worked out: {', '.join(MAPS)}.")
        read_memory(max_memory)


def read_map(name: str) -> str | dict[str, str | int]:
    """Return one of `MAPS`, a device, or devices by module (of `disk` and of a JSON file).

    Raises: `ModelError` for a file that is no such map, `UnknownName` for an unknown device.
    """
    if name in MAPS:
        return name
    if name == "disk":
        return {"": "disk"}
    if not name.endswith(".json"):
        check_device(name, known=MAPS)
        return name
    devices = read_json(Path(name), ModelError)
    if not isinstance(devices, dict) or not all(type(device) in (str, int) for device in devices.values()):
        raise ModelError(f'--device-map {name}: write {{"module": device, ...}}, or "cpu", or "disk".')
    for device in devices.values():
        check_device(f"cuda:{device}" if isinstance(device, int) else device, known=("disk",))
    return devices


def read_memory(text: str) -> Mapping[str | int, int]:
    """Return bytes by device of `cpu=8GB,0=20GB`. Raises: `ModelError`."""
    sizes: dict[str | int, int] = {}
    for word in text.split(","):
        device, _, size = word.strip().partition("=")
        number, count = whole_number(device), read_size(size)
        if count is None:
            raise ModelError(f"--max-memory {text!r}: write sizes by device, such as cpu=8GB,0=20GB.")
        if number is None and device not in ("cpu", "mps"):
            raise ModelError(f"--max-memory {device}=...: devices are cpu, mps, or the number of a GPU.")
        sizes[device if number is None else number] = count
    return sizes


def read_size(text: str) -> int | None:
    """Return `5GB`, `1.5 mb` or `8GiB` in bytes; None for text that is no size, and for less than one byte."""
    word = text.strip().upper()
    unit = next((unit for unit in sorted(_UNITS, key=len, reverse=True) if word.endswith(unit)), None)
    if unit is None:
        return None
    try:
        size = float(word.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        return None
    return int(size) if 1 <= size < math.inf else None


def shard_bytes(text: str) -> int:
    """Return the value of --shard-size in bytes. Raises: `SecateurError`."""
    size = read_size(text)
    if size is None:
        raise SecateurError(f"--shard-size {text!r} is no size. Write it as 5GB or 500MB.")
    return size
