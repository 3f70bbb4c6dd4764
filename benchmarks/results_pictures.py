"""The pictures of docs/results.md, as SVG on a white card, so that they can be read in light and dark pages alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from results_page import NAMES, edits_words
from results_records import (
    CutFigures,
    DepthFigures,
    ImportanceFigures,
    InductionFigures,
    LinearityFigures,
    RemovalFigures,
    RowRecord,
)

from secateur.core.site import Site

BLUE, ORANGE, GREEN, GRAY = "#0b5fa5", "#c2560a", "#1b7a46", "#5f6670"  # each above 4.5 : 1 on white
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "axes.axisbelow": True,
    "svg.hashsalt": "secateur",
}


def draw(name: str, rows: Sequence[RowRecord], path: Path, digest: str) -> None:
    """Draw the picture of this name; the file carries the digest of what it was drawn from."""
    with plt.rc_context(STYLE):
        drawing = DRAWN[name]({row.name: row for row in rows})
        drawing.tight_layout()
        drawing.savefig(path, format="svg", metadata={"Date": None, "Description": digest})
        plt.close(drawing)


def laser(rows: Mapping[str, RowRecord]) -> Drawing:
    """Return the change of each data set with its interval."""
    cuts = [row.figures for row in rows.values() if isinstance(row.figures, CutFigures)]
    drawing, axes = plt.subplots(figsize=(8, 1.4 + 0.5 * len(cuts)))
    axes.axvline(0, color=GRAY, linewidth=1)
    for place, cut in enumerate(reversed(cuts)):
        low, high = cut.difference.ci or [cut.difference.value] * 2
        color = BLUE if low > 0 else ORANGE if high < 0 else GRAY
        axes.plot([100 * low, 100 * high], [place, place], color=color, linewidth=2.5)
        axes.plot(100 * cut.difference.value, place, "o", color=color, markersize=8)
    names = [f"{NAMES[cut.data]}: {edits_words(cut.edits, first=1, between=', ')}" for cut in reversed(cuts)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("change of test accuracy, points (95 % interval)")
    return drawing


def linearity(rows: Mapping[str, RowRecord]) -> Drawing:
    """Return the scores of all blocks, with and without outlier tokens."""
    figures = next(iter(rows.values())).figures
    assert isinstance(figures, LinearityFigures)
    blocks = [row.block for row in figures.blocks]
    drawing, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for axes, title, every, without in (
        (left, "with the residual", "stream", "stream_without"),
        (right, "what the block adds", "added", "added_without"),
    ):
        axes.plot(blocks, [getattr(row, every) for row in figures.blocks], "o-", color=ORANGE, markersize=4)
        axes.plot(blocks, [getattr(row, without) for row in figures.blocks], "s-", color=BLUE, markersize=4)
        axes.set(title=title, xlabel="block", ylabel="linearity, held out")
    right.legend(
        ["all tokens", "without outlier tokens"], frameon=False, loc="upper center", bbox_to_anchor=(0.65, 1)
    )
    return drawing


def depth(rows: Mapping[str, RowRecord]) -> Drawing:
    """Return the loss against blocks gone, by form."""
    figures = next(iter(rows.values())).figures
    assert isinstance(figures, DepthFigures)
    drawing, axes = plt.subplots(figsize=(8, 4.2))
    names = {
        "drop": ("dropped", ORANGE, "o-"),
        "fold": ("folded", BLUE, "s-"),
        "linear": ("linear maps", GREEN, "^-"),
    }
    for form in figures.forms:
        name, color, mark = names[form.form]
        axes.plot(
            [one.blocks for one in form.points],
            [one.loss for one in form.points],
            mark,
            color=color,
            label=name,
        )
    axes.set(xlabel="blocks gone, of 30", ylabel="loss, nats a token", ylim=(None, None))
    axes.legend(frameon=False)
    return drawing


def importance(rows: Mapping[str, RowRecord]) -> Drawing:
    """Return importance and prefix matching of every head, side by side."""
    maps = []
    for row in rows.values():
        if isinstance(row.figures, ImportanceFigures):
            maps.append(
                ("importance, share of all in %", {k: 100 * v for k, v in row.figures.mean.items()}, "Blues")
            )
        elif isinstance(row.figures, InductionFigures):
            maps.append(("prefix matching", dict(row.figures.prefix_matching), "Oranges"))
    drawing, cells = plt.subplots(len(maps), 1, figsize=(10, 2.9 * len(maps)), squeeze=False)
    for axes, (title, values, colors) in zip(cells[:, 0], maps, strict=True):
        head_map(axes, title, values, colors)
    return drawing


def head_map(axes: Axes, title: str, values: Mapping[str, float], colors: str) -> None:
    """Draw blocks across, heads down."""
    sites = {Site.parse(name): value for name, value in values.items()}
    grid = np.full((1 + max(site.index for site in sites), 1 + max(site.block for site in sites)), np.nan)
    for site, value in sites.items():
        grid[site.index, site.block] = value
    image = axes.imshow(grid, cmap=colors, aspect="auto", vmin=0)
    axes.grid(False)
    axes.set(
        title=title,
        xlabel="block",
        ylabel="head",
        xticks=range(0, grid.shape[1], 5),
        yticks=range(0, grid.shape[0], 2),
    )
    axes.figure.colorbar(image, ax=axes, pad=0.01)


def removal(rows: Mapping[str, RowRecord]) -> Drawing:
    """Return accuracy against what is gone."""
    drawing, axes = plt.subplots(figsize=(8, 4))
    looks = {"heads": ("query heads", BLUE, "o-"), "ffns": ("feed-forward networks", ORANGE, "s-")}
    for row in rows.values():
        assert isinstance(row.figures, RemovalFigures)
        name, color, mark = looks[row.figures.part]
        shares, values = (
            [100 * one.removed for one in row.figures.points],
            [100 * one.value for one in row.figures.points],
        )
        axes.plot(shares, values, mark, color=color, label=name)
        chance = row.figures.ends.chance
    if chance is not None:
        axes.axhline(100 * chance, color=GRAY, linestyle="--", label="chance")
    axes.set(xlabel="gone, %", ylabel="accuracy on validation questions, %")
    axes.legend(frameon=False)
    return drawing


DRAWN: Mapping[str, Callable[[Mapping[str, RowRecord]], Drawing]] = {
    "laser": laser,
    "linearity": linearity,
    "depth": depth,
    "importance": importance,
    "removal": removal,
}
