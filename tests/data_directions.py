"""Records of runs that remove singular directions, to look at and test the report with.

Plans, losses, words and what was removed are of real runs on the embedded facts model (3 blocks, 6 heads of 16, seed
0); all other effects and singular values are drawn from a seeded generator. `deep` has the shape of a large model,
`mixed` cuts of every kind, `hostile` markup wherever text comes from data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import data_report
import numpy as np
from data_report import ATTACK, FINGERPRINT

Record = dict[str, Any]
Records = tuple[Record, Record, Record]

# --matrices v,o,down --per-head: round, pool, added, predicted, value, before, loss, before, removed, n
SEARCHED = (
    (0, "down", 3, -0.4082, 0.8417, 0.5417, 0.5777, 0.8108, 3, 120),
    (0, "b0.o", 1, -0.031, 0.5156, 0.5938, 1.0288, 0.8461, 1, 64),
    (0, "b1.o", 11, -0.0759, 0.5156, 0.5938, 1.0211, 0.8461, 11, 64),
    (0, "b2.v", 91, -0.0288, 0.5667, 0.5417, 0.7983, 0.8108, 91, 120),
    (0, "all", 376, -1.2225, 0.0312, 0.5625, 4.8221, 0.904, 376, 32),
    (0, "b0.down", 87, -0.006, 0.0, 0.5625, 5.0859, 0.904, 87, 32),
    (0, "down", 128, -0.5496, 0.4219, 0.5938, 1.528, 0.8461, 128, 64),
    (0, "b1.v", 3, -0.0498, 0.5938, 0.5938, 0.9264, 0.8461, 3, 64),
    (0, "b2.v", 64, -0.0541, 0.675, 0.5417, 0.7714, 0.8108, 64, 120),
    (1, "b2.o", 2, -0.0255, 0.8667, 0.8417, 0.5554, 0.5777, 5, 120),
    (1, "b2.o", 4, -0.0405, 0.85, 0.8417, 0.5463, 0.5777, 7, 120),
    (1, "b2.o", 23, -0.0722, 0.8583, 0.8417, 0.5271, 0.5777, 26, 120),
    (1, "b1.v", 91, -0.0292, 0.7917, 0.8417, 0.7522, 0.5777, 94, 120),
    (1, "down", 206, -0.0009, 0.5312, 0.8281, 1.0543, 0.6141, 209, 64),
    (1, "v", 181, -0.4258, 0.1562, 0.75, 4.8325, 0.7857, 184, 32),
    (1, "o", 4, -0.1639, 0.65, 0.8417, 1.2836, 0.5777, 7, 120),
    (1, "b2.o", 64, -0.0796, 0.8583, 0.8417, 0.521, 0.5777, 67, 120),
    (1, "all", 16, -0.4215, 0.5938, 0.8281, 1.3995, 0.6141, 19, 64),
    (2, "b1.o", 1, -0.0368, 0.8167, 0.8667, 0.574, 0.5554, 6, 120),
    (2, "b1.o", 64, -0.0804, 0.8, 0.8667, 0.6362, 0.5554, 69, 120),
    (2, "b2.v", 2, -0.0126, 0.8667, 0.8667, 0.5445, 0.5554, 7, 120),
    (2, "b2.down", 63, -0.0008, 0.8667, 0.8667, 0.5684, 0.5554, 68, 120),
    (2, "b0.v", 1, -0.0711, 0.7583, 0.8667, 0.8577, 0.5554, 6, 120),
    (2, "b1.down", 25, -0.0357, 0.8417, 0.8667, 0.6125, 0.5554, 30, 120),
    (2, "b0.down", 4, -0.0351, 0.775, 0.8667, 0.6529, 0.5554, 9, 120),
    (2, "b0.o", 2, -0.0949, 0.725, 0.8667, 1.0028, 0.5554, 7, 120),
)
TAKEN = (0, 9)  # of them
REMOVED = {"b0.down": (1,), "b1.down": (0,), "b2.down": (1,), "b2.o": (49, 51)}
EFFECTS = {
    ("b0.down", 1): -0.1766,
    ("b1.down", 0): -0.1911,
    ("b2.down", 1): -0.0405,
    ("b2.o", 51): -0.0181,
    ("b2.o", 49): -0.0177,
}
# --protocol removal --max-loss 0.02 --weakest: added, predicted, value, loss
WALKED = (
    (202, -0.000059, 0.5333, 0.8123),
    (201, 0.000933, 0.5, 0.8166),
    (202, -0.0009, 0.4917, 0.8304),
    (201, -0.0021, 0.325, 0.9518),
    (202, 0.0004, 0.3417, 0.9697),
    (202, 0.0124, 0.2667, 1.0738),
)
WORDS = (
    (
        "b1.down",
        0,
        (("Sonja", 7.69), ("Erik", 7.34), ("Ida", 7.05)),
        (("the", -12.85), (".", -4.36), ("llamas", -4.31)),
    ),
    ("b0.down", 1, (("the", 13.61), ("on", 1.97)), (("Remy", -8.07), ("Rolf", -8.04), ("Finn", -8.02))),
    ("b2.down", 1, (("the", 9.32), ("eggs", 3.75)), (("keeps", -8.22), ("lives", -8.14), ("\n", -8.1))),
    (
        "b2.o",
        51,
        (("Lima", 4.88), ("hamsters", 4.69), ("<eos>", 4.38)),
        (("the", -6.92), (".", -2.04)),
    ),
    ("b2.o", 49, (("is", 6.0), ("always", 5.02), ("Rome", 4.97)), (("looks", -4.12), ("goes", -2.28))),
)


def heads(seed: int = 0) -> Records:
    """Two rounds of a search by heads: 5 of 864 directions, accuracy 54 → 87 % on `select`; biases are new."""
    rng = np.random.default_rng(seed)
    pieces = [
        _piece(rng, f"b{block}.{name}", 16 if head is not None else 96, REMOVED, head=head)
        for block in range(3)
        for name in ("v", "o", "down")
        for head in (range(6) if name != "down" else (None,))
    ]
    path = [_step(*step) for step in SEARCHED]
    record = _record("search", pieces, path, [path[place] for place in TAKEN]) | {"per_head": True}
    record["words"] = [_said(*said) for said in WORDS]
    return _verdict(REMOVED, rounds=2, per_head=True), _plan(REMOVED), _base() | {"directions": record}


def removal(seed: int = 1) -> Records:
    """The weakest directions of all 21 matrices in steps, the first of which stays within the bound."""
    rng = np.random.default_rng(seed)
    gone = {
        f"b{b}.{m}": tuple(range(95, 95 - 9 - b, -1)) for b in range(3) for m in ("q", "k", "o", "up", "down")
    }
    pieces = [_piece(rng, f"b{b}.{m}", 96, gone) for b in range(3) for m in data_report.SHAPES]
    path, value, loss, total = [], 0.5417, 0.8108, 0
    for number, (added, predicted, after, loss_after) in enumerate(WALKED):
        total += added
        path.append(_step(number, "all", added, predicted, after, value, loss_after, loss, total, 120))
        value, loss = after, loss_after
    record = _record("removal", pieces, path, path[:1]) | {"order": "weakest", "max_loss": 0.02}
    verdict = _verdict(gone, protocol="removal", rounds=1)
    verdict["parameters"] = {"before": 393_216, "after": 393_216, "factorized": 380_000}
    return verdict, _plan(gone), _base() | {"directions": record}


def single(seed: int = 2) -> Records:
    """The paper's protocol: one plan, made without a choice; no words, as only keys were cut."""
    rng = np.random.default_rng(seed)
    gone = {f"b{block}.k": tuple(range(19)) for block in range(3)}
    pieces = [_piece(rng, f"b{block}.k", 96, gone) for block in range(3)]
    path = [_step(0, "share", 57, -0.0806, 0.3, 0.5417, 2.6997, 0.8108, 57, 120)]
    record = _record("paper", pieces, path, path) | {"second_order": True}
    verdict = _verdict(gone, protocol="paper", rounds=1) | {"candidates_tried": 1}
    return verdict, _plan(gone), _base() | {"directions": record}


