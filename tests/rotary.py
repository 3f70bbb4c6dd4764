"""Models whose rotary positions are not the usual ones, as transformers 5 and as transformers 4 have them stated."""

from __future__ import annotations

from typing import Any

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
LINEAR, DYNAMIC = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
LONG = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16} | FACTORS


def rope(**parameters: Any) -> dict[str, Any]:
    """For `zoo.variant`."""
    return {"rope_parameters": {"rope_theta": 5e5} | parameters}


ROTARY = {  # a model of the zoo with other positions, and what transformers 4 must find in its config.json
    "base": ("llama", rope(rope_type="default"), {"rope_theta": 5e5}),
    "linear": ("qwen2", rope(**LINEAR), {"rope_theta": 5e5, "rope_scaling": LINEAR}),
    "dynamic": ("falcon-40b", rope(**DYNAMIC), {"rope_theta": 5e5, "rope_scaling": DYNAMIC}),
    "llama3": ("llama", rope(**LLAMA3), {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "yarn": ("qwen3", rope(**YARN), {"rope_theta": 5e5, "rope_scaling": YARN}),
    "longrope": (
        "llama",
        rope(**LONG),
        {"rope_theta": 5e5, "rope_scaling": LONG, "original_max_position_embeddings": 16},
    ),
    "phi3 longrope": (
        "phi3",
        {"original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope"} | FACTORS},
        {"rope_theta": 1e4, "rope_scaling": {"type": "longrope"} | FACTORS, "original_max_position_embeddings": 16},
    ),
    "phi3 partial": ("phi3", {"partial_rotary_factor": 0.5}, {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "phi whole": ("phi", {"partial_rotary_factor": 1.0}, {"rope_theta": 1e4, "partial_rotary_factor": 1.0}),
    "gpt-neox": ("gpt-neox", {"rotary_emb_base": 5e5, "rotary_pct": 1.0}, {"rotary_emb_base": 5e5, "rotary_pct": 1.0}),
    "gpt-neox linear": (
        "gpt-neox",
        {"rope_scaling": LINEAR},
        {"rotary_emb_base": 10000, "rotary_pct": 0.5, "rope_scaling": LINEAR},
    ),
    "gemma3": (
        "gemma3",
        {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "rope_scaling": LINEAR, "num_hidden_layers": 7},
        {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "rope_scaling": LINEAR},
    ),
}  # fmt: skip
