"""Choose cuts as other papers do, in plain code: each function returns a plan, so that all are measured alike.

None of their authors' code is used. All read the same text, the calibration examples of a session; none heals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from secateur.core.fitted import Fitted
from secateur.core.plan import Drop, Linearize, Plan
from secateur.core.score import METRICS
from secateur.core.site import Site
from secateur.evaluation.batching import Batch
from secateur.probes.residual_stream import StreamPoint, Streams, read_streams, real_tokens
from secateur.session import Session

PARTS = ("gate", "up", "down")  # the matrices that a neuron has a row or a column of


@dataclass(frozen=True)
class Peer:
    """A method of another paper.

    Attributes:
        about: What it is, in one sentence.
        paper: Its number at arXiv.
        choose: From a session and a number of blocks to the plan that leaves as little as without so many blocks.
    """

    name: str
    about: str
    paper: str
    choose: Callable[[Session, int], Plan]


def shortgpt(session: Session, count: int) -> Plan:
    """Drop the `count` blocks whose input and output are most alike, read once. Source: arXiv 2403.03853, eq. 1."""
    blocks = range(session.loaded.anatomy.num_blocks)
    alike = dict.fromkeys(blocks, 0.0)
    for streams, real in read(session, {(side, block) for side in ("enters", "leaves") for block in blocks}):
        for block in blocks:
            cosines = cosine_similarity(
                streams["enters", block].double(), streams["leaves", block].double(), -1
            )
            alike[block] += float(cosines[real].sum())
    most = sorted(blocks, key=lambda block: -alike[block])[:count]
    return Plan(session.loaded.fingerprint, tuple(Drop(Site(block)) for block in most))


def sleb(session: Session, count: int) -> Plan:
    """Drop `count` blocks, each time the one without which the loss is lowest. Source: arXiv 2402.09025, alg. 1.

    Measured on twice as many examples as our moves are, since each of some 200 plans takes a pass.
    """
    judge, plan, read_on = session.judge(), session.empty, session.task.split("probe")
    text = [*read_on, *session.shuffled("select")[: len(read_on)]]
    for _ in range(count):
        left = [
            block for block in range(session.loaded.anatomy.num_blocks) if Site(block) not in plan.blocks_gone
        ]
        outcomes = judge([plan + Drop(Site(block)) for block in left], text)
        plan = min(outcomes, key=lambda one: METRICS["text_loss"].mean(outcomes[one]))
    return plan


def replaceme(session: Session, count: int) -> Plan:
    """Fold a run of `count` blocks, chosen by cosine, into the down projection before it, by plain least squares.

    Source: arXiv 2505.02819, eqs. 3 to 5 without a ridge: T = (MᵀM)⁻¹ Mᵀ (L − Y), M the output of the network, Y the
    stream that it is added to, L what the run leaves.
    """
    num = session.loaded.anatomy.num_blocks
    firsts = range(1, num - count + 1)
    alike = dict.fromkeys(firsts, 0.0)
    for streams, real in read(session, {("leaves", block) for block in range(num)}):
        for first in firsts:
            before, after = streams["leaves", first - 1], streams["leaves", first + count - 1]
            alike[first] += float(cosine_similarity(before.double(), after.double(), -1)[real].sum())
    first = max(firsts, key=lambda one: alike[one])
    before, last = first - 1, first + count - 1
    inputs, targets = [], []
    for streams, real in read(session, {("gives", before), ("leaves", before), ("leaves", last)}):
        given = streams["gives", before][real].double()
        inputs.append(given)
        targets.append(
            streams["leaves", last][real].double() - (streams["leaves", before][real].double() - given)
        )
    solved = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets), driver="gelsd").solution
    fold = Fitted.of({"weight": solved.T.float().contiguous().numpy()})
    return Plan(session.loaded.fingerprint, (Linearize(tuple(range(first, last + 1)), "fold", fold),))


def magnitude(session: Session, count: int) -> Plan:
    """Drop the neurons with the smallest sum of |W| over their rows and columns, equally many in each network."""
    scores = {}
    for block in networks(session):
        found = _matrices(session, block)
        scores[block] = sum(found[part].abs().sum(0 if part == "down" else 1) for part in found)
    return least(session, scores, count)


def wanda(session: Session, count: int) -> Plan:
    """Drop the neurons with the smallest Σ |W| · ‖X‖ of the down projection, equally many in each network.

    Source: the score of Wanda (arXiv 2306.11695, eq. 1), summed over columns as FLAP's authors do for comparison
    (arXiv 2312.11983, "Wanda-sp").
    """
    anatomy, model = session.loaded.anatomy, session.loaded.model
    squares = {
        block: torch.zeros(width.d_ff, dtype=torch.float64) for block, width in enumerate(anatomy.widths)
    }

    def adding(block: int, real: Tensor) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            squares[block] += args[0].reshape(*real.shape, -1)[real].double().square().sum(0)

        return hook

    for batch, real in batches(session):
        with ExitStack() as stack, torch.inference_mode():
            for block in networks(session):
                layer = model.get_submodule(anatomy.module(Site(block, "down")))
                stack.callback(layer.register_forward_pre_hook(adding(block, real)).remove)
            model(input_ids=batch.tokens, use_cache=False)
    weights = {block: _matrices(session, block)["down"].abs().sum(0) for block in networks(session)}
    return least(session, {block: weights[block] * squares[block].sqrt() for block in weights}, count)


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "shortgpt",
            "blocks whose input and output are most alike, dropped at once",
            "2403.03853",
            shortgpt,
        ),
        Peer("sleb", "blocks dropped one after another by measured loss", "2402.09025", sleb),
        Peer("replaceme", "one run of blocks, by cosine, folded by least squares", "2505.02819", replaceme),
        Peer(
            "magnitude",
            "neurons of the smallest weights, the same share of each network",
            "1506.02626",
            magnitude,
        ),
        Peer(
            "wanda",
            "neurons of the smallest weights times inputs, the same share of each network",
            "2306.11695",
            wanda,
        ),
    )
}


# ---------------------------------------------------------------------------------------------------- what they share


def calibration(session: Session) -> list[int]:
    """Return the examples that peers may read: `probe` and `select` together."""
    return [*session.task.split("probe"), *session.task.split("select")]


def batches(session: Session) -> list[tuple[Batch, Tensor]]:
    """Return the calibration text as it runs, each batch with a mask of its tokens."""
    answers = {example: session.encoded[example].gold_alone for example in calibration(session)}
    packed = session.judge().packing.pack(answers, list(answers))
    return [(batch, real_tokens(batch, answers)) for batch in packed]


def read(session: Session, points: set[StreamPoint]) -> Iterator[tuple[Streams, Tensor]]:
    """Yield the activations at these points, batch by batch, with masks of the tokens."""
    for batch, real in batches(session):
        yield read_streams(session.loaded, batch, points), real


def networks(session: Session) -> list[int]:
    """Return the blocks that have a feed-forward network."""
    return [block for block, width in enumerate(session.loaded.anatomy.widths) if width.d_ff]


def _matrices(session: Session, block: int) -> dict[str, Tensor]:
    """Return the matrices of a network, (out, in), in float64."""
    loaded, found = session.loaded, session.loaded.anatomy.matrices
    sites = {part: Site(block, part) for part in PARTS if Site(block, part) in found}
    return {
        part: found[site].read(loaded.parameter(found[site].weight)).double() for part, site in sites.items()
    }


def least(session: Session, scores: Mapping[int, Tensor | float], count: int) -> Plan:
    """Return the drops of the neurons with the lowest scores, the same share of each network.

    As many go as hold the parameters of `count` blocks.
    """
    anatomy = session.loaded.anatomy
    gone = count * max(width.num_parameters for width in anatomy.widths)
    held = sum(
        anatomy.matrices[Site(block, part)].num_parameters
        for block in scores
        for part in PARTS
        if Site(block, part) in anatomy.matrices
    )
    share, drops = gone / held, list[Drop]()
    for block, score in scores.items():
        assert isinstance(score, Tensor)
        lowest: Sequence[int] = score.argsort(stable=True)[: math.ceil(share * len(score))].tolist()
        drops += [Drop(Site(block, "mlp", "n", neuron)) for neuron in sorted(lowest)]
    return Plan(session.loaded.fingerprint, tuple(drops))
