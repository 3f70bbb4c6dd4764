"""What surrounds a training: precision put back, seconds over all sittings, devices, full memory and disks."""

from __future__ import annotations

import pytest
import torch
from zoo import tiny

from secateur.training.state import in_float32


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gemma3"])
def test_in_float32_gives_every_parameter_and_buffer_back(name):
    """Buffers bitwise: rotary frequencies are float32 in a bfloat16 model too."""
    model = tiny(name, torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    parameters = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    assert buffers
    with in_float32(model) as wide:
        assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for key, buffer in model.named_buffers():
        assert buffer.dtype == buffers[key].dtype, key
        assert torch.equal(buffer, buffers[key]), key
    assert all(torch.equal(p, parameters[key]) for key, p in model.named_parameters())
