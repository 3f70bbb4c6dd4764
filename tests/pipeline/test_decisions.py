"""Decision transformers from folders: pruned on logged play and on episodes, judged, written, and read again by plain
transformers; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.folders import refused, save_model, secateur, write_rows
from fixtures.zoo import tiny, variant
from transformers import AutoModel, PreTrainedTokenizerFast, dynamic_module_utils

import secateur as api
from secateur.hf.load import load_model
from secateur.result import Result
from secateur.surgery.mask import masked
from secateur.surgery.operations import resolve
from secateur.tasks.environments import GridWorld, expert
from secateur.tasks.trajectories import Trajectory, noisy_play

EPISODES = {
    "environment": "builtin:gridworld",
    "seeds": {"first": 0, "count": 24},
    "target_return": 0.9,
    "success_return": 0.05,
    "max_steps": 6,
    "context": 3,
    "trajectories": "play.jsonl",
}


def line(one: Trajectory) -> dict[str, Any]:
    return {name: array.tolist() for name, array in vars(one).items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Path:
    place, sizes = tmp_path_factory.mktemp("decisions"), GridWorld().space
    model = variant("decision", state_dim=sizes.state_dim, act_dim=sizes.act_dim)
    model.save_pretrained(place / "model")
    variant("decision-tanh").save_pretrained(place / "continuous")
    save_model(place / "llama", tiny("llama"), words)
    write_rows(place / "play.jsonl", [line(noisy_play(seed, 0.2)) for seed in range(500, 512)])
    (place / "episodes.json").write_text(json.dumps(EPISODES))
    draw = np.random.default_rng(0)
    controls = [
        Trajectory(draw.normal(size=(6, 7)), draw.normal(size=(6, 5)), draw.random(6)) for _ in range(24)
    ]
    write_rows(place / "controls.jsonl", [line(one) for one in controls])
    return place


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of checkpoints goes into a folder of its own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def same_actions(place: Path, name: str, result: Result, **how: Any) -> str:
    """The class that plain transformers reads, which predicts what the original does with the plan's mask."""
    loaded = load_model(str(place / name), device="cpu")
    model = AutoModel.from_pretrained(result.out, **how)
    config, draw = model.config, torch.Generator().manual_seed(1)
    told = {
        "states": torch.randn(2, 6, config.state_dim, generator=draw),
        "actions": torch.randn(2, 6, config.act_dim, generator=draw),
        "returns_to_go": torch.randn(2, 6, 1, generator=draw),
        "timesteps": torch.arange(6).expand(2, -1),
    }
    with torch.no_grad(), masked(loaded.model, resolve(result.plan, loaded.anatomy, loaded.fingerprint)):
        expected, found = loaded.model(**told), model(**told)
    for head in ("action_preds", "state_preds"):
        torch.testing.assert_close(found[head], expected[head], rtol=1e-4, atol=1e-5)
    return type(model).__name__


def prune(place: Path, task: str, out: Path, name: str = "model", **options: Any) -> Result:
    how: dict[str, Any] = {"allow_small": True, "device": "cpu", "seqlen": 9} | options
    return api.prune(str(place / name), task, out, **how)


def test_laser_on_episodes_from_folder_to_folder(place, tmp_path):
    options = {"matrices": ("down",), "layers": (0, 1), "small_ranks": (0, 3), "fractions": (0.5,)}
    result = prune(place, f"episodes:{place / 'episodes.json'}", tmp_path / "out", method="laser", **options)
    assert same_actions(place, "model", result) == "DecisionTransformerModel"
    verdict = json.loads((tmp_path / "out/verdict.json").read_text())
    assert (verdict["metric"], verdict["unit"], verdict["n"]) == ("return", "reward", 13)
    assert [one["metric"] for one in verdict["secondary"]] == ["success"]
    (side,) = verdict["side_effects"]
    assert (side["name"], side["higher_is_better"]) == ("action loss on logged play", False)
    assert verdict["gains"]["kv_bytes_per_token"] is None
    places = {one["place"]: one for one in verdict["loads"]["where"]}
    assert places["transformers"]["how"] == "AutoModel.from_pretrained(FOLDER)"
    assert not places["vLLM"]["loads"]
    assert "pipeline_tag: reinforcement-learning" in (tmp_path / "out/README.md").read_text()
    told = secateur(
        "eval", place / "model", "--task", f"episodes:{place / 'episodes.json'}", "--split", "test",
        "--ledger", tmp_path / "ledger", "--allow-small", "--json",
    )  # fmt: skip
    assert told.exit_code == 0, told.stderr
    scores = {one["metric"]: one["value"] for one in json.loads(told.stdout)["scores"]}
    assert scores["return"] == pytest.approx(verdict["before"]["value"])
    assert set(scores) == {"return", "success"}


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("heads", "model", "trajectories:play.jsonl", {"step": 0.5, "random_orders": 0, "params": 0.95}),
    ("depth", "model", "episodes:episodes.json", {"blocks": 1, "form": "linear"}),
    ("laser", "continuous", "trajectories:controls.jsonl", {"matrices": ("up",), "keep_unproven": True}),
    ("depth", "model", "trajectories:play.jsonl", {"blocks": 1, "form": "fold", "by": "linearity"}),
    ("ffns", "model", "episodes:episodes.json", {"random_orders": 0, "max_loss": 0.9}),
    (
        "components",
        "continuous",
        "trajectories:controls.jsonl",
        {"step": 0.5, "random_orders": 0, "params": 0.9},
    ),
    ("attention", "model", "episodes:episodes.json", {"attentions": 1}),
    (
        "directions",
        "model",
        "trajectories:play.jsonl",
        {"matrices": ("down",), "layers": (0, 1), "max_loss": 0.9},
    ),
    ("budget", "model", "trajectories:play.jsonl", {"params": 0.8}),
]
MARKED = [
    pytest.param(
        *case, marks=[] if at < 3 else [pytest.mark.slow], id=f"{case[0]}-{case[2].split(':')[0]}-{at}"
    )
    for at, case in enumerate(CASES)
]


