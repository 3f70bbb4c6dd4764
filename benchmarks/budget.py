"""One budget against each method alone: losses on the test split, paired, and processor time in forward passes.

    python benchmarks/budget.py MODEL TASK 0.9 0.8 --limit 800 --seqlen 64

For each share of the parameters the methods are asked for as much or less; the budget for exactly what each of them
reached, so that it is never the larger model. No checkpoint is written, and `test` is looked at without being noted.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from secateur.core.comparison import compare
from secateur.core.ledger import Ledger
from secateur.core.plan import Plan
from secateur.methods.method import Proposal
from secateur.methods.registry import method_named, read_options
from secateur.methods.removal import kept_share
from secateur.session import Session, open_session

ALONE = {
    "heads": {"method": "heads"},
    "ffns": {"method": "ffns"},
    "components": {"method": "components"},
    "drop": {"method": "depth", "form": "drop"},
    "fold": {"method": "depth", "form": "fold"},
}


def main() -> None:
    """Print a line for each method and size, and for the budget at the size that it reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("shares", nargs="+", type=float)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seqlen", type=int, default=64)
    parser.add_argument("--ledger", default=":memory:")
    asked = parser.parse_args()
    common = {"limit": asked.limit, "seqlen": asked.seqlen, "allow_small": True, "report": "quick"}

    def options(**own):
        return read_options(asked.model, asked.task, **common, **own)

    with Ledger.open(asked.ledger) as ledger:
        session = open_session(options(), ledger)
        passes = forward_pass(session)
        for share in asked.shares:
            for name, own in ALONE.items():
                blocks = session.loaded.anatomy.num_blocks
                size = (
                    {"blocks": round((1 - share) * blocks) or 1}
                    if own["method"] == "depth"
                    else {"params": share}
                )
                alone = searched(replace(session, options=options(**own, **size)), name, passes)
                reached = kept_share(session, alone.plan)
                whole = searched(replace(session, options=options(params=reached + 1e-9)), "budget", passes)
                print(f"    budget minus {name}: {difference(session, alone.plan, whole.plan)}")


def forward_pass(session: Session) -> float:
    """Return the processor seconds of one forward pass over `select`."""
    started = time.process_time()
    replace(session, ledger=None).judge()([session.empty], session.shuffled("select"), "pass")
    return time.process_time() - started


def searched(session: Session, name: str, passes: float) -> Proposal:
    """Search, print the loss on `test` and the time, and return the proposal."""
    started = time.process_time()
    found = method_named(session.options.method).search(session)
    taken = (time.process_time() - started) / passes
    metric, test = session.objective.metric, session.task.split("test")
    value = metric.mean(session.judge()([found.plan], test, "test")[found.plan])
    print(
        f"{name}: {kept_share(session, found.plan):.3f} kept, {metric.name} {value:.4f}, {taken:.0f} F",
        flush=True,
    )
    return found


def difference(session: Session, one: Plan, other: Plan) -> str:
    """Return what the metric gains from one plan to the other on `test`, with its 95 % interval over groups."""
    test = session.task.split("test")
    rows = session.judge()([one, other], test, "test")
    found = compare(session.objective.metric, rows[one], rows[other], session.task.groups(test), seed=0)
    return f"{found.difference:+.4f} {found.difference_ci}"


if __name__ == "__main__":
    main()
