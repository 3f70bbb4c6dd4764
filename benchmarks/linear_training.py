"""Does pretraining make blocks less linear, does a pull towards linearity, does fine-tuning undo it? Small and honest.

    python benchmarks/linear_training.py TEXT TOKENIZER HELD_OUT TASK OUT [--steps 600] [--seeds 0,1,2]

Trains a Mistral from nothing for each regulariser and seed, reads the held-out linearity of its blocks at several steps
on HELD_OUT, then fine-tunes the last one on TASK and reads again. Source of the claims: Razzhigaev et al. 2024 (arXiv
2405.12250), sections 3 and 5: falls in pretraining, lower with the cosine term, rises in fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

import secateur

REGULARISERS = ("none", "cosine", "mse")
SHARES = (0, 0.02, 0.1, 0.3, 1)  # of the steps, at which the blocks are read


def profile(models: list[Path], text: str) -> list[dict[str, float]]:
    """Of each model the mean held-out score over its blocks, without outlier tokens: with the residual, and without."""
    found = secateur.probe(
        str(models[0]),
        text,
        what="linearity",
        allow_small=True,
        limit=500,
        also=tuple(map(str, models[1:])),
        device="cpu",
    )
    usual = [[row["without_outliers"] or row for row in model["rows"]] for model in found["models"]]
    return [
        {name: statistics.mean(row[name][1] for row in rows if row[name]) for name in ("stream", "added")}
        for rows in usual
    ]


def one(given: argparse.Namespace, regulariser: str, seed: int) -> dict[str, Any]:
    out = Path(given.out) / f"{regulariser}-{seed}"
    marks = sorted({round(share * given.steps) for share in SHARES})
    size = {"layers": 6, "d_model": 96, "heads": 4, "context": 256}
    trained = secateur.train(
        given.text, given.tokenizer, out, steps=given.steps, save_steps=tuple(marks[:-1]), regulariser=regulariser,
        seqlen=128, seed=seed, device="cpu", **size,
    )  # fmt: skip
    tuned = secateur.finetune(str(out), given.task, f"{out}-tuned", epochs=3, lr=5e-4, seed=seed, limit=1000,
                              skip_long=True, device="cpu")  # fmt: skip
    models = [*(out / f"step-{step}" for step in marks[:-1]), out, tuned.out]
    names = [*map(str, marks), "fine-tuned"]
    loss = trained.record["losses"][-1]["held_out_loss"]
    read = dict(zip(names, profile(models, given.held_out), strict=True))
    return {"regulariser": regulariser, "seed": seed, "loss": loss, "linearity": read}


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("text", "tokenizer", "held_out", "task", "out"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--regularisers", default=",".join(REGULARISERS))
    given = parser.parse_args()
    found = [one(given, r, int(s)) for r in given.regularisers.split(",") for s in given.seeds.split(",")]
    file = Path(given.out) / f"results-{given.regularisers.replace(',', '-')}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for regulariser in given.regularisers.split(","):
        own = [one for one in found if one["regulariser"] == regulariser]
        print(f"{regulariser}: loss {interval([one['loss'] for one in own])} nats")
        for kind in ("stream", "added"):
            told = {n: interval([one["linearity"][n][kind] for one in own]) for n in own[0]["linearity"]}
            print(f"  {kind}: " + ", ".join(f"{name} {value}" for name, value in told.items()))


if __name__ == "__main__":
    main()
