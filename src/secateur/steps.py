"""Steps by themselves, without a search: `apply`, `export`, `eval`, `transfer`, analyses of `probe`, `tasks --check`.

A plan is carried out or previewed; a GGUF file, for llama.cpp, is written, and read again before it appears; models are
measured on one split of a task, as they are or as if cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur import __version__
from secateur.checkpoint.card import pipeline_of, unverified_card
from secateur.checkpoint.folder import Folder, write_json
from secateur.checkpoint.loadability import where_it_loads
from secateur.checkpoint.plans import read_plan, write_plan
from secateur.checkpoint.save import check_form, check_space
from secateur.checkpoint.stream import mapped, stream
from secateur.core.comparison import compare
from secateur.core.form import Form, Way
from secateur.core.ledger import Ledger
from secateur.core.machine import Loading
from secateur.core.plan import Linearize, Plan, PlanOrEdits, kinds_of, plan_of
from secateur.core.progress import Progress
from secateur.core.records.comparison import TransferRecord
from secateur.core.records.plan import ProvenanceRecord
from secateur.core.records.probe import RowsRecord, StructureRecord
from secateur.core.records.task_check import LengthsRecord, RenderedRecord, TaskCheckRecord
from secateur.core.score import METRICS, PRIMARY
from secateur.core.stats import exponential, exponential_interval
from secateur.core.writing import write_text, writing
from secateur.errors import ModelError, OutputError, PlanError
from secateur.evaluation.baseline import baseline, floors
from secateur.evaluation.measurement import measure_model
from secateur.evaluation.openings import record_opening, untested_opening
from secateur.evaluation.verdict import SECONDARY, decide
from secateur.hf.blank import Ruler, blank_model, tiny_config, tiny_copy
from secateur.hf.files import stated_license
from secateur.hf.gguf_header import digest_of_file
from secateur.hf.gguf_input import ReadGguf, read_gguf
from secateur.hf.gguf_output import check_export, write_gguf
from secateur.hf.load import Loaded, load_model, quiet
from secateur.hf.running import FEW, check_runs
from secateur.methods.registry import method_reading
from secateur.methods.removal import fitted_maps
from secateur.options import Options
from secateur.probes.maps import BlockRun
from secateur.probes.proved import check_proved, proof_of
from secateur.probes.structure import WINDOW, prove
from secateur.probing.report import write_rows_report
from secateur.records import cut_summary, num_parts, versions
from secateur.result import Result, read_result
from secateur.session import Session, blank_of, encoded_for, open_session, read_task
from secateur.surgery.operations import resolve, resolve_early
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of
from secateur.tasks.encode import Encoded
from secateur.tasks.example import SPLITS, Task
from secateur.tasks.load import describe, files_of, load_task
from secateur.tasks.questions import answers_notice, classify_notice
from secateur.tasks.shots import with_shots
from secateur.tasks.splits import MIN_GROUPS, SHARES


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
            structure = proof_of(loaded, kinds_of(chosen.edits))
        provenance = ProvenanceRecord(
            command=dict(command),
            verified=False,
            loads=loads,
            versions=versions(),
            structure=structure,
            check=made.check,
            svd=made.svd,
            **read_from,
        )
        write_plan(chosen, provenance, folder.staging)
        license = None if loaded.source is None else stated_license(Path(loaded.source))
        does = pipeline_of(loaded.anatomy.architecture)
        card = unverified_card(model, loaded.revision is not None, chosen, provenance, license, does)
        write_text(folder.staging / "README.md", card)
        folder.publish()
    return Result(folder.out, None, chosen)


def check_early(model: str, asked: PlanOrEdits, form: Form, loading: Loading) -> None:
    """Check before weights are read that the model has what is to be taken out.

    Raises: `PlanError`, `UnknownName`; as `check_proved`.
    """
    blank = blank_model(model, **loading)
    check_form(form, resolve_early(asked, blank.anatomy))
    check_proved(blank, kinds_of(plan_of(asked, "").edits))


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


# -------------------------------------------------------------------------------------------------------- export


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
BYTES = {"f32": 4, "f16": 2, "q8_0": 2}  # of a number, at most
NUM_RENDERED = 3  # examples of a task that its check shows


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
            check_space(file.absolute().parent, loaded.anatomy.num_parameters * BYTES[kind])
            written = write_gguf(loaded, part, kind, _said(loaded))
        with quiet():
            again = read_gguf(part)
        difference = max(_distance(_logits(loaded.model, row), _logits(again.model, row)) for row in rows)
        _check_export(loaded, again, difference, kind, file)
        with writing(file):
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    size, digest = file.stat().st_size, digest_of_file(file)
    return Exported(
        str(file), kind, size, digest, written.tensors, written.instead, difference, TOLERANCE[kind]
    )


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


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Return ‖ours − theirs‖ / ‖ours‖."""
    distance = torch.linalg.norm((ours - theirs).double())
    return float(distance / torch.linalg.norm(ours.double()).clamp_min(1e-30))


