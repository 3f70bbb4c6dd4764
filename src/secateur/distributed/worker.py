"""Run a worker: load the model from Ray's object store, and judge plans on it.

Weights lie once on each node, and all workers there compute with the same memory. Ray marks it read-only and torch does
not check; what protects it is that a mask swaps parameters and never writes into them (`hf/weights.py`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from secateur.core.fitted import Fitted
from secateur.core.plan import Plan
from secateur.evaluation.evaluator import Evaluator
from secateur.evaluation.workers import EvaluationContext
from secateur.hf.anatomy import anatomy
from secateur.hf.build import blank, filled_
from secateur.hf.load import Loaded

Arrays = dict[str, np.ndarray]
READ_ONLY = "The given NumPy array is not writable"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in the object store: its bytes, and how to read them, since numpy knows no bfloat16."""

    ref: ObjectRef[np.ndarray]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """Put a tensor into the store."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return cls(ray.put(flat.view(torch.uint8).numpy()), tensor.dtype, tuple(tensor.shape))

    def read(self, data: np.ndarray) -> Tensor:
        """Return the tensor on the store's own memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", READ_ONLY)
            return torch.from_numpy(data).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Shipped:
    """A model as it travels: on the meta device, with references to its tensors. Tied ones are stored once."""

    name: str
    blank: PreTrainedModel
    tensors: Mapping[str, StoredTensor]
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    revision: str | None

    @classmethod
    def of(cls, loaded: Loaded) -> Shipped:
        """Put the tensors of a model into the store."""
        tensors = _tensors(loaded.model)
        once = {
            id(tensor): StoredTensor.of(tensor) for tensor in {id(t): t for t in tensors.values()}.values()
        }
        return cls(
            loaded.name,
            blank(loaded.model.config, like=loaded.model),
            {name: once[id(tensor)] for name, tensor in tensors.items()},
            loaded.tokenizer,
            loaded.fingerprint,
            loaded.revision,
        )

    def load(self, device: str) -> Loaded:
        """Return the model; on the CPU it takes no memory of its own.

        Raises: `ModelError` where tensors are missing.
        """
        once = list({id(stored): stored for stored in self.tensors.values()}.values())
        data = ray.get([stored.ref for stored in once])
        read = {id(stored): stored.read(array) for stored, array in zip(once, data, strict=True)}
        named = {name: read[id(stored)] for name, stored in self.tensors.items()}
        model = filled_(self.blank, named.get).to(device)  # type: ignore[arg-type]  # a decorator hides its signature
        return Loaded(self.name, model, self.tokenizer, anatomy(model), self.fingerprint, self.revision, None)


def num_bytes(model: nn.Module) -> int:
    """Return the bytes that `Shipped` puts into the store."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in _tensors(model).values()}.values())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer under each of its names; tied ones are one object."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


class Worker:
    """Judge plans in a process of its own, on any node. `load` has to be called first."""

    def __init__(self) -> None:
        self._context_ref: ObjectRef[EvaluationContext] | None = None
        self._judge: Evaluator | None = None
        self._fitted: dict[str, Fitted] = {}

    def pid(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def load(self, shipped: Shipped, device: str, threads: int) -> None:
        """Load the model from the store. Raises: as `Shipped.load`."""
        warnings.filterwarnings("ignore", READ_ONLY)  # fitted arrays are only read
        torch.set_num_threads(threads)
        self._loaded = shipped.load(device)

    def judge(
        self,
        context: Sequence[ObjectRef[EvaluationContext]],
        plans: Sequence[Plan],
        fitted: Mapping[str, ObjectRef[Arrays]],
        examples: Sequence[int],
    ) -> list[tuple[np.ndarray, float]]:
        """Return OUTCOME rows and seconds for each of `plans`, in their order.

        Args:
            context: One reference to an `EvaluationContext`, in a list so that Ray does not fetch it each time.
            fitted: References to fitted arrays by digest; those that are here already are not fetched again.
        """
        judge = self._judge_for(context[0])
        self._fetch(fitted)
        whole = [plan.with_fitted(self._fitted) for plan in plans]
        judged = {plan: (outcomes, seconds) for plan, outcomes, seconds in judge.compute(whole, examples)}
        return [judged[plan] for plan in plans]

    def _judge_for(self, context_ref: ObjectRef[EvaluationContext]) -> Evaluator:
        if self._judge is None or context_ref != self._context_ref:
            context: EvaluationContext = ray.get(context_ref)
            before, spectra = self._judge, None
            if before is not None and before.limits.spectra == context.limits.spectra:
                spectra = before.spectra  # they are of the model, whatever the task
            before = self._judge = None  # frees its activations
            self._judge = Evaluator(
                self._loaded,
                context.task,
                context.encoded,
                limits=context.limits,
                ban=context.ban,
                spectra=spectra,
                keep_activations=True,
            )
            self._context_ref = context_ref
        return self._judge

    def _fetch(self, fitted: Mapping[str, ObjectRef[Arrays]]) -> None:
        kept = {digest: self._fitted[digest] for digest in fitted if digest in self._fitted}
        fresh = [digest for digest in fitted if digest not in kept]
        arrays = ray.get([fitted[digest] for digest in fresh])
        self._fitted = kept | {
            digest: Fitted(digest, array) for digest, array in zip(fresh, arrays, strict=True)
        }
