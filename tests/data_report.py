"""Records as a run writes them (verdict.json, plan.json, analysis.json), to look at and test the report with.

Shapes, ranges and counts follow a run on the embedded facts model; the numbers themselves are drawn from a
seeded generator and prove nothing. `hostile` puts markup wherever text comes from data.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

FINGERPRINT = "5f1d0c9a7be24c3f8a6b1e2d3c4f5a60"
SHAPES = {"q": 96, "k": 96, "v": 96, "o": 96, "gate": 96, "up": 96, "down": 96}
RANKS = (0, 1, 2, 3, 5, 9, 19, 38, 57, 76, 86)
ATTACK = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><b>&amp;"

Record = dict[str, Any]


def facts(*, blocks: int = 3, seed: int = 0) -> tuple[Record, Record, Record]:
    """A run that helps: the last layer's gate cut to rank 3, accuracy 54 → 96 %."""
    rng = np.random.default_rng(seed)
    chosen = f"b{blocks - 1}.gate"
    return _facts_verdict(chosen), _plan(chosen, 3), _facts_analysis(rng, blocks, chosen)


def null() -> tuple[Record, Record, Record]:
    """A run that found nothing: the unchanged model, hardly any analysis."""
    verdict, plan, _ = facts()
    same = {"value": 0.412, "ci": [0.366, 0.460]}
    verdict |= {
        "verdict": "no difference shown",
        "sentence": "Nothing that was tried helped on the selection split, so nothing was cut.",
        "before": same,
        "after": same,
        "difference": {"value": 0.0, "ci": [0.0, 0.0]},
        "p_value": 1.0,
        "p_value_unadjusted": 1.0,
        "secondary": [],
        "alternatives": [],
        "side_effects": [],
        "cut": [],
        "guards": [
            {"name": "constant predictor", "fired": False, "detail": "the answers vary as much as before"}
        ],
    }
    return verdict, plan | {"edits": []}, {"base": {"accuracy": 0.41, "loss": 2.2, "n": 120}, "sweep": []}


def text() -> tuple[Record, Record, Record]:
    """A text task: loss only, every accuracy null, and the cut makes it worse."""
    verdict, plan, analysis = facts()
    verdict |= {
        "verdict": "worse",
        "sentence": "The cut raises the loss on the held-out text by 0.031 nats per token.",
        "metric": "text_loss",
        "unit": "nats/token",
        "higher_is_better": False,
        "before": {"value": 1.731, "ci": [1.702, 1.760]},
        "after": {"value": 1.762, "ci": [1.733, 1.791]},
        "difference": {"value": 0.031, "ci": [0.024, 0.038]},
        "p_value": 0.0004,
        "test": "paired bootstrap, clustered by document",
        "secondary": [],
        "alternatives": [{"name": "ban one token", "detail": "text has no answers", "applicable": False}],
        "task": verdict["task"] | {"name": "text:tinystories.txt", "kind": "text"},
    }
    analysis = {
        key: copy.deepcopy(analysis[key]) for key in ("base", "sweep", "curves", "spectrum", "screen")
    }
    analysis["base"]["accuracy"] = None
    for row in analysis["sweep"]:
        row["accuracy"] = None
    for row in analysis["curves"]:
        row["accuracy"] = [None] * len(row["loss"])
    return verdict, plan, analysis


def hostile() -> tuple[Record, Record, Record]:
    """The helpful run with markup in every string that a user, a model or a file may choose."""
    verdict, plan, analysis = facts()
    verdict["sentence"] = verdict["command"] = ATTACK
    verdict["model"] |= {"name": ATTACK, "family": ATTACK, "architecture": ATTACK}
    verdict["task"] |= {"name": ATTACK, "kind": ATTACK}
    verdict["versions"] = {ATTACK: ATTACK}
    verdict["search"]["method"] = verdict["test"] = verdict["metric"] = verdict["unit"] = ATTACK
    for item in (*verdict["guards"], *verdict["alternatives"], *verdict["side_effects"]):
        item |= {"name": ATTACK} | ({"detail": ATTACK} if "detail" in item else {"unit": ATTACK})
    verdict["cut"][0]["edit"] = ATTACK
    for row in analysis["changed"]:
        row |= {
            "id": ATTACK,
            "prompt": ATTACK,
            "answer": ATTACK,
            "before": ATTACK,
            "after": ATTACK,
            "kind": ATTACK,
        }
    for row in analysis["tail"]:
        row |= {"site": ATTACK, "answers": [[ATTACK, 3], ["fine", 1]]}
    for row in analysis["frequency"]:
        row["bin"] = ATTACK
    for row in (*analysis["sweep"], *analysis["screen"], *analysis["curves"]):
        row |= {"matrix": ATTACK + row["matrix"]}
    analysis["spectrum"] = {ATTACK: analysis["spectrum"]["b2.gate"]}
    return verdict, plan, analysis


