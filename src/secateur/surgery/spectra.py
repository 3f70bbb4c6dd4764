"""Keep decompositions of a model's own matrices: in memory as far as they fit, and in a folder where one is given."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.form import SVDS
from secateur.core.plan import Plan
from secateur.core.site import Site
from secateur.core.writing import flush, writing
from secateur.hf.matrices import Matrix
from secateur.linalg.spectrum import Spectrum, randomized, spectrum, spectrum_bytes
from secateur.surgery.operations import Decompose, decompose

if TYPE_CHECKING:
    from pydantic import JsonValue

LOG = logging.getLogger("secateur")


class Spectra:
    """A `Decompose` that keeps spectra up to `max_bytes`; the least recently used are dropped first.

    Holds spectra of the *original* matrices: it is only asked before an edit is written.
    """

    def __init__(self, max_bytes: int, decompose: Decompose = decompose) -> None:
        self._max_bytes, self._decompose = max_bytes, decompose
        self._kept: dict[str, Spectrum] = {}

    def fitting(self, matrices: Iterable[Matrix]) -> list[list[Matrix]]:
        """Split the matrices into runs whose float32 spectra fit in memory together."""
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
        """Return the spectrum of a matrix, kept or computed."""
        name = str(matrix.site)
        parts = self._kept.pop(name, None) or self._decompose(matrix, weight)
        self._kept[name] = parts
        while len(self._kept) > 1 and sum(s.num_bytes for s in self._kept.values()) > self._max_bytes:
            self._kept.pop(next(iter(self._kept)))
        return parts


def make_spectra_folder(folder: Path) -> None:
    """Make the folder. Raises: `OutputError` where that is impossible, before hours of work."""
    with writing(folder, "--spectra"):
        folder.mkdir(parents=True, exist_ok=True)


def spectra_of(max_bytes: int, folder: str | None = None) -> Spectra:
    """Return decompositions of one model; with a `folder`, those that do not fit in memory are kept there."""
    return Spectra(max_bytes, decompose if folder is None else SpectraFolder(Path(folder)))


class SpectraFolder:
    """A `Decompose` that reads spectra from `folder` and writes there those that it computes.

    Later rounds, and any other run, task or worker with the same matrix, find them there. Files are memory-mapped, so
    only the components that are used take memory.

    A file is named after the matrix, its dtype, torch's version and the kind of device. It appears when it is whole, so
    any number of processes may share a folder. One that cannot be read, or was damaged, is made again. Bound to one
    model. Raises: `OutputError` where the folder cannot be written.
    """

    def __init__(self, folder: Path, decompose: Decompose = decompose) -> None:
        self._folder, self._decompose = folder, decompose
        self._files: dict[Site, Path] = {}

    def __call__(self, matrix: Matrix, weight: Tensor) -> Spectrum:
        """Return the spectrum of a matrix, read or computed."""
        if matrix.site in self._files:
            parts = self._read(self._files[matrix.site], weight.device)
        else:
            parts = self._first(matrix, weight)
        if parts is not None:
            return parts
        computed, file = self._decompose(matrix, weight), self._files[matrix.site]
        self._write(file, computed)
        return self._read(file, weight.device) or computed

    def _first(self, matrix: Matrix, weight: Tensor) -> Spectrum | None:
        """Return the spectrum in the matrix's file, whoever wrote it, or None.

        Its content must have the digest that was written with it.
        """
        file = self._files[matrix.site] = self._folder / _name(matrix.read(weight))
        parts = self._read(file, weight.device)
        if parts is None:
            return None
        with safe_open(file, "pt") as stored:
            written = (stored.metadata() or {}).get("digest")
        if written != _digest(file, parts):
            LOG.warning("%s is not what was written (damaged?): its matrix is decomposed again.", file)
            return None
        return parts

    def _read(self, file: Path, device: torch.device) -> Spectrum | None:
        """Return the spectrum in `file`; None where there is no whole file."""
        try:
            with safe_open(file, "pt", device=str(device)) as stored:
                ut, sigma, vh = (stored.get_tensor(name) for name in ("ut", "sigma", "vh"))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            LOG.warning("%s cannot be read (%s): its matrix is decomposed again.", file, error)
            return None
        return Spectrum(ut.T, sigma, vh)

    def _write(self, file: Path, parts: Spectrum) -> None:
        """Write components one after another, so that few of them are few pages."""
        tensors = {"ut": parts.u.T.contiguous(), "sigma": parts.sigma, "vh": parts.vh}
        partial = file.with_suffix(f".{uuid4().hex}.part")
        make_spectra_folder(self._folder)
        with writing(self._folder, "--spectra"):
            try:
                partial.touch()
                mode = partial.stat().st_mode  # safetensors makes files that only their owner may read
                save_file(tensors, partial, {"digest": _digest(file, parts)})
                partial.chmod(mode)
                flush(partial)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)


def _digest(file: Path, parts: Spectrum) -> str:
    """Return the digest of the content and of the name, which is the matrix's."""
    digest = hashlib.sha256(file.name.encode())
    for tensor in (parts.u.T, parts.sigma, parts.vh):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _name(whole: Tensor) -> str:
    made_by = f"{tuple(whole.shape)} {whole.dtype} {torch.__version__} {whole.device.type}"
    digest = hashlib.sha256(made_by.encode())
    digest.update(_bytes(whole))
    return f"{digest.hexdigest()[:32]}.safetensors"


