"""Carry out a plan without a search and a verdict, or only preview it: `apply`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from secateur.checkpoint.card import unverified_card
from secateur.checkpoint.folder import Folder
from secateur.checkpoint.loadability import where_it_loads
from secateur.checkpoint.plans import write_plan
from secateur.checkpoint.save import check_form
from secateur.checkpoint.stream import mapped, stream
from secateur.core.form import Form, Way
from secateur.core.machine import Loading
from secateur.core.plan import Plan, PlanOrEdits, plan_of
from secateur.core.progress import Progress
from secateur.core.records.plan import ProvenanceRecord
from secateur.core.writing import write_text
from secateur.errors import PlanError
from secateur.hf.blank import blank_model
from secateur.hf.files import stated_license
from secateur.hf.load import Loaded
from secateur.records import cut_summary, num_parts, versions
from secateur.result import Result, read_result
from secateur.surgery.operations import resolve, resolve_early
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of


def apply(
    model: str,
    asked: PlanOrEdits,
    folder: Folder,
    command: Mapping[str, object],
    loading: Loading,
    *,
    form: Form,
    way: Way,
    overwrite: bool,
    progress: Progress,
) -> Result:
    """Write the checkpoint to `folder`, or return what `command` made there before.

    Args:
        asked: A plan, or the edits of one.
        command: The options that identify the run.
        loading: The arguments of `load_model` besides the name.
        form: In which shapes the cut is written.
        way: In files of which size, decomposed and checked how.
    """
    with folder.claimed(command, overwrite=overwrite) as already:
        if already:
            return read_result(folder.out)
        folder.note("apply", command)
        check_early(model, asked, form, loading)
        with mapped(model, folder.run, **loading) as loaded:
            chosen = _chosen(asked, loaded, form)
            made = stream(
                loaded,
                chosen,
                folder.run,
                folder.staging,
                form=form,
                way=way,
                progress=progress,
                trust_remote_code=loading["trust_remote_code"],
            )
            loads = where_it_loads(chosen, loaded, form, read_back=made.check == "logits")
            read_from = {} if loaded.gguf is None else {"gguf": loaded.gguf}
        provenance = ProvenanceRecord(
            command=dict(command),
            verified=False,
            loads=loads,
            versions=versions(),
            check=made.check,
            svd=made.svd,
            **read_from,
        )
        write_plan(chosen, provenance, folder.staging)
        license = None if loaded.source is None else stated_license(Path(loaded.source))
        card = unverified_card(model, loaded.revision is not None, chosen, provenance, license)
        write_text(folder.staging / "README.md", card)
        folder.publish()
    return Result(folder.out, None, chosen)


def check_early(model: str, asked: PlanOrEdits, form: Form, loading: Loading) -> None:
    """Check before weights are read that the model has what is to be taken out.

    Raises: `PlanError`, `UnknownName`.
    """
    check_form(form, resolve_early(asked, blank_model(model, **loading).anatomy))


def preview(model: str, asked: PlanOrEdits, form: Form, loading: Loading) -> dict[str, Any]:
    """Return what `apply` would cut, keep and write."""
    check_early(model, asked, form, loading)
    with TemporaryDirectory(prefix="secateur-") as place, mapped(model, Path(place), **loading) as loaded:
        chosen = _chosen(asked, loaded, form)
        anatomy = loaded.anatomy
        left = shape_of(chosen, anatomy, factorize=form.factorize).num_parameters(anatomy)
        nearest = None if anatomy.carved else portable_plan(chosen, loaded)
        loads = where_it_loads(chosen, loaded, form, read_back=False)
    return {
        "cut": str(chosen),
        "cut_summary": cut_summary(chosen, num_parts(anatomy.widths)),
        "parameters": {
            "before": anatomy.num_parameters,
            "after": anatomy.num_parameters if form.zeroed else left,
        },
        "loads": loads.to_json(),
        "portable": None if nearest is None or nearest == chosen or not nearest.edits else str(nearest),
    }


def _chosen(asked: PlanOrEdits, loaded: Loaded, form: Form) -> Plan:
    """Return the plan for this model. Raises: `PlanError`, `UnknownName`."""
    plan = plan_of(asked, loaded.fingerprint)
    resolve(plan, loaded.anatomy, loaded.fingerprint)
    nearest = portable_plan(plan, loaded) if form.portable else plan
    if plan.edits and not nearest.edits:
        raise PlanError(
            f"--portable: the nearest plan that a stock {loaded.anatomy.architecture} can hold, with the same shape in "
            "every block, takes nothing. Ask for more, or leave out --portable."
        )
    return nearest
