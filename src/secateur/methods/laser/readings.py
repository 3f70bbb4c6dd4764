"""Readings of a model for LASER: predicted effects of truncations, spectra, and answers of some components alone.

At the end those of a forecast, which are drawn and noted instead of made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.plan import Plan, Truncate
from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.evaluation.batching import Packing
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.workers import CACHE_BYTES
from secateur.hf.load import Loaded
from secateur.methods.forecasting import DryRun, ReadingCost
from secateur.methods.laser.records import MOST_ANSWERS, TailRecord
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import first_order_effects
from secateur.session import Session, decided_by_choices, digest
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Encoded


class LaserReader:
    """The readings of LASER's search (`search.LaserReadings`), taken from the model of a session.

    Args:
        session: Model and task; its ledger remembers what the screen read.
        judge: Gives decompositions and the packing of batches.
    """

    def __init__(self, session: Session, judge: Evaluator) -> None:
        self._session, self._judge = session, judge

    def screen(self, edits: Sequence[Truncate]) -> Readings:
        """Return `truncation_effects` on `probe`, read once per run and remembered in the ledger."""
        session = self._session
        examples = session.probed
        contrast = decided_by_choices(session)
        key = f"screen {digest([contrast, len(examples), *map(str, edits)])}"
        known = session.recall(key, Readings.from_json)
        if known is not None:
            return known
        readings = truncation_effects(
            session.loaded,
            session.encoded,
            examples,
            edits,
            spectra=self._judge.spectra,
            packing=self._judge.packing,
            contrast=contrast,
            room=self._judge.limits.cache_bytes,
            progress=session.progress,
        )
        session.remember(key, readings.to_json())
        return readings

    def sigma(self, site: Site) -> Float[Tensor, " k"]:
        """Return the singular values of a matrix, descending, float64."""
        matrix = self._session.loaded.anatomy.matrix(site)
        return self._judge.spectra(matrix, self._session.loaded.parameter(matrix.weight)).sigma.double()

    def spectrum(self, matrix: Site) -> list[float]:
        """Return the singular values of a matrix, descending."""
        return self.sigma(matrix).tolist()

    def answers(self, part: Truncate, kind: str, outcomes: np.ndarray) -> TailRecord:
        """Return what the model that keeps only `part` of one matrix answers, how often, and how close that is.

        `cosine` is the mean cosine similarity of the input embeddings of the first token answered and of the first
        token of the right answer (1 where they are the same token); of a classifier's labels there is none.

        Args:
            kind: `full`, or the side of the components that are in use.
            outcomes: OUTCOME rows of that model.

        Source: Sharma, Ash, Misra 2023 (arXiv 2312.13558), Fig. 5.
        """
        labels = self._session.loaded.anatomy.labels
        counts = Counter(labels[number] for number in outcomes["predicted"].tolist()) if labels else None
        cosine = float("nan")
        if counts is None:
            counts, cosine = self._words(outcomes)
        return TailRecord(
            site=str(part.matrix),
            rank=part.rank,
            kind=kind,
            answers=sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_ANSWERS],
            cosine=cosine,
            accuracy=float(outcomes["correct"].mean()),
            n=len(outcomes),
        )

    def _words(self, outcomes: np.ndarray) -> tuple[Counter[str], float]:
        """Return how often each first token was answered, and the mean cosine of its embedding to the right one's."""
        loaded, encoded = self._session.loaded, self._session.encoded
        answered = np.array(
            [self._first_token(int(row["example"]), int(row["predicted"])) for row in outcomes]
        )
        gold = np.array(
            [encoded[example].pairs[encoded[example].gold][1][0] for example in outcomes["example"].tolist()]
        )
        counts = Counter(str(loaded.tokenizer.decode([token])) for token in answered.tolist())
        table = loaded.parameter(f"{loaded.anatomy.embedding}.weight")
        left, right = (table[torch.from_numpy(ids).to(table.device)].double() for ids in (answered, gold))
        return counts, float(torch.nn.functional.cosine_similarity(left, right, dim=1).mean())

    def _first_token(self, example: int, predicted: int) -> int:
        """Return the first token of the answer: of the chosen choice, or the first greedy one."""
        if self._session.task.member(example).kind == "choice":
            return self._session.encoded[example].pairs[predicted][1][0]
        return predicted


# ------------------------------------------------------------------------------------- predicted effects of truncations


def truncation_effects(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    candidates: Iterable[Truncate],
    *,
    spectra: Spectra,
    packing: Packing,
    contrast: bool = False,
    room: int = CACHE_BYTES,
    progress: Progress = silent,
) -> Readings:
    """Return the predicted change of the mean loss with each candidate, negative where cutting helps.

    dₙ = −Σ_{i removed} σᵢ uᵢᵀ Gₙ vᵢ is the first-order change of example n's margin, Gₙ its gradient with respect to
    W. The loss, the mean log-loss over the gold answer's tokens, follows from the margin.

    Args:
        encoded: The task's examples in tokens.
        examples: Numbers of those that are read.
        spectra: Decompositions of the model's matrices.
        contrast: Take the log-loss of the gold choice among the choices instead.
        room: Bytes of activations and gradients between blocks that may be kept.

    Returns: `Margins.expected_loss_change` of each candidate, nats.

    Source: gradient of singular values (Sreeram et al. 2025, arXiv 2510.20800). Differs: of the margin, and with the
    curvature of the loss.

    Cost: one decomposition per matrix; one forward and one backward pass without parameter gradients for as many
    blocks as have room for what is kept between them, and the same again of each block alone.
    """
    plans = {edit: Plan(loaded.fingerprint, (edit,)) for edit in candidates}
    effects = first_order_effects(
        AnswerMargin.of(loaded, encoded, examples, contrast),
        examples,
        plans.values(),
        spectra=spectra,
        packing=packing,
        room=room,
        progress=progress,
    )
    values = {str(edit): effects.loss(plan) for edit, plan in plans.items()}
    source = "gradient of singular values (arXiv 2510.20800), of the margin"
    return Readings("predicted change of loss", "nats", "probe", len(examples), True, source, values)


# ------------------------------------------------------------------------------------------------------------- forecast


SCREEN = "truncation effects"
PASSES = 4.0  # of the whole model: forward 1, backward to activations 1, and both again of each block alone
EVERYTHING = 2**62  # bytes: the screen reads once, however many spectra have room


class DryLaserReadings:
    """In the place of `LaserReader`."""

    def __init__(self, session: Session, dry: DryRun) -> None:
        self._session, self._dry = session, dry

    def screen(self, edits: Sequence[Truncate]) -> Readings:
        """Note the screen; candidates are ranked evenly over the grid."""
        probed = len(self._session.probed)
        sites = tuple(dict.fromkeys(edit.matrix for edit in edits))
        self._dry.read(
            ReadingCost(
                SCREEN,
                "probe",
                probed,
                sites,
                passes=PASSES,
                decomposes=True,
                spectra_bytes=EVERYTHING,
                choices=decided_by_choices(self._session),
            )
        )
        values = {str(edit): self._dry.draw() for edit in edits}
        return Readings("drawn", "nats", "probe", probed, True, "forecast", values)

    def spectrum(self, matrix: Site) -> list[float]:
        """Return none: what was decomposed for plans is there."""
        return []

    def answers(self, part: Truncate, kind: str, outcomes: np.ndarray) -> TailRecord:
        """Return an empty record: the plans it is made of are judged by then."""
        return TailRecord(
            site=str(part.matrix),
            rank=part.rank,
            kind=kind,
            answers=[],
            cosine=0.0,
            accuracy=0.0,
            n=len(outcomes),
        )
