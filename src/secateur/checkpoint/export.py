"""Export a stock checkpoint to a GGUF file, for llama.cpp. The file is read again before it appears."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur import __version__
from secateur.checkpoint.plans import read_plan
from secateur.checkpoint.save import check_space
from secateur.core.writing import writing
from secateur.errors import OutputError
from secateur.hf.gguf_header import digest_of_file
from secateur.hf.gguf_input import ReadGguf, read_gguf
from secateur.hf.gguf_output import check_export, write_gguf
from secateur.hf.load import Loaded, load_model, quiet
from secateur.hf.running import FEW, check_runs

TOLERANCE = {"f32": 1e-5, "f16": 3e-2, "q8_0": 3e-1}
"""Bounds of ‖checkpoint − file‖ / ‖checkpoint‖ on logits; SmolLM2-135M without a block has 0, 4e-3 and 7e-2."""
ROUNDING = {"f32": 0.0, "f16": 1e-3, "q8_0": 2e-2}
"""The same bounds on each parameter: half a step of 11 bits, and of 8 bits beneath the largest of 32 numbers."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog. It was 1984, and",
    "def f(x):\n    return  x + 12345\n",
    " two  spaces, and a tab:\tend",
)
LONGEST = 64


@dataclass(frozen=True)
class Exported:
    """A GGUF file that was written, and how far it is from its checkpoint.

    `tensors` counts them by how they are stored; `instead` are those that q8_0 has no blocks for, stored in float16.
    `difference` is that of the logits, relative, and `tolerance` its bound.
    """

    file: str
    type: str
    bytes: int
    sha256: str
    tensors: dict[str, int]
    instead: list[str]
    difference: float
    tolerance: float


def export_gguf(model: str, revision: str | None, file: Path, kind: str) -> Exported:
    """Write MODEL to `file` and return what was written; the file appears by rename.

    Raises: as `load_model` and `check_export`; `OutputError` where the file cannot be written, or does not compute
        what the checkpoint does.
    """
    loaded = load_model(model, revision=revision, dtype="float32", device="cpu")
    check_export(loaded, file, kind)
    rows = _rows(loaded)
    check_runs(loaded, rows)
    part = file.with_name(f"{file.name}.partial")
    try:
        with writing(file):
            check_space(file.absolute().parent, _size(loaded, kind))
            written = write_gguf(loaded, part, kind, _said(loaded))
        with quiet():
            again = read_gguf(part)
        difference = _difference(loaded, again, rows)
        _check(loaded, again, difference, kind, file)
        with writing(file):
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    size, digest = file.stat().st_size, digest_of_file(file)
    return Exported(
        str(file), kind, size, digest, written.tensors, written.instead, difference, TOLERANCE[kind]
    )


def _size(loaded: Loaded, kind: str) -> int:
    return loaded.anatomy.num_parameters * {"f32": 4, "f16": 2, "q8_0": 2}[kind]


def _rows(loaded: Loaded) -> list[list[int]]:
    """Return the tokens that both models are run on: texts, and the first of the vocabulary."""
    room = min(LONGEST, loaded.anatomy.context or LONGEST)
    rows = [loaded.tokenizer.encode(text)[:room] for text in TEXTS]
    return [*(row for row in rows if row), list(range(min(FEW, loaded.anatomy.vocab_size)))]


def _said(loaded: Loaded) -> dict[str, str]:
    """Return what the file says of where it comes from."""
    said = {
        "general.name": Path(loaded.name).name,
        "secateur.version": __version__,
        "secateur.model": loaded.name,
        "secateur.fingerprint": loaded.fingerprint,
    }
    if loaded.source is not None and (Path(loaded.source) / "plan.json").exists():
        plan = read_plan(Path(loaded.source))
        said |= {"secateur.cut": str(plan), "secateur.cut_from": plan.model}
    return said


@torch.inference_mode()
def _logits(model: PreTrainedModel, row: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()
    return logits


def _difference(loaded: Loaded, again: ReadGguf, rows: list[list[int]]) -> float:
    """Return the largest relative distance of logits."""
    found = []
    for row in rows:
        found.append(_distance(_logits(loaded.model, row), _logits(again.model, row)))
    return max(found)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    distance = torch.linalg.norm((ours - theirs).double())
    return float(distance / torch.linalg.norm(ours.double()).clamp_min(1e-30))


def _farthest(loaded: Loaded, again: ReadGguf) -> tuple[float, str]:
    """Return the largest relative distance of a parameter, and its name."""
    theirs = dict(again.model.named_parameters())
    return max((_distance(found, theirs[name]), name) for name, found in loaded.model.named_parameters())


def _check(loaded: Loaded, again: ReadGguf, difference: float, kind: str, file: Path) -> None:
    report = "It was not written; please report this with the model's name."
    if not difference <= TOLERANCE[kind]:
        raise OutputError(
            f"{file}: read again, its logits differ from those of {loaded.name} by {difference:.1e} (relative), more "
            f"than {TOLERANCE[kind]:.0e} for {kind}. It was not written. Give --type f32, or report this with "
            "the model's name."
        )
    for text in TEXTS:
        if loaded.tokenizer.encode(text) != again.tokenizer.encode(text):
            raise OutputError(f"{file}: read again, its tokenizer gives other tokens of {text!r}. {report}")
    farthest, name = _farthest(loaded, again)
    if farthest > ROUNDING[kind]:
        raise OutputError(f"{file}: read again, {name} differs by {farthest:.1e} (relative). {report}")
    if again.doubts:
        raise OutputError(f"{file}: read again, {again.doubts[0]} {report}")
