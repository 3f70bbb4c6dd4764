"""What today's secateur writes, read by an earlier release of transformers: the same config, logits and tokens.

    python tests/old_readers.py write FOLDER     in today's environment
    python tests/old_readers.py read FOLDER      where that release is installed, and secateur is not

`make old-readers` does both. Checkpoints of the zoo: every family, other rotary positions, and cuts of several kinds.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

TOKENS = torch.arange(3, 43)[None]
TEXT = "w5 w60 w7"
KINDS = ("rank 3", "block 0", "KV groups everywhere", "directions of attention", "mixed")
TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "model_max_length": 64}
VOLATILE = {
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "_name_or_path",
    "rope_parameters",
}


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    """Gemma's scores are soft-capped by the plain attention alone in either release."""
    how = {"attn_implementation": "eager"} if "gemma" in folder.parent.name else {}
    return AutoModelForCausalLM.from_pretrained(folder, **how).eval()(TOKENS).logits


# -------------------------------------------------------------------------------------------------------------- today


def write(place: Path) -> None:
    from fixtures.cuts import edits_of
    from fixtures.rotary import ROTARY

    from secateur import api
    from secateur.core.plan import Plan

    jobs = []
    for name, make, expected in _models(ROTARY):
        folder = _save(place / name / "model", make())
        loaded = api.load(str(folder), device="cpu")
        for kind in KINDS:
            if kind == "KV groups everywhere" and loaded.anatomy.num_kv_heads == 1:
                continue
            out = place / name / kind.replace(" ", "-")
            api.apply(str(folder), Plan(loaded.fingerprint, tuple(edits_of(kind, loaded.anatomy))), out)
            form = json.loads((out / "plan.json").read_text())["provenance"]["loads"]["form"]
            jobs.append({"folder": str(out), "form": form, "expected": expected})
            if form == "stock":
                jobs[-1]["config"] = json.loads(
                    AutoConfig.from_pretrained(out).to_json_string(use_diff=False)
                )
                save_file({"logits": logits(out)}, out / "expected.safetensors")
        print(name, flush=True)
    (place / "jobs.json").write_text(json.dumps(jobs))


def _models(rotary: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any], dict[str, Any]]]:
    """A name, what makes the model, and values that its config must have in the earlier release."""
    from copy import deepcopy
    from functools import partial

    from fixtures.zoo import ZOO, variant

    for name in ZOO:
        yield name, ZOO[name], {}
    for case, (name, changes, expected) in rotary.items():
        yield f"{name}-rotary-{case.replace(' ', '-')}", partial(variant, name, **deepcopy(changes)), expected


def _save(folder: Path, model: Any) -> Path:
    """With the files of a tokenizer as transformers 4 wrote them."""
    from fixtures.zoo import VOCAB_SIZE
    from tokenizers import Tokenizer, models, pre_tokenizers

    model.save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return folder


# ---------------------------------------------------------------------------------------------------- the old release


def read(place: Path) -> None:
    wrong, counts = [], {"stock": 0, "carved": 0}
    for job in json.loads((place / "jobs.json").read_text()):
        folder = Path(job["folder"])
        counts[job["form"]] += 1
        wrong += [f"{folder.parent.name}/{folder.name}: {fault}" for fault in _faults(folder, job)]
    told = f"{counts['stock']} stock checkpoints and the tokenizers of {counts['carved']} carved ones"
    print("\n".join(wrong) or f"transformers {transformers.__version__} reads {told} as today's does")
    sys.exit(bool(wrong))


def _faults(folder: Path, job: dict[str, Any]) -> list[str]:
    try:
        return list(_stock_faults(folder, job) if job["form"] == "stock" else _carved_faults(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        return [f"{type(error).__name__}: {error}"]


def _stock_faults(folder: Path, job: dict[str, Any]) -> Iterator[str]:
    """What this release does otherwise than today's."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in job["expected"].items():
        if getattr(config, key) != value:
            yield f"{key} is {getattr(config, key)}, not {value}"
    for key in set(job["config"]) - VOLATILE - set(job["expected"]):
        if json.loads(json.dumps(getattr(config, key, job["config"][key]))) != job["config"][key]:
            yield f"{key} is {getattr(config, key)}, not {job['config'][key]}"
    GenerationConfig.from_pretrained(folder)
    expected = load_file(folder / "expected.safetensors")["logits"]
    distance = float(torch.linalg.norm(logits(folder) - expected) / torch.linalg.norm(expected))
    if not distance < 1e-5:
        yield f"logits differ by {distance:.1e}"
    yield from _tokenizer_faults(folder)


def _carved_faults(folder: Path) -> Iterator[str]:
    """Of what needs transformers 5: its tokenizer is read all the same, and nobody gets a model of wrong weights."""
    yield from _tokenizer_faults(folder)
    for how in ({}, {"trust_remote_code": True}):
        try:
            AutoModelForCausalLM.from_pretrained(folder, **how)
        except (RuntimeError, ImportError):
            continue
        yield f"a model came out, with {how}"


def _tokenizer_faults(folder: Path) -> Iterator[str]:
    found = AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    if found != [5, 60, 7]:
        yield f"{TEXT} is {found}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