def _check_export(loaded: Loaded, again: ReadGguf, difference: float, kind: str, file: Path) -> None:
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
    theirs = dict(again.model.named_parameters())
    farthest, name = max(
        (_distance(ours, theirs[name]), name) for name, ours in loaded.model.named_parameters()
    )
    if farthest > ROUNDING[kind]:
        raise OutputError(f"{file}: read again, {name} differs by {farthest:.1e} (relative). {report}")
    if again.doubts:
        raise OutputError(f"{file}: read again, {again.doubts[0]} {report}")


# ------------------------------------------------------------------------------------------------------ measured


def evaluate(
    options: Options, split: str, asked: PlanOrEdits, *, ledger: str | Path | None, progress: Progress
) -> dict[str, Any]:
    """Measure all metrics on one split, with intervals, of the model without what is `asked` to be removed."""

    def check(early: Session) -> None:
        _check_edits(early, asked)

    session = open_session(options, None, progress, check, needs={split: MIN_GROUPS})
    chosen = plan_for(session, asked)
    with Ledger.open(ledger) if ledger is not None else nullcontext() as journal:
        session = replace(session, ledger=journal)
        examples = session.task.split(split)
        outcomes = session.judge()([chosen], examples, "evaluate")[chosen]
        if journal is not None and split == "test":
            record_opening(journal, session.task, untested_opening(session.scope, chosen))
    groups = session.task.groups(examples)
    kind = "label" if "label" in session.task.scored_as else session.task.kind
    metrics = SECONDARY.get(kind, SECONDARY["generation"]) or (PRIMARY[kind],)
    seed = session.options.seed
    scores = [compare(METRICS[m], outcomes, outcomes, groups, seed=seed).after.to_json() for m in metrics]
    if session.task.kind == "text":
        scores.append(_perplexity(scores[0]))
    start = baseline(session.task, split, examples, outcomes, session.objective.metric, seed).to_json()
    head = {"model": options.model, "task": session.task.name, "split": split, "plan": str(chosen)}
    return head | {"scores": scores, "baseline": start}


def _check_edits(early: Session, asked: PlanOrEdits) -> None:
    """Check that a model has what is taken out, and that this is proved. Raises: as `resolve_early`, `check_proved`."""
    resolve_early(asked, early.loaded.anatomy)
    check_proved(early.loaded, kinds_of(plan_of(asked, "").edits))


def _perplexity(loss: dict[str, Any]) -> dict[str, Any]:
    shown = {"metric": "perplexity", "unit": "perplexity"}
    return loss | shown | {"value": float(exponential(loss["value"])), "ci": exponential_interval(loss["ci"])}


def plan_for(session: Session, asked: PlanOrEdits) -> Plan:
    """Return the plan for this session's model.

    Raises: `PlanError` where it is for another model, `UnknownName` for its sites.
    """
    chosen = plan_of(asked, session.loaded.fingerprint)
    resolve(chosen, session.loaded.anatomy, session.loaded.fingerprint)
    return chosen


def transfer(options: Options, plan: Plan, ledger: Path, progress: Progress) -> TransferRecord:
    """Measure a plan on the test split of a task, in the model that it was made for or in a sibling of it.

    Raises: `PlanError` where the model lacks what the plan takes out, or the plan holds what cannot be fitted to a
        sibling.
    """

    def check(early: Session) -> None:
        _check_edits(early, plan.edits)

    needs = {"test": MIN_GROUPS, **({"probe": 1} if plan.linearized else {})}
    session = open_session(options, None, progress, check, needs=needs)
    chosen = readdressed(plan, session)
    with Ledger.open(ledger) as journal:
        session = replace(session, ledger=journal)
        judge = session.judge()
        before, after = measure_model(judge), measure_model(judge, plan=chosen)
        metric = session.objective.metric
        found = decide(
            judge, before, after, chosen, (), metric, ledger=journal, scope=session.scope, seed=options.seed
        )
    sibling = chosen.model != plan.model
    return TransferRecord(
        **vars(found),
        plan=str(chosen),
        made_for=plan.model,
        model=options.named,
        sibling=sibling,
        refitted=[str(edit) for edit in chosen.linearized] if sibling else [],
        task=session.task.name,
        versions=versions(),
    )