# Measured at 2048 × 5504 on one core: rank 128 takes 0.9 s instead of 10 s, rank 512 5 s. Below 4096 an exact one takes
# seconds, and at 4096 × 11008 minutes.
LARGE, SMALL_SHARE = 4096, 16


class Decompositions:
    """A `Decompose` for the matrices of a plan, which records by site how each was decomposed, in `records`.

    `auto` is exact but for a rank of at most a sixteenth of a matrix with at least 4096 rows and columns. Only the
    largest components are ever found by the randomized method: all other edits need all of them. Seeded by the site.
    """

    def __init__(self, plan: Plan, svd: str = "auto", device: torch.device | str = "cpu") -> None:
        assert svd in SVDS, svd
        self._svd, self._device = svd, device
        self._top = {edit.matrix: edit.rank for edit in plan.truncated if edit.side == "top"}
        self.records: dict[Site, dict[str, JsonValue]] = {}

    def __call__(self, matrix: Matrix, weight: Tensor) -> Spectrum:
        """Decompose on the device; return the components on the device of `weight`."""
        rank, whole = self._top.get(matrix.site), matrix.read(weight).to(self._device)
        record: dict[str, JsonValue]
        record = {"matrix": str(matrix.site), "shape": list(matrix.shape), "rank": rank}
        faster = rank is not None and min(matrix.shape) >= LARGE and rank * SMALL_SHARE <= min(matrix.shape)
        if rank is not None and (self._svd == "randomized" or (self._svd == "auto" and faster)):
            parts, error = randomized(whole, rank, seed=zlib.crc32(str(matrix.site).encode()))
            record |= {"svd": "randomized", "residual": error.residual, "excess": error.excess}
        else:
            parts = spectrum(whole)
            record |= {"svd": "exact", "residual": _residual(parts, rank), "excess": 0.0}
        self.records[matrix.site] = record
        return Spectrum(*(t.to(weight.device) for t in (parts.u, parts.sigma, parts.vh)))


def _residual(parts: Spectrum, rank: int | None) -> float | None:
    """Return ‖W − W'‖ / ‖W‖ of the truncation; None where the edit is no truncation to the largest components."""
    if rank is None:
        return None
    energy = parts.sigma.double().square()
    whole = float(energy.sum())
    return (float(energy[rank:].sum()) / whole) ** 0.5 if whole else 0.0
