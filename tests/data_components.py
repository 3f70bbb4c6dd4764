"""Records of a run that prunes heads and feed-forward networks, to look at and test the report with.

Shapes and ranges follow trials on the embedded model (6 blocks of 8 heads, two induction heads); the numbers
themselves are drawn from a seeded generator and prove nothing. `grouped` cuts KV groups, `components` parts of every
kind, `hostile` puts markup wherever text comes from data.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import data_report
import numpy as np
from data_report import ATTACK, FINGERPRINT
from scipy.stats import spearmanr

BLOCKS, HEADS = 6, 8
READINGS = (("hellaswag", 0, 200), ("hellaswag", 5, 200), ("arc_easy", 0, 164), ("boolq", 0, 120))
INDUCTION = {"b2.attn.h5": 0.62, "b3.attn.h1": 0.57, "b3.attn.h6": 0.53, "b1.attn.h0": 0.08}
SIDES = {"facts": (0.93, 0.42, "share"), "plain english": (3.11, 0.9, "nats/token")}

Record = dict[str, Any]
Records = tuple[Record, Record, Record]


def heads(seed: int = 0) -> Records:
    """38 of 48 heads gone without a loss that was shown; 4 readings, curves against two other orders."""
    rng = np.random.default_rng(seed)
    record = _components(rng)
    order = sorted(record["heads"]["mean"], key=record["heads"]["mean"].__getitem__)
    dropped = sorted(order[:38], key=_place)
    verdict = _verdict(dropped, "38 of 48 heads", 0.73)
    pruning = _pruning(rng, "heads", "head", 48) | {"max_loss": 0.02}
    return verdict, _plan(dropped), _base() | {"components": record, "pruning": pruning}


def grouped(seed: int = 1) -> Records:
    """Four KV groups of two query heads a block; 9 of 24 groups gone, the target snapped."""
    rng = np.random.default_rng(seed)
    dropped = [
        f"b{b}.attn.g{g}" for b, g in ((0, 1), (0, 3), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (5, 1), (5, 2))
    ]
    verdict = _verdict(dropped, "18 of 48 heads", 0.88)
    verdict["model"]["num_kv_heads"] = 4
    pruning = _pruning(rng, "heads", "KV group", 48, chosen=4) | {
        "snapped": "KV groups of 2 query heads",
        "target": 0.4,
    }
    return verdict, _plan(dropped), _base() | {"components": _components(rng), "pruning": pruning}


def components(seed: int = 2) -> Records:
    """Heads, a whole attention, a feed-forward network and a whole block; gains measured, loss the metric."""
    rng = np.random.default_rng(seed)
    dropped = [
        "b0.attn.h1",
        "b0.attn.h2",
        "b0.attn.h3",
        "b0.attn.h6",
        "b1.attn",
        "b2.mlp",
        "b3",
        "b4.attn.h0",
    ]
    dropped += [f"b5.mlp.n{i}" for i in range(40, 90)]
    verdict = _verdict(dropped, "21 of 48 heads, 2 of 6 feed-forward networks", 0.61)
    pruning = _pruning(rng, "components", "head", 48, metric="loss", chosen=6) | {
        "params": 0.6,
        "max_loss": None,
    }
    return verdict, _plan(dropped), _base() | {"components": _components(rng), "pruning": pruning}


def ffns(seed: int = 3) -> Records:
    """Feed-forward networks only: no head was read, and one reading."""
    rng = np.random.default_rng(seed)
    verdict = _verdict(["b2.mlp"], "1 of 6 feed-forward networks", 0.9)
    del verdict["gains"], verdict["loads"]
    record = {"ffns": _block_scores(rng, "mlp", 0.08, READINGS[:1])}
    pruning = _pruning(rng, "ffns", "head", 6, chosen=1)
    return verdict, _plan(["b2.mlp"]), _base() | {"components": record, "pruning": pruning}


def probe() -> Record:
    """`probe.json`: the readings alone."""
    versions = {"secateur": "0.1.0", "torch": "2.13.0", "python": "3.11.9"}
    record = {"components": _components(np.random.default_rng(0)), "versions": versions}
    return record | {
        "what": ["heads", "ffns"],
        "model": "builtin:recall",
        "tasks": ["hellaswag", "arc_easy", "boolq"],
    }


def hostile() -> Records:
    """Markup in every string that a user, a model or a file may choose."""
    verdict, plan, analysis = heads()
    verdict["cut_summary"] = verdict["sentence"] = ATTACK
    verdict["cut"] += [{"site": ATTACK, "edit": ATTACK, "kind": "drop"}]
    gains, parts, pruning = verdict["gains"], analysis["components"], analysis["pruning"]
    gains |= {"device": ATTACK, "dtype": ATTACK, "note": ATTACK}
    verdict["loads"] = {
        "form": ATTACK,
        "where": [
            dict.fromkeys(("place", "how", "evidence", "detail", "condition"), ATTACK) | {"loads": loads}
            for loads in (True, False)
        ],
    }
    verdict["non_inferiority"] |= {"unit": ATTACK, "method": ATTACK}
    for kind in ("heads", "ffns", "attentions", "blocks", "neurons"):
        if parts[kind]["overlap"]:
            parts[kind]["overlap"]["names"] = [ATTACK] * 4
        for reading in parts[kind]["readings"]:
            reading |= {"name": ATTACK, "task": ATTACK}
        parts[kind]["unit"] = ATTACK
    parts["induction_overlap"]["names"] = [ATTACK] * 3
    pruning |= {"unit": ATTACK, "metric": ATTACK, "metric_unit": ATTACK, "snapped": ATTACK, "side_units": {}}
    for point in (point for series in pruning["series"] for point in series["points"]):
        point["sides"] = {ATTACK: 1.0}
    return verdict, plan, analysis


def hostile_probe() -> Record:
    versions = {ATTACK: ATTACK}
    record = {"what": [ATTACK], "model": ATTACK, "tasks": [ATTACK], "versions": versions}
    return record | {"components": hostile()[2]["components"]}


def _place(site: str) -> tuple[int, int]:
    block, _, head = site.split(".")
    return int(block[1:]), int(head[1:])


def _base() -> Record:
    return {"base": {"accuracy": 0.912, "loss": 0.41, "n": 240}, "sweep": []}


def _plan(dropped: Sequence[str]) -> Record:
    return {"version": 1, "model": FINGERPRINT, "edits": [{"kind": "drop", "site": site} for site in dropped]}


# --------------------------------------------------------------------------------------------------------- the verdict


def _verdict(dropped: Sequence[str], summary: str, kept: float) -> Record:
    verdict = copy.deepcopy(data_report.facts()[0])
    share = data_report._share
    gap = {"value": -0.004, "ci": [-0.0128, 0.0049]}
    verdict |= {
        "verdict": "not worse by more than 2.0 points",
        "sentence": f"Without {summary} the model answers 90.8 % of 512 held-out questions right, the original "
        "91.2 %: not worse by more than 2 points (one-sided 95 % bound: 1.1 points).",
        "before": share(0.912, 512),
        "after": share(0.908, 512),
        "difference": gap,
        "p_value": 0.61,
        "n": 512,
        "groups": 512,
        "secondary": verdict["secondary"][:1],
        "alternatives": [],
        "search": {"method": "heads"},
        "cut": [{"site": site, "edit": f"{site} gone", "kind": "drop"} for site in dropped],
        "cut_summary": summary,
        "parameters": {
            "before": 391_104,
            "after": round(391_104 * kept),
            "factorized": round(391_104 * kept),
        },
        "gains": _gains(kept),
        "loads": _loads(),
        "non_inferiority": {
            "margin": 0.02,
            "unit": "share",
            "bound": -0.0113,
            "level": 0.95,
            "method": "Tango score interval",
            "shown": True,
        },
    }
    verdict["model"] |= {
        "num_blocks": BLOCKS,
        "num_heads": HEADS,
        "num_kv_heads": HEADS,
        "name": "builtin:recall",
    }
    verdict["task"] |= {"name": "recall"}
    return verdict


def _gains(kept: float) -> Record:
    peak = {"before": 48_103_424, "after": 39_321_600}
    return {
        "parameters": {"before": 391_104, "after": round(391_104 * kept)},
        "bytes_on_disk": {"before": 1_566_720, "after": round(1_566_720 * kept)},
        "kv_bytes_per_token": {"before": 3_072.0, "after": 448.0},
        "peak_bytes": peak,
        "peak_bytes_prefill": peak,
        "peak_bytes_decode": {"before": 9_103_424, "after": 8_321_600},
        "prefill": _speed(41_230.0, 60_820.0, 1.53),
        "decode": _speed(612.0, 771.0, 1.37),
        "zeroed": {"heads": 0, "ffns": 0, "neurons": 0, "weights": 12},
        "device": "cpu x86_64",
        "dtype": "float32",
        "shape": {"prompt": 512, "new": 32, "batch": 1, "repeats": 7},
        "threads": 1,
        "note": None,
    }


def _speed(before: float, after: float, limit: float) -> Record:
    found = {"before": before, "after": after, "speedup": after / before}
    quartiles = {f"{name}_iqr": [0.98 * value, 1.02 * value] for name, value in found.items()}
    return found | quartiles | {"limit": limit, "of_limit": after / before / limit}


def _loads() -> Record:
    code = 'AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)'
    why = "it knows no layer-wise head counts"
    places = [
        ("transformers, with the modelling file in the checkpoint", "run", "transformers 5.23.0", code, ""),
        ("secateur", "read back", "secateur 0.1.0", 'secateur.load("out")', ""),
        ("lm-eval", "expected", "not tried", "lm_eval --model hf", "with patience"),
        ("stock transformers", "no", "", "blocks differ in their number of heads", ""),
        ("vLLM", "no", "", why, ""),
        ("GGUF", "no", "", why, ""),
    ]
    keys = ("place", "evidence", "detail", "how", "condition")
    where = [dict(zip(keys, place, strict=True)) | {"loads": place[1] != "no"} for place in places]
    return {"form": "carved", "where": where}


# -------------------------------------------------------------------------------------------------------- the readings


def _components(rng: np.random.Generator) -> Record:
    sites = [f"b{block}.attn.h{head}" for block in range(BLOCKS) for head in range(HEADS)]
    worth = dict(zip(sites, rng.lognormal(-6.2, 1.1, len(sites)), strict=True))
    prefix = {site: INDUCTION.get(site, float(rng.exponential(0.004))) for site in sites}
    for site, score in INDUCTION.items():
        worth[site] += 0.06 * score
    copying = {site: float(np.clip(0.1 + 0.9 * prefix[site] + rng.normal(0, 0.05), 0, 1)) for site in sites}
    readings = [_reading(name, shots, n, worth, rng) for name, shots, n in READINGS]
    mean = {site: float(np.mean([r["values"][site] for r in readings])) for site in sites}
    columns = [[score[site] for site in sites] for score in (mean, prefix, copying)]
    return {
        "heads": {"unit": "nats/token", "readings": readings, "mean": mean, "overlap": _overlap(readings)},
        "ffns": _block_scores(rng, "mlp", 0.06, READINGS),
        "attentions": _block_scores(rng, "attn", 0.04, READINGS),
        "blocks": _block_scores(rng, "", 0.15, READINGS),
        "neurons": _neurons(rng),
        "prefix_matching": prefix,
        "copying": copying,
        "induction_overlap": {
            "names": ["importance", "prefix matching", "copying"],
            "rho": _spearman(columns),
            "n": len(sites),
        },
    }


def _reading(task: str, shots: int, n: int, worth: dict[str, float], rng: np.random.Generator) -> Record:
    values = {site: float(value * rng.lognormal(0, 0.5)) for site, value in worth.items()}
    return {
        "name": f"{task}, {shots}-shot",
        "task": task,
        "shots": shots,
        "n": n,
        "of": 200,
        "values": values,
    }


def _block_scores(
    rng: np.random.Generator, part: str, size: float, which: Sequence[tuple[str, int, int]]
) -> Record:
    sites = [f"b{block}.{part}".rstrip(".") for block in range(BLOCKS)]
    worth = {site: size * (0.2 + block / BLOCKS) for block, site in enumerate(sites)}
    worth[sites[2]] = -0.001
    readings = [_reading(name, shots, n, worth, rng) for name, shots, n in which]
    mean = {site: float(np.mean([r["values"][site] for r in readings])) for site in sites}
    return {"unit": "share", "readings": readings, "mean": mean, "overlap": _overlap(readings)}


def _neurons(rng: np.random.Generator) -> Record:
    values = {
        f"b{b}.mlp.n{i}": float(rng.lognormal(-8, 0.4 + 0.3 * b)) for b in range(BLOCKS) for i in range(160)
    }
    reading = {
        "name": "hellaswag, 0-shot",
        "task": "hellaswag",
        "shots": 0,
        "n": 200,
        "of": 200,
        "values": values,
    }
    return {"unit": "nats/token", "readings": [reading], "mean": values, "overlap": None}


def _overlap(readings: Sequence[Record]) -> Record | None:
    if len(readings) < 2:
        return None
    columns = [list(reading["values"].values()) for reading in readings]
    return {"names": [r["name"] for r in readings], "rho": _spearman(columns), "n": len(columns[0])}


def _spearman(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(spearmanr(a, b).statistic) for b in columns] for a in columns]


# ---------------------------------------------------------------------------------------------------------- the curves


def _pruning(
    rng: np.random.Generator, what: str, unit: str, count: int, metric: str = "accuracy", chosen: int = 8
) -> Record:
    """Ten steps of each order; quality falls off a cliff whose place depends on the order."""
    cliffs: list[tuple[str, int | None, float]] = [("re-scored", None, 1.0), ("ranks once", None, 0.74)]
    cliffs += [("random", seed, float(rng.uniform(0.3, 0.45))) for seed in range(3)]
    share = metric == "accuracy"
    return {
        "what": what,
        "unit": unit,
        "step": 0.1,
        "metric": metric,
        "metric_unit": "share" if share else "nats/token",
        "higher_is_better": share,
        "max_loss": 0.02,
        "target": None,
        "params": None,
        "series": [
            {"order": order, "seed": seed, "points": _points(rng, what, count, cliff, share, order)}
            for order, seed, cliff in cliffs
        ],
        "chosen": {"order": "re-scored", "point": chosen},
        "snapped": None,
        "side_units": {name: unit for name, (_, _, unit) in SIDES.items()},
    }


def _points(
    rng: np.random.Generator, what: str, count: int, cliff: float, share: bool, order: str
) -> list[Record]:
    return [_point(rng, what, round(step * count / 10) / count, cliff, share, order) for step in range(10)]


def _point(
    rng: np.random.Generator, what: str, removed: float, cliff: float, share: bool, order: str
) -> Record:
    fall = 1 / (1 + np.exp(-(removed - cliff) / 0.045)) - 1 / (1 + np.exp(cliff / 0.045))
    noise = rng.normal(0, 0.004) if removed else 0.0
    loss = float(0.41 + 1.9 * fall + abs(noise))
    heads, ffns = {"heads": (removed, 0.0), "ffns": (0.0, removed)}.get(what, (removed, removed / 2))
    left = 1 - 0.4 * heads - 0.5 * ffns + (rng.normal(0, 0.01) if what == "components" and removed else 0)
    sides = {name: float(a - 0.5 * b * removed - b * fall) for name, (a, b, _) in SIDES.items()}
    sides["plain english"] = float(3.11 + 0.5 * removed + 1.8 * fall)
    return {
        "heads_removed": heads,
        "ffns_removed": ffns,
        "parameters": float(left),
        "value": float(0.912 - 0.75 * fall + noise) if share else loss,
        "loss": loss,
        "sides": sides,
        "prefix_matching": float(max(0.0, 1 - (removed**3 if order != "random" else removed) + noise))
        if heads
        else 1.0,
        "copying": float(max(0.0, 1 - (removed**2 if order != "random" else removed) + noise))
        if heads
        else 1.0,
        "complete": order != "random",
    }
