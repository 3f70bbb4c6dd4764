"""Say which programs will load a cut checkpoint, before anything is cut, with the evidence for each."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from secateur import __version__
from secateur.core.form import Form
from secateur.core.plan import Plan
from secateur.core.records.verdict import LoadsRecord, PlaceRecord
from secateur.hf import llama_cpp
from secateur.hf.anatomy import Anatomy
from secateur.hf.families import FAMILIES
from secateur.hf.family import CAUSAL, Head
from secateur.hf.load import Loaded
from secateur.surgery.materialize import cut_config
from secateur.surgery.shape import Shape, shape_of, stock_config

STOCK = "AutoModelForCausalLM.from_pretrained(FOLDER)"
REMOTE = "AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)"
GENERATES = "it runs models that write text, and this is {}"
OURS = "secateur.load(FOLDER).model"
HARNESS = "lm_eval --model hf --model_args pretrained=FOLDER"
SERVE = "vllm serve FOLDER"
CONVERT = "convert_hf_to_gguf.py FOLDER"
ONLY_STOCK = "it knows only shapes that the family's config can state"
NEW_BIASES = "compare its answers first: it may leave out biases that the config switched on, without a word"
SMALL_HEADS = "but not by its CPU build, which has no attention with heads as small as {}"
SMALLEST_HEAD = 32


@dataclass(frozen=True)
class Ran:
    """The program in `version` and the families whose cut checkpoints it loaded and computed the same."""

    version: str
    families: frozenset[str]


# Programs that were run. tests/checkpoint/test_where_it_loads.py holds the first two to their results in benchmarks/;
# the others are run by tests/checkpoint/test_carved_checkpoint.py.
RAN_LLAMA_CPP = Ran(llama_cpp.VERSION, llama_cpp.RAN)
RAN_VLLM = Ran("vLLM 0.32.0 on CPU", frozenset({"llama"}))
RAN_LM_EVAL = Ran("lm-eval 0.4.13", frozenset({"llama"}))
NOT_RUN = {
    "gemma2", "gpt_neox", "gptj", "mistral", "phi", "qwen2", "qwen3",
    "bert-generation-decoder", "camembert-decoder", "data2vec-text-decoder", "electra-decoder", "ernie-decoder",
    "roberta-decoder", "xlm-roberta-decoder",
}  # fmt: skip
RAN_REMOTE = Ran(
    "transformers 5.23.0",
    frozenset(one.name for one in FAMILIES.values() if not (one.experts or one.masked or one.encoder))
    - NOT_RUN,
)


def where_it_loads(plan: Plan, loaded: Loaded, form: Form, *, read_back: bool) -> LoadsRecord:
    """Say where the model that `plan` leaves will load.

    Args:
        read_back: This run wrote it, read it again and compared its logits.
    """
    anatomy = loaded.anatomy
    shape = shape_of(Plan(plan.model) if form.zeroed else plan, anatomy, factorize=form.factorize)
    why = stock_config(shape, anatomy)
    if isinstance(why, str):
        found = LoadsRecord(form="carved", why=why, where=_carved_places(anatomy.family, read_back))
    else:
        stock = "zeroed" if form.zeroed else "stock"
        found = LoadsRecord(form=stock, why="", where=_stock_places(shape, loaded, read_back))
    head = anatomy.details.head
    if head is not CAUSAL:
        found = found.model_copy(update={"where": [_not_writing(place, head) for place in found.where]})
    return found


def _not_writing(place: PlaceRecord, head: Head) -> PlaceRecord:
    """Return the same place for a model that writes no text: another class loads it, programs that generate do not."""
    if place.place in ("lm-eval", "vLLM", "GGUF (llama.cpp)"):
        return _not(place.place, GENERATES.format(head.words))
    return place.model_copy(update={"how": place.how.replace(CAUSAL.auto, head.auto)})


def _carved_places(family: str, read_back: bool) -> list[PlaceRecord]:
    return [
        _ran("transformers", REMOTE, RAN_REMOTE, family),
        _here("secateur, without remote code", OURS, f"secateur {__version__}", read_back),
        _ran("lm-eval", f"{HARNESS},trust_remote_code=True", RAN_LM_EVAL, family),
        _not("transformers without trust_remote_code", "it refuses, loudly"),
        _not("vLLM", ONLY_STOCK),
        _not("GGUF (llama.cpp)", ONLY_STOCK),
    ]


def _stock_places(shape: Shape, loaded: Loaded, read_back: bool) -> list[PlaceRecord]:
    return [
        _here("transformers", STOCK, f"transformers {transformers.__version__}", read_back),
        _here("secateur", OURS, f"secateur {__version__}", read_back),
        _ran("lm-eval", HARNESS, RAN_LM_EVAL, loaded.anatomy.family),
        _vllm(shape, loaded.anatomy),
        _gguf(shape, loaded),
    ]


def _vllm(shape: Shape, anatomy: Anatomy) -> PlaceRecord:
    """Say whether vLLM loads it.

    Biases are rare in some families, and not all programs read those that a config switches on.
    """
    if anatomy.d_head < SMALLEST_HEAD:
        return _place("vLLM", "expected", "not tried", SERVE, SMALL_HEADS.format(anatomy.d_head))
    unsure = NEW_BIASES if shape.folds and anatomy.family not in RAN_VLLM.families else ""
    return _ran("vLLM", SERVE, RAN_VLLM, anatomy.family, unsure)


def _gguf(shape: Shape, loaded: Loaded) -> PlaceRecord:
    left = (loaded.anatomy.details, cut_config(loaded, shape), loaded.tokenizer)
    if why := llama_cpp.refusal(*left, loaded.copied):
        return _not("GGUF (llama.cpp)", why)
    return _ran("GGUF (llama.cpp)", CONVERT, RAN_LLAMA_CPP, loaded.anatomy.family, llama_cpp.condition(*left))


def _here(place: str, how: str, version: str, read_back: bool) -> PlaceRecord:
    if read_back:
        return _place(place, "read back", version, how)
    return _place(place, "expected", "not tried", how)


def _ran(place: str, how: str, ran: Ran, family: str, condition: str = "") -> PlaceRecord:
    if family in ran.families:
        return _place(place, "run", ran.version, how, condition)
    return _place(place, "expected", "not tried", how, condition)


def _not(place: str, why: str) -> PlaceRecord:
    return _place(place, "no", "", why)


def _place(place: str, evidence: str, detail: str, how: str, condition: str = "") -> PlaceRecord:
    return PlaceRecord(
        place=place, evidence=evidence, detail=detail, how=how, condition=condition, loads=evidence != "no"
    )
