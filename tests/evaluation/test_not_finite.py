"""Models whose weights are finite and whose answers are not: refused before any search, with what to try."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.folders import questions, save_model, secateur, write_rows
from fixtures.zoo import tiny
from safetensors.torch import load_file, save_file

from secateur.checkpoint.stream import shards_of, write_shard
from secateur.core.plan import Plan
from secateur.core.score import METRICS, OUTCOME
from secateur.errors import ModelError, OutputError
from secateur.search.race import Objective, Rules, race

LATE = 88  # a token whose embedding is so large that float16 overflows


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """Whole models, and copies that are broken in ways of their own."""
    place = tmp_path_factory.mktemp("broken")
    save_model(place / "whole", tiny("llama"), words)
    assert secateur("apply", place / "whole", "--edit", "b1=drop", "-o", place / "cut").exit_code == 0
    for name in ("whole", "cut"):
        shutil.copytree(place / name, place / f"{name}-config")
        config = json.loads((place / name / "config.json").read_text())
        (place / f"{name}-config/config.json").write_text(json.dumps(config | {"rms_norm_eps": float("nan")}))
    model = tiny("llama")
    for block in model.model.layers:  # 8 · 15,000 · 0.15 · √40 is above 65,504
        block.mlp.up_proj.weight.mul_(8)
        block.mlp.down_proj.weight.fill_(15_000)
    save_model(place / "fp16", model.to(torch.float16), words)
    late = tiny("llama")
    late.model.embed_tokens.weight[LATE] = 60_000.0
    late.model.layers[0].mlp.down_proj.weight.fill_(9_000)
    save_model(place / "late", late.to(torch.float16), words)
    write_rows(place / "q.jsonl", questions())
    texts = [" ".join(f"w{3 + (n * n + k) % 83}" for n in range(20)) + f" w{3 + k // 83}" for k in range(260)]
    write_rows(place / "t.jsonl", [{"id": str(k), "text": text} for k, text in enumerate(texts)])
    return place


def refused(place, *typed, says):
    before = sorted(place.rglob("*"))
    told = secateur(*typed)
    assert told.exit_code == 2, (typed, told.stdout, told.stderr, told.exception)
    assert told.stdout == ""
    for piece in says:
        assert piece in told.stderr, told.stderr
    assert sorted(place.rglob("*")) == before


METHODS = {
    "laser": ["--layers", "1", "--matrices", "down"],
    "heads": ["--method", "heads", "--target", "50%", "--random-orders", "0"],
    "ffns": ["--method", "ffns"],
    "components": ["--method", "components"],
    "directions": ["--method", "directions", "--layers", "1", "--matrices", "v"],
    "depth": ["--method", "depth", "--blocks", "1"],
}
RUNNING = {
    **{name: ["prune", "MODEL", "--task", "TASK", "-o", "OUT", *more] for name, more in METHODS.items()},
    "eval": ["eval", "MODEL", "--task", "TASK"],
    "finetune": ["finetune", "MODEL", "--task", "TASK", "-o", "OUT"],
    "plan-cost": ["plan-cost", "MODEL", "--task", "TASK"],
    **{f"probe {what}": ["probe", "MODEL", "--task", "TASK", "--what", what]
       for what in ("spectrum", "directions", "curves", "heads", "ffns", "neurons", "linearity")},
    "probe induction": ["probe", "MODEL", "--what", "induction"],
    "bench": ["bench", "MODEL", "--against", "whole"],
    "bench against": ["bench", "whole", "--against", "MODEL"],
}  # fmt: skip


@pytest.mark.parametrize("task", ["q.jsonl", "text:t.jsonl"])
@pytest.mark.parametrize("verb", RUNNING)
def test_a_config_that_is_not_of_the_weights(verb, task, place, monkeypatch):
    monkeypatch.chdir(place)
    names = {"MODEL": "whole-config", "TASK": task, "OUT": "out"}
    typed = [names.get(word, word) for word in RUNNING[verb]]
    refused(
        place, *typed, says=["whole-config does not compute: in float32", "NaN or infinite", "config.json"]
    )


def test_heal_and_apply_run_the_model_too(place, monkeypatch):
    monkeypatch.chdir(place)
    heal = ["heal", "cut-config", "--task", "q.jsonl", "-o", "out"]
    refused(place, *heal, says=["cut-config does not compute"])
    refused(
        place, "heal", "cut", "--teacher", "whole-config", "--task", "q.jsonl", "-o", "out",
        says=["whole-config does not compute"],
    )  # fmt: skip
    refused(place, "apply", "whole-config", "--edit", "b1.down=3", "-o", "out", says=["does not compute"])


@pytest.mark.parametrize("verb", ["laser", "eval", "finetune", "probe heads"])
def test_float16_that_is_too_narrow(verb, place, monkeypatch):
    monkeypatch.chdir(place)
    typed = [{"MODEL": "fp16", "TASK": "q.jsonl", "OUT": "out"}.get(word, word) for word in RUNNING[verb]]
    refused(place, *typed, says=["in float16", "try --dtype bfloat16 or float32"])
    done = secateur("eval", "fp16", "--task", "q.jsonl", "--dtype", "float32")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("verb", ["laser", "eval", "directions"])
def test_an_example_that_comes_late(verb, place, monkeypatch):
    """The first ones are fine; where the original has no number for an example, nothing can be compared."""
    monkeypatch.chdir(place)
    rows = questions()
    for row in rows[4::5]:
        row["prompt"] = f"w{LATE} {row['prompt']}"
    write_rows(place / "late.jsonl", rows)
    (place / "out.run").mkdir(exist_ok=True)
    typed = [{"MODEL": "late", "TASK": "late.jsonl", "OUT": "out"}.get(word, word) for word in RUNNING[verb]]
    told = secateur(*typed)
    assert told.exit_code == 2, (told.stdout, told.exception)
    assert "NaN or infinite" in told.stderr
    assert "try --dtype bfloat16 or float32" in told.stderr
    shutil.rmtree(place / "out.run", ignore_errors=True)


# ------------------------------------------------------------------------------------------------ searches among NaN


def test_a_plan_without_numbers_never_wins_a_race():
    """A cut may overflow where the original does not; wherever it stands, and with every metric."""
    plans = [Plan("m"), *(Plan(f"m{n}") for n in range(3))]
    good, bad = np.zeros(40, OUTCOME), np.zeros(40, OUTCOME)
    good["example"] = bad["example"] = np.arange(40)
    good["loss"], good["tokens"], bad["tokens"] = 1.0, 1, 1
    bad["loss"] = bad["correct"] = np.nan
    for place in range(4):
        for metric in ("loss", "text_loss", "accuracy"):
            for z in (3.0, np.inf):
                seen = {plan: good if n == place else bad for n, plan in enumerate(plans)}
                found = race(
                    plans, range(40), lambda asked, examples, stage, seen=seen: {
                        plan: seen[plan][: len(examples)] for plan in asked
                    }, Objective(METRICS[metric]), Rules(z=z),
                )  # fmt: skip
                assert found.winner == plans[place], (place, metric, z)


def test_a_race_of_plans_without_numbers_ends():
    bad = np.zeros(100, OUTCOME)
    bad["loss"], bad["example"] = np.nan, np.arange(100)
    plans = [Plan("a"), Plan("b")]
    found = race(plans, range(100), lambda asked, examples, stage: dict.fromkeys(asked, bad[: len(examples)]),
                 Objective(METRICS["loss"]))  # fmt: skip
    assert found.winner in plans


# ------------------------------------------------------------------------------------------------ streamed tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("check", ["digests", "logits"])
def test_apply_refuses_tensors_that_are_not_finite(value, check, place, tmp_path):
    """Also one that is only copied."""
    model = shutil.copytree(place / "whole", tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][2, 3] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    told = secateur("apply", model, "--edit", "b1.down=3", "--check", check, "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "up_proj.weight holds NaN or infinity" in told.stderr
    assert not (tmp_path / "out").exists()


def test_a_weight_that_overflows_in_the_precision_asked_for(place, tmp_path, words):
    model = tiny("llama")
    model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e5
    save_model(tmp_path / "m", model, words)
    told = secateur(
        "apply", tmp_path / "m", "--edit", "b0.down=3", "--dtype", "float16", "-o", tmp_path / "out"
    )
    assert told.exit_code == 2
    assert "down_proj.weight holds NaN or infinity" in told.stderr
    assert "try --dtype bfloat16" in told.stderr


def test_what_is_computed_while_it_is_written_is_looked_at(tmp_path):
    """A fold may overflow where nothing that was read did."""
    model = tiny("llama")
    (shard,) = shards_of(model, 10**9)
    held = dict(model.state_dict())
    name = "model.layers.1.mlp.down_proj.weight"
    for value in (float("nan"), float("inf")):
        broken = held | {name: held[name].clone().fill_(value)}
        with pytest.raises(OutputError, match=f"{name} of the cut model would hold NaN"):
            write_shard(shard, broken.get, tmp_path, lambda _: None)
        assert not list(tmp_path.glob("*.safetensors"))


def test_readings_have_an_order():
    from secateur.core.readings import Readings

    how = {
        "what": "importance",
        "unit": "nats",
        "split": "probe",
        "n": 1,
        "low_is_removable": True,
        "source": "",
    }
    with pytest.raises(
        ModelError, match=r"1 of 2 readings are NaN or infinite, the first that of b1\.attn\.h0"
    ):
        Readings(**how, values={"b0.attn.h0": 1.0, "b1.attn.h0": float("nan")})
