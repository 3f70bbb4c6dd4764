"""How near every block comes to a linear map: of the stream, of what it adds to the stream; its parts, heads, matrices.

One streaming pass over all tokens, with second moments in float64, after one over a sample that tells which norms are
usual; memory does not depend on the number of tokens. What a block reads and gives comes from hooks on the very module
that stands in its place. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.core.progress import Progress, silent
from secateur.errors import TaskError
from secateur.evaluation.batching import Packing, with_room
from secateur.hf.readable import Readable
from secateur.probes.hooks import Ids, Tap, Token, batches, run, sampled, taps, tokens_of
from secateur.probes.outliers import Count, Totals, median_norms
from secateur.probes.transition import Cloud, Linearity, Sums

ROOM = 4 * 2**30  # bytes of moments held at once; what has no room is read in passes of its own
POINTS = 1000  # tokens whose distances give the intrinsic dimension


@dataclass(frozen=True)
class Profile:
    """All blocks of one model in order, each followed by its parts where those were read, each of these by its heads
    and matrices where those were; `norms` and `last` (what leaves the last block: anisotropy, intrinsic dimension) by
    the prefix of the stack."""

    rows: tuple[Linearity, ...]
    norms: Mapping[str, str]
    last: Mapping[str, Cloud]


def linearity(
    readable: Readable,
    sequences: Sequence[Ids],
    held_out: Sequence[bool],
    *,
    blocks: range | None = None,
    parts: bool = False,
    finer: Sequence[str] = (),
    max_tokens: int = 4096,
    seed: int = 0,
    room: int = ROOM,
    progress: Progress = silent,
) -> Profile:
    """The linearity of every block (or of `blocks` of every stack) over all tokens of `sequences`.

    The score of X → Y, both centered, is 1 − min_A ‖XA − Y‖²_F / ‖Y‖²_F. Held out, A and the means are those of the
    sequences not `held_out`, error and ‖Y‖ of the others. With Y what leaves a block it is the paper's score with the
    residual; without, Y is what leaves less what enters, which is not defined where the norm sits on the stream.
    Parts (from what they read to what they add) are read there, where norms follow them, in encoder-decoders, and with
    `parts` everywhere. `finer` are `heads`, each from what its attention reads to what it adds to the stream, and
    `matrices`, those that read a stream: from the stream to what they make of it, which is as linear as the norm
    between. Where outlier tokens pass, all is given with them and without (`outliers.py`).

    Source: Razzhigaev et al. 2024 (arXiv 2405.12250), section 3, and their toolkit LLM-Microscope; held-out is ours.
    Differs: true outputs of blocks; `hidden_states[-1]`, which they take, is behind the final norm.
    Raises: `TaskError` where no sequence is left on one side; `ModelError` where a module never runs, or a value is not
    finite.
    """
    if len(set(held_out)) < 2:
        raise TaskError("linearity fits on one part of the sequences and scores on another: give at least 2.")
    places = taps(readable, blocks, parts=parts, finer=finer)
    groups = list(_fitting(places, readable.d_model, room))
    sample, totals = _counted(readable, sequences, seed)
    packing = Packing(max_tokens, max_tokens, readable.pad, readable.switches)
    how = {"packing": packing, "seed": seed, "progress": progress}
    medians = median_norms(readable, sequences, places, **how)

    def read(packing: Packing) -> list[Sums]:
        planned = list(batches(sequences, held_out, packing))
        found: list[Sums] = []
        for number, group in enumerate(groups):
            sums = {
                tap: Sums(tap, sample[tap.stack], Count(medians[tap], totals[tap.stack])) for tap in group
            }
            for done, batch in enumerate(planned, start=1):
                shown = tokens_of(readable, batch.sequences, batch.numbers)

                def seen(tap: Tap, x: Tensor, y: Tensor, sums=sums, batch=batch, shown=shown) -> None:
                    sums[tap].add(x, y, shown[tap.stack], batch.held_out)

                run(readable, batch, group, seen)
                progress("linearity", number * len(planned) + done, len(groups) * len(planned))
            found.extend(one.solved(readable.runs) for one in sums.values())
        return found

    sums = with_room(packing, read)
    norms = {stack.prefix: stack.norm for stack in readable.stacks}
    last = {one.tap.stack: one.cloud for one in sums if one.tap.kind == "last"}
    return Profile(tuple(row for one in sums for row in one.rows), norms, last)


def _counted(
    readable: Readable, sequences: Sequence[Ids], seed: int
) -> tuple[dict[str, set[Token]], dict[str, Totals]]:
    """Of each stack the tokens whose vectors are kept, and how often each position and token occurs."""
    every = tokens_of(readable, sequences, range(len(sequences)))
    sample = {stack: sampled(tokens, POINTS, seed) for stack, tokens in every.items()}
    return sample, {stack: Totals(tokens) for stack, tokens in every.items()}


def _fitting(places: Sequence[Tap], width: int, room: int) -> Iterator[Sequence[Tap]]:
    """As many at a time as have room: XᵀX and XᵀY, and YᵀY where there are units, in float64; of both sides, for
    outlier tokens and for the others."""
    squares = 12 if any(place.units for place in places) else 8
    count = max(1, room // (squares * 8 * width * width))
    yield from (places[start : start + count] for start in range(0, len(places), count))
