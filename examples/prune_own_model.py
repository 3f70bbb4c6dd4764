"""Prune a model for a task and say what came of it: python prune_own_model.py [MODEL TASK OUT]"""

import sys

import secateur

model, task, out = sys.argv[1:4] if len(sys.argv) > 3 else ("builtin:facts", "builtin:facts", "example-out")
try:
    result = secateur.prune(model, task, out)
except secateur.SecateurError as error:
    sys.exit(f"{error}")

verdict = result.verdict
print(f"{verdict['verdict']}: {verdict['sentence']}")
for cut in verdict["cut"]:
    print(f"cut: {cut['site']} from rank {cut['full_rank']} to {cut['rank']}")
for effect in verdict["side_effects"]:
    print(f"elsewhere: {effect['name']}, {effect['before']['value']:.3g} → {effect['after']['value']:.3g}")
print(
    f"load it with AutoModelForCausalLM.from_pretrained({str(result.out)!r}); look at {result.out}/report.html"
)
