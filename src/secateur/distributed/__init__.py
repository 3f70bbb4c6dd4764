"""Run the same search on a Ray cluster: workers hold the model and judge in the evaluator's place.

The only room that imports ray. The driver decides, and it alone writes the ledger; a worker gets plans and examples,
returns outcomes, and keeps nothing that could not be computed again.
"""

from __future__ import annotations

import os

from secateur.errors import ClusterError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage report leaves the machine
os.environ.setdefault(
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
)  # the default of a later Ray, without its warning
try:
    import ray  # noqa: F401
except ImportError as error:
    raise ClusterError("--ray needs Ray, which is not installed: pip install 'secateur[ray]'") from error
