"""Where a cut checkpoint will load, said before anything is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.core.form import Form
from secateur.core.plan import Plan
from secateur.hf.anatomy import Anatomy
from secateur.surgery.shape import shape_of, stock_config

STOCK = "AutoModelForCausalLM.from_pretrained(FOLDER)"
REMOTE = "AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)"
OURS = "secateur.load(FOLDER).model"
UNSURE = "it may leave out biases that the config switched on, without a word: compare its answers before you trust it"


@dataclass(frozen=True)
class Place:
    """One way to load a checkpoint. `how` is a line of code, or why it does not."""

    place: str
    loads: bool
    how: str


@dataclass(frozen=True)
class Loads:
    """`form`: `stock` (a stock class), `zeroed` (a stock class in the original's shapes), `carved` (with a modelling
    file in the folder). `why` says why it is not stock, or nothing."""

    form: str
    why: str
    places: tuple[Place, ...]

    def to_json(self) -> dict[str, Any]:
        return {"form": self.form, "why": self.why, "where": [vars(place) for place in self.places]}


def where_it_loads(plan: Plan, anatomy: Anatomy, form: Form) -> Loads:
    """Source: what each place can hold, measured for transformers, else from METHODS of this field's formats: vLLM and
    GGUF know the shapes that a family's config can state, and no others."""
    shape = shape_of(plan, anatomy, factorize=form.factorize)
    changes = stock_config(shape, anatomy)
    if form.zeroed and not anatomy.carved:
        changes = {}
    if not isinstance(changes, str):
        return Loads("zeroed" if form.zeroed else "stock", "", _stock_places(biased=bool(shape.folds)))
    no = "it knows only shapes that the family's config can state"
    places = (
        Place("transformers", True, REMOTE),
        Place("secateur, without remote code", True, OURS),
        Place("lm-eval", True, "lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True"),
        Place("transformers without trust_remote_code", False, "it refuses, loudly"),
        Place("vLLM", False, no),
        Place("GGUF (llama.cpp)", False, no),
    )
    return Loads("carved", changes, places)


def _stock_places(*, biased: bool) -> tuple[Place, ...]:
    """`biased`: the config gives biases to matrices that had none, which is rare, and not all readers look for it."""
    return (
        Place("transformers", True, STOCK),
        Place("secateur", True, OURS),
        Place("lm-eval", True, "lm_eval --model hf --model_args pretrained=FOLDER"),
        Place("vLLM", not biased, UNSURE if biased else "vllm serve FOLDER"),
        Place("GGUF (llama.cpp)", not biased, UNSURE if biased else "convert_hf_to_gguf.py FOLDER"),
    )
