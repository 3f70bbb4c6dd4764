"""All benchmarks (`make bench`): a table on the screen, a dated JSON file, and RESULTS.md beside this file.

`--only sweep` (or another of PARTS) repeats one part and keeps the others of the last JSON file. Surgery, which needs
45 GB of disk, is measured only so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cluster
import cut_speed
import directions
import heads
import linearity
import null_study
import offload
import plan_cost
import search_cost
import spectra
import surgery
import sweep
import torch
import transformers
from random_model import Size
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
Row = tuple[str, str, str, str]  # what, measured, target, met


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def sweep_part() -> dict[str, Any]:
    return sweep.run(Size()) | {"memory": sweep.memory(Size())}


PARTS: dict[str, Callable[[], Any]] = {
    "sweep": sweep_part,
    "search": search_cost.run,
    "null": null_study.run,
    "cut": cut_speed.run,
    "depth": cut_speed.run_depth,
    "heads": heads.run,
    "directions": directions.run,
    "linearity": linearity.run,
    "offload": offload.run,
    "surgery": surgery.run,
    "spectra": spectra.run,
    "cluster": cluster.run,
    "plan-cost": plan_cost.run,
}


def sweep_rows(found: dict[str, Any]) -> Iterator[Row]:
    for name, row in found["references"].items():
        measured = f"{row['ratio']:.1f}× (wall {row['ratio_wall']:.1f}×)"
        yield f"sweep against: {name}", measured, f"≥ {row['target']:g}×", _met(row["ratio"] >= row["target"])
    gap = max(row["largest_loss_difference"] for row in found["references"].values())
    yield "largest difference of a loss, nats", f"{gap:.1e}", "≤ 1e-5", _met(gap <= 1e-5)
    memory = found["memory"]
    measured = f"{memory['ratio']:.2f}× ({memory['ratio_freed_at_once']:.2f}× if freed memory is given back)"
    met = memory["ratio"] <= memory["target"]
    yield "peak memory / (model + activations kept)", measured, f"≤ {memory['target']}×", _met(met)


def search_rows(found: list[dict[str, Any]]) -> Iterator[Row]:
    for case in found:
        if "left_out" in case:
            yield case["case"], "left out: " + case["left_out"], "", "–"
            continue
        for way in ("race", "screen and race"):
            row, target = case[way], case["target"]
            fewer, regret = row["times_fewer_evaluations"], row["mean_regret_nats"]
            unit = "nats" if case["objective"].endswith("loss") else "of accuracy"
            lost = f"regret {row['mean_regret']:.4f} {unit}, {regret:+.4f} nats"
            lost += f", on unseen examples {row['mean_regret_unseen']:+.4f}"
            enough = fewer >= target and regret <= case["max_regret_nats"]
            measured = f"{fewer:.1f}× fewer, {lost}, same winner {row['same_winner']:.0%}"
            met = _met(enough) if way == "screen and race" else ""
            yield f"{case['case']}: {way}", measured, f"≥ {target:g}×, ≤ 0.001 nats", met


def null_rows(found: dict[str, Any]) -> Iterator[Row]:
    for word in ("improves", "worse"):
        row = found[word]
        low, high = (f"{100 * bound:.1f}" for bound in row["ci"])
        measured = f"{row['count']} of {found['studies']} ({low}–{high} %)"
        wanted, met = ("≤ 5 %", _met(row["share"] <= found["allowed"])) if word == "improves" else ("", "")
        yield f"true null: says “{word}”", measured, wanted, met


def cut_rows(found: dict[str, Any]) -> Iterator[Row]:
    for name, model in found["models"].items():
        for phase, target in found["targets"].items():
            one = model[phase]
            measured = f"{one['speedup']:.2f}× of at most {one['limit']:.2f}×: {one['of_limit']:.0%}"
            what = f"{name} without 70 % of heads and 20 % of FFNs: {phase}"
            yield what, measured, f"≥ {target:.0%} of the limit", _met(one["of_limit"] >= target)
    for one in found["factors"]:
        rows, columns = one["shape"]
        speedups = dict(zip(one["ranks"], one["speedups"], strict=True))
        shown = ", ".join(f"rank {rank}: {speedups[rank]:.1f}×" for rank in one["ranks"][:4])
        even = "beyond" if one["break_even"] is None else f"{one['break_even']:.0f}"
        what = f"{rows} × {columns} as two factors, {one['tokens']} token{'s' * (one['tokens'] > 1)}"
        yield what, f"{shown}; break-even at {even} (arithmetic {one['arithmetic_break_even']:.0f})", "", ""


ROWS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "sweep": sweep_rows,
    "search": search_rows,
    "null": null_rows,
    "cut": cut_rows,
    "depth": cut_speed.depth_rows,
    "heads": heads.rows,
    "directions": directions.rows,
    "linearity": linearity.rows,
    "offload": offload.rows,
    "surgery": surgery.rows,
    "spectra": spectra.rows,
    "cluster": cluster.rows,
    "plan-cost": plan_cost.rows,
}


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def table(results: dict[str, Any]) -> list[Row]:
    return [row for part, rows in ROWS.items() if part in results for row in rows(results[part]["figures"])]


def write(results: dict[str, Any]) -> Path:
    """The dated JSON file and RESULTS.md."""
    path = HERE / f"results-{max(part['date'] for part in results.values())}.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (HERE / "RESULTS.md").write_text(page(results, path.name), encoding="utf-8")
    return path


def page(results: dict[str, Any], source: str) -> str:
    lines = [
        "# Measured",
        "",
        f"Again with `make bench`; all figures in `{source}`.",
        "",
        "| what | measured | target | met |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in table(results)),
        "",
    ]
    if "sweep" in results:
        lines += spent(results["sweep"]["figures"])
    return "\n".join([*lines, *(_where(name, part) for name, part in results.items()), ""])


def _where(name: str, part: dict[str, Any]) -> str:
    about = part["machine"]
    return (
        f"- {name}: {part['date']}, {about['cpu']}, {about['cores']} cores, one thread, "
        f"load {about['load']} at the end, torch {about['torch']}, transformers {about['transformers']}"
    )


def spent(found: dict[str, Any]) -> list[str]:
    ours = found["evaluator"]
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found["spent"].items())
    blocks = ", ".join(f"{block} {seconds:.2f} s" for block, seconds in ours["by_block"].items())
    rest = ", ".join(
        f"{name} {row['seconds_per_candidate']:.2f} s" for name, row in found["references"].items()
    )
    return [
        f"Ratios are of processor time over the whole sweep ({found['candidates']} candidates). A candidate: evaluator "
        f"{ours['seconds_per_candidate']:.2f} s and {ours['seconds_once_per_matrix']:.2f} s once per matrix; {rest}.",
        "",
        f"By lowest block edited: {blocks}.",
        "",
        f"Where the evaluator's time goes: {shares}.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    last = sorted(HERE.glob("results-*.json"))
    results = json.loads(last[-1].read_text(encoding="utf-8")) if only and last else {}
    console = Console()
    for part, measure in PARTS.items():
        if only == part or (only is None and part != "surgery"):
            console.print(f"{part} …")
            results[part] = {"figures": measure(), "machine": machine(), "date": date.today().isoformat()}
    shown = Table("what", "measured", "target", "met")
    for row in table({only: results[only]} if only else results):
        shown.add_row(*row)
    console.print(shown)
    console.print(f"written to {write(results)} and RESULTS.md")


if __name__ == "__main__":
    main()
