"""Measure how much the loss of the gold answers depends on each feed-forward neuron, at the down projection's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.evaluation.batching import Packing
from secateur.hf.load import Loaded
from secateur.probes.heads import unit_importance
from secateur.tasks.encode import Encoded


def neuron_importance(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    *,
    packing: Packing,
    split: str = "probe",
    progress: Progress = silent,
) -> Readings:
    """Return E|a_n · dL/da_n| of every neuron, as `b3.mlp.n17`; a_n is the input of the down projection (gate × up).

    Loss, tokens, units and errors as for `head_importance`, which this is for slices of one number.
    Source: ours; the head importance of Bansal et al. 2022 (arXiv 2212.09095) carried over to neurons.
    """
    neurons = {block: width.d_ff for block, width in enumerate(loaded.anatomy.widths) if width.d_ff}
    values = unit_importance(loaded, encoded, examples, "down", neurons, packing=packing, progress=progress)
    return Readings(
        what="neuron importance",
        unit="nats/token",
        split=split,
        n=len(examples),
        low_is_removable=True,
        source="E|a·dL/da| at the down projection's input",
        values={
            str(Site(b, "mlp", "n", n)): v for b, of_block in values.items() for n, v in enumerate(of_block)
        },
    )
