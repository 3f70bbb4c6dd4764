"""Decision transformers against plain transformers, one row or one step at a time: what the evaluator, the cuts, the
readings and the episodes say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest
import torch
from fixtures.cuts import KINDS, drops, edits_of, factorized
from fixtures.zoo import ACTING, by_hand, variant
from torch import Tensor, nn
from transformers import DecisionTransformerModel, PreTrainedModel

from secateur.core.acts import Acts
from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.evaluation.evaluator import Evaluator, Limits
from secateur.hf.load import Loaded
from secateur.methods.depth.readings import block_similarity
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import first_order_effects
from secateur.probes.heads import head_importance
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.shape import shape_of
from secateur.tasks.encode import Encoded, encode_play
from secateur.tasks.environments import GridWorld
from secateur.tasks.example import Episode, Example, Task
from secateur.tasks.trajectories import Trajectory, example_of, windows_of

ACTS = Acts(7, 5, 40)
Wrap = Callable[[PreTrainedModel], Loaded]


@cache
def shared(name: str) -> PreTrainedModel:
    """A float64 model for tests that change nothing."""
    return ACTING[name]().double()


def play(discrete: bool) -> tuple[Example, ...]:
    """Windows of several lengths, some that begin late in their episode."""
    draw = np.random.default_rng(0)
    found = []
    for steps in (9, 1, 4, 7):
        taken = draw.integers(5, size=steps) if discrete else draw.normal(size=(steps, 5))
        found.append(Trajectory(draw.normal(size=(steps, 7)), taken, draw.random(steps)))
    return windows_of(found, 5, ACTS)


def task_of(examples: tuple[Example, ...], kind: str) -> tuple[Task, dict[int, Encoded]]:
    task = Task("laws", kind, examples, {"probe": (), "select": tuple(range(len(examples))), "test": ()})
    return task, {number: encode_play(one) for number, one in enumerate(examples)}


def inputs(example: Example) -> Mapping[str, Tensor]:
    """The arguments of plain transformers for one window by itself."""
    assert example.steps is not None
    held = {name: torch.from_numpy(array)[None] for name, array in example.steps.content.items()}
    names = ("states", "actions", "returns_to_go")
    return {name: held[name].double() for name in names} | {"timesteps": held["timesteps"]}


def losses(model: PreTrainedModel, example: Example) -> Tensor:
    """The loss of each action of a window, by plain transformers."""
    told = inputs(example)
    found = model(**told).action_preds[0]
    assert example.steps is not None
    chosen = torch.from_numpy(example.steps.content["chosen"])
    if len(chosen):
        return nn.functional.cross_entropy(found, chosen, reduction="none")
    return (found - told["actions"][0]).square().mean(dim=1)


def plans_of(loaded: Loaded) -> list[Plan]:
    every = [
        [], [Truncate(Site(0, "v"), 2), *drops("b1.attn.h1")], [Truncate(Site(1, "down"), 3)], drops("b1"),
        drops("b0.mlp.n3", "b1.attn"),
    ]  # fmt: skip
    return [Plan(loaded.fingerprint, tuple(edits)) for edits in every]


@pytest.mark.parametrize("kind", KINDS)
def test_it_cuts_what_it_masks(kind, as_loaded: Wrap):
    loaded = as_loaded(shared("decision"))
    plan = Plan(loaded.fingerprint, tuple(edits_of(kind, loaded.anatomy)))
    told = inputs(play(True)[0])
    with torch.no_grad(), masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
        expected = loaded.model(**told)
    model = cut(loaded, plan, factorize=factorized(kind))
    with torch.no_grad():
        found = model(**told)
    for name in ("action_preds", "state_preds", "return_preds"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)
    stored = sum(parameter.numel() for parameter in model.parameters())
    shape = shape_of(plan, loaded.anatomy, factorize=factorized(kind))
    assert stored == shape.num_parameters(loaded.anatomy)
    assert isinstance(model, DecisionTransformerModel)


@pytest.mark.parametrize("max_tokens", [0, 20])
@pytest.mark.parametrize(("name", "discrete"), [("decision", True), ("decision-tanh", False)])
def test_outcomes_are_those_of_plain_transformers(name, discrete, max_tokens, as_loaded: Wrap):
    loaded, examples = as_loaded(shared(name)), play(discrete)
    task, encoded = task_of(examples, "trajectories" if discrete else "continuous")
    plans = plans_of(loaded)
    judged = Evaluator(loaded, task, encoded, limits=Limits(max_tokens=max_tokens))(plans, tuple(encoded))
    for plan in plans:
        model = by_hand(loaded, plan)
        with torch.no_grad():
            expected = [losses(model, example) for example in examples]
        assert judged[plan]["loss"] == pytest.approx([float(one.mean()) for one in expected], abs=1e-10)
        assert judged[plan]["tokens"].tolist() == [len(one) for one in expected]


@pytest.mark.parametrize("discrete", [True, False])
def test_screens_and_importance_are_the_gradients_of_plain_transformers(discrete, as_loaded: Wrap):
    loaded, examples = as_loaded(shared("decision")), play(discrete)
    task, encoded = task_of(examples, "trajectories" if discrete else "continuous")
    judge = Evaluator(loaded, task, encoded)
    margin = AnswerMargin.of(loaded, encoded, tuple(encoded), False)
    plan = Plan(loaded.fingerprint, (Truncate(Site(0, "k"), 3),))
    how = {"spectra": judge.spectra, "packing": judge.packing}
    found = first_order_effects(margin, tuple(encoded), [plan], **how).changes[plan]
    model = copy.deepcopy(loaded.model)
    (operation,) = resolve(plan, loaded.anatomy, loaded.fingerprint)
    weight = model.get_parameter(operation.parameter).requires_grad_()
    taken = by_hand(loaded, plan).get_parameter(operation.parameter) - weight.detach()
    wanted, worth = [], []
    site = loaded.anatomy.module(Site(1, "o"))
    for example in examples:
        seen: list[Tensor] = []
        handle = model.get_submodule(site).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        loss = losses(model, example)
        handle.remove()
        total = -loss.sum()
        odds = total - torch.log(-torch.expm1(total))
        (slope,) = torch.autograd.grad(odds, weight, retain_graph=True)
        wanted.append(float((slope * taken).sum()))
        (at_heads,) = torch.autograd.grad(loss.mean(), seen[0])
        worth.append((seen[0] * at_heads)[0].detach().unflatten(-1, (4, -1)).sum(-1).abs())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    assert np.abs(wanted).max() > 1e-4
    heads = head_importance(loaded, encoded, tuple(encoded), packing=judge.packing).values
    expected = torch.cat(worth).mean(0).tolist()  # over all three positions of every step
    assert [heads[f"b1.attn.h{head}"] for head in range(4)] == pytest.approx(expected, rel=1e-9)


def test_blocks_are_as_similar_as_all_positions_of_the_play_say(as_loaded: Wrap):
    loaded, examples = as_loaded(shared("decision")), play(True)
    _, encoded = task_of(examples, "trajectories")
    packing = Evaluator(loaded, *task_of(examples, "trajectories")).packing
    none = Plan(loaded.fingerprint)
    found = block_similarity(loaded, encoded, tuple(encoded), [1, 2], under=none, packing=packing)
    pairs = []
    handle = loaded.model.encoder.h[1].register_forward_hook(
        lambda _, args, out: pairs.append((args[0], out))
    )
    with torch.no_grad():
        for example in examples:
            loaded.model(**inputs(example))
    handle.remove()
    cosines = torch.cat([torch.cosine_similarity(x, y, dim=-1)[0] for x, y in pairs])
    assert found[1].cosine == pytest.approx(float(cosines.mean()), abs=1e-12)


def slow_return(model: PreTrainedModel, episode: Episode) -> tuple[float, int]:
    """The return and the steps of one episode, played alone: histories as lists, the newest action unknown."""
    world = GridWorld(episode.max_steps)
    states, actions = [world.reset(episode.seed)], []
    to_go, total = [episode.target_return / episode.return_scale], 0.0
    while True:
        begin = max(0, len(states) - episode.context)
        shown = torch.tensor(np.array([*actions[begin:], np.zeros(4)]))[None]
        with torch.no_grad():
            preferred = model(
                states=torch.tensor(np.array(states[begin:])).double()[None],
                actions=shown,
                returns_to_go=torch.tensor(to_go[begin:]).double()[None, :, None],
                timesteps=torch.arange(begin, len(states))[None],
            ).action_preds[0, -1]
        state, reward, done = world.step(int(preferred.argmax()))
        actions.append(np.eye(4)[int(preferred.argmax())])
        total += reward
        if done:
            return total, len(actions)
        states.append(state)
        to_go.append((episode.target_return - total) / episode.return_scale)


def test_episodes_are_what_a_slow_loop_plays(as_loaded: Wrap):
    """All at once, in parts, and each alone; of the model as it is, and under a plan."""
    sizes = GridWorld().space
    loaded = as_loaded(variant("decision", state_dim=sizes.state_dim, act_dim=sizes.act_dim).double())
    episodes = [Episode("builtin:gridworld", seed, 0.9, 0.05, 9, 4, 2.0) for seed in range(12)]
    task, encoded = task_of(tuple(map(example_of, episodes)), "episodes")
    plans = [Plan(loaded.fingerprint), Plan(loaded.fingerprint, tuple(drops("b1.attn.h1", "b2.mlp.n3")))]
    judge = Evaluator(loaded, task, encoded, limits=Limits(max_tokens=30))
    judged = judge(plans, tuple(encoded))
    for plan in plans:
        model = by_hand(loaded, plan)
        expected = [slow_return(model, episode) for episode in episodes]
        assert (-judged[plan]["loss"]).tolist() == pytest.approx([total for total, _ in expected])
        assert judged[plan]["tokens"].tolist() == [steps for _, steps in expected]
        assert judged[plan]["correct"].tolist() == [float(total >= 0.05) for total, _ in expected]
    assert not np.array_equal(judged[plans[0]]["tokens"], judged[plans[1]]["tokens"])
    alone = Evaluator(loaded, task, encoded)([plans[0]], (3,))[plans[0]]
    assert alone[0]["tokens"] == judged[plans[0]][3]["tokens"]