@pytest.mark.parametrize(("method", "name", "task", "options"), MARKED)
def test_every_method_cuts_it(method, name, task, options, place, tmp_path, modules):
    prefix, _, file = task.partition(":")
    result = prune(place, f"{prefix}:{place / file}", tmp_path / "out", name, method=method, **options)
    assert result.plan.edits
    same_actions(place, name, result, trust_remote_code=True)


def test_apply_carves_what_no_config_states(place, tmp_path, modules):
    sites = ("b0.attn.h1=drop", "b1.attn=drop", "b0.mlp.n3=drop", "b2=drop")
    result = api.apply(str(place / "model"), sites, tmp_path / "out", device="cpu")
    assert same_actions(place, "model", result, trust_remote_code=True) == "SecateurForCausalLM"
    again = load_model(str(result.out), device="cpu").anatomy
    assert ([width.num_heads for width in again.widths], again.acts is None) == ([3, 0], False)
    config = json.loads((result.out / "config.json").read_text())
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModel"}
    twice = api.apply(str(result.out), ("b0.mlp.n7=drop",), tmp_path / "twice", device="cpu")
    assert load_model(str(twice.out), device="cpu").anatomy.num_blocks == 2


def test_play_is_the_same_in_both_containers(place, tmp_path):
    rows = [noisy_play(seed, 0.2) for seed in range(500, 512)]
    arrays = {name: np.concatenate([vars(one)[name] for one in rows]) for name in vars(rows[0])}
    np.savez(tmp_path / "play.npz", lengths=np.array([len(one.states) for one in rows]), **arrays)
    found = [
        api.evaluate(str(place / "model"), f"trajectories:{file}", allow_small=True, device="cpu", seqlen=9)
        for file in (place / "play.jsonl", tmp_path / "play.npz")
    ]
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["scores"][0]["metric"] == "action_loss"


def test_the_expert_wins_in_the_fewest_steps():
    for seed in range(20):
        world, total, steps = GridWorld(), 0.0, 0
        world.reset(seed)
        done = False
        while not done:
            _, reward, done = world.step(expert(world))
            total, steps = total + reward, steps + 1
        assert total == pytest.approx(1 - 0.9 * steps / 40)
    assert np.array_equal(GridWorld().reset(3), GridWorld().reset(3))


def test_the_forecast_needs_no_weights(place, tmp_path):
    (tmp_path / "config.json").write_bytes((place / "model/config.json").read_bytes())
    words = ["--task", f"episodes:{place / 'episodes.json'}", "--allow-small", "--no-calibrate", "--json"]
    told = secateur("plan-cost", tmp_path, *words)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["stages"]


