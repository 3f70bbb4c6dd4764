"""A small real model, cut: it loads where people load models, without us, and still tells a story."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from itertools import pairwise

import pytest
from fixtures.places import SHARED

import secateur

TELL = """
import json, sys
sys.path.append(sys.argv[1])
from importlib.util import find_spec
assert find_spec("secateur") is None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, words = (cls.from_pretrained(sys.argv[2]) for cls in (AutoModelForCausalLM, AutoTokenizer))
start = words("Once upon a time", return_tensors="pt").input_ids
text = words.decode(model.generate(start, max_new_tokens=100, do_sample=False)[0], skip_special_tokens=True)
print(json.dumps({"class": type(model).__name__, "layers": model.config.num_hidden_layers, "text": text}))
"""


@pytest.mark.slow
def test_a_block_folded_and_healed_it_tells_a_story_in_plain_transformers(tmp_path):
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    model, task = str(SHARED / "models/stories260K"), f"text:{SHARED / 'text_tinystories_train.jsonl'}"
    how = {"limit": 300, "device": "cpu"}
    secateur.prune(model, task, tmp_path / "cut", method="depth", form="fold", blocks=1, **how)
    healed = secateur.heal(tmp_path / "cut", task, tmp_path / "healed", stage="end", epochs=2, lr=1e-3, **how)
    plain = [sys.executable, "-I", "-S", "-W", "ignore", "-c", TELL, sysconfig.get_path("purelib")]
    done = subprocess.run([*plain, str(healed.out)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert (told["class"], told["layers"]) == ("LlamaForCausalLM", 4)
    said = re.findall(r"[a-z']+", told["text"].lower())
    known = set(re.findall(r"[a-z']+", (SHARED / "text_tinystories_valid.txt").read_text().lower()))
    assert len(said) > 40
    assert sum(word in known for word in said) >= 0.9 * len(said), told["text"]
    assert len(set(pairwise(said))) >= 0.6 * (len(said) - 1), told["text"]
