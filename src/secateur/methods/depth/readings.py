"""Readings for depth pruning: how little a block changes the residual stream, fitted maps, samples of text.

At the end those of a forecast, which are drawn and noted instead of made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.fitted import Fitted
from secateur.core.plan import Linearize, Plan
from secateur.core.progress import Progress, silent
from secateur.core.site import Site
from secateur.evaluation.batching import Packing, with_room
from secateur.evaluation.sample import plain, prompts, sample
from secateur.hf.load import Loaded
from secateur.hf.readable import readable_of
from secateur.linalg.least_squares import PairMoments
from secateur.methods.depth.steps import Similarity
from secateur.methods.forecasting import DryRun, ReadingCost
from secateur.methods.removal import fitted_maps, side_values
from secateur.probes.hooks import HookPoint, batches, hook_points, run, wide
from secateur.probes.maps import BlockRun
from secateur.probes.outliers import SAMPLE as LOOKED_AT
from secateur.probes.outliers import TIMES, Medians, median_norms, norms, times_median
from secateur.probes.residual_stream import read_streams, real_tokens
from secateur.session import Session
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.encode import Encoded

SAMPLE = 24  # tokens of greedy text at each depth


@dataclass(frozen=True)
class DepthReader:
    """The readings of a real model; see `steps.DepthReadings`.

    Args:
        packing: How many tokens run together.
    """

    session: Session
    packing: Packing

    def similarity(self, plan: Plan, blocks: Sequence[int]) -> Mapping[int, Similarity]:
        """Return the similarity of each of `blocks` in the model that `plan` leaves, read on `probe`."""
        session = self.session
        return block_similarity(
            session.loaded,
            session.encoded,
            session.task.split("probe"),
            blocks,
            under=plan,
            packing=self.packing,
            progress=session.progress,
        )

    def maps(self, plan: Plan, runs: Sequence[BlockRun]) -> Mapping[BlockRun, Linearize]:
        """Return a map for each of `runs`, fitted on `probe` in the model that `plan` leaves."""
        return fitted_maps(self.session, plan, runs, self.packing)

    def samples(self, plans: Sequence[Plan]) -> tuple[str, Mapping[Plan, str]]:
        """Return the prompt of the first example of `select`, and the greedy text after it under each plan."""
        session = self.session
        (prompt,) = prompts(session.task, session.encoded, 1)
        texts = {plan: sample(session.loaded, prompt, SAMPLE, plan) for plan in plans}
        return plain(session.loaded, prompt), texts

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Return each side task's metric under each plan, and its unit."""
        return side_values(self.session, plans)


def block_similarity(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    blocks: Sequence[int],
    *,
    under: Plan,
    packing: Packing,
    progress: Progress = silent,
) -> dict[int, Similarity]:
    """Return the similarity of each of `blocks` in the model that `under` leaves, over all tokens of `examples`.

    Sources: Razzhigaev et al. 2024 (arXiv 2405.12250), section 3; Men et al. 2024 (arXiv 2403.03853), equation 1.
    Differs: outlier tokens, which would decide the linearity score alone, are left out of it (`outliers.py`).
    """
    if loaded.anatomy.acts:
        return _similarity_of_play(loaded, encoded, examples, blocks, under=under, packing=packing)
    readable = readable_of(loaded)
    sequences = [encoded[example].gold_alone.read(0) for example in examples]
    types = [encoded[example].types for example in examples]
    places = [tap for tap in hook_points(readable, blocks) if tap.kind == "block"]
    with masked(loaded.model, resolve(under, loaded.anatomy, loaded.fingerprint)):
        medians = median_norms(readable, sequences, places, packing=packing, types=types, progress=progress)

        def read(packing: Packing) -> list[SimilaritySums]:
            sums = {tap: SimilaritySums(tap, medians[tap]) for tap in places}
            planned = list(batches(sequences, [False] * len(sequences), packing, types))
            for number, batch in enumerate(planned, start=1):
                run(readable, batch, places, lambda tap, x, y: sums[tap].add(wide(x), wide(y)))
                progress("similarity", number, len(planned))
            return list(sums.values())

        by_place = with_room(packing, read)
    return {block: sums.similarity for block, sums in zip(blocks, by_place, strict=True)}


