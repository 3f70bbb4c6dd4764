"""The colors of the page in both modes: the stylesheet's variables and dark figures are made from this one table."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping

PALETTE: Mapping[str, tuple[str, str]] = {  # name: (on a light page, on a dark one)
    "ink": ("#2b2f36", "#e8e6e1"),
    "muted": ("#5d626b", "#a3a9b3"),
    "rule": ("#e3e0d8", "#333942"),
    "edge": ("#b9b5aa", "#5b626d"),
    "paper": ("#fdfcfa", "#15181c"),
    "sheet": ("#f5f3ee", "#1e2228"),
    "on": ("#ffffff", "#101316"),  # text on a filled mark, and boxes that lie over a figure
    "before": ("#8b9099", "#8f96a1"),
    "after": ("#1c5f8c", "#74b6e4"),
    "accent": ("#b2510f", "#ec9a5c"),
    "alt": ("#7a6a1d", "#cdb95c"),
    "bad": ("#a8071a", "#ff8a8f"),
    "tried": ("#d3dee6", "#2b3a45"),
    "track": ("#dedbd2", "#3a4049"),
    "band": ("#e8e8e9", "#2a2e34"),
    "linear": ("#6f9fbc", "#4f87ab"),
    "brown": ("#7d3209", "#f6bd93"),
    "tan": ("#d98b52", "#b0602a"),
    "shallow": ("#c3d3dd", "#35495a"),
    "deep": ("#17466a", "#a4d5f4"),
    # Orange to blue, distinguishable under all common color deficiencies (Crameri et al. 2020, doi
    # 10.1038/s41467-020-19160-7); gray in the middle, so that no cell that was tried is as white as the page.
    "low2": ("#9c430d", "#f3b183"),
    "low1": ("#dd9c66", "#a8612f"),
    "zero": ("#eeebe4", "#2c3036"),
    "high1": ("#79aecd", "#3c7499"),
    "high2": ("#124f78", "#a4d5f5"),
    # Pale to deep blue in even steps of lightness (CIE L*): equal steps of the value look equally far apart.
    "seq0": ("#eef0ef", "#23282e"),
    "seq1": ("#b2c6d4", "#2c4d63"),
    "seq2": ("#6f9fbd", "#3f7699"),
    "seq3": ("#3577a1", "#63a3cb"),
    "seq4": ("#124f79", "#a4d5f4"),
}
_DARK = dict(PALETTE.values())
assert len(_DARK) == len(PALETTE), "a light color names its dark one"
_COLORS = re.compile(r'"(#[0-9a-f]{6}|rgba\(\d+,\d+,\d+,[\d.]+\))"')


def variables() -> str:
    """Return the stylesheet's variables: of the light page, and of the dark one on a screen that asks for it."""
    light, dark = (" ".join(f"--{name}: {pair[mode]};" for name, pair in PALETTE.items()) for mode in (0, 1))
    screen = "@media screen and (prefers-color-scheme: dark)"
    return f":root {{ color-scheme: light dark; {light} }}\n{screen} {{ :root {{ {dark} }} }}\n"


def dark_color(color: str) -> str:
    """Return the color of the dark page for one of the light page: of the table, or of mirrored lightness.

    Args:
        color: `#rrggbb`, or `rgba(r,g,b,a)`, whose opacity stays.
    """
    if color.startswith("rgba("):
        *parts, opacity = color[5:-1].split(",")
        found = dark_color("#" + "".join(f"{int(part):02x}" for part in parts))
        return f"rgba({','.join(str(int(found[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"
    if color in _DARK:
        return _DARK[color]
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    mirrored = colorsys.hls_to_rgb(hue, 0.97 - 0.85 * lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in mirrored)


def dark_colors(figures: str) -> dict[str, str]:
    """Return the dark counterpart of every color that occurs in the JSON of some figures."""
    return {color: dark_color(color) for color in sorted(set(_COLORS.findall(figures)))}
