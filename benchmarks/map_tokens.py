"""Measures how much of the loss of dropped blocks maps give back, by number of tokens; in domain and on other text.

    python benchmarks/map_tokens.py MODEL TEXT OTHER BLOCKS [--chunks 11,22,44,88,176,352] [--seqlen 64]

BLOCKS is a run such as 12:15. Maps are fitted to chunks of TEXT (its probe and test splits, group by group), their
ridge as `prune --method depth` chooses it, and the loss is measured on 40 chunks of its select split, and of OTHER's.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

from secateur.core.plan import Plan
from secateur.core.score import METRICS
from secateur.methods.depth.steps import dropped
from secateur.methods.registry import read_options
from secateur.probes.maps import BlockRun, fit_maps
from secateur.session import Session, open_session, read_task, session_on

FORMS = ("linear", "fold")
JUDGED = 40  # chunks


def losses(session: Session, plans: list[Plan]) -> list[float]:
    """Nats a token on some chunks of `select`."""
    chunks = random.Random(1).sample(list(session.task.split("select")), JUDGED)
    judged = session.judge()(plans, chunks, "losses")
    return [float(METRICS["text_loss"].mean(judged[plan])) for plan in plans]


def by_groups(session: Session) -> list[int]:
    """The chunks that maps may be fitted to, one group after the other."""
    chunks = [*session.task.split("probe"), *session.task.split("test")]
    groups: dict[str, list[int]] = {}
    for chunk in chunks:
        groups.setdefault(session.task.examples[chunk].group, []).append(chunk)
    return [chunk for group in groups.values() for chunk in group]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "text", "other", "blocks"):
        parser.add_argument(name)
    parser.add_argument("--chunks", default="11,22,44,88,176,352")
    parser.add_argument("--seqlen", type=int, default=64)
    given = parser.parse_args()
    how = {"method": "depth", "seqlen": given.seqlen, "allow_small": True}
    own = open_session(read_options(given.model, f"text:{given.text}", limit=1500, **how), None)
    elsewhere = replace(own.options, task=f"text:{given.other}", limit=600)
    other = session_on(elsewhere, own.loaded, read_task(elsewhere, own.loaded))
    run = tuple(range(*map(int, given.blocks.split(":"))))
    ends = [losses(one, [own.empty, dropped(own.empty, run)]) for one in (own, other)]
    for name, (whole, without) in zip(("in domain", "other text"), ends, strict=True):
        print(f"{name}: {whole:.3f} nats whole, {without:.3f} without the blocks")
    chunks = by_groups(own)
    for count in map(int, given.chunks.split(",")):
        tokens, found = fitted(own, chunks[:count], run)
        told = [losses(one, list(found.values())) for one in (own, other)]
        each = f"{tokens} tokens, {tokens / own.loaded.anatomy.d_model:.1f} a dimension"
        for form, *judged in zip(found, *told, strict=True):
            back = [(b - loss) / (b - a) for (a, b), loss in zip(ends, judged, strict=True)]
            print(f"{each}, {form}: {back[0]:.0%} given back in domain, {back[1]:.0%} on other text")


def fitted(session: Session, chunks: list[int], run: tuple[int, ...]) -> tuple[int, dict[str, Plan]]:
    """Returns the number of tokens of these chunks, and the plan of each form with a map fitted to them."""
    runs = [BlockRun(run, form) for form in FORMS]
    how = {"groups": session.task.groups(chunks), "under": session.empty, "packing": session.judge().packing}
    found = fit_maps(session.loaded, session.encoded, chunks, runs, **how)
    tokens = sum(session.encoded[chunk].longest - 1 for chunk in chunks)
    return tokens, {one.form: session.empty + found[one] for one in runs}


if __name__ == "__main__":
    main()
