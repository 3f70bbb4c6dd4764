"""secateur: cut what a transformer does not need for a task, and prove what was gained and lost.

The verbs of the command line, as functions: `prune`, `prune_each`, `probe`, `need_map`, `evaluate`, `transfer`,
`apply`, `preview`, `report`, `compare_runs`, `bench`, `check_task`, `check_structure`, `export`, `push`, `finetune`,
`heal`, `train`, `load`, `run`; and the values they speak of. They are imported when first used, so that `secateur
--help` does not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for checkers and editors, which run nothing
    from secateur.api import apply as apply
    from secateur.api import bench as bench
    from secateur.api import check_structure as check_structure
    from secateur.api import check_task as check_task
    from secateur.api import compare_runs as compare_runs
    from secateur.api import evaluate as evaluate
    from secateur.api import export as export
    from secateur.api import load as load
    from secateur.api import need_map as need_map
    from secateur.api import plan_cost as plan_cost
    from secateur.api import preview as preview
    from secateur.api import probe as probe
    from secateur.api import prune as prune
    from secateur.api import prune_each as prune_each
    from secateur.api import push as push
    from secateur.api import report as report
    from secateur.api import transfer as transfer
    from secateur.core.plan import Drop as Drop
    from secateur.core.plan import Plan as Plan
    from secateur.core.plan import Truncate as Truncate
    from secateur.core.search_log import Judgment as Judgment
    from secateur.core.site import Site as Site
    from secateur.distributed.launch import on_ray as on_ray
    from secateur.errors import SecateurError as SecateurError
    from secateur.given import texts as texts
    from secateur.recipe.steps import run as run
    from secateur.result import ProbeResult as ProbeResult
    from secateur.result import Result as Result
    from secateur.result import Verdict as Verdict
    from secateur.surgery.materialize import cut as cut
    from secateur.training.objectives import LinearityRegulariser as LinearityRegulariser
    from secateur.training.objectives import RegularisedTrainer as RegularisedTrainer
    from secateur.training.state import Tuned as Tuned
    from secateur.training.verbs import finetune as finetune
    from secateur.training.verbs import heal as heal
    from secateur.training.verbs import train as train

__version__ = "0.1.0"

_WHERE = {
    "prune": "secateur.api",
    "prune_each": "secateur.api",
    "probe": "secateur.api",
    "need_map": "secateur.api",
    "evaluate": "secateur.api",
    "apply": "secateur.api",
    "preview": "secateur.api",
    "report": "secateur.api",
    "transfer": "secateur.api",
    "push": "secateur.api",
    "compare_runs": "secateur.api",
    "bench": "secateur.api",
    "check_structure": "secateur.api",
    "check_task": "secateur.api",
    "export": "secateur.api",
    "plan_cost": "secateur.api",
    "finetune": "secateur.training.verbs",
    "heal": "secateur.training.verbs",
    "train": "secateur.training.verbs",
    "load": "secateur.api",
    "run": "secateur.recipe.steps",
    "texts": "secateur.given",
    "on_ray": "secateur.distributed.launch",
    "LinearityRegulariser": "secateur.training.objectives",
    "RegularisedTrainer": "secateur.training.objectives",
    "Result": "secateur.result",
    "Verdict": "secateur.result",
    "ProbeResult": "secateur.result",
    "Tuned": "secateur.training.state",
    "Judgment": "secateur.core.search_log",
    "Plan": "secateur.core.plan",
    "Truncate": "secateur.core.plan",
    "Drop": "secateur.core.plan",
    "cut": "secateur.surgery.materialize",
    "Site": "secateur.core.site",
    "SecateurError": "secateur.errors",
}
__all__ = ["__version__", *_WHERE]


class _Front(ModuleType):
    """Keep the verbs by their names: importing `secateur.report` would put that module in the place of `report`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
