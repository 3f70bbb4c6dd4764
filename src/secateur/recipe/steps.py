"""Read a recipe into steps, all of them checked before the first is run, and run them. Imports no torch."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from secateur import api
from secateur.core.config import Named
from secateur.core.progress import Progress, silent
from secateur.core.ranges import check_number
from secateur.core.recipe_file import KINDS, Place, compose, entries, relocated
from secateur.errors import ClusterError, SecateurError, UnknownName, nearest
from secateur.hf.gguf_header import read_header
from secateur.inputs import inputs, model_places
from secateur.methods.registry import either, method_named, read_options
from secateur.recipe.keys import (
    AFTER,
    NEEDED,
    VERBS,
    example_of,
    is_many,
    keys_of,
    opposites,
    owners,
    scalar_of,
)
from secateur.result import Result
from secateur.signatures import verb
from secateur.training import verbs as training

if TYPE_CHECKING:
    from secateur.evaluation.workers import WorkerLauncher
    from secateur.training.state import Tuned

StepResult: TypeAlias = "Result | list[Result] | Tuned | dict[str, Any]"
OF_PARENT = ("model", "revision", "gguf_file")  # what stands above `steps` of these is for the first alone
POSITIONAL = {"model", "repo"}
WORDED = ("true", "false")


@dataclass(frozen=True)
class Step:
    """One step of a recipe: a verb with its options, by their names in Python.

    `own` names those that stand in its own section, not above all steps.
    """

    verb: str
    place: Place
    values: Mapping[str, Any]
    own: frozenset[str] = frozenset()

    @property
    def command_line(self) -> str:
        """Return the command that does the same, as one would type it."""
        keys = {one.name: one for one in keys_of(self.verb, self.values.get("method", "laser")).values()}
        words = [str(self.values[name]) for name in keys if name in POSITIONAL]
        words += ["--gguf"] if self.verb == "export" else []
        for name, value in self.values.items():
            if name not in POSITIONAL and value != keys[name].default:
                words += keys[name].words(keys[name].value(value))
        return shlex.join(["secateur", self.verb, *words])

    def run(self, progress: Progress = silent) -> StepResult:
        """Do the step, or find that it is done. Raises: any `SecateurError`, with the line of the recipe."""
        values = dict(self.values)
        with told_at(self.place):
            match self.verb:
                case "prune":
                    return _prune(values, progress)
                case "apply":
                    plan = values.pop("plan", None) or values.pop("edit")
                    return api.apply(
                        values.pop("model"), plan, values.pop("out"), progress=progress, **values
                    )
                case "finetune":
                    return training.finetune(**values, progress=progress)
                case "heal":
                    return training.heal(values.pop("model"), **values, progress=progress)
                case "export":
                    return _export(values)
                case _:
                    return _push(values)


def _prune(values: dict[str, Any], progress: Progress) -> Result | list[Result]:
    asked = {
        name: values.pop(name, None) for name in ("ray", "workers", "cpus_per_worker", "gpus_per_worker")
    }
    judges = workers_on(asked["ray"], asked["workers"], asked["cpus_per_worker"], asked["gpus_per_worker"])
    how: dict[str, Any] = {"progress": progress, "workers": judges}
    if values.pop("each", False):
        return api.prune_each(values.pop("model"), values.pop("task"), values.pop("out"), **how, **values)
    return api.prune(**values, **how)


def _export(values: dict[str, Any]) -> dict[str, Any]:
    """Write the file, unless it is there, of this type, and newer than the checkpoint that it is of."""
    file, model = Path(values["out"]), Path(values["model"])
    kind = values.get("type", "f16")
    if file.is_file() and (model / "config.json").is_file() and not values.get("overwrite"):
        newer = file.stat().st_mtime >= (model / "config.json").stat().st_mtime
        if newer and read_header(file).kind.lower() == kind:
            return {"file": str(file), "type": kind, "bytes": file.stat().st_size, "already": True}
    return api.export(values.pop("model"), values.pop("out"), **values) | {"already": False}


def _push(values: dict[str, Any]) -> dict[str, Any]:
    """Upload a checkpoint; one that holds the unchanged model has nothing new for the hub."""
    repo = values["repo"]
    pushed = api.push_cut(values["model"], repo, private=values.get("private", False))
    return {"repo": repo, "url": None, "files": []} if pushed is None else pushed


def workers_on(
    address: str | None, workers: int | None, cpus: float | None, gpus: float | None
) -> WorkerLauncher | None:
    """Return the workers asked for, or None. Raises: `ClusterError`, before a model is read."""
    if address is None:
        if (workers, cpus, gpus) != (None, None, None):
            raise ClusterError("--workers, --cpus-per-worker and --gpus-per-worker are for --ray.")
        return None
    from secateur.distributed.launch import on_ray

    cpus = 1.0 if cpus is None else cpus
    return on_ray(address, workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


@contextmanager
def told_at(place: Place) -> Iterator[None]:
    """Begin the message of an error inside with the line of the recipe that it is of."""
    try:
        yield
    except SecateurError as error:
        if not str(error).startswith(f"{place.file}, line"):
            error.args = (f"{place}: {error}",)
        raise


@verb()
def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[StepResult]:
    """Run the steps of a recipe in order; one that is done already is not run again.

    Args:
        recipe: A YAML file: one `prune` in the names of its flags, or `steps`. docs/cli.md, Recipes.
        out: The checkpoint folder, in place of the one that a recipe of one step names.
        overwrite: Replace what other commands wrote at the places that the recipe names.
        progress: Called as `progress(stage, done, total)`.

    Returns: the result of each step, as its verb returns it.

    Raises: any `SecateurError`. All steps are checked before the first is run.
    """
    return [step.run(progress) for step in read_recipe(recipe, out, overwrite=overwrite)]


# -------------------------------------------------------------------------------------------------------------- reading


def read_recipe(recipe: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> list[Step]:
    """Return the steps of a recipe, with paths as seen from the current folder.

    Args:
        out: In place of the `out` of a recipe of one step.
        overwrite: Of every step that has this option.

    Raises: `SecateurError` for a key or a value that is not right, with its line and a right one; `UnknownName` and
        `TaskError` for a task or a model that is not there.
    """
    file = Path(recipe)
    found = list(_steps(file))
    if out is not None:
        if len(found) > 1:
            raise SecateurError(
                f"-o is of one checkpoint, and {file} has {len(found)} steps. Change `out` in the recipe."
            )
        found = [replace(step, values={**step.values, "out": str(out)}) for step in found]
    steps: list[Step] = []
    for step in found:
        step = _continued(step, steps)
        if overwrite and step.verb != "push":
            step = replace(step, values={**step.values, "overwrite": True})
        _check(step, first=not steps)
        steps.append(step)
    return steps


def _steps(file: Path) -> Iterator[Step]:
    """Yield the steps as they are written, each with what stands above all of them."""
    root = list(entries(compose(file), file))
    listed = next(((place, node) for place, key, node in root if key == "steps"), None)
    above = [entry for entry in root if entry[1] != "steps"]
    if listed is None:
        flat = [entry for entry in root if entry[1] not in AFTER]
        place = Place(str(file), 1)
        prune = _values("prune", flat, file)
        yield Step("prune", place, prune)
        for place, key, node in root:
            if key in AFTER:
                yield _step(key, place, node, flat, file)
        return
    place, node = listed
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise SecateurError(f"{place}: steps is a list, each line such as `- heal: {{out: healed}}`.")
    sections = [_single(item, file) for item in node.value]
    methods = [_method_of(_entries_of(key, node, place, file)) for place, key, node in sections]
    known = {
        name
        for (_, key, _), method in zip(sections, methods, strict=True)
        for name in _spellings(key, method or _method_of(above) or "laser")
    }
    for place, key, _ in above:
        if key not in known or key == "out":
            why = "each step names its own" if key == "out" else "no step here has it"
            raise UnknownName(
                f"{place}: {key!r} above steps: {why}.{'' if key == 'out' else nearest(key, known)}"
            )
    for place, key, node in sections:
        yield _step(key, place, node, above, file)


Entry: TypeAlias = tuple[Place, str, yaml.Node]


def _single(item: yaml.Node, file: Path) -> Entry:
    """Return line, verb and section of one item of `steps`."""
    place = Place(str(file), item.start_mark.line + 1)
    found = list(entries(item, file)) if isinstance(item, yaml.MappingNode) else []
    if len(found) != 1:
        raise SecateurError(
            f"{place}: a step is one of {', '.join(VERBS)} with its keys, such as `- heal: {{out: healed}}`."
        )
    if found[0][1] not in VERBS:
        raise UnknownName(f"{place}: unknown step {found[0][1]!r}.{nearest(found[0][1], VERBS)}")
    return found[0]


def _entries_of(verb: str, node: yaml.Node, place: Place, file: Path) -> list[Entry]:
    """Return the entries of a section; the value of `push` may be the name on the hub alone."""
    if verb == "push" and isinstance(node, yaml.ScalarNode):
        return [(place, "repo", node)]
    if not isinstance(node, yaml.MappingNode):
        right = example_of(keys_of(verb)[NEEDED[verb][-1]])
        raise SecateurError(f"{place}: {verb} is a section of keys, and here is {KINDS[type(node)]}. Right: "
                            f"`{verb}: {{{right}}}`.")  # fmt: skip
    return list(entries(node, file))


def _step(verb: str, place: Place, node: yaml.Node, above: Sequence[Entry], file: Path) -> Step:
    """Return one step; what stands above holds where the step has such a key and does not say it itself."""
    own = _entries_of(verb, node, place, file)
    said = {key for _, key, _ in own}
    known = _spellings(verb, _method_of(own) or _method_of(above) or "laser")
    inherited = [entry for entry in above if entry[1] in known and entry[1] not in {*said, "out"}]
    values = _values(verb, [*inherited, *own], file)
    return Step(verb, place, values, frozenset(said))


def _method_of(found: Sequence[Entry]) -> str | None:
    for place, key, node in found:
        if key == "method" and isinstance(node, yaml.ScalarNode):
            with told_at(place):
                return method_named(node.value).name
    return None


def _spellings(verb: str, method: str) -> dict[str, Named]:
    keys = keys_of(verb, method)
    return {**keys, **opposites(keys)}


def _values(verb: str, found: Sequence[Entry], file: Path) -> dict[str, Any]:
    """Return the values of the keys of a step by their names in Python. Raises: `SecateurError`, `UnknownName`."""
    method = _method_of(found) or "laser"
    keys = keys_of(verb, method)
    no = opposites(keys)
    values: dict[str, Any] = {}
    for place, key, node in found:
        one = keys.get(key) or no.get(key)
        if one is None:
            raise _misplaced(place, key, verb, method)
        with told_at(place):
            value = _value(one, key, node)
        value = (not value) if key in no else relocated(one.name, value, file.parent, Path.cwd())
        values[one.name] = value
    return values


def _misplaced(place: Place, key: str, verb: str, method: str) -> UnknownName:
    """Return the error for a key that a step does not have: who has it, else the nearest that the step has."""
    by_method, verbs = owners(key)
    if verb == "prune" and by_method:
        return UnknownName(
            f"{place}: {key!r} is not for method {method}, but for {either(by_method)}. "
            f"Right: `method: {by_method[0]}`."
        )
    if verbs:
        return UnknownName(
            f"{place}: {key!r} is a key of {either(verbs)}, not of {verb}. Put it below `{verbs[0]}:`."
        )
    known = keys_of(verb, method)
    hint = nearest(key, known)
    close = hint.partition("Did you mean ")[2].split(" or ")[0].rstrip("?")
    return UnknownName(
        f"{place}: unknown key {key!r} in {verb}.{hint}"
        + (f" Right: `{example_of(known[close])}`." if close in known else "")
    )


def _value(one: Named, key: str, node: yaml.Node) -> Any:
    """Return the value of a key, as its option takes it in Python. Raises: `SecateurError`, with a right line."""
    right = f"Right: `{example_of(one)}`."
    many = is_many(one)
    if isinstance(node, yaml.MappingNode) or (isinstance(node, yaml.SequenceNode) and not many):
        raise SecateurError(f"{key} has one value, and here is {KINDS[type(node)]}. {right}")
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not items or not all(isinstance(item, yaml.ScalarNode) for item in items):
        raise SecateurError(f"{key} is a list of values, and here is a list of none or of others. {right}")
    is_list = isinstance(node, yaml.SequenceNode)
    read = [
        _scalar(one, key, item, right, as_text=one.option.read is not None and not is_list) for item in items
    ]
    value = read if is_list else read[0]
    try:
        set_to = one.value(value)
        if one.option.choices and set_to not in one.option.choices:
            raise UnknownName(f"unknown {key} {value!r}.{nearest(str(value), one.option.choices)}")
        if one.range is not None:
            check_number(one.name, set_to, one.range)
    except SecateurError as error:
        raise type(error)(f"{error} {right}") from error
    return [value] if one.option.repeated and not is_list else value


def _scalar(one: Named, key: str, node: yaml.ScalarNode, right: str, *, as_text: bool) -> bool | float | str:
    """Return one value: text as it stands there, a number, or true or false."""
    text, kind = str(node.value), scalar_of(one)
    if text == "" and node.style is None:
        raise SecateurError(f"{key} has no value: give it one, or leave the line out. {right}")
    if kind is bool:
        if text.lower() not in WORDED:
            raise SecateurError(f"{key} {text!r}: write true or false. {right}")
        return text.lower() == "true"
    if kind is str or as_text:
        return text
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        wanted = one.range or ("a whole number" if kind is int else "a number")
        raise SecateurError(f"{key} {text!r}: give {wanted}. {right}")
    return number


def _continued(step: Step, before: Sequence[Step]) -> Step:
    """Return a step after others: it takes the checkpoint that was written last, unless it names a model itself."""
    own, values = step.own, dict(step.values)
    written = [one for one in before if one.verb not in ("export", "push")]
    if written and "model" not in own:
        if written[-1].values.get("each"):
            raise SecateurError(
                f"{step.place}: `each` writes several checkpoints. Say which: `model: OUT/NAME`."
            )
        values = {name: value for name, value in values.items() if name not in OF_PARENT or name in own}
        values["model"] = written[-1].values["out"]
    return replace(step, values=values)


def _check(step: Step, *, first: bool) -> None:
    """Raise where a step lacks something, where options contradict each other, and where a task is not there."""
    values, keys = step.values, keys_of(step.verb)
    for name in NEEDED[step.verb]:
        if not values.get(name):
            raise SecateurError(
                f"{step.place}: {step.verb} lacks {name!r}. Add a line: `{example_of(keys[name])}`."
            )
    if step.verb == "apply" and bool(values.get("plan")) == bool(values.get("edit")):
        raise SecateurError(
            f"{step.place}: apply carries out `plan` or `edit`. Add one: `{example_of(keys['edit'])}`."
        )
    task, side = values.get("task") or [], values.get("side") or []
    with told_at(step.place):
        tasks = [task] if isinstance(task, str) else task
        test = [values["test_task"]] if "test_task" in values else []
        here = first or os.path.exists(values["model"])
        inputs([values["model"]] if here else [], [*tasks, *test, *side])
        if step.verb == "prune":
            options = read_options(values["model"], *tasks, **prune_options(step))
            if here:
                model_places(options)


def prune_options(step: Step) -> dict[str, Any]:
    """Return the options of a `prune`, without where it reads and writes and where it is judged."""
    beside = {"model", "task", "out", "overwrite", "each", "ledger", "ray", "workers"}
    beside |= {"cpus_per_worker", "gpus_per_worker"}
    return {name: value for name, value in step.values.items() if name not in beside}