def _similarity_of_play(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    blocks: Sequence[int],
    *,
    under: Plan,
    packing: Packing,
) -> dict[int, Similarity]:
    """Return the similarity of blocks of a decision transformer over all positions of logged play; none is left out."""

    def read(packing: Packing) -> dict[int, Similarity]:
        sums = {
            block: SimilaritySums(HookPoint("block", f"b{block}", "", "", ""), (math.inf,) * 3)
            for block in blocks
        }
        for batch in packing.pack(encoded, examples):
            real = real_tokens(batch, encoded)
            points = [(place, block) for block in blocks for place in ("enters", "leaves")]
            streams = read_streams(loaded, batch, points)
            for block in blocks:
                x, y = (wide(streams[place, block][real]) for place in ("enters", "leaves"))
                sums[block].add(x, y)
        return {block: one.similarity for block, one in sums.items()}

    with masked(loaded.model, resolve(under, loaded.anatomy, loaded.fingerprint)):
        return with_room(packing, read)


class SimilaritySums:
    """Sums over the tokens that pass one block: moments of all but the outliers, cosines of all."""

    def __init__(self, tap: HookPoint, medians: Medians) -> None:
        self._tap, self._medians = tap, medians
        self._moments = PairMoments()
        self._cosines, self._count = 0.0, 0

    def add(self, x: Float[Tensor, "tokens d_model"], y: Float[Tensor, "tokens d_model"]) -> None:
        """Add tokens by what enters (`x`) and what leaves (`y`) the block."""
        far = times_median(norms(self._tap, x, y), self._medians) > TIMES
        self._moments.add(x[~far], y[~far])
        self._cosines += float(nn.functional.cosine_similarity(x, y, dim=-1).sum())
        self._count += len(x)

    @property
    def similarity(self) -> Similarity:
        """Return both measures over all tokens that were added."""
        return Similarity(self._moments.score(), self._cosines / self._count)


# ------------------------------------------------------------------------------------------------------------- forecast


class DryDepthReadings:
    """In the place of `DepthReader`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry
        self._probed = len(session.task.split("probe"))

    def similarity(self, plan: Plan, blocks: Sequence[int]) -> Mapping[int, Similarity]:
        """Note one pass for these blocks, and the one before it that finds how long tokens are."""
        parts = tuple(map(Site, blocks))
        self._dry.read(
            ReadingCost(
                "similarity", "probe", self._probed, parts, passes=1.0, fits=True, scan_tokens=LOOKED_AT
            )
        )
        return {block: Similarity(self._dry.draw(), self._dry.draw()) for block in blocks}

    def maps(self, plan: Plan, runs: Sequence[BlockRun]) -> Mapping[BlockRun, Linearize]:
        """Note the fit of these maps; each is a map of its own, of no size."""
        parts = tuple(Site(run.blocks[0]) for run in runs)
        self._dry.read(ReadingCost("maps", "probe", self._probed, parts, passes=2.0, fits=True))
        drawn = [Fitted.of({"drawn": np.array([self._dry.draw()], np.float32)}) for _ in runs]
        return {run: Linearize(run.blocks, run.form, drawn[number]) for number, run in enumerate(runs)}

    def samples(self, plans: Sequence[Plan]) -> tuple[str, Mapping[Plan, str]]:
        """Note greedy text under each plan."""
        self._dry.generated(1, SAMPLE, len(plans))
        return "", dict.fromkeys(plans, "")

    def side_values(self, plans: Sequence[Plan]) -> tuple[Mapping[Plan, dict[str, float]], dict[str, str]]:
        """Note the side tasks, which are read from their files, and judged."""
        self._dry.read(ReadingCost("sides read", "probe", 0, ()))
        return side_values(self._session, plans)
