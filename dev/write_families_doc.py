"""Writes docs/families.md, and README's count of families, from the table that `secateur models` prints.

python dev/write_families_doc.py           # write
python dev/write_families_doc.py --check   # exit code 1 where what is there is stale
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from secateur.hf.families import CLASSIFIERS, DECISIONS, FAMILIES
from secateur.hf.recognize import list_classes

ROOT = Path(__file__).parents[1]
INTRODUCTION = """# Families

Every class of transformers {version} that models text, causally, with masks or from another text, and what is read of
it. This page is written by `dev/write_families_doc.py` from the table that `secateur models` prints and that refusals
come from.

Each class with a family is proved by the test suite on tiny random models: masked and cut they compute the same, with a
cache and without, with exactly the parameters that were predicted. *Dropped heads stay, silenced*: a norm takes all
heads of a block together, or the class stores them in one number only; dropped ones keep their parameters and write
nothing until the whole attention goes. Of multimodal classes with `For…Generation` the language model is cut.

{counts}
"""


def main() -> int:
    """Write or compare. Returns the exit code."""
    stale = [
        path for path, text in documents().items() if not path.exists() or path.read_text("utf-8") != text
    ]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is stale: python dev/write_families_doc.py")
        else:
            path.write_text(documents()[path], encoding="utf-8")
    return bool(stale) and "--check" in sys.argv


def documents() -> dict[Path, str]:
    """Return what is generated: each file's text."""
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    counted, found = re.subn(
        r"(?<=lists the )\d+ that are cut \([^)]*\)(, and decision transformers \([^)]*\))?", counts(), text
    )
    assert found == 1, "README says elsewhere, or not at all, how many families there are"
    page = INTRODUCTION.format(version=transformers.__version__, counts=f"There are {counts()}.")
    page += "".join(
        table(title, names)
        for title, names in (
            ("Causal language models", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
            ("Masked language models", _only_masked()),
            ("Encoder-decoders", MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        )
    )
    return {ROOT / "docs/families.md": page, readme: counted}


def _only_masked() -> dict[str, str]:
    """Return the masked language models without BART and its like, which are encoder-decoders here."""
    pairs = {family.architecture for family in FAMILIES.values() if family.encoder is not None}
    return {kind: name for kind, name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.items() if name not in pairs}


def counts() -> str:
    """Return in words how many families there are of each kind."""
    mixtures = sum(family.experts is not None for family in FAMILIES.values())
    masked = sum(family.masked for family in FAMILIES.values())
    pairs = sum(family.encoder is not None for family in FAMILIES.values())
    dense = len(FAMILIES) - mixtures - masked - pairs
    return (
        f"{len(FAMILIES)} that are cut ({dense} dense decoders, {mixtures} mixtures of experts, {masked} masked "
        f"language models, {pairs} encoder-decoders; {len(CLASSIFIERS)} of all also as sequence classifiers), and "
        f"decision transformers (`{'`, `'.join(DECISIONS)}`)"
    )


def table(title: str, names: Mapping[str, str]) -> str:
    """Return a section: the classes that are read, then the others by what keeps them from being read."""
    listed = list_classes(names)
    read = [one for one in listed if not one.refusal]
    lines = [f"\n## {title}\n", f"{len(read)} of {len(listed)} classes are read.\n"]
    lines += ["| class | family | not possible |", "|---|---|---|"]
    lines += [f"| `{one.architecture}` | {one.family} | {one.limits} |" for one in read]
    refused: dict[str, list[str]] = {}
    for one in listed:
        if one.refusal:
            refused.setdefault(one.refusal, []).append(f"`{one.architecture}`")
    lines += ["\n| not read, being | classes |", "|---|---|"]
    lines += [f"| {why} | {', '.join(refused[why])} |" for why in sorted(refused)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
