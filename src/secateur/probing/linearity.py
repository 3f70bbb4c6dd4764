"""Linearity of the blocks of a model, or of a series of checkpoints, on one task: `probe --what linearity`.

Changes no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from secateur.checkpoint.folder import write_json
from secateur.core.progress import Progress, silent
from secateur.core.records.probe import (
    CloudRecord,
    CloudWithoutOutliers,
    LinearityRecord,
    OutlierPosition,
    OutliersRecord,
    OutlierToken,
    ProfileRecord,
    TransitionRecord,
    TransitionWithoutOutliers,
)
from secateur.errors import TaskError, TooLong
from secateur.hf.load import Loaded
from secateur.hf.readable import Readable, blank_readable, load_readable, readable_of
from secateur.options import Options, block_range
from secateur.probes.hooks import check_first
from secateur.probes.linearity import Cloud, Linearity, LinearityScore, linearity
from secateur.probes.outliers import TIMES, Outliers
from secateur.probing.report import write_probe_report
from secateur.records import versions
from secateur.session import FIRST, FIRST_TOKENS, loading_of, read_task
from secateur.tasks.encode import encode
from secateur.tasks.example import Task

HELD_OUT = 0.25  # of the groups of sequences
DIFFERS = 0.01  # between scores with and without outlier tokens: the outliers decide the score
ON_CPU, ON_GPU = 2048, 32768  # padded tokens of a forward pass


def read_linearity(
    series: Sequence[Options],
    split: str,
    *,
    parts: bool = False,
    finer: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = silent,
) -> LinearityRecord:
    """Return one profile for each of the models that `series` names, on one task.

    Args:
        parts: Read attentions and feed-forward networks of decoders too.
        finer: `heads`, `matrices`: read them inside every part.
        out: Folder for the record as probe.json and its page as probe.html.

    Raises: what reading a model or a task raises, as far as possible before the first is read; `TaskError` where there
    are too few sequences to hold some out; `OutputError` where nothing can be written.
    """
    # All are checked before any is read: hours of reading should not end at a name that does not exist.
    texts = [check_and_encode(options, split) for options in series]
    profiles = []
    for number, (options, text) in enumerate(zip(series, texts, strict=True)):
        progress("models", number, len(series))
        readable = _in_memory(options) or load_readable(options.model, **loading_of(options))
        check_first(readable, [tokens[:FIRST_TOKENS] for tokens in text.sequences[:FIRST]])
        profiles.append(profile_record(readable, options, text, parts, finer, progress))
    progress("models", len(series), len(series))
    record = LinearityRecord(
        what="linearity",
        model=series[0].model,
        task=texts[0].task,
        split=split,
        outlier_norm=TIMES,
        models=profiles,
    )
    if out is None:
        return record
    written = write_linearity(record.model_copy(update={"versions": versions()}), Path(out))
    return record.model_copy(update={"written": [str(path) for path in written]})


def write_linearity(record: LinearityRecord, out: Path) -> list[Path]:
    """Write probe.json and probe.html to the folder `out`; replace older ones."""
    write_json(out / "probe.json", record.to_json())
    return [out / "probe.json", write_probe_report(record, out / "probe.html")]


# ------------------------------------------------------------------------------------------------------------ one model


@dataclass(frozen=True)
class SplitSequences:
    """The token sequences of a split.

    Attributes:
        held_out: Which of the sequences are scored; the others are fitted to.
        num_examples: Examples of the split, of which some may be left out as too long.
    """

    task: str
    sequences: list[tuple[int, ...]]
    held_out: list[bool]
    num_examples: int


def _in_memory(options: Options) -> Readable | None:
    """Return the model that was handed over in Python."""
    return None if options.in_memory is None else readable_of(options.in_memory)


def check_and_encode(options: Options, split: str) -> SplitSequences:
    """Return the sequences that a model will read. Raises: as reading model and task does, its weights aside."""
    blank = _in_memory(options) or blank_readable(options.model, **loading_of(options))
    _blocks(blank, options)
    task = read_task(options, cast(Loaded, blank), {split: 1})  # which asks a model for its tokenizer alone
    if task.kind != "text" and blank.kind != "decoder":
        raise TaskError(f"{blank.name} is an {blank.kind}, which is read on text alone: --task text:FILE.")
    numbers = list(task.split(split))
    sequences = _encoded(task, blank, options, numbers)
    # Whole groups are held out, since neighbors in a book, or phrasings of a fact, resemble each other.
    groups = sorted({task.examples[number].group for number in sequences})
    if len(groups) < 2:
        raise TaskError(
            f"{task.name} ({split}) has {len(groups)} group of sequences, and linearity fits on some and scores on "
            "others. Give more text, or a smaller --seqlen (ten chunks of a .txt file are one group)."
        )
    random.Random(options.split_seed).shuffle(groups)
    out = set(groups[: max(1, round(HELD_OUT * len(groups)))])
    held_out = [task.examples[number].group in out for number in sequences]
    return SplitSequences(task.name, list(sequences.values()), held_out, len(numbers))


def _encoded(
    task: Task, readable: Readable, options: Options, numbers: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """Return prompt and right answer, or the chunk of text, of every example.

    Raises: `TooLong` for one that does not fit the context; with `skip_long` it is left out.
    """
    sequences: dict[int, tuple[int, ...]] = {}
    for number in numbers:
        with suppress(*([TooLong] if options.skip_long else [])):
            encoded = encode(
                task.examples[number],
                readable.tokenizer,
                context=readable.context,
                vocab_size=readable.vocab_size,
                chat=options.chat,
            )
            context, answer = encoded.pairs[encoded.gold]
            sequences[number] = context + answer
    return sequences


def _blocks(readable: Readable, options: Options) -> range | None:
    """Return the blocks of `--layers`, None for all. Raises: `UnknownName` where some stack has fewer."""
    if options.layers is None:
        return None
    return block_range(options.layers, min(len(stack.blocks) for stack in readable.stacks))


# ------------------------------------------------------------------------------------------------------------- records


def profile_record(
    readable: Readable,
    options: Options,
    text: SplitSequences,
    parts: bool,
    finer: Sequence[str],
    progress: Progress,
) -> ProfileRecord:
    """Read one model. Return every block, with its parts as far as they are asked for."""
    on_cpu = readable.device.type == "cpu"
    profile = linearity(
        readable,
        text.sequences,
        text.held_out,
        blocks=_blocks(readable, options),
        parts=parts,
        finer=finer,
        max_tokens=options.max_tokens or (ON_CPU if on_cpu else ON_GPU),
        seed=options.seed,
        progress=progress,
    )
    return ProfileRecord(
        name=options.named,
        revision=readable.revision,
        kind=readable.kind,
        norms=dict(profile.norms),
        n=len(text.sequences),
        of=text.num_examples,
        held_out=sum(text.held_out),
        rows=[transition_record(row, readable) for row in profile.rows],
        last={stack: cloud_record(cloud, readable) for stack, cloud in profile.last.items()},
    )


def transition_record(row: Linearity, readable: Readable) -> TransitionRecord:
    """Return the scores of a place over all tokens, its outlier tokens, and the scores without them."""
    without = None if row.without is None else _without_outliers(row.without)
    whole = TransitionRecord(
        site=row.site, d=row.d, outliers=None, without_outliers=without, **_without_outliers(row).__dict__
    )
    if row.outliers is None:
        return whole
    outliers = outliers_record(row.outliers, readable).model_copy(update={"matter": _matter(whole)})
    return whole.model_copy(update={"outliers": outliers})


def _without_outliers(row: Linearity) -> TransitionWithoutOutliers:
    """Return what depends on the tokens that were read."""
    return TransitionWithoutOutliers(
        stream=_pair(row.stream),
        added=_pair(row.added),
        cosine=row.cosine,
        num_tokens=row.num_tokens,
        num_fit=row.num_fit,
        condition=row.condition,
        rank=row.rank,
        anisotropy=row.anisotropy,
        intrinsic_dimension=row.intrinsic_dimension,
        trusted=row.trusted,
        reason=row.reason,
    )


def _pair(score: LinearityScore | None) -> list[float] | None:
    return None if score is None else [score.in_sample, score.held_out]


def _matter(whole: TransitionRecord) -> bool:
    """Tell whether a score over all tokens is another than that without outlier tokens."""
    without = whole.without_outliers
    if without is None:
        return False
    for score, other in ((whole.stream, without.stream), (whole.added, without.added)):
        if (score is None) != (other is None):
            return True
        if any(abs(a - b) > DIFFERS for a, b in zip(score or (), other or (), strict=True)):
            return True
    return False


def cloud_record(cloud: Cloud, readable: Readable) -> CloudRecord:
    """Return the shape of what leaves the last block, and the same without outlier tokens."""
    without = cloud.without
    return CloudRecord(
        anisotropy=cloud.anisotropy,
        intrinsic_dimension=cloud.intrinsic_dimension,
        outliers=None if cloud.outliers is None else outliers_record(cloud.outliers, readable),
        without_outliers=None
        if without is None
        else CloudWithoutOutliers(
            anisotropy=without.anisotropy, intrinsic_dimension=without.intrinsic_dimension
        ),
    )


def outliers_record(outliers: Outliers, readable: Readable) -> OutliersRecord:
    """Return the outlier tokens of one place, by position and by token of the vocabulary."""
    return OutliersRecord(
        count=outliers.count,
        largest=outliers.largest,
        positions=[
            OutlierPosition(position=position, count=count, of=of)
            for position, count, of in outliers.positions
        ],
        tokens=[
            OutlierToken(id=token, text=str(readable.tokenizer.decode([token])), count=count, of=of)
            for token, count, of in outliers.tokens
        ],
    )
