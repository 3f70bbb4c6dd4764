"""How linear the blocks of a model are, or of a series of checkpoints, on one task: `probe --what linearity`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.checkpoint.folder import write_json
from secateur.core.progress import Progress, silent
from secateur.errors import TaskError, TooLong, UnknownName
from secateur.hf.readable import Readable, blank_readable, load_readable, readable_of
from secateur.options import Options
from secateur.probes.hooks import check_first
from secateur.probes.linearity import Profile, linearity
from secateur.probes.outliers import TIMES, Outliers
from secateur.probes.transition import Cloud, Linearity
from secateur.records import versions
from secateur.report import write_probe_report
from secateur.session import FIRST, FIRST_TOKENS, loading_of, read_task
from secateur.tasks.encode import encode
from secateur.tasks.example import Task

Record = dict[str, Any]
HELD_OUT = 0.25  # of the groups of sequences
SCORES = ("stream", "added")
OF_PLACE = ("site", "d", "outliers", "without")  # and not of the tokens that were read there
DIFFERS = 0.01  # between scores with and without outlier tokens: more is told
ON_CPU, ON_GPU = 2048, 32768  # padded tokens of a forward pass


def read_linearity(
    asked: Sequence[Options],
    split: str,
    *,
    parts: bool = False,
    finer: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Record:
    """The record of docs/records.md (Linearity): one profile for each of the models `asked` for, on one task. With
    `out` it is written there, and a page of curves.

    Raises: what reading a model or a task raises, before the first is read where it can be told; `TaskError` where
    there are too few sequences to hold some out; `OutputError` where nothing can be written.
    """
    texts = [
        _prepared(one, split) for one in asked
    ]  # hours of reading should not end at a name that is not there
    models = []
    for number, (one, text) in enumerate(zip(asked, texts, strict=True)):
        progress("models", number, len(asked))
        models.append(_read(one, text, {"parts": parts, "finer": finer}, progress))
    progress("models", len(asked), len(asked))
    record: Record = {"what": "linearity", "model": asked[0].model, "task": texts[0].task, "split": split}
    record |= {"outlier_norm": TIMES, "models": models}
    if out is not None:
        record["written"] = [str(path) for path in _write(record, Path(out))]
    return record


def _write(record: Record, out: Path) -> list[Path]:
    full = record | {"versions": versions()}
    write_json(out / "probe.json", full)
    return [out / "probe.json", write_probe_report(full, out / "probe.html")]


# ------------------------------------------------------------------------------------------------------------ one model


@dataclass(frozen=True)
class _Text:
    """The sequences of a split, and which are held out."""

    task: str
    sequences: list[tuple[int, ...]]
    held_out: list[bool]
    of: int


def _prepared(options: Options, split: str) -> _Text:
    """Prepares the sequences that a model will read. Raises as reading model and task does, its weights aside."""
    blank = _in_memory(options) or blank_readable(options.model, **loading_of(options))
    _blocks(blank, options)
    return _text(read_task(options, blank, {split: 1}), blank, options, split)


def _read(options: Options, text: _Text, places: Mapping[str, Any], progress: Progress) -> Record:
    """The record of one model."""
    readable = _in_memory(options) or load_readable(options.model, **loading_of(options))
    check_first(readable, [tokens[:FIRST_TOKENS] for tokens in text.sequences[:FIRST]])
    on_cpu = readable.device.type == "cpu"
    profile = linearity(
        readable,
        text.sequences,
        text.held_out,
        blocks=_blocks(readable, options),
        max_tokens=options.max_tokens or (ON_CPU if on_cpu else ON_GPU),
        seed=options.seed,
        progress=progress,
        **places,
    )
    return _model_record(options.named, readable, text, profile)


def _in_memory(options: Options) -> Readable | None:
    """Return the model that was handed over in Python."""
    return None if options.in_memory is None else readable_of(options.in_memory)


def _blocks(readable: Readable, options: Options) -> range | None:
    if options.layers is None:
        return None
    low, high = options.layers
    fewest = min(len(stack.blocks) for stack in readable.stacks)
    if not 0 <= low < high <= fewest:
        raise UnknownName(f"layers {low}:{high} are not in this model: it has blocks 0 to {fewest - 1}.")
    return range(low, high)


def _text(task: Task, readable: Readable, options: Options, split: str) -> _Text:
    """Whole groups are held out, since neighbors in a book, or phrasings of a fact, resemble each other."""
    if task.kind != "text" and readable.kind != "decoder":
        raise TaskError(
            f"{readable.name} is an {readable.kind}, which is read on text alone: --task text:FILE."
        )
    asked = list(task.split(split))
    found = _encoded(task, readable, options, asked)
    groups = sorted({task.examples[number].group for number in found})
    if len(groups) < 2:
        raise TaskError(
            f"{task.name} ({split}) has {len(groups)} group of sequences, and linearity fits on some and scores on "
            "others. Give more text, or a smaller --seqlen (ten chunks of a .txt file are one group)."
        )
    random.Random(options.split_seed).shuffle(groups)
    out = set(groups[: max(1, round(HELD_OUT * len(groups)))])
    return _Text(
        task.name, list(found.values()), [task.examples[number].group in out for number in found], len(asked)
    )


def _encoded(
    task: Task, readable: Readable, options: Options, asked: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Prompt and right answer; of text, the chunk. What does not fit is left out with `skip_long`, else refused."""
    found: dict[int, tuple[int, ...]] = {}
    for number in asked:
        with suppress(*([TooLong] if options.skip_long else [])):
            encoded = encode(
                task.examples[number],
                readable.tokenizer,
                context=readable.context,
                vocab_size=readable.vocab_size,
                chat=options.chat,
            )
            context, answer = encoded.pairs[encoded.gold]
            found[number] = context + answer
    return found