def _plan(site: str, rank: int) -> Record:
    edits = [{"kind": "truncate", "matrix": site, "rank": rank, "side": "top"}]
    return {"version": 1, "model": FINGERPRINT, "edits": edits}


def _share(value: float, n: int) -> Record:
    half = 1.96 * np.sqrt(max(value * (1 - value), 1e-3) / n)
    return {"value": value, "ci": [max(0.0, value - half), min(1.0, value + half)]}


def _paired(metric: str, unit: str, higher: bool, before: Record, after: Record, p: float) -> Record:
    gap = after["value"] - before["value"]
    width = abs(gap) * 0.12
    return {
        "metric": metric,
        "unit": unit,
        "higher_is_better": higher,
        "before": before,
        "after": after,
        "difference": {"value": gap, "ci": [gap - width, gap + width]},
        "p_value": p,
    }


def _facts_verdict(chosen: str) -> Record:
    main = _paired("accuracy", "share", True, _share(0.540, 420), _share(0.957, 420), 3.1e-47)
    loss = {"value": 1.386, "ci": [1.291, 1.480]}, {"value": 0.712, "ci": [0.655, 0.770]}
    copying = _paired("", "share", True, _share(0.992, 512), _share(0.990, 512), 0.73)
    perplexity = {"value": 12.42, "ci": [11.9, 12.9]}, {"value": 13.81, "ci": [13.2, 14.4]}
    speech = _paired("", "perplexity", False, *perplexity, 2e-5)
    return main | {
        "version": 1,
        "verdict": "improves",
        "sentence": "On 420 held-out questions the cut model answers 95.7 % right; the original 54.0 %.",
        "n": 420,
        "groups": 420,
        "p_value_unadjusted": 3.1e-47,
        "test": "exact McNemar",
        "openings": 1,
        "secondary": [
            _paired("loss", "nats/token", False, *loss, 1e-12),
            _paired("top5", "share", True, _share(0.981, 420), _share(0.988, 420), 0.38),
        ],
        "guards": [
            {
                "name": "constant predictor",
                "fired": False,
                "detail": "the most frequent answer is given to 4 % of the questions (before: 43 %)",
            },
            {
                "name": "log-loss",
                "fired": False,
                "detail": "the loss of the right answer falls with the errors",
            },
        ],
        "alternatives": [
            {"name": "ban one token", "detail": "never answer ' the'", "applicable": True, "n": 420}
            | _share(0.971, 420),
            {"name": "label calibration", "detail": "answers differ by example", "applicable": False},
        ],
        "side_effects": [
            copying | {"name": "copying repeated segments", "n": 512},
            speech | {"name": "perplexity on plain sentences", "n": 200},
        ],
        "candidates_tried": 231,
        "evaluations": 9_420,
        "search": {
            "method": "laser",
            "exhaustive": False,
            "proposed": 231,
            "screened_out": 154,
            "raced_out": 52,
        },
        "cut": [
            {"site": chosen, "edit": f"{chosen} → rank 3", "shape": [256, 96], "rank": 3, "full_rank": 96}
        ],
        "parameters": {"before": 391_104, "after": 391_104, "factorized": 367_584},
        "model": {
            "name": "builtin:facts",
            "fingerprint": FINGERPRINT,
            "family": "llama",
            "architecture": "LlamaForCausalLM",
        },
        "task": {
            "name": "builtin:facts",
            "kind": "generation",
            "hash": "c0ffee11d2e94b7f8a6b1e2d3c4f5a60",
            "splits": {"probe": 60, "select": 120, "test": 420},
        },
        "seed": 0,
        "split_seed": 0,
        "versions": {"secateur": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        "seconds": {"probe": 2.1, "search": 41.7, "verify": 6.3},
        "command": "secateur prune builtin:facts --task builtin:facts -o facts-cut",
    }


def _effect(
    site: str, chosen: str, kept: float, depth: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Accuracy and loss of one truncation: the chosen block gains, early matrices break."""
    block, matrix = site.split(".")
    noise = rng.normal(0, 0.012)
    near = block == chosen.split(".")[0] and matrix in ("gate", "up", "down")
    if near:
        gain = (
            {"gate": 0.41, "up": 0.31, "down": 0.36}[matrix] * (1 - kept) ** 2 * (0.6 if kept == 0 else 1.0)
        )
        return min(0.99, 0.55 + gain + noise), 1.40 - 1.6 * gain + noise
    harm = (1 - kept) ** 6 * (1.3 - depth) * (0.6 if matrix in "qk" else 1.0)
    return max(0.01, 0.55 - 0.55 * harm + noise), 1.40 + 3.2 * harm + noise


def _facts_analysis(rng: np.random.Generator, blocks: int, chosen: str) -> Record:
    sweep, screen, curves = [], [], []
    for block in range(blocks):
        for matrix, full in SHAPES.items():
            site = f"b{block}.{matrix}"
            where = {"site": site, "matrix": matrix, "block": block}
            judged = [(r, _effect(site, chosen, r / full, block / blocks, rng)) for r in RANKS]
            for rank, (accuracy, loss) in judged:
                score = (loss - 1.40) * rng.lognormal(0, 0.5)
                screen.append(where | {"rank": rank, "kept": rank / full, "score": score})
                if score < 0.25 and rng.random() < 0.93:
                    done = score < 0.02
                    row = {
                        "rank": rank,
                        "full_rank": full,
                        "kept": rank / full,
                        "accuracy": accuracy,
                        "loss": loss,
                    }
                    sweep.append(where | row | {"n": 120 if done else 16, "complete": bool(done)})
            removed = [100 * (1 - rank / full) for rank, _ in reversed(judged)]
            accuracies, losses = zip(*(effect for _, effect in reversed(judged)), strict=True)
            curves.append(where | {"removed": removed, "loss": list(losses), "accuracy": list(accuracies)})
    values = np.sort(np.concatenate([[9.3, 7.1, 5.2], 2.6 * np.exp(-np.arange(93) / 40)]))[::-1]
    return {
        "base": {"accuracy": 0.55, "loss": 1.40, "n": 120},
        "sweep": sweep,
        "screen": screen,
        "curves": curves,
        "spectrum": {chosen: {"values": values.tolist(), "kept": 3}},
        "frequency": _frequency(),
        "tail": _tail(chosen),
        "paraphrases": {
            "n": 420,
            "per_fact": 3,
            "all_right_before": 0.31,
            "all_right_after": 0.902,
            "mean_before": 0.552,
            "mean_after": 0.951,
        },
        "changed": _changed(rng),
    }


def _frequency() -> list[Record]:
    bins = (
        ("1–2", 86, 0.42, 0.94),
        ("3–5", 112, 0.49, 0.955),
        ("6–12", 97, 0.55, 0.96),
        ("13–40", 78, 0.63, 0.97),
    )
    rows = []
    for name, n, before, after in (*bins, ("41+", 47, 0.74, 0.979)):
        old, new = _share(before, n), _share(after, n)
        rows.append(
            {
                "bin": name,
                "n": n,
                "before": before,
                "after": after,
                "before_ci": old["ci"],
                "after_ci": new["ci"],
            }
        )
    return rows


def _tail(site: str) -> list[Record]:
    generic = [[" the", 371], [" a", 22], [" Oslo", 9], [" copper", 7], [" Lima", 6], [" tea", 5]]
    spread = [[" Oslo", 17], [" copper", 15], [" Lima", 14], [" tea", 13], [" Quito", 12], [" the", 11]]
    mixed = [[" the", 181], [" Oslo", 11], [" copper", 10], [" tea", 9], [" Lima", 8], [" Quito", 8]]
    return [
        {"site": site, "rank": 96, "kind": "full", "answers": mixed, "cosine": 0.61, "accuracy": 0.54},
        {"site": site, "rank": 3, "kind": "top", "answers": spread, "cosine": 0.96, "accuracy": 0.957},
        {"site": site, "rank": 93, "kind": "tail", "answers": generic, "cosine": 0.31, "accuracy": 0.02},
    ]


def _changed(rng: np.random.Generator) -> list[Record]:
    names = ("Mira Voss", "Tomas Berg", "Ines Falk", "Arun Mehta", "Lotte Kray", "Sofia Lund", "Jonas Reed")
    relations = (
        ("was born in", "Oslo Lima Quito Cairo"),
        ("works with", "copper glass wool"),
        ("drinks", "tea coffee"),
    )
    rows = []
    for index in range(240):
        relation, objects = relations[int(rng.integers(len(relations)))]
        answer, other = rng.permutation(objects.split())[:2]
        kind = "lost" if index % 23 == 7 else "changed" if index % 41 == 3 else "recovered"
        before, after = {"recovered": ("the", answer), "lost": (answer, other), "changed": ("the", other)}[
            kind
        ]
        row = {
            "id": f"fact-{index}",
            "prompt": f"{names[int(rng.integers(len(names)))]} {relation}",
            "kind": kind,
        }
        rows.append(row | {"answer": f" {answer}", "before": f" {before}", "after": f" {after}"})
    return rows
