"""Side tasks, watched while a model is cut for another: other phrasings of its questions, other tasks, plain text."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from secateur.evaluation.measurement import SideTask, paraphrase_task
from secateur.session import Session
from secateur.tasks.load import load_side
from secateur.tasks.trajectories import logged_play

SIDE_EXAMPLES = 200


def side_effects(session: Session) -> list[SideTask]:
    """Return the side tasks: the other phrasings of the test questions where the task has them, and the tasks of
    `--side`, else what the embedded model brings along, else plain English, if the model writes text; and of episodes
    the logged play.
    """
    given = session.options.side
    anatomy = session.loaded.anatomy
    passages = [f"text:{resources.files('secateur.tasks') / 'passages.jsonl'}"]
    english = passages if anatomy.writes_text else []
    specs = list(given) or _own_sides(session.options.model) or english
    context = anatomy.context
    seqlen = min(session.options.seqlen, context) if context else session.options.seqlen
    phrasings = paraphrase_task(session.task, "test")
    sides = (
        [] if phrasings is None else [SideTask("other phrasings", session.on(phrasings).task, phrasings=True)]
    )
    if (logged := logged_play(session.task)) is not None:
        sides.append(SideTask(logged.name, session.on(logged).task))
    for spec in specs:
        task = load_side(
            spec,
            tokenizer=session.loaded.tokenizer,
            seqlen=seqlen,
            limit=SIDE_EXAMPLES,
            rules=replace(session.options.question_rules, extract="", max_new_tokens=None),
            labels=anatomy.labels,
            acts=anatomy.acts,
        )
        name = Path(spec.removeprefix("text:")).stem.removeprefix("text_").replace("_", " ")
        written = task.kind == "text" and anatomy.writes_text
        sides.append(SideTask(name, session.on(task).task, continuations=written))
    return sides


def _own_sides(model: str) -> list[str]:
    if not model.startswith("builtin:"):
        return []
    folder = resources.files("secateur.models") / model.removeprefix("builtin:")
    files = sorted(Path(str(folder)).glob("side/*"))
    return [f"text:{f}" if f.name.startswith("text_") else str(f) for f in files]