def deep(seed: int = 3) -> Records:
    """32 blocks of 7 matrices, 24 of 4,096 directions of each listed; every ninth matrix loses some."""
    rng = np.random.default_rng(seed)
    sites = [f"b{block}.{name}" for block in range(32) for name in data_report.SHAPES]
    gone = {site: (0, 178 * (1 + place % 20)) for place, site in enumerate(sites) if place % 9 == 0}
    pieces = [_piece(rng, site, 4096, gone, listed=24) for site in sites]
    path = [_step(*step) for step in SEARCHED]
    record = _record("search", pieces, path, path[:1])
    return _verdict(gone, rounds=1), _plan(gone), _base() | {"directions": record}


def mixed(seed: int = 4) -> Records:
    """Directions, a truncation and a head together, beside a sweep."""
    verdict, plan, analysis = heads(seed)
    cut = {"edit": "b1.gate → rank 9", "kind": "truncate", "shape": [256, 96], "rank": 9, "full_rank": 96}
    drop = {"site": "b0.attn.h2", "edit": "b0.attn.h2 gone", "kind": "drop"}
    verdict["cut"] += [{"site": "b1.gate"} | cut, drop]
    verdict["model"] |= {"num_blocks": 3, "num_heads": 6, "num_kv_heads": 6}
    verdict["parameters"] = {"before": 390_240, "after": 381_024, "factorized": 366_000}
    plan["edits"] += [
        {"kind": "truncate", "matrix": "b1.gate", "rank": 9, "side": "top"},
        {"kind": "drop", "site": "b0.attn.h2"},
    ]
    return verdict, plan, data_report.facts()[2] | analysis


