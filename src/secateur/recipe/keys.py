"""The keys that each step of a recipe has, and the JSON schema that is made of them. Imports no torch.

A key is an option as its flag names it, with underscores or dashes. Options of `prune` and of its methods are read off
`Options` and the methods' `Config`; what a verb has beside them stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import TypeAlias, get_args

from pydantic import JsonValue

from secateur.checkpoint.push import check_repo
from secateur.core.config import Named, option, options_of
from secateur.core.form import GGUF_TYPES
from secateur.core.ranges import MOST, Range, real, whole
from secateur.methods.registry import method_options, methods
from secateur.options import Options
from secateur.training.options import (
    FINETUNE_DEFAULTS,
    HEAL_DEFAULTS,
    Healing,
    task_options,
    tuning_options,
)

Keys: TypeAlias = Mapping[str, Named]  # by the key
SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}
MODEL = (
    "A folder, a .gguf file, a hub name, or builtin:NAME. Left out below `steps`: what the step before wrote."
)
TASK = "FILE (.csv, .tsv, .jsonl, .json), text:FILE, hf:OWNER/NAME[:SPLIT], builtin:NAME, a preset, or lm_eval:NAME"
OUT = "The checkpoint folder to write."


@dataclass(frozen=True)
class ModelKeys:
    """The model of a step, where its checkpoint goes, and whether that may replace another."""

    model: str = option("", MODEL, "MODEL")
    out: str = option("", OUT, "OUT")
    overwrite: bool = option(False, "Replace the checkpoint of another command at OUT.", flags="--overwrite")


@dataclass(frozen=True)
class TrainingKeys(ModelKeys):
    """The keys that `heal` and `finetune` have beside their options."""

    task: str = option("", f"{TASK}.", "TASK")


@dataclass(frozen=True)
class HealKeys(TrainingKeys):
    """The keys that `heal` has beside its options."""

    teacher: str | None = option(
        None, "The model that MODEL was cut from, where it is not where it was.", "MODEL"
    )
    ledger: str | None = option(
        None, "Compare to the original on test too; the opening is noted here.", "FILE"
    )


@dataclass(frozen=True)
class PruneKeys(ModelKeys):
    """The keys that `prune` has beside its options."""

    task: tuple[str, ...] = option((), f"{TASK}; a list: one plan good for all.", "TASK", repeated=True)
    each: bool = option(
        False, "Of several tasks a plan for each, in OUT/NAME, instead of one for all.", flags="--each"
    )
    method: str = option("laser", "How to find what is not needed.", "NAME")
    ledger: str | None = option(None, "Share this ledger instead of OUT.run/ledger.sqlite.", "FILE")
    ray: str | None = option(
        None,
        "Judge candidates on a Ray cluster: auto, its address, or local:N workers here.",
        "auto|ADDRESS|local:N",
    )
    workers: int | None = option(whole(None), "With ray: so many workers.", "N")
    cpus_per_worker: float | None = option(
        real(None, 0, above=True, such="1"), "With ray: what a worker takes.", "N"
    )
    gpus_per_worker: float | None = option(
        real(None, such="0.5"), "With ray: 0.5 puts two workers on one.", "N"
    )


@dataclass(frozen=True)
class ApplyKeys(ModelKeys):
    """The keys of `apply`."""

    plan: str | None = option(None, "plan.json, or a checkpoint folder that holds one.", "FILE")
    edit: tuple[str, ...] = option(
        (), "An edit such as b2.gate=5 or b0.attn.h1=drop; or a list.", "SITE=WHAT", repeated=True
    )
    portable: bool = option(False, "Only what a stock class can hold.", flags="--portable")
    shard_size: str = option("5GB", "Write files of at most this size: 5GB, 500MB.", "SIZE")
    svd: str = option("auto", "How matrices are decomposed.", choices=("auto", "exact", "randomized"))
    check: str = option("auto", "What is compared at the end.", choices=("auto", "logits", "digests"))


@dataclass(frozen=True)
class ExportKeys(ModelKeys):
    """The keys of `export`, which writes a GGUF file."""

    out: str = option("", "The file to write.", "FILE")
    type: str = option("f16", "How numbers are stored.", choices=GGUF_TYPES)


def _repository(flag: str, text: str) -> str:
    check_repo(text)
    return text


@dataclass(frozen=True)
class PushKeys:
    """The keys of `push`, which uploads a checkpoint that holds the cut."""

    model: str = option("", MODEL, "OUT")
    repo: str = option("", "Where on the hub; made if it is not there.", "USER/NAME", read=_repository)
    private: bool = option(False, "Make a private repository.", flags="--private")


LOADED = ("revision", "gguf_file", "dtype", "device", "trust_remote_code")  # how `apply` reads a model
NEEDED = {
    "prune": ("model", "task", "out"),
    "apply": ("model", "out"),
    "finetune": ("model", "task", "out"),
    "heal": ("model", "task", "out"),
    "export": ("model", "out"),
    "push": ("model", "repo"),
}
VERBS = tuple(NEEDED)


def keys_of(verb: str, method: str = "laser") -> Keys:
    """Return the keys of a step, as they are spelled with underscores.

    Args:
        method: Of `prune`, whose options are among them.
    """
    shared = [one for one in options_of(Options) if one.name in (*LOADED, "zeroed", "factorize")]
    of_model = [one for one in shared if one.name in ("revision", "gguf_file")]
    described: Mapping[str, Iterable[Named]] = {
        "prune": (*_prune_keys(), *options_of(Options), *options_of(methods()[method].Config)),
        "apply": (*options_of(ApplyKeys), *shared),
        "finetune": (
            *options_of(TrainingKeys), *tuning_options(FINETUNE_DEFAULTS), *task_options("max_tokens"),
        ),
        "heal": (
            *options_of(HealKeys), *options_of(Healing), *tuning_options(HEAL_DEFAULTS),
            *task_options("revision", "gguf_file", "max_tokens"),
        ),
        "export": (*options_of(ExportKeys), *of_model),
        "push": tuple(options_of(PushKeys)),
    }  # fmt: skip
    return {one.key: one for one in described[verb]}


def _prune_keys() -> Iterable[Named]:
    for one in options_of(PruneKeys):
        known = replace(one.option, choices=tuple(methods()))
        yield replace(one, option=known) if one.name == "method" else one


def opposites(keys: Keys) -> dict[str, Named]:
    """Return the keys that say no: `ranks_once` of `--rescore/--ranks-once`."""
    words = {one.option.flags.partition("/")[2]: one for one in keys.values()}
    return {flag.removeprefix("--").replace("-", "_"): one for flag, one in words.items() if flag}


def owners(key: str) -> tuple[list[str], list[str]]:
    """Return the methods and the verbs that have a key which another step lacks."""
    by_method = next((names for one, names in method_options().values() if one.key == key), [])
    verbs = [verb for verb in VERBS if key in keys_of(verb)]
    return by_method, verbs


def scalar_of(one: Named) -> type:
    """Return the type of one value of an option: `int` of `tuple[int, int] | None`."""
    kinds = [kind for kind in get_args(one.kind) if kind is not type(None)] or [one.kind]
    kind = kinds[0]
    inner = get_args(kind)[0] if get_args(kind) else kind
    assert isinstance(inner, type), f"{one.name}: {one.kind}"
    return inner


def is_many(one: Named) -> bool:
    """Return whether an option takes a list."""
    kinds = get_args(one.kind) if isinstance(one.kind, UnionType) else (one.kind,)
    return any(str(kind).startswith("tuple[") for kind in kinds)


def example_of(one: Named) -> str:
    """Return a right line for a key, such as `max_loss: 0.02`."""
    if one.name in EXAMPLES:
        value = EXAMPLES[one.name]
    elif one.option.choices:
        value = next(
            (choice for choice in one.option.choices if choice != one.default), one.option.choices[0]
        )
    elif scalar_of(one) is bool:
        value = str(not one.default).lower()
    elif one.range is not None and one.range.such[:1].isdigit():
        value = one.range.such.split()[0].strip(",")
    elif isinstance(one.default, int | float):
        value = str(one.default)
    else:
        value = str(one.default or 1)
    return f"{one.key}: {value}"


EXAMPLES = {
    "model": "./my-llama",
    "task": "questions.csv",
    "side": "text:book.txt",
    "test_task": "test.csv",
    "teacher": "./my-llama",
    "out": "out",
    "plan": "plan.json",
    "ledger": "openings.sqlite",
    "spectra": "spectra",
    "offload_folder": "offload",
    "repo": "me/my-llama-cut",
    "revision": "main",
    "gguf_file": "model-f16.gguf",
    "dtype": "float32",
    "device": "cpu",
    "device_map": "auto",
    "max_memory": "cpu=8GB",
    "max_tokens": "2048",
    "ray": "local:4",
    "limit": "400",
    "layers": "2:4",
    "matrices": "q,v",
    "lora_targets": "q,v",
    "fractions": "[0.5, 0.1]",
    "small_ranks": "paper",
    "protocol": "removal",
    "join": '" "',
    "extract": "number",
    "edit": "b2.gate=5",
    "params": "0.6",
}


# ------------------------------------------------------------------------------------------------------ the JSON schema

AFTER = ("heal", "export", "push")  # sections that may follow a prune without `steps`
Schema: TypeAlias = dict[str, JsonValue]


def recipe_schema() -> Schema:
    """Return the JSON schema of a recipe: one `prune` with sections, or `steps`."""
    keys = {verb: keys_of(verb) for verb in VERBS}
    own = {name: {one.key: one for one in options_of(method.Config)} for name, method in methods().items()}
    keys["prune"] = {name: one for name, one in keys["prune"].items() if name not in own["laser"]}
    parts: Schema = {verb: _properties(verb, found) for verb, found in keys.items()}
    parts |= {f"method-{name}": _of_method(name, found) for name, found in own.items()}
    prune: Schema = {"allOf": [_ref("prune")], "anyOf": [_ref(f"method-{name}") for name in own]}
    sections: Schema = {verb: _step(verb) for verb in VERBS if verb != "prune"}
    sections["prune"] = prune | {"unevaluatedProperties": False}
    one_step: list[JsonValue] = [
        {"properties": {verb: _ref(f"step-{verb}")}, "required": [verb], "additionalProperties": False}
        for verb in VERBS
    ]
    every = {
        name: _ref(f"{verb}/properties/{name}")
        for verb in reversed(VERBS)
        for name in keys[verb]
        if name != "out"
    } | {
        name: _ref(f"method-{m}/properties/{name}")
        for m, found in own.items()
        for name in (*found, *opposites(found))
    }
    every |= {name.replace("_", "-"): value for name, value in every.items()}
    every["method"] = {"enum": [*own]}
    steps: JsonValue = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": one_step}}
    after: Schema = {verb: _ref(f"step-{verb}") for verb in AFTER}
    flat = prune | {"properties": after, "required": [*NEEDED["prune"]], "unevaluatedProperties": False}
    several: Schema = {
        "properties": {**every, "steps": steps},
        "required": ["steps"],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of secateur run",
        "type": "object",
        "anyOf": [flat, several],
        "$defs": parts | {f"step-{verb}": section for verb, section in sections.items()},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _properties(place: str, keys: Keys) -> Schema:
    """Return the schema of keys, in both spellings, with those that say no."""
    found: Schema = {name: _value(one) for name, one in keys.items()}
    found |= {name: {"type": "boolean"} for name in opposites(keys)}
    dashed: Schema = {
        name.replace("_", "-"): _ref(f"{place}/properties/{name}") for name in found if "_" in name
    }
    return {"type": "object", "properties": found | dashed}


def _of_method(name: str, keys: Keys) -> Schema:
    """Return the schema of the options of one method; without `method` it is LASER."""
    found = _properties(f"method-{name}", keys)
    properties = found["properties"]
    assert isinstance(properties, dict)
    needed: Schema = {} if name == "laser" else {"required": ["method"]}
    return found | {"properties": properties | {"method": {"const": name}}} | needed


def _step(verb: str) -> Schema:
    """Return the schema of a step; `push` may be the name on the hub alone."""
    step: Schema = {"allOf": [_ref(verb)], "unevaluatedProperties": False}
    return {"anyOf": [_ref("push/properties/repo"), step]} if verb == "push" else step


def _value(one: Named) -> dict[str, JsonValue]:
    """Return the schema of the values of one key."""
    described = one.option
    told: dict[str, JsonValue] = {"description": described.help}
    if described.choices:
        return told | {"enum": [*described.choices]}
    scalar = SCALARS[scalar_of(one)]
    kinds = dict.fromkeys(
        [scalar, *(["string"] if described.read else []), *(["array"] if is_many(one) else [])]
    )
    told["type"] = [*kinds] if len(kinds) > 1 else scalar
    bounds = {} if one.range is None else _bounds(one.range)
    if is_many(one):
        told["items"] = {"type": scalar, **bounds}
        return told | ({} if scalar == "string" else bounds)
    return told | bounds


def _bounds(allowed: Range) -> dict[str, JsonValue]:
    low: JsonValue = allowed.low
    found: dict[str, JsonValue] = {"exclusiveMinimum" if allowed.above else "minimum": low}
    if allowed.high < MOST:
        found["exclusiveMaximum" if allowed.below else "maximum"] = allowed.high
    return found
