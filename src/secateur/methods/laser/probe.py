"""What truncating each matrix to each rank would do to the loss, predicted from one backward pass per batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.plan import Truncate
from secateur.core.progress import Progress, silent
from secateur.core.readings import Readings
from secateur.evaluation.batching import Batch, Packing, with_room
from secateur.evaluation.forward import gathered
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.hf.weights import reread
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Encoded

Scores = dict[tuple[int, int], float]  # by example and continuation


def truncation_effects(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    candidates: Iterable[Truncate],
    *,
    spectra: Spectra,
    packing: Packing,
    contrast: bool = False,
    progress: Progress = silent,
) -> tuple[Readings, Readings]:
    """Predicted change of the mean loss for each candidate, negative where cutting helps: to first order, mean d, and
    with the second, mean d + ½ mean d².

    dₙ = −Σ_{i removed} σᵢ uᵢᵀ Gₙ vᵢ is the first-order change of example n's loss, Gₙ its gradient with respect to
    W; the square is the Fisher approximation of the second order. Units: nats. The loss is the mean log-loss over
    the gold answer's tokens, or with `contrast` the log-loss of the gold choice among the choices.
    Source: gradient of singular values (Sreeram et al. 2025, arXiv 2510.20800); the second-order term is ours.
    Cost: one decomposition per matrix; one forward and one backward pass without parameter gradients for as many
    matrices as have room for their spectra at a time, which on models of less than some 100M parameters is all.
    """
    if not contrast:
        encoded = {e: encoded[e].gold_alone for e in examples}
    by_matrix: dict[Matrix, list[Truncate]] = {}
    for edit in candidates:
        by_matrix.setdefault(loaded.anatomy.matrix(edit.matrix), []).append(edit)
    changes = with_room(
        packing,
        lambda room: _changes(loaded, encoded, examples, by_matrix, spectra, room, contrast, progress),
    )
    first = {str(edit): float(d.mean()) for edit, d in changes.items()}
    second = {str(edit): first[str(edit)] + 0.5 * float((d * d).mean()) for edit, d in changes.items()}
    source = "first order in singular values (arXiv 2510.20800)"
    orders = ((source, first), (f"{source} + ½ Fisher", second))
    what, n = "predicted change of loss", len(examples)
    return tuple(Readings(what, "nats", "probe", n, True, source, values) for source, values in orders)


def _changes(
    loaded: Loaded,
    encoded: Mapping[int, Encoded],
    examples: Sequence[int],
    by_matrix: Mapping[Matrix, Sequence[Truncate]],
    spectra: Spectra,
    packing: Packing,
    contrast: bool,
    progress: Progress,
) -> dict[Truncate, Float[Tensor, " examples"]]:
    """dₙ of every candidate for every example. An example's rows add up before anything is squared."""
    index = {example: i for i, example in enumerate(examples)}
    edits = [edit for group in by_matrix.values() for edit in group]
    changes = {edit: torch.zeros(len(examples), dtype=torch.float64) for edit in edits}
    batches = packing.pack(encoded, examples)
    elsewhere = _scores_of_split(loaded, batches)
    passes = [(group, batch) for group in spectra.fitting(by_matrix) for batch in batches]
    for number, (group, batch) in enumerate(passes):
        rows = torch.tensor([index[e] for e in batch.row_example.tolist()])
        for matrix, x, g in _taps(loaded, batch, encoded, group, contrast, elsewhere):
            weight = loaded.parameter(matrix.weight)
            along = _along_components(spectra(matrix, weight), x, g)
            for edit, change in _removed(along, by_matrix[matrix]):
                changes[edit].index_add_(0, rows, change)
        progress("screen", number + 1, len(passes))
    return changes


def _along_components(spectrum: Any, x: Float[Tensor, "rows t in"], g: Float[Tensor, "rows t out"]) -> Tensor:
    """σᵢ uᵢᵀ Gₙ vᵢ for every row n and component i, from two projections: (rows, k) float64."""
    left = g.to(spectrum.u.dtype) @ spectrum.u
    right = x.to(spectrum.u.dtype) @ spectrum.vh.T
    return ((left * right).sum(dim=1) * spectrum.sigma).double().cpu()


def _removed(along: Float[Tensor, "rows k"], edits: Sequence[Truncate]) -> Iterable[tuple[Truncate, Tensor]]:
    """dₙ of each edit, from running sums over the components."""
    running = torch.cat(
        [along.new_zeros(len(along), 1), along.cumsum(dim=1)], dim=1
    )  # [:, r] = first r components
    whole, full_rank = running[:, -1], along.shape[1]
    for edit in edits:
        kept = running[:, edit.rank] if edit.side == "top" else whole - running[:, full_rank - edit.rank]
        yield edit, kept - whole


