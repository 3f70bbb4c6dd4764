"""Decompositions of a model's own matrices: in memory as far as there is room, and in a folder where one is given."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.site import Site
from secateur.core.writing import flush, writing
from secateur.hf.matrices import Matrix
from secateur.linalg.spectrum import Spectrum, spectrum_bytes
from secateur.surgery.operations import Decompose, decompose

LOG = logging.getLogger("secateur")


class Spectra:
    """Each matrix is decomposed once and its spectrum kept, the least recently used leaving beyond `max_bytes`.

    Holds spectra of the *original* matrices: it is only asked before an edit is written.
    """

    def __init__(self, max_bytes: int, decompose: Decompose = decompose) -> None:
        self._max_bytes, self._decompose = max_bytes, decompose
        self._kept: dict[str, Spectrum] = {}

    def fitting(self, matrices: Iterable[Matrix]) -> list[list[Matrix]]:
        """Runs of matrices whose float32 spectra have room together."""
        groups: list[list[Matrix]] = []
        used = 0
        for matrix in matrices:
            need = spectrum_bytes(matrix.shape)
            if not groups or used + need > self._max_bytes:
                groups.append([])
                used = 0
            groups[-1].append(matrix)
            used += need
        return groups

    def __call__(self, matrix: Matrix, weight: torch.Tensor) -> Spectrum:
        name = str(matrix.site)
        found = self._kept.pop(name, None) or self._decompose(matrix, weight)
        self._kept[name] = found
        while len(self._kept) > 1 and sum(s.num_bytes for s in self._kept.values()) > self._max_bytes:
            self._kept.pop(next(iter(self._kept)))
        return found


def make_ready(folder: Path) -> None:
    """Raises `OutputError` where there can be no such folder, before hours of work."""
    with writing(folder, "--spectra"):
        folder.mkdir(parents=True, exist_ok=True)


def spectra_of(max_bytes: int, folder: str | None = None) -> Spectra:
    """Decompositions of one model; with a `folder` those that have no room are read again from there."""
    return Spectra(max_bytes, decompose if folder is None else Stored(Path(folder)))


class Stored:
    """`Decompose` that looks into `folder` first, and leaves there what it decomposes: for later rounds, and for
    whatever other run, task or worker has the same matrix. Read from mapped files, of which only those components take
    memory that are used.

    A file is named after the matrix, its dtype, torch's version and the kind of device. It appears when it is whole, so
    any number of processes may share a folder. One that cannot be read, or was damaged, is made again. Bound to one
    model. Raises `OutputError` where the folder cannot be written.
    """

    def __init__(self, folder: Path, decompose: Decompose = decompose) -> None:
        self._folder, self._decompose = folder, decompose
        self._files: dict[Site, Path] = {}

    def __call__(self, matrix: Matrix, weight: Tensor) -> Spectrum:
        if matrix.site in self._files:
            found = self._read(self._files[matrix.site], weight.device)
        else:
            found = self._first(matrix, weight)
        if found is not None:
            return found
        made, file = self._decompose(matrix, weight), self._files[matrix.site]
        self._write(file, made)
        return self._read(file, weight.device) or made

    def _first(self, matrix: Matrix, weight: Tensor) -> Spectrum | None:
        """Whoever wrote it: what is in it must be what was written, and for this matrix."""
        file = self._files[matrix.site] = self._folder / _name(matrix.read(weight))
        found = self._read(file, weight.device)
        if found is not None and _said(file) != _digest(file, found):
            LOG.warning("%s is not what was written (damaged?): its matrix is decomposed again.", file)
            return None
        return found

    def _read(self, file: Path, device: torch.device) -> Spectrum | None:
        """None where there is no whole file."""
        try:
            with safe_open(file, "pt", device=str(device)) as stored:
                ut, sigma, vh = (stored.get_tensor(name) for name in ("ut", "sigma", "vh"))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            LOG.warning("%s cannot be read (%s): its matrix is decomposed again.", file, error)
            return None
        return Spectrum(ut.T, sigma, vh)

    def _write(self, file: Path, found: Spectrum) -> None:
        """Components lie one after another, so that few of them are few pages."""
        parts = {"ut": found.u.T.contiguous(), "sigma": found.sigma, "vh": found.vh}
        partial = file.with_suffix(f".{uuid4().hex}.part")
        make_ready(self._folder)
        with writing(self._folder, "--spectra"):
            try:
                partial.touch()
                mode = partial.stat().st_mode  # safetensors makes files that only their owner may read
                save_file(parts, partial, {"digest": _digest(file, found)})
                partial.chmod(mode)
                flush(partial)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)


def _said(file: Path) -> str | None:
    """The digest that was written."""
    with safe_open(file, "pt") as stored:
        return (stored.metadata() or {}).get("digest")


def _digest(file: Path, found: Spectrum) -> str:
    """Of the content, and of the name, which is the matrix's."""
    digest = hashlib.sha256(file.name.encode())
    for part in (found.u.T, found.sigma, found.vh):
        digest.update(_bytes(part))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _name(whole: Tensor) -> str:
    made_by = f"{tuple(whole.shape)} {whole.dtype} {torch.__version__} {whole.device.type}"
    digest = hashlib.sha256(made_by.encode())
    digest.update(_bytes(whole))
    return f"{digest.hexdigest()[:32]}.safetensors"
