"""Call models of any kind with rows of tokens or steps; find the hidden states in a call of a block and in what it
returns, whichever way its family passes them; call the router of a mixture of experts as if it had fewer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.core.acts import POSITIONS
from secateur.hf.anatomy import Anatomy
from secateur.hf.modeling_secateur import put_tensor, recount_experts
from secateur.hf.weights import parameter_or_buffer, read

Inputs: TypeAlias = Mapping[str, "Tensor | bool"]


def inputs_of(tokens: Tensor, anatomy: Anatomy) -> Inputs:
    """Return the arguments of a call of a whole model on rows of tokens.

    An encoder-decoder reads the same on both sides. A decision transformer gets steps that nobody took, always the
    same: to try its parts, and to compare two models.

    Args:
        tokens: (rows, length); of a decision transformer only the shape counts, of which three positions are a step.
    """
    acts = anatomy.acts
    if acts is None:
        both = {"decoder_input_ids": tokens} if anatomy.num_encoder else {}
        return {"input_ids": tokens, **both, "use_cache": False}
    rows, steps = tokens.shape[0], -(-tokens.shape[1] // POSITIONS)
    drawn = torch.Generator().manual_seed(0)
    action, state = torch.eye(acts.act_dim), torch.randn(rows, steps, acts.state_dim, generator=drawn)
    made = {
        "states": state,
        "actions": action[torch.randint(acts.act_dim, (rows, steps), generator=drawn)],
        "returns_to_go": torch.linspace(1, 0, steps)[None, :, None].expand(rows, -1, -1),
        "timesteps": (torch.arange(steps) % acts.most_steps).expand(rows, -1),
    }
    return played({name: tensor.to(tokens.device) for name, tensor in made.items()})


def played(steps: Mapping[str, Tensor]) -> Inputs:
    """Return the arguments of a decision transformer for rows with as many steps, or nothing after their last, so that
    the mask has nothing to hide."""
    timesteps = steps["timesteps"]
    return {**steps, "attention_mask": torch.ones_like(timesteps)}


def logits_of(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """Return the logits of a whole model, or the actions that a decision transformer predicts, as its head gives them:
    after the tanh where it ends in one."""
    wide = {
        name: value.to(model.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    output = model(**wide)
    logits: Tensor = output.action_preds if "states" in inputs else output.logits
    return logits


def entering(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    """Return the hidden states that a block is called with: its first argument, or the one of this name."""
    hidden = args[0] if args else kwargs["hidden_states"]
    assert isinstance(hidden, Tensor), type(hidden)
    return hidden


def leaving(output: object) -> Tensor:
    """Return the hidden states that a block returns: by themselves, or first in a tuple or a list."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(hidden, Tensor), type(hidden)
    return hidden


class FewerExperts:
    """A forward for a router that never chooses some experts: it computes with what it holds of the others.

    So it computes what the router of a cut model does, in whichever order its family takes softmax and the largest.
    Experts keep their numbers. Where the module's forward is one of these already, their experts go too.

    Args:
        path: The router in the model; it returns logits, weights and numbers of the chosen experts.
        rows: Its parameters and buffers that hold something of every expert, with the dimension that counts experts.
        count: Experts.
        gone: Numbers of those that are never chosen.
    """

    def __init__(
        self, model: nn.Module, path: str, rows: Mapping[str, int], count: int, gone: Collection[int]
    ) -> None:
        router = model.get_submodule(path)
        before = router.__dict__.get("forward")
        self.gone: set[int] = {*gone, *(before.gone if isinstance(before, FewerExperts) else ())}
        left = torch.tensor([number for number in range(count) if number not in self.gone])
        self._router = _copied(router)
        for name, dimension in rows.items():
            whole = parameter_or_buffer(model, f"{path}.{name}")
            if isinstance(whole, nn.Parameter):
                whole = read(model, f"{path}.{name}")
            left = left.to(whole.device)
            within, _, last = name.rpartition(".")
            put_tensor(self._router.get_submodule(within), last, whole.index_select(dimension, left))
        self._left = left
        recount_experts(self._router, count, len(left))

    def __call__(self, hidden: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and weights of the experts that are left, and numbers among all of those that are chosen.

        Args:
            biases: Further arguments, which have a number for each expert.
        """
        fewer = (bias.index_select(-1, self._left) for bias in biases)
        logits, weights, chosen = type(self._router).forward(self._router, hidden, *fewer)
        return logits, weights, self._left[chosen]


def _copied(module: nn.Module) -> nn.Module:
    """Return a module with the same tensors that can be given others; without what Accelerate hangs on it."""
    made = copy.copy(module)
    for name in ("forward", "_hf_hook", "_old_forward"):
        made.__dict__.pop(name, None)
    made._parameters, made._buffers = dict(module._parameters), dict(module._buffers)
    made._modules = {name: child and _copied(child) for name, child in module._modules.items()}
    return made
