"""Read how much of their weight the routers of a mixture give to each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.core.site import Site
from secateur.errors import ModelError
from secateur.evaluation.batching import Packing, with_room
from secateur.hf.load import Loaded
from secateur.probes.residual_stream import run_hooked
from secateur.tasks.encode import Encoded


def router_mass(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    *,
    packing: Packing,
    split: str = "probe",
    progress: Progress = silent,
) -> Readings:
    """Return the share of its router's weights that each expert gets, as `b3.mlp.e17`; those of a block sum to 1.

    The sum is over all tokens that are run, those of every prompt and of every gold answer but its last. Costs one
    forward pass. It tells how much an expert is used, and nothing of what the task loses without it.

    Raises: `ModelError` where the model has no experts.
    Source: expert usage as in the load-balancing loss of Switch Transformers (Fedus et al. 2021, arXiv 2101.03961, eq.
        6). Differs: of the weights that experts are multiplied by, not of all probabilities.
    """
    anatomy, mixture = loaded.anatomy, loaded.anatomy.details.experts
    counts = {block: width.num_experts for block, width in enumerate(anatomy.widths) if width.num_experts}
    if mixture is None or not counts:
        raise ModelError(f"{anatomy.architecture} has no experts that could be read.")

    def summed(packing: Packing) -> dict[int, Tensor]:
        total = {block: torch.zeros(count, dtype=torch.float64) for block, count in counts.items()}

        def adding(block: int, real: Tensor) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
                weights, chosen = (part.cpu() for part in output[1:])
                flat = real.flatten()
                total[block].index_add_(0, chosen[flat].flatten(), weights[flat].double().flatten())

            return hook

        def hooks(real: Tensor) -> Iterator[RemovableHandle]:
            for block in counts:
                path = f"{anatomy.blocks[block]}.{mixture.network}.{mixture.router}"
                yield loaded.model.get_submodule(path).register_forward_hook(adding(block, real))

        run_hooked(loaded, encoded, examples, hooks, packing=packing, progress=progress)
        return total

    mass = {block: total / total.sum() for block, total in with_room(packing, summed).items()}
    return Readings(
        what="router mass",
        unit="share",
        split=split,
        n=len(examples),
        low_is_removable=True,
        source="weights that the router gives it, of all that it gives",
        values={
            str(Site(block, "mlp", "e", expert)): share
            for block, shares in mass.items()
            for expert, share in enumerate(shares.tolist())
        },
    )