def _scores_of_split(loaded: Loaded, batches: Sequence[Batch]) -> Scores:
    """Log-likelihood of each continuation of the examples whose rows do not all run together."""
    places = Counter(example for batch in batches for example in set(batch.row_example.tolist()))
    found: Scores = {}
    for batch in batches:
        if any(places[example] > 1 for example in batch.row_example.tolist()):
            with torch.inference_mode():
                logp = _target_logps(_logits(loaded, batch), batch)
            for key, value in zip(_continuations(batch), logp.tolist(), strict=True):
                found[key] = found.get(key, 0.0) + value
    return found


def _taps(
    loaded: Loaded,
    batch: Batch,
    encoded: Mapping[int, Encoded],
    matrices: Sequence[Matrix],
    contrast: bool,
    elsewhere: Scores,
) -> list[tuple[Matrix, Tensor, Tensor]]:
    """For each matrix its true input and the gradient of the summed loss at its output, (rows, t, in / out)."""
    model, anatomy = loaded.model, loaded.anatomy
    modules = {matrix.module: model.get_submodule(matrix.module) for matrix in matrices}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    with torch.enable_grad(), reread(model), ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_recorded(module, name, inputs, outputs))
        embedding = model.get_submodule(anatomy.embedding)
        stack.enter_context(_differentiable(embedding))
        loss = _summed_loss(_logits(loaded, batch), batch, encoded, contrast, elsewhere)
        gradients = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
    shape = batch.tokens.shape
    found = []
    for matrix in matrices:
        x = inputs[matrix.module].reshape(*shape, -1)
        g = matrix.of_output(gradients[matrix.module].reshape(*shape, -1))
        found.append((matrix, x, g))
    return found


def _logits(loaded: Loaded, batch: Batch) -> Float[Tensor, "kept vocab"]:
    with gathered(loaded.model.get_submodule(loaded.anatomy.unembedding), batch.keep):
        return loaded.model(input_ids=batch.tokens.to(loaded.device), use_cache=False).logits[0]


@contextmanager
def _recorded(module: nn.Module, name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> Any:
    def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
        inputs[name], outputs[name] = args[0].detach(), output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _differentiable(embedding: nn.Module) -> Any:
    """Gradients start at the embedding's output, so that no parameter needs one."""
    handle = embedding.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    try:
        yield
    finally:
        handle.remove()


def _summed_loss(
    logits: Float[Tensor, "kept vocab"],
    batch: Batch,
    encoded: Mapping[int, Encoded],
    contrast: bool,
    elsewhere: Scores,
) -> Tensor:
    """Sum over the batch's examples, so that each row's gradient is its own example's."""
    logp = _target_logps(logits, batch)
    totals: dict[int, dict[int, list[int]]] = {}
    for i, (example, continuation) in enumerate(_continuations(batch)):
        totals.setdefault(example, {}).setdefault(continuation, []).append(i)
    losses = []
    for example, parts in totals.items():
        own = {number: logp[positions] for number, positions in parts.items()}
        if contrast:
            losses.append(_choice_loss(own, example, encoded, elsewhere))
        else:
            losses.append(-own[encoded[example].gold].mean())
    return torch.stack(losses).sum()


def _target_logps(logits: Float[Tensor, "kept vocab"], batch: Batch) -> Float[Tensor, " targets"]:
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    where, token = batch.where.to(logits.device), batch.token.to(logits.device)
    return logits[where, token] - torch.logsumexp(logits, dim=1)[where]


def _continuations(batch: Batch) -> list[tuple[int, int]]:
    """Of each target: its example, and which continuation of it."""
    return list(zip(batch.example.tolist(), batch.continuation.tolist(), strict=True))


def _choice_loss(
    own: Mapping[int, Tensor], example: int, encoded: Mapping[int, Encoded], elsewhere: Scores
) -> Tensor:
    """The log-loss of the gold choice among all; those of other batches are constants here, and their gradients come
    with those batches."""
    some = next(iter(own.values()))
    scores = [
        own[number].sum() if number in own else some.new_tensor(elsewhere[example, number])
        for number in range(len(encoded[example].pairs))
    ]
    return -torch.log_softmax(torch.stack(scores), dim=0)[encoded[example].gold]
