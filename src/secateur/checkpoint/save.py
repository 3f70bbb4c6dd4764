"""Write a cut model as a Hugging Face checkpoint, and prove by reading it back that it computes what was cut."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.checkpoint.companions import write_companions
from secateur.core.form import Form
from secateur.core.machine import Loading
from secateur.core.plan import Plan
from secateur.core.writing import writing
from secateur.errors import OutputError, PlanError
from secateur.hf.calls import inputs_of, logits_of
from secateur.hf.load import Loaded, load_model, quiet
from secateur.hf.source import CONFIG
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import Decompose, DropExperts, OnBlock, Operation, RemoveComponents, resolve


def save_and_reload(
    loaded: Loaded,
    plan: Plan,
    folder: Path,
    *,
    rows: Sequence[Sequence[int]],
    form: Form,
    decompose: Decompose,
    trust_remote_code: bool = False,
) -> Loaded:
    """Write the cut model to `folder` as a Hugging Face checkpoint and read it back.

    The checkpoint is safetensors, config, tokenizer and generation config, with a modelling file where no stock class
    has its shapes. The model in memory is the original again afterwards.

    Args:
        rows: Rows of tokens on which both models are compared.

    Returns: the model that was read back.

    Raises: `OutputError` when the disk is full (then `folder` is removed), or where the model that was read back does
        not compute what the mask does.
    """
    operations = resolve(plan, loaded.anatomy, loaded.fingerprint)
    check_form(form, operations)
    if form.zeroed:
        with masked(loaded.model, operations, decompose):
            save(loaded.model, loaded.tokenizer, loaded.copied, folder)
    else:
        smaller = cut(loaded, plan, factorize=form.factorize, decompose=decompose)
        save(smaller, loaded.tokenizer, loaded.copied, folder)
    with masked(loaded.model, operations, decompose):
        expected = logits_on(loaded, rows)
    written = reload(folder, loaded, trust_remote_code=trust_remote_code)
    assert_same(expected, logits_on(written, rows), folder)
    return written


def check_form(form: Form, operations: Sequence[Operation]) -> None:
    """Raise `PlanError` where the plan removes parts that zeros cannot stand for, and zeros were asked for."""
    if form.zeroed and any(isinstance(operation, OnBlock) for operation in operations):
        raise PlanError("a block cannot be zeroed: with its norms and residual it is more than its weights.")
    if form.zeroed and any(isinstance(operation, DropExperts) for operation in operations):
        raise PlanError(
            "--zeroed: an expert cannot be zeroed: its router would go on choosing it. Leave it out."
        )
    if form.zeroed and any(isinstance(o, RemoveComponents) and o.needs_bias for o in operations):
        raise PlanError(
            "--zeroed keeps the original's shapes, and this model has no bias that directions could be folded into."
        )


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, copied: Mapping[str, bytes], folder: Path
) -> None:
    """Write a Hugging Face folder; `copied` as for `write_companions`.

    Raises: `OutputError` when the disk is full; then `folder` is removed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        folder.mkdir(parents=True)
    check_space(folder, sum(p.numel() * p.element_size() for p in model.parameters()))
    try:
        with writing(folder), quiet():
            model.save_pretrained(folder)
            write_companions(tokenizer, copied, folder)
            mode = (folder / CONFIG).stat().st_mode
            for file in folder.glob("*.safetensors"):
                file.chmod(mode)  # safetensors makes them readable by their owner alone
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_space(folder: Path, need: int) -> None:
    """Raise `OutputError` where the disk of a folder has fewer than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OutputError(
            f"{folder} needs {need / 1e9:.3f} GB and its disk has {free / 1e9:.3f} GB free. Free some and run the same "
            "command again, or give another -o."
        )


def reload(folder: Path, like: Loaded, *, trust_remote_code: bool = False) -> Loaded:
    """Load the written checkpoint as `secateur.load` does, in the dtype and on the devices of `like`."""
    dtype = str(like.model.dtype).removeprefix("torch.")
    how: Loading = {**like.machine, "dtype": dtype, "trust_remote_code": trust_remote_code}
    return load_model(str(folder), **how)


def logits_on(loaded: Loaded, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return plain whole-model logits of a few rows, (length, vocab) each, for comparing models."""
    with torch.inference_mode():
        tokens = (torch.tensor([list(row)], device=loaded.device) for row in rows)
        return [logits_of(loaded.model, inputs_of(one, loaded.anatomy))[0].cpu() for one in tokens]


# bounds of ‖mask − cut‖ / ‖mask‖ on logits: smaller matrices are summed in another order, in narrow dtypes block
# after block
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def assert_same(cut: Sequence[Tensor], written: Sequence[Tensor], folder: Path) -> None:
    """Raise `OutputError` when the checkpoint does not compute what the cut model computed, beyond rounding."""
    for ours, theirs in zip(cut, written, strict=True):
        if not torch.isfinite(ours).all():
            raise OutputError(
                f"the cut model does not compute: its logits are NaN or infinite in {ours.dtype}. It was not "
                "published. Take out less, or try --dtype float32."
            )
        distance = float(
            torch.linalg.norm((ours - theirs).double()) / torch.linalg.norm(ours.double()).clamp_min(1e-30)
        )
        if not distance <= ROUNDING[ours.dtype]:
            raise OutputError(
                f"the checkpoint in {folder} does not reproduce the cut model: logits differ by {distance:.1e} "
                "(relative). It was not published; please report this with the model's name."
            )