def nothing(seed: int = 5) -> Records:
    """A search that took nothing."""
    verdict, plan, analysis = heads(seed)
    record = analysis["directions"] | {"chosen": [], "words": []}
    record["path"] = [step for step in record["path"] if step["round"] == 0]
    for one in record["matrices"]:
        one["removed"] = []
    verdict |= {"cut": [], "verdict": "no difference shown"}
    verdict["parameters"] |= {"after": 390_240}
    verdict["search"] |= {"rounds": 0}
    return verdict, plan | {"edits": []}, analysis | {"directions": record}


def hostile() -> Records:
    """The search by heads with markup in every string that a model or a file may choose."""
    verdict, plan, analysis = copy.deepcopy(heads())
    record = analysis["directions"]
    for name in ("protocol", "order", "split", "metric", "metric_unit"):
        record[name] = ATTACK
    for one in record["matrices"][:4]:
        one |= {"site": ATTACK, "matrix": ATTACK}
    for step in record["path"]:
        step["pool"] = ATTACK
    for said in record["words"]:
        said["site"] = ATTACK
        said["more"] = [[ATTACK, 3.0], ["&lt;b&gt;", 2.0], [" ", 1.0]]
    for item in verdict["cut"]:
        item |= {"edit": ATTACK, "site": ATTACK}
    verdict["cut_summary"] = ATTACK
    return verdict, plan, analysis


def _record(
    protocol: str, pieces: Sequence[Record], path: Sequence[Record], chosen: Sequence[Record]
) -> Record:
    return {
        "protocol": protocol,
        "order": "signed",
        "split": "probe",
        "n": 60,
        "num_tokens": 342,
        "per_head": False,
        "second_order": False,
        "whitened": False,
        "metric": "accuracy",
        "metric_unit": "share",
        "higher_is_better": True,
        "max_loss": None,
        "total": sum(one["of"] for one in pieces),
        "matrices": list(pieces),
        "path": list(path),
        "chosen": list(chosen),
        "words": [],
    }


def _piece(
    rng: np.random.Generator,
    site: str,
    count: int,
    removed: Mapping[str, Sequence[int]],
    *,
    head: int | None = None,
    listed: int = 96,
) -> Record:
    """Effects fall with the singular values and have heavy tails, as seen; known ones are as known."""
    offset = count * (head or 0)
    gone = sorted(n - offset for n in removed.get(site, ()) if 0 <= n - offset < count)
    effect = 0.02 * rng.standard_t(3, count) * np.exp(-np.arange(count) / (0.2 * count))
    for n in range(count):
        effect[n] = EFFECTS.get((site, n + offset), effect[n])
    even = np.linspace(0, count - 1, min(count, listed)).round().astype(int).tolist()
    index = sorted({*even, *gone})
    block, matrix = site[1:].split(".")
    return {
        "site": site,
        "matrix": matrix,
        "block": int(block),
        "head": head,
        "of": count,
        "harmful": int((effect < 0).sum()),
        "harm": float(np.abs(effect.clip(max=0)).sum()),
        "index": index,
        "sigma": (1.8 * np.exp(-np.array(index) / (0.4 * count)) + 0.1).tolist(),
        "effect": effect[index].tolist(),
        "removed": gone,
    }


def _step(
    round: int,
    pool: str,
    added: int,
    predicted: float,
    value: float,
    value_before: float,
    loss: float,
    loss_before: float,
    removed: int,
    n: int,
) -> Record:
    return dict(locals()) | {"complete": n == 120}


def _said(site: str, direction: int, more: Sequence[tuple], less: Sequence[tuple]) -> Record:
    effect = EFFECTS[site, direction]
    sides = {"more": [list(one) for one in more], "less": [list(one) for one in less]}
    return {"site": site, "direction": direction, "effect": effect} | sides


def _verdict(
    gone: Mapping[str, Sequence[int]], *, protocol: str = "search", rounds: int, per_head: bool = False
) -> Record:
    verdict = data_report.facts()[0]
    count = sum(map(len, gone.values()))
    whose = " of its heads" if per_head else ""
    cut = [
        {
            "site": site,
            "edit": f"{site} without directions {', '.join(map(str, own))}{whose if site[-1] in 'qkvo' else ''}",
            "kind": "remove_directions",
            "shape": [96, 256] if site.endswith("down") else [96, 96],
            "rank": 96 - len(own),
            "full_rank": 96,
        }
        for site, own in gone.items()
    ]
    search = {"method": "directions", "protocol": protocol, "exhaustive": False, "proposed": 584}
    return verdict | {
        "search": search | {"rounds": rounds},
        "cut": cut,
        "cut_summary": f"{count} singular directions of {len(gone)} matrices",
        "parameters": {"before": 390_240, "after": 393_216, "factorized": 393_216},
        "gains": {"parameters": {"before": 390_240, "after": 393_216}},
    }


def _plan(gone: Mapping[str, Sequence[int]]) -> Record:
    edits = [
        {
            "kind": "remove_directions",
            "matrix": site,
            "directions": list(own),
            "per_head": False,
            "fold": "3f285cc3",
        }
        for site, own in gone.items()
    ]
    return {"version": 1, "model": FINGERPRINT, "edits": edits}


def _base() -> Record:
    return {"base": {"accuracy": 0.5417, "loss": 0.8108, "n": 120}}