def readdressed(plan: Plan, session: Session) -> Plan:
    """Return a plan for this session's model: linear maps are fitted anew where it has other weights.

    Raises: `PlanError` for biases that were fitted to the other model's activations; as `resolve`.
    """
    fingerprint, anatomy = session.loaded.fingerprint, session.loaded.anatomy
    if plan.model == fingerprint:
        resolve(plan, anatomy, fingerprint)
        return plan
    if folded := [edit for edit in plan.removed if edit.fold is not None]:
        raise PlanError(
            f"{folded[0]}: its bias was fitted to the model that the plan was made for, and is not fitted to another. "
            "Search again with --method directions on this model."
        )
    chosen = Plan(fingerprint, tuple(edit for edit in plan.edits if not isinstance(edit, Linearize)))
    for edit in plan.linearized:
        low = edit.fitted.content.get("a")
        run = BlockRun(edit.blocks, edit.form, None if low is None else len(low))
        chosen += fitted_maps(session, chosen, [run], session.judge().packing)[run]
    resolve(chosen, anatomy, fingerprint)
    return chosen


def analyze(
    what: str,
    options: Options,
    split: str,
    asked: PlanOrEdits,
    progress: Progress,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Return the rows of one reading that a method of `prune` brings: of matrices, or of what edits do.

    Args:
        out: Folder for probe.json, which holds the same, and its page probe.html.
    """
    method = method_reading(what)

    def check(early: Session) -> None:
        _check_edits(early, asked)
        method.check_reading(what, early, split)
        check_proved(early.loaded, method.kinds(early))

    session = open_session(options, None, progress, check, needs={split: 1})
    rows = method.read(what, session, split, plan_for(session, asked))
    record = RowsRecord(
        what=what,
        model=options.model,
        task=session.task.name,
        split=split,
        rows=[row.model_dump(mode="json", exclude_unset=True) for row in rows],
    )
    if out is None:
        return record.to_json()
    sections = method.reading_sections(what, rows) if rows else ()
    write_json(Path(out) / "probe.json", record.to_json())
    page = write_rows_report(record, sections, Path(out) / "probe.html")
    return record.to_json() | {"written": [str(Path(out) / "probe.json"), str(page)]}


# ---------------------------------------------------------------------------------------- what is understood of a task


def check_task(options: Options) -> TaskCheckRecord:
    """Return what was understood of the task that `options` name, in the tokens of their model.

    Without a model (an empty name) nothing is said of tokens.

    Raises: `TaskError` for a task that cannot be read, `ModelError` and `UnknownName` for a model.
    """
    if not options.model:
        return _check_record(options, _questions(options))
    blank = blank_of(options, ruler=Path(options.model).is_dir())  # of a folder weights may be missing
    if isinstance(blank.tokenizer, Ruler):
        raise ModelError(f"{options.model} has no tokenizer, and lengths are counted in its tokens.")
    task = read_task(replace(options, allow_small=True), blank, {}, blank.anatomy)
    context = blank.anatomy.context
    encoded = [encoded_for(blank, one, context=None, chat=options.chat) for one in task.examples]

    def decode(tokens: Sequence[int]) -> str:
        return str(blank.tokenizer.decode(list(tokens)))

    shown = [i for name in reversed(SPLITS) for i in task.split(name)[:1]][:NUM_RENDERED]
    record = _check_record(options, task, labelled=bool(blank.anatomy.labels))
    return record.model_copy(
        update={
            "model": options.named,
            "prompt_tokens": _lengths([len(one.pairs[0][0]) for one in encoded]),
            "answer_tokens": _lengths([len(one.pairs[one.gold][1]) for one in encoded]),
            "context": context,
            "rendered": [_rendered(task, i, encoded[i], decode) for i in shown],
            "problems": [*record.problems, *_problems(encoded, context)],
        }
    )


def check_structure(model: str, revision: str | None, trust_remote_code: bool) -> StructureRecord:
    """Return the proof of a model's structure, on a tiny random copy; neither weights nor tokenizer need be there.

    Raises: as `blank_model` and `tiny_copy`.
    """
    blank = blank_model(model, revision=revision, trust_remote_code=trust_remote_code, ruler=True)
    copy = tiny_copy(blank, tiny_config(blank, WINDOW))
    with quiet():
        return prove(copy)


def _questions(options: Options) -> Task:
    """Return the task that `options` name, read without a tokenizer. Raises: as `load_task`; `TaskError` for text."""
    task = load_task(
        options.task,
        tokenizer=None,
        test_spec=options.test_task,
        split_seed=options.split_seed,
        limit=options.limit,
        allow_small=True,
        needs={},
        rules=options.question_rules,
    )
    return with_shots(task, options.shots, options.split_seed)


def _check_record(options: Options, task: Task, *, labelled: bool = False) -> TaskCheckRecord:
    """Return what needs no tokenizer."""
    fields = () if not task.answers else (name for one in task.examples for name in one.meta)
    return TaskCheckRecord(
        task=options.task,
        format=describe(options.task, labelled),
        kind=task.kind,
        metric=task.primary_metric,
        model=None,
        examples=len(task.examples),
        splits={name: len(task.split(name)) for name in SPLITS},
        groups={name: _num_groups(task, name) for name in SPLITS},
        prompt_tokens=None,
        answer_tokens=None,
        max_new_tokens=task.max_new_tokens,
        context=None,
        **floors(task),
        unread=list(dict.fromkeys(fields)),
        rendered=[],
        problems=_doubts(task, options),
    )


def _num_groups(task: Task, split: str) -> int:
    return len({example.group for example in task.of(task.split(split))})


def _lengths(counts: Sequence[int]) -> LengthsRecord:
    return LengthsRecord(least=min(counts), median=float(np.median(counts)), most=max(counts))


def _rendered(
    task: Task, index: int, encoded: Encoded, decode: Callable[[Sequence[int]], str]
) -> RenderedRecord:
    context, answer = encoded.pairs[encoded.gold]
    example = task.examples[index]
    split = next(name for name in SPLITS if index in task.split(name))
    choices = None if example.choices is None else list(example.choices)
    tokens = [example.answer] if example.labelled else [decode([token]) for token in answer]
    prompt = decode(context)
    if encoded.steps is not None or encoded.episode is not None:  # play, which is no text
        prompt, tokens = example.prompt, [str(action) for action in answer]
    return RenderedRecord(id=example.id, split=split, prompt=prompt, answer=tokens, choices=choices)


def _doubts(task: Task, options: Options) -> list[str]:
    """Return what would stop a search or make its numbers doubtful with any model, a sentence each."""
    found = []
    small = [f"{name} {n}" for name in ("select", "test") if (n := _num_groups(task, name)) < MIN_GROUPS]
    if small:
        found.append(
            f"Select and test need {MIN_GROUPS} groups of examples each, about {MIN_GROUPS / SHARES[1]:.0f} in one "
            f"file, and there are {', '.join(small)}: give more data, or --allow-small for a first look."
        )
    answers = [example.answer for example in task.examples]
    written = task.kind == "generation" and not options.extract and bool(files_of(options.task))
    if (
        written and not answers_notice(answers) and (how := classify_notice(answers))
    ):  # the notice has said it
        found.append(
            f"{len(set(answers))} different answers in {len(answers)} examples, each to be written.{how}"
        )
    return found


def _problems(encoded: Sequence[Encoded], context: int | None) -> list[str]:
    """Return what of a task does not fit the model, a sentence each."""
    long = sum(context is not None and one.longest > context for one in encoded)
    joined = sum(one.joined for one in encoded)
    found = []
    if long:
        found.append(
            f"{long} of {len(encoded)} examples are longer than the model's context of {context} tokens: --skip-long "
            "leaves them out."
        )
    if joined:
        found.append(
            f"In {joined} of {len(encoded)} examples the answer begins within the last token of the prompt, and is "
            "scored in part: let answers begin at a word's border, as a space before them does (--join ' ')."
        )
    return found
