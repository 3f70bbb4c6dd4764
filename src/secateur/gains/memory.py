"""Peak memory of one model, in a process of its own: `python -m secateur.gains.memory JSON` writes JSON.

On an accelerator what its allocator gave out at most. On a CPU the model's own bytes, and how far the kernel's mark of
most resident memory rises above what the process holds while the loaded model rests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.core.machine import NamedModel
from secateur.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RETURNS_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: freed tensors of 64 KiB leave resident memory
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(load: NamedModel, *, batch: int, prompt: int, new: int, threads: int) -> dict[str, int | None]:
    """`prefill`, `decode`: peak bytes of each phase, model included. None on a CPU whose kernel keeps no high-water
    mark that can be reset (other than Linux). `load`: the arguments of `load_model`.

    Raises: `ModelError` where the process ends otherwise, for lack of memory above all.
    """
    if _on_cpu(load) and not (STATUS.exists() and os.access(RESET, os.W_OK)):
        return {"prefill": None, "decode": None}
    asked = json.dumps({"load": dict(load), "batch": batch, "prompt": prompt, "new": new, "threads": threads})
    command = [sys.executable, "-W", "ignore", "-m", "secateur.gains.memory", asked]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ) | RETURNS_AT_ONCE)
    if done.returncode != 0:
        killed = f"ended by signal {-done.returncode}: out of memory?"
        said = (done.stderr.strip().splitlines() or [killed])[-1]
        raise ModelError(f"the peak memory of {load['name']} could not be measured: {said[:300]}")
    found: dict[str, int | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def _on_cpu(load: NamedModel) -> bool:
    import torch

    return load["device"] == "cpu" or (load["device"] == "auto" and not torch.cuda.is_available())


def _measure(load: NamedModel, batch: int, prompt: int, new: int, threads: int) -> dict[str, int]:
    import torch

    from secateur.gains.cost import prefill, random_tokens
    from secateur.gains.timing import decode
    from secateur.hf.load import load_model

    torch.set_num_threads(threads)
    loaded = load_model(**load)
    model = loaded.model
    tokens = random_tokens(loaded.anatomy.vocab_size, batch, prompt).to(model.device)
    found = {}
    with torch.inference_mode():
        decode(
            model, prefill(model, tokens[:1, :1]), 1
        )  # brings in the libraries' code, which is no need of the model
        reset, peak = _meters(model)
        reset()
        output = prefill(model, tokens)
        found["prefill"] = peak()
        reset()
        decode(model, output, new)
        found["decode"] = peak()
    return found


def _meters(model: PreTrainedModel) -> tuple[Callable[[], object], Callable[[], int]]:
    """Return what starts a measurement, and what reads it, for the model as it rests now."""
    import torch

    device = model.device
    if device.type == "cuda":
        return (
            lambda: torch.cuda.reset_peak_memory_stats(device),
            lambda: torch.cuda.max_memory_allocated(device),
        )
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    resting = resident("VmRSS") - own
    return lambda: RESET.write_text("5"), lambda: resident("VmHWM") - resting  # 5 resets the mark: man 5 proc


def resident(which: str) -> int:
    """Return `VmRSS`, resident memory now, or `VmHWM`, the most since the last reset, in bytes."""
    found = re.search(rf"^{which}:\s+(\d+) kB", STATUS.read_text(), flags=re.M)
    assert found is not None, f"{STATUS} has no {which}"
    return int(found[1]) * 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(**json.loads(sys.argv[1]))) + "\n")
