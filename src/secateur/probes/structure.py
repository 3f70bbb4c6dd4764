"""Prove what is read of a model's structure, on a tiny random copy of its own config, by the modelling code that is
installed here.

Every kind of edit is masked and cut, which must compute the same, have the parameters that were predicted, and go on
with a cache as without one. Where the blocks call torch's attention and have activation functions as modules, the edit
is also compared with a reference that knows nothing of the family: it sees queries, keys, values and outputs by head as
they are handed to torch, and what enters and leaves activation functions.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS

from secateur.core.fitted import Fitted
from secateur.core.plan import (
    MAPS,
    OF_EXPERTS,
    WITH_MEAN,
    Drop,
    Edit,
    Linearize,
    Plan,
    RemoveDirections,
    Truncate,
)
from secateur.core.records.probe import EditProofRecord, StructureRecord
from secateur.core.site import Site
from secateur.errors import ModelError, SecateurError
from secateur.hf.anatomy import Anatomy, anatomy
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.hf.running import using_threads
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.shape import shape_of

WINDOW = 6  # tokens, of a tiny copy's sliding windows
_LENGTH, _NEW = 14, 3  # tokens: more than twice a window; those that are run with a cache
_CLOSE = 1e-8  # relative, in float64
_CLOSE_OF = {"cache": 1e-5}  # some classes round attention's weights to float32
_HEAD, _NEURON = 1, 2  # that are looked at
_EXPERTS = 16  # whose matrices are truncated, of which some are chosen for a few tokens
_FAILURES = (  # of an edit of the wrong shape
    AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def prove(model: PreTrainedModel, kinds: Collection[str] | None = None) -> StructureRecord:
    """Return, for kinds of edit of a small model, how far what is done is from what was to be done.

    Args:
        model: In float64, with random parameters; `hf.blank.tiny_copy` makes one.
        kinds: In the words of `kind_of`; None for all that the model can have.

    Raises: as `anatomy`; `ModelError` where the model gives no numbers.
    """
    found = anatomy(model)
    loaded = Loaded("copy", model, None, found, "copy", None, None)  # type: ignore[arg-type]  # no text is encoded
    ids = torch.arange(_LENGTH)[None] * 7 % (found.vocab_size - 3) + 3
    with using_threads(
        1
    ):  # that wait for each other take ten times as long for so little, where others compute too
        with torch.no_grad(), _watched(model) as seen:
            whole = _logits(model, ids)
        if not torch.isfinite(whole).all():
            raise ModelError(f"a tiny random copy of this {found.architecture} gives NaN or infinite logits.")
        rows = [
            _proved(loaded, name, edits, ids, whole, seen)
            for name, edits in _edits(found).items()
            if kinds is None or kind_of(name) in kinds
        ]
    return StructureRecord(
        family=found.family,
        architecture=found.architecture,
        blocks=found.num_blocks,
        tolerance=_CLOSE,
        edits=rows,
        versions={name: importlib.metadata.version(name) for name in ("transformers", "torch")},
    )


def kind_of(edit: str) -> str:
    """Return the kind of an edit of a proof, in the words of `core.plan.kinds_of`: each block is proved by itself."""
    return "blocks" if edit.startswith("block ") else edit


def is_close(name: str, difference: float) -> bool:
    """Return True for a difference, of the comparison of this name, that is rounding."""
    return difference <= _CLOSE_OF.get(name, _CLOSE)


def _edits(parts: Anatomy) -> dict[str, list[Edit]]:
    """Return an edit of each kind that the model can have, in all its blocks where they may all have it."""

    def dropped(*sites: Site) -> list[Edit]:
        return [Drop(site) for site in sites]

    random, attending = np.random.default_rng(0), parts.attending
    with_network = [block for block, widths in enumerate(parts.widths) if widths.d_ff]
    with_experts = [block for block, widths in enumerate(parts.widths) if widths.num_experts]
    found: dict[str, list[Edit]] = {
        kind: [Truncate(m.site, 3) for m in _of_kind(parts, kind)] for kind in parts.matrix_kinds
    }
    found[WITH_MEAN] = [
        RemoveDirections(m.site, (0, 2), False, Fitted.of({"mean": random.normal(size=m.shape[1])}))
        for m in _of_kind(parts, "k") + _of_kind(parts, "down")
    ]
    head = min(_HEAD, parts.num_heads - 1)
    found["heads"] = dropped(*(Site(block, "attn", "h", head) for block in attending))
    if parts.num_kv_heads < parts.num_heads and parts.num_kv_heads > 1:
        found["KV groups"] = dropped(*(Site(block, "attn", "g", _HEAD) for block in attending))
    found["attentions"] = dropped(*(Site(block, "attn") for block in attending))
    found["feed-forward networks"] = dropped(*(Site(block, "mlp") for block in with_network))
    found["neurons"] = dropped(*(Site(block, "mlp", "n", _NEURON) for block in with_network))
    for block in with_experts:  # half of them, for few are chosen for so few tokens
        count, chosen = parts.widths[block].num_experts, parts.routing.chosen if parts.routing else 0
        gone = range(min(count // 2, count - chosen))
        found["experts"] = found.get("experts", []) + dropped(*(Site(block, "mlp", "e", e) for e in gone))
    for block in with_experts:
        of_block = [matrix for site, matrix in parts.of_experts.items() if site.block == block]
        found[OF_EXPERTS] = found.get(OF_EXPERTS, []) + [
            Truncate(m.site, 3) for m in of_block[: 3 * _EXPERTS]
        ]
    for block in range(parts.num_blocks - 1):
        found[f"block {block}"] = dropped(Site(block))
    found |= _maps(parts, random)
    return {kind: edits for kind, edits in found.items() if edits}


def _maps(parts: Anatomy, random: np.random.Generator) -> dict[str, list[Edit]]:
    """Return maps in the place of the last block but one; none where there is one block."""
    found: dict[str, list[Edit]] = {}
    middle = parts.num_blocks - 2
    if middle < 0:
        return found
    weight = np.eye(parts.d_model) + random.normal(size=2 * (parts.d_model,)) / parts.d_model
    bias = {"bias": random.normal(size=parts.d_model)}
    found[MAPS["linear"]] = [Linearize((middle,), "linear", Fitted.of({"weight": weight} | bias))]
    if parts.foldable and middle and parts.widths[middle - 1].d_ff:
        carried = bias if parts.matrices[Site(middle - 1, "down")].bias else {}
        found[MAPS["fold"]] = [Linearize((middle,), "fold", Fitted.of({"weight": weight} | carried))]
    return found


def _of_kind(parts: Anatomy, kind: str) -> list[Matrix]:
    return [matrix for site, matrix in parts.matrices.items() if site.part == kind]


def _proved(
    loaded: Loaded, kind: str, edits: Sequence[Edit], ids: Tensor, whole: Tensor, seen: _Watching
) -> EditProofRecord:
    try:
        measured = _measured(loaded, kind, edits, ids, whole, seen)
    except SecateurError as error:
        return EditProofRecord(edit=kind, proved=False, differences={}, refused=str(error))
    except _FAILURES:
        measured = {"fails": 1.0}
    proved = all(is_close(name, value) for name, value in measured.items())
    return EditProofRecord(edit=kind, proved=proved, differences=measured, refused=None)


@torch.no_grad()
def _measured(
    loaded: Loaded, kind: str, edits: Sequence[Edit], ids: Tensor, whole: Tensor, seen: _Watching
) -> dict[str, float]:
    """Return the relative differences of an edit, by what is compared.

    Args:
        whole: Logits of the model as it is; `seen` is what was watched while they were computed.
    """
    parts, model = loaded.anatomy, loaded.model
    plan = Plan(loaded.fingerprint, tuple(edits))
    with masked(model, resolve(plan, parts, loaded.fingerprint)):
        expected = _logits(model, ids)
    smaller = cut(loaded, plan)
    stored = sum(parameter.numel() for parameter in smaller.parameters())
    predicted = shape_of(plan, parts, factorize=False).num_parameters(parts)
    measured = {
        "cut": _distance(_logits(smaller, ids), expected),
        "parameters": abs(stored - predicted) / predicted,
        "idle": 0.0 if _distance(expected, whole) > 1e-6 else 1.0,
    }
    if parts.writes_text and parts.details.caches:
        measured["cache"] = _distance(_in_calls(smaller, ids, bool(parts.mixers)), expected)
    measured |= dict(_against_stream(loaded, kind, edits, ids, expected))
    return measured | dict(_against_torch(loaded, kind, ids, expected, seen))


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    out: Tensor = model(input_ids=ids, use_cache=False).logits
    return out


def _in_calls(model: PreTrainedModel, ids: Tensor, numbered: bool) -> Tensor:
    """Return the logits of all tokens, the last of which are run one by one, with the cache of those before them.

    Args:
        numbered: Positions are given, as `generate` does: some hybrids take those of the call alone otherwise.
    """
    out = model(input_ids=ids[:, :-_NEW], use_cache=True)
    found = [out.logits]
    for place in range(ids.shape[1] - _NEW, ids.shape[1]):
        where = {"position_ids": torch.tensor([[place]])} if numbered else {}
        token = ids[:, place : place + 1]
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, **where)
        found.append(out.logits)
    return torch.cat(found, dim=1)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


# ----------------------------------------------------------------- a reference that sees what enters and leaves blocks

# what enters a module, and what leaves it → what leaves it instead
Change = Callable[[Tensor, Tensor], Tensor]
_LAST = {"attentions": ("attn", "o"), "feed-forward networks": ("mlp", "down")}


def _against_stream(
    loaded: Loaded, kind: str, edits: Sequence[Edit], ids: Tensor, expected: Tensor
) -> Iterator[tuple[str, float]]:
    """Yield how far an edit is from the same done to what leaves the blocks; of a part, how far what it adds to the
    stream is from what is read of it: its output, scaled, or what a norm makes of that."""
    parts = loaded.anatomy
    if kind in _LAST and parts.residual_scale is not None and not parts.details.beside:
        dense = [block for block in parts.attending if Site(block, "down") in parts.matrices]
        if dense:
            yield "stream", max(_added(loaded, *_LAST[kind], block, ids) for block in dense)
    for edit in edits:
        if isinstance(edit, Linearize):
            yield "stream", _distance(_run(loaded, ids, _mapped(loaded, edit, ids)), expected)
        elif not edit.site.part:
            skipped: dict[str, Change] = {parts.blocks[edit.site.block]: lambda entered, _: entered}
            yield "stream", _distance(_run(loaded, ids, skipped), expected)


def _added(loaded: Loaded, part: str, last: str, block: int, ids: Tensor) -> float:
    """Return how much else the stream moves when a vector is added to what the last matrix of a part gives.

    Where it is that of an attention, the network after it gives nothing meanwhile, for it would answer.
    """
    parts, place = loaded.anatomy, loaded.anatomy.blocks[block]
    own, norm = parts.module(Site(block, last)), parts.details.after.get(part)
    added = torch.randn(parts.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    silent: dict[str, Change] = {parts.module(Site(block, "down")): lambda _, left: torch.zeros_like(left)}
    changes = silent if part == "attn" else {}
    moved: list[Tensor] = []  # the part, then the stream
    for path in (f"{place}.{norm}" if norm else own, place):
        before, after = (
            _left(loaded, ids, path, changes | {own: lambda _, left, times=times: left + times * added})
            for times in (0, 1)
        )
        moved.append(after - before)
    return _distance(moved[1], (parts.residual_scale or 0.0) * moved[0])


def _mapped(loaded: Loaded, edit: Linearize, ids: Tensor) -> dict[str, Change]:
    """Return what a linear map of one block makes of what leaves the blocks."""
    parts, (block,) = loaded.anatomy, edit.blocks
    arrays = {name: torch.from_numpy(array) for name, array in edit.fitted.content.items()}
    weight, bias, place = arrays["weight"], arrays.get("bias", torch.zeros(())), parts.blocks[block]
    if edit.folded_into is None:
        return {place: lambda entered, _: entered @ weight.T + bias}
    before = parts.blocks[block - 1]
    silent: dict[str, Change] = {parts.module(edit.folded_into): lambda _, left: torch.zeros_like(left)}
    without = _left(loaded, ids, before, silent)
    return {
        before: lambda _, left: without + (left - without) @ weight.T + bias,
        place: lambda entered, _: entered,
    }


def _left(loaded: Loaded, ids: Tensor, path: str, changes: Mapping[str, Change]) -> Tensor:
    """Return what leaves a module of a changed model."""
    seen: list[Tensor] = []

    def keep(entered: Tensor, left: Tensor) -> Tensor:
        left = changes[path](entered, left) if path in changes else left
        seen.append(left.clone())
        return left

    _run(loaded, ids, {**changes, path: keep})
    return seen[0]


def _run(loaded: Loaded, ids: Tensor, changes: Mapping[str, Change]) -> Tensor:
    """Return the logits of a model of which some modules give something else."""

    def hooked(change: Change) -> Callable[..., object]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            entered: Tensor = (*args, kwargs.get("hidden_states"))[0]
            if isinstance(output, Tensor):
                return change(entered, output)
            return type(output)([change(entered, output[0]), *output[1:]])

        return hook

    with ExitStack() as stack:
        for path, change in changes.items():
            module = loaded.model.get_submodule(path)
            handle = module.register_forward_hook(hooked(change), with_kwargs=True)
            stack.callback(handle.remove)
        return _logits(loaded.model, ids)


# ------------------------------------------------------------------------------- a reference that knows of no family


def _against_torch(
    loaded: Loaded, kind: str, ids: Tensor, expected: Tensor, seen: _Watching
) -> Iterator[tuple[str, float]]:
    """Yield how far an edit is from the same done where torch's attention and activation functions are called; nothing
    where they are not called once in each block, or where a norm takes units together."""
    parts, model = loaded.anatomy, loaded.model
    attending = parts.attending
    with_network = [block for block, widths in enumerate(parts.widths) if widths.d_ff]
    attended = len(seen.attention) == len(attending)
    activated = [call.shape[-1] for call in seen.activation] == [parts.widths[b].d_ff for b in with_network]
    if kind in ("q", "k", "v") and attended:
        yield "attention", max(_moved(loaded, kind, number, seen, ids) for number in range(len(attending)))
    if kind in ("heads", "KV groups") and attended and "heads" not in parts.indivisible:
        heads = [_heads_of(loaded, kind, number, seen, ids) for number in range(len(attending))]
        with _watched(model, heads=heads):
            yield "attention", _distance(_logits(model, ids), expected)
    if kind in ("gate", "up") and activated:
        yield (
            "activation",
            max(_entered(loaded, kind, number, seen, ids) for number in range(len(with_network))),
        )
    if kind == "neurons" and activated and "neurons" not in parts.indivisible:
        with _watched(model, neuron=_NEURON):
            yield "activation", _distance(_logits(model, ids), expected)


class Call(NamedTuple):
    """A call of torch's attention: (rows, heads, length, d_head) each."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