def test_files_that_do_not_fit_are_refused_in_a_line(place, tmp_path):
    good = line(noisy_play(1, 0.0))
    for change, piece in (
        (
            {"actions": [9] * len(good["actions"])},
            "it takes action 9 (counted from 0), and the model's act_dim is 4",
        ),
        ({"actions": [-1] * len(good["actions"])}, "an action is negative"),
        ({"actions": [[0.5] * 4] * len(good["actions"])}, "others have another kind of action"),
        (
            {"states": [[1.0]] * len(good["states"])},
            "a state has 1 numbers, and the model's state_dim is 103",
        ),
        ({"states": [[1.0], [1.0, 2.0]]}, "have different sizes"),
        ({"rewards": [0.0]}, "each step has one of each"),
        ({"rewards": [float("nan")] * len(good["rewards"])}, "NaN"),
        (
            {"actions": ["left"] * len(good["actions"])},
            "actions are neither whole numbers nor lists of numbers",
        ),
        ({"states": "none"}, "'states' is text, and a list is wanted"),
    ):
        task = write_rows(tmp_path / "rows.jsonl", [good, good | change])
        told = secateur("eval", place / "model", "--task", f"trajectories:{task}", "--allow-small")
        refused(told, "line 2" if "others" not in piece else "line", piece)
    np.savez(tmp_path / "objects.npz", states=np.array([{}], dtype=object))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    for file, piece in (
        ("objects.npz", "no array 'actions'"),
        ("torn.npz", "cannot be read as .npz"),
        ("no.npz", "no"),
    ):
        refused(secateur("eval", place / "model", "--task", f"trajectories:{tmp_path / file}"), piece)
    np.savez(
        tmp_path / "objects.npz", **dict.fromkeys(("states", "actions", "rewards", "lengths"), np.array([{}]))
    )
    told = secateur("eval", place / "model", "--task", f"trajectories:{tmp_path / 'objects.npz'}")
    refused(told, "cannot be read as .npz without pickles")
    shutil.copy(place / "play.jsonl", tmp_path)
    for change, piece in (
        ({"seeds": []}, "'seeds' are neither whole numbers"),
        ({"seeds": [1, -1]}, "'seeds' are neither whole numbers"),
        ({"seeds": {"first": 1, "count": 0}}, "'seeds' are neither whole numbers"),
        ({"seeds": None}, "'seeds' are neither whole numbers"),
        ({"environment": "builtin:maze"}, "there is no environment 'builtin:maze'"),
        ({"max_steps": 99}, "is played for 99 steps, and the model's max_ep_len is 40"),
        ({"trajectories": "none.jsonl"}, "none.jsonl"),
        ({"target": 1.0}, "'target'"),
    ):
        (tmp_path / "e.json").write_text(json.dumps(EPISODES | change))
        refused(
            secateur("eval", place / "model", "--task", f"episodes:{tmp_path / 'e.json'}", "--allow-small"),
            piece,
        )
    without = {key: value for key, value in EPISODES.items() if key not in ("seeds", "trajectories")}
    (tmp_path / "e.json").write_text(json.dumps(without))
    refused(
        secateur("eval", place / "model", "--task", f"episodes:{tmp_path / 'e.json'}"), "'seeds' is missing"
    )
    (tmp_path / "e.json").write_text(json.dumps(without | {"seeds": list(range(300))}))
    told = secateur(
        "prune", place / "model", "--task", f"episodes:{tmp_path / 'e.json'}", "-o", tmp_path / "out"
    )
    refused(told, "gradients are of logged play")
    environment = EPISODES | {"environment": "CartPole-v1", "trajectories": None}
    (tmp_path / "e.json").write_text(json.dumps(environment))
    told = secateur("eval", place / "model", "--task", f"episodes:{tmp_path / 'e.json'}", "--allow-small")
    assert (
        'pip install "secateur[rl]"' in told.stderr or "CartPole-v1 has 4 numbers in a state" in told.stderr
    )


def test_what_is_not_for_it_is_refused_in_a_line(place, tmp_path):
    model, task = place / "model", ["--task", f"trajectories:{place / 'play.jsonl'}", "--allow-small"]
    out = ["-o", tmp_path / "out"]
    for words, piece in (
        (["eval", model, "--task", f"text:{place / 'play.jsonl'}"], "is no play"),
        (["eval", model, "--task", "builtin:facts"], "is no play"),
        (["eval", place / "llama", *task], "is for a decision transformer, and the model reads text"),
        (["eval", place / "llama", "--task", "builtin:gridworld"], "is for a decision transformer"),
        (
            ["eval", place / "continuous", "--task", "builtin:gridworld"],
            "its act_dim 5: they do not belong together",
        ),
        (["eval", model, *task, "--chat"], "--chat is for models of text"),
        (["eval", model, *task, "--shots", 2], "--shots is for models of text"),
        (["bench", model, "--against", model], "timing of prompts"),
        (["chat", model, "--prompt", "Hello", "--json"], "chat is not for"),
        (["finetune", model, *task, *out], "finetune"),
        (["export", model, "--gguf", *out], "without the head of a decision transformer"),
        (["prune", model, *task, *out, "--objective", "accuracy"], "does not exist for a trajectories task"),
        (["prune", model, *task, *out, "--kv-bytes", 0.5], "--kv-bytes"),
        (["probe", model, *task[:2], "--what", "linearity"], "linearity is read of models of text"),
    ):
        refused(secateur(*words), piece)
    assert not (tmp_path / "out").exists()
