"""The surgery benchmark on a small checkpoint: what it measures is bounded by the matrices and not by the model."""

from __future__ import annotations

import pytest
from fixtures.places import BENCHMARKS

from secateur.gains.memory import STATUS

SHAPE = {  # 100 MB, of which the largest matrix has 3
    "vocab_size": 2048, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
EDITS = ["b3.gate=256", "b5.down=30", "b1.q=64", "b0.mlp.n7=drop", "b6=drop"]
PYTHON = 12 * 2**20  # of its own objects: headers, tokenizer, plan, page tables of the mapping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATUS.exists(), reason="this kernel does not tell anonymous memory"),
]


@pytest.fixture
def surgery(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import surgery

    return surgery


def test_memory_is_bounded_by_the_matrices(surgery, tmp_path):
    found = surgery.carried_out(tmp_path, SHAPE, EDITS, "30MB", 10**9)
    assert found["bytes"] > 90e6
    assert found["bound"] == 2048 * 768 * 22
    assert 2048 * 768 * 4 * 2 < found["peak"] - found["at_rest"] < found["bound"] + PYTHON
    assert found["wrong"] < 1e-3
    assert {told["svd"] for told in found["svd"]} == {"exact"}
    assert found["matrices"] == 6
    assert all(met != "NO" for *_, met in surgery.rows(found | {"bound": found["bound"] + PYTHON}))


def test_a_process_beyond_the_limit_is_killed(surgery, tmp_path):
    """So that the limit of the large run means something."""
    surgery.make(tmp_path / "model", SHAPE | {"num_hidden_layers": 4}, "30MB")
    assert surgery.in_a_process(tmp_path, EDITS[:1], "30MB", 100 * 10**6)["killed"] > 100 * 10**6
    assert not (tmp_path / "out").exists()