class _Watching(TorchFunctionMode):
    """Keep every call of torch's attention, and every input of an activation function; silence heads by call."""

    def __init__(self, heads: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.attention: list[Call] = []
        self.activation: list[Tensor] = []
        self._heads = heads

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            if self._heads:
                out[:, list(self._heads[len(self.attention)])] = 0
            query, key, value = args[:3]
            self.attention.append(Call(query, key, value, out))
        return out


@contextmanager
def _watched(
    model: nn.Module, heads: Sequence[Sequence[int]] = (), neuron: int | None = None
) -> Iterator[_Watching]:
    """Watch attention and activation functions, in the order of their calls.

    Args:
        heads: That give nothing, by call.
        neuron: That gives nothing, in all activation functions.
    """
    entries: Iterable[Any] = ACT2CLS.values()  # a class, or a class with arguments
    kinds = tuple({entry[0] if isinstance(entry, tuple) else entry for entry in entries})
    watching = _Watching(heads)

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        watching.activation.append(args[0].clone())
        if neuron is not None:
            output = output.clone()
            output[..., neuron] = 0
        return output

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    try:
        with watching:
            yield watching
    finally:
        for handle in handles:
            handle.remove()


def _after(loaded: Loaded, matrix: Matrix, rows: slice, ids: Tensor) -> _Watching:
    """Return what is seen when random numbers are added to some rows of a matrix, which is then restored."""
    weight = loaded.model.get_parameter(matrix.weight)
    before, changed = weight.clone(), matrix.read(weight).clone()
    draw = torch.Generator().manual_seed(0)
    changed[rows] += torch.randn(changed[rows].shape, generator=draw, dtype=weight.dtype)
    matrix.write_(weight, changed)
    with _watched(loaded.model) as seen:
        _logits(loaded.model, ids)
    weight.copy_(before)
    return seen


def _moved(loaded: Loaded, kind: str, number: int, before: _Watching, ids: Tensor) -> float:
    """Return how much else moves at a call of attention when a head of q, k or v is changed; 1 where it rests."""
    parts = loaded.anatomy
    matrix = _of_kind(parts, kind)[number]
    count = parts.heads_in(matrix.site) or 1
    head = min(_HEAD, count - 1)
    size = parts.widths[parts.number(matrix.site)].head.of(kind)
    after = _after(loaded, matrix, slice(head * size, (head + 1) * size), ids)
    was, now = before.attention[number]._asdict(), after.attention[number]._asdict()
    others = [_distance(now[other], was[other]) for other in {"q", "k", "v"} - {kind}]
    times = was[kind].shape[1] // count  # keys and values may be handed over once for each query head
    own = slice(head * times, (head + 1) * times)
    if "heads" not in parts.indivisible:
        elsewhere = [at for at in range(was[kind].shape[1]) if at not in range(own.start, own.stop)]
        others += [_distance(now[kind][:, elsewhere], was[kind][:, elsewhere])] if elsewhere else []
    return max(others) if _distance(now[kind][:, own], was[kind][:, own]) > 1e-6 else 1.0


def _heads_of(loaded: Loaded, kind: str, number: int, before: _Watching, ids: Tensor) -> list[int]:
    """Return the heads whose outputs move when the values of the group are changed; of a head itself that head."""
    if kind == "heads":
        return [min(_HEAD, loaded.anatomy.num_heads - 1)]
    parts, size = loaded.anatomy, loaded.anatomy.d_head
    matrix = _of_kind(parts, "v")[number]
    after = _after(loaded, matrix, slice(_HEAD * size, (_HEAD + 1) * size), ids)
    was, now = before.attention[number].out, after.attention[number].out
    return [head for head in range(was.shape[1]) if _distance(now[:, head], was[:, head]) > 1e-6]


def _entered(loaded: Loaded, kind: str, number: int, before: _Watching, ids: Tensor) -> float:
    """Return how much enters an activation function otherwise than expected when a neuron's row is changed.

    The row of a gate, or of up where there is none, moves its own number and no other; up beside a gate moves none.
    """
    parts = loaded.anatomy
    after = _after(loaded, _of_kind(parts, kind)[number], slice(_NEURON, _NEURON + 1), ids)
    change: Float[Tensor, " neurons"] = (
        (after.activation[number] - before.activation[number]).abs().flatten(0, -2).amax(0)
    )
    if kind == "up" and "gate" in parts.matrix_kinds:
        return float(change.max())
    if change[_NEURON] < 1e-6:
        return 1.0
    change[_NEURON] = 0
    return float(change.max())
