"""What someone does with a checkpoint who has transformers and not secateur. Run as a process of its own:

    python -I -S without_secateur.py SITE_PACKAGES JOBS.json MADE

`-S` leaves out what an editable install adds to the import path, so that `import secateur` fails here. Each job is
`{"name", "folder", "original", "stock"}`; into MADE go `found.json`, what was seen, and `logits.safetensors`.
"""

from __future__ import annotations

import builtins
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.append(sys.argv[1])
assert find_spec("secateur") is None, "this process was to be without secateur"

import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402

TOKENS = torch.arange(2 * 12).reshape(2, 12) * 7 % 96
PROMPTS = [(5, 6, 7, 8, 9), (11, 12), (20, 21, 22, 23, 24, 25, 26)]
COUNT = 4


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(TOKENS.to(model.device)).logits.float().cpu().clone()


def generated(model: PreTrainedModel) -> list[list[int]]:
    """Greedy tokens for all prompts at once, padded on the left, with the cache."""
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in PROMPTS])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in PROMPTS])
    greedy = {"max_new_tokens": COUNT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, **greedy)[:, length:].tolist()


@torch.no_grad()
def one_by_one(model: PreTrainedModel) -> list[list[int]]:
    """Greedy tokens for each prompt alone, without cache."""
    rows = []
    for prompt in PROMPTS:
        row = list(prompt)
        for _ in range(COUNT):
            row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        rows.append(row[len(prompt) :])
    return rows


def refusal(cls: Any, folder: str, **how: Any) -> str:
    """The words of the error, or nothing where a model came out."""
    try:
        cls.from_pretrained(folder, **how)
    except (ValueError, RuntimeError, StrictDataclassError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def tokenizers(folder: str) -> list[str]:
    """Which class reads the tokenizer, unasked and with trust, and what it reads."""
    found = [AutoTokenizer.from_pretrained(folder, **how) for how in ({}, {"trust_remote_code": True})]
    return [f"{type(one).__name__} {one('w5 w6').input_ids} {one.special_tokens_map}" for one in found]


def look(
    name: str, folder: str, original: str, stock: str, made: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """`stock` is the class that the original is of."""
    trust, asked = {"trust_remote_code": True}, []
    builtins.input = lambda question: asked.append(question) or "n"
    model = AutoModelForCausalLM.from_pretrained(folder, **trust)
    again, tokenizer = made / name, AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    narrow = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **trust)
    found = {
        "class": type(model).__name__,
        "config": type(AutoConfig.from_pretrained(folder, **trust)).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "generated": generated(model),
        "one by one": one_by_one(model),
        "dtypes": sorted({str(parameter.dtype) for parameter in narrow.parameters()}),
        "untrusted": refusal(AutoModelForCausalLM, folder, trust_remote_code=False),
        "unasked": refusal(AutoModelForCausalLM, folder),
        "of another attention": refusal(AutoModelForCausalLM, folder, attn_implementation="eager"),
        "by name": refusal(getattr(transformers, stock), folder),
        "again by name": refusal(getattr(transformers, stock), str(again)),
        "tokenizers": [tokenizers(original), tokenizers(folder), tokenizers(str(again))],
        "asked": asked,
    }
    return found, {
        "plain": logits(model),
        "again": logits(AutoModelForCausalLM.from_pretrained(again, **trust)),
        "bfloat16": logits(narrow),
        "device map": logits(AutoModelForCausalLM.from_pretrained(folder, device_map="auto", **trust)),
    }


def harness(folder: str) -> list[float]:
    """What lm-eval's `hf` model says of three continuations."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, trust_remote_code=True, device="cpu", batch_size=2)
    asked = [("w5 w6 w7", " w8 w9"), ("w44", " w3"), ("w30 w31", " w62 w73 w84")]
    rows = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(asked)]
    return [float(value) for value, _ in model.loglikelihood(rows, disable_tqdm=True)]


def main(jobs: list[dict[str, Any]], made: Path) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    found, tensors = {}, {}
    for job in jobs:
        seen, outputs = look(job["name"], job["folder"], job["original"], job["stock"], made)
        found[job["name"]] = seen
        tensors |= {f"{job['name']}/{key}": value for key, value in outputs.items()}
        if job["harness"]:
            seen["harness"] = harness(job["folder"])
    assert "secateur" not in sys.modules
    save_file(tensors, made / "logits.safetensors")
    (made / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
