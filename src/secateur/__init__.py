"""secateur: cut what a transformer does not need for a task, and prove what was gained and lost.

The verbs of the command line, as functions: `prune`, `prune_each`, `probe`, `evaluate`, `apply`, `preview`,
`report`, `bench`, `finetune`, `heal`, `train`, `load`; and the values they speak of. They are
imported when first used, so that `secateur --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "prune": "secateur.api",
    "prune_each": "secateur.api",
    "probe": "secateur.api",
    "evaluate": "secateur.api",
    "apply": "secateur.api",
    "preview": "secateur.api",
    "report": "secateur.api",
    "bench": "secateur.api",
    "plan_cost": "secateur.api",
    "finetune": "secateur.training.verbs",
    "heal": "secateur.training.verbs",
    "train": "secateur.training.verbs",
    "load": "secateur.api",
    "on_ray": "secateur.distributed.ask",
    "LinearityRegulariser": "secateur.training.regulariser",
    "RegularisedTrainer": "secateur.training.regulariser",
    "Result": "secateur.checkpoint.result",
    "Tuned": "secateur.training.state",
    "Plan": "secateur.core.plan",
    "Truncate": "secateur.core.plan",
    "Drop": "secateur.core.plan",
    "cut": "secateur.surgery.materialize",
    "Site": "secateur.core.site",
    "SecateurError": "secateur.errors",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
