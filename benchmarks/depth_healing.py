"""Dropped, folded or replaced by a linear map, and then healed: the same blocks of one model in each form.

    python benchmarks/depth_healing.py MODEL TEXT HELD_OUT OUT [--runs 2:3 2:4 1:4] [--seeds 0,1,2] [--limit 600]

Each seed splits TEXT anew (what maps are fitted on, what healing learns) and seeds the healing. All losses are on
HELD_OUT, a text that nothing was fitted, chosen or healed on. Intervals: t over seeds. Source of the claim (drop <
linear < linear and distilled): Razzhigaev et al. 2024 (arXiv 2405.12250), section 6.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from linear_training import interval

import secateur

FORMS = ("drop", "fold", "linear")
logging.getLogger("secateur").setLevel(logging.ERROR)  # small test splits, which nothing here is judged by


def loss(model: str | Path, held_out: str, limit: int) -> float:
    """Nats a token over all that HELD_OUT has, whatever split it falls into."""
    read = [
        secateur.evaluate(str(model), held_out, split=split, limit=limit, allow_small=True, device="cpu")
        for split in ("probe", "select")
    ]
    scores = [(one["scores"][0]["value"], one["scores"][0]["n"]) for one in read]
    return sum(value * n for value, n in scores) / sum(n for _, n in scores)


def one(given: argparse.Namespace, run: str, form: str, seed: int) -> dict[str, Any]:
    low, high = map(int, run.split(":"))
    name = f"{given.out}/{form}-{low}-{high}-{seed}"
    common = {"limit": given.limit, "split_seed": seed, "seed": seed, "device": "cpu", "allow_small": True}
    secateur.prune(
        given.model,
        given.text,
        name,
        method="depth",
        form=form,
        layers=(low, high),
        blocks=high - low,
        **common,
    )
    healed = secateur.heal(name, given.text, f"{name}-healed", lr=1e-3, epochs=given.epochs, **common)
    values = {side: loss(folder, given.held_out, given.limit) for side, folder in
              {"unhealed": name, "healed": healed.out}.items()}  # fmt: skip
    tokens, seconds = healed.record["tokens"], healed.record["seconds"]
    return {"run": run, "form": form, "seed": seed, "tokens": tokens, "seconds": seconds} | values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "text", "held_out", "out"):
        parser.add_argument(name)
    parser.add_argument("--runs", nargs="+", default=["2:3", "2:4", "1:4"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    print(f"whole: {loss(given.model, given.held_out, given.limit):.3f} nats/token")
    found = []
    for run in given.runs:
        for form in FORMS:
            own = [one(given, run, form, int(seed)) for seed in given.seeds.split(",")]
            found += own
            told = ", ".join(f"{side} {interval([o[side] for o in own])}" for side in ("unhealed", "healed"))
            print(f"blocks {run}, {form}: {told}", flush=True)
    Path(given.out, "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