def _model_record(name: str, readable: Readable, text: _Text, profile: Profile) -> Record:
    return {
        "name": name,
        "revision": readable.revision,
        "kind": readable.kind,
        "norms": dict(profile.norms),
        "n": len(text.sequences),
        "of": text.of,
        "held_out": sum(text.held_out),
        "rows": [_row(one, readable) for one in profile.rows],
        "last": {stack: _cloud(one, readable) for stack, one in profile.last.items()},
    }


def _row(one: Linearity, readable: Readable) -> Record:
    """What was read at a place over all tokens; which are outliers there, and what was read without those."""
    found = {"site": one.site, "d": one.d, **_scored(one), "outliers": None, "without_outliers": None}
    if one.outliers is not None:
        without = None if one.without is None else _scored(one.without)
        matter = {"matter": without is not None and _matter(found, without)}
        found |= {"outliers": _outliers(one.outliers, readable) | matter, "without_outliers": without}
    return found


def _scored(one: Linearity) -> Record:
    """What was read over one set of tokens; scores as lists [in-sample, held out]."""
    found = {name: value for name, value in vars(one).items() if name not in OF_PLACE}
    scores = {name: found[name] for name in SCORES}
    return found | {n: None if one is None else [one.in_sample, one.held_out] for n, one in scores.items()}


def _matter(whole: Record, without: Record) -> bool:
    """Whether a score over all tokens is another than that without outlier tokens."""
    pairs = [pair for name in SCORES for pair in zip(whole[name] or (), without[name] or (), strict=False)]
    lost = any((whole[name] is None) != (without[name] is None) for name in SCORES)
    return lost or any(abs(one - other) > DIFFERS for one, other in pairs)


def _cloud(one: Cloud, readable: Readable) -> Record:
    without = None if one.without is None else _shape(one.without)
    outliers = None if one.outliers is None else _outliers(one.outliers, readable)
    return _shape(one) | {"outliers": outliers, "without_outliers": without}


def _shape(one: Cloud) -> Record:
    return {"anisotropy": one.anisotropy, "intrinsic_dimension": one.intrinsic_dimension}


def _outliers(one: Outliers, readable: Readable) -> Record:
    return {
        "count": one.count,
        "largest": one.largest,
        "positions": [{"position": which, "count": count, "of": of} for which, count, of in one.positions],
        "tokens": [
            {"id": which, "text": readable.tokenizer.decode([which]), "count": count, "of": of}
            for which, count, of in one.tokens
        ],
    }
