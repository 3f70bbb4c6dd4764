"""Cut a model by the package optipfair, in a process that has it; `versus.py` calls this, and nothing else needs it.

    python optipfair_cut.py DEPTH|MLP_GLU MODEL TOKENS.json OUT NUMBER

NUMBER: blocks that go, or the percentage of the neurons.
"""

import json
import sys

import torch
from optipfair import analyze_layer_importance, prune_model
from transformers import AutoModelForCausalLM

kind, name, tokens, out, number = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
with open(tokens) as file:
    rows = [torch.tensor([row]) for row in json.load(file)]
text = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
if kind == "DEPTH":
    distances = analyze_layer_importance(model, text, show_progress=False)
    gone = sorted(distances, key=distances.__getitem__)[: int(number)]
    cut = prune_model(model, pruning_type=kind, layer_indices=sorted(gone), show_progress=False)
else:
    cut = prune_model(
        model,
        pruning_type=kind,
        neuron_selection_method="MAW",
        pruning_percentage=float(number),
        dataloader=text,
        show_progress=False,
    )
cut.save_pretrained(out)
