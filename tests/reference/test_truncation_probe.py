"""The screen's predictions against finite differences of the loss, and against parameter gradients, both taken one
example and one row at a time in float64 by code that shares nothing with the probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.zoo import FEWEST, by_layout, tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.core.plan import Truncate
from secateur.core.site import Site
from secateur.evaluation.batching import Packing
from secateur.evaluation.forward import swapped_forward
from secateur.hf.load import Loaded
from secateur.hf.matrices import Matrix
from secateur.methods.laser.readings import truncation_effects
from secateur.probes.answer_margin import Margins
from secateur.surgery.spectra import Spectra
from secateur.tasks.encode import Encoded

PACKING = Packing(2048, 2048, pad=0)
WIDE = {
    "gpt2",
    "gpt2-untied-wide",
    "opt",
    "opt-projected",
    "phi",
}  # all others compute parts in float32 (RMSNorm,
# rotary angles, the softmax of eager attention), also after `.double()`


@pytest.fixture(params=by_layout(first=FEWEST))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def some(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 96, count).tolist())


def choices(seed: int, context: int, lengths: Sequence[int], gold: int) -> Encoded:
    pairs = tuple((some(seed, context), some(seed + 1 + i, n)) for i, n in enumerate(lengths))
    return Encoded(pairs, gold, lengths)


EXAMPLES = {
    3: choices(10, 5, (1, 1, 1), 2),  # one row
    5: choices(20, 7, (1, 3, 2), 1),  # several rows, of different lengths
    8: choices(30, 18, (2, 4), 0),  # beyond a window of 16
}


# -------------------------------------------------------------------------------------------- the references


def margin(model: PreTrainedModel, encoded: Encoded, contrast: bool) -> Tensor:
    """Log-odds of the gold answer among all texts, or with `contrast` of the gold choice among the choices."""
    said = []
    for context, answer in encoded.pairs:
        logp = model(torch.tensor([[*context, *answer[:-1]]])).logits[0].log_softmax(-1)
        said.append(logp[torch.arange(len(context) - 1, len(context) + len(answer) - 1), list(answer)])
    if contrast:
        shares = torch.stack([each.sum() for each in said]).softmax(0)
        return torch.logit(shares[encoded.gold])
    return torch.logit(said[encoded.gold].sum().exp())


def removed(loaded: Loaded, edit: Truncate) -> tuple[Matrix, Tensor, Tensor]:
    """The matrix, all of it, and the part that the edit takes away, by numpy."""
    matrix = loaded.anatomy.matrix(edit.matrix)
    whole = matrix.read(loaded.model.get_parameter(matrix.weight)).clone()
    u, s, vh = np.linalg.svd(whole.numpy(), full_matrices=False)
    gone = slice(edit.rank, None) if edit.side == "top" else slice(0, len(s) - edit.rank)
    return matrix, whole, torch.from_numpy((u[:, gone] * s[gone]) @ vh[gone])


def by_differences(loaded: Loaded, edit: Truncate, contrast: bool, step: float) -> np.ndarray:
    """d margin / dε of every example, where the removed components' singular values are scaled by 1 − ε.

    Five points: the error is of fourth order in `step`."""
    matrix, whole, gone = removed(loaded, edit)
    weight, at = loaded.model.get_parameter(matrix.weight), {}
    with torch.no_grad():
        for k in (-2, -1, 1, 2):
            matrix.write_(weight, whole - k * step * gone)
            at[k] = np.array([float(margin(loaded.model, e, contrast)) for e in EXAMPLES.values()])
        matrix.write_(weight, whole)
    return (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)


def by_gradients(loaded: Loaded, edits: Sequence[Truncate], contrast: bool) -> np.ndarray:
    """−⟨removed, dM/dW⟩ of every edit and example: (edits, examples)."""
    out = np.zeros((len(edits), len(EXAMPLES)))
    loaded.model.requires_grad_(True)
    try:
        for column, encoded in enumerate(EXAMPLES.values()):
            loaded.model.zero_grad()
            margin(loaded.model, encoded, contrast).backward()
            for row, edit in enumerate(edits):
                matrix = loaded.anatomy.matrix(edit.matrix)
                gradient = matrix.read(loaded.model.get_parameter(matrix.weight).grad)
                with torch.no_grad():
                    out[row, column] = -float((removed(loaded, edit)[2] * gradient).sum())
    finally:
        loaded.model.zero_grad()
        loaded.model.requires_grad_(False)
    return out


def expected_losses(odds: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The mean of softplus(−x) over normal x whose standard deviation is the change itself, by quadrature."""
    at, weights = np.polynomial.hermite_e.hermegauss(201)
    x = (odds + change)[..., None] + np.abs(change)[..., None] * at
    return (np.logaddexp(0, -x) * weights).sum(-1) / weights.sum()


def each_predicted(loaded: Loaded, d: np.ndarray, contrast: bool) -> np.ndarray:
    """Changes of margins (edits, examples) → of losses: of the probability that belongs to each, and what the tokens of
    a text curve, which is half the square of the change of its log-likelihood."""
    with torch.no_grad():
        odds = np.array([float(margin(loaded.model, e, contrast)) for e in EXAMPLES.values()])
    tokens = np.array([1 if contrast else len(e.pairs[e.gold][1]) for e in EXAMPLES.values()])
    q = np.sqrt(1 + np.pi * d**2 / 8)
    losses = q * np.log1p(np.exp(-(odds + d) / q)) - np.log1p(np.exp(-odds))
    squares = np.where(tokens > 1, (d / (1 + np.exp(odds))) ** 2 / 2, 0)
    return (losses + squares) / tokens


def predicted(loaded: Loaded, d: np.ndarray, contrast: bool) -> np.ndarray:
    """The mean over examples: a square per example, of the sum over its rows."""
    return each_predicted(loaded, d, contrast).mean(-1)


def effects(loaded: Loaded, edits: Sequence[Truncate], examples: Sequence[int] = tuple(EXAMPLES), **changes):
    packing = replace(PACKING, switches=loaded.anatomy.switches)
    kept = {"spectra": Spectra(2**24), "packing": packing, "contrast": False}
    return truncation_effects(loaded, EXAMPLES, examples, edits, **(kept | changes))


def values(loaded: Loaded, edits: Sequence[Truncate], **changes) -> np.ndarray:
    found = effects(loaded, edits, **changes).values
    return np.array([found[str(edit)] for edit in edits])


def one_of_each(loaded: Loaded) -> list[Truncate]:
    """One edit of every matrix, at different ranks, from both sides."""
    return [
        Truncate(site, 1 + 5 * i % (min(m.shape) - 1), "tail" if i % 4 == 3 else "top")
        for i, (site, m) in enumerate(loaded.anatomy.matrices.items())
    ]


# --------------------------------------------------------------------------------------------------- against


def test_predictions_are_finite_differences(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    edits, contrast = one_of_each(loaded), name not in ("gpt2", "phi3")  # both losses at every rank below
    # wide enough for what is rounded to float32, or narrow enough for the kinks of OPT's ReLU
    step = 1e-5 if name in WIDE else 0.02
    d = np.stack([by_differences(loaded, edit, contrast, step) for edit in edits])
    found = values(loaded, edits, contrast=contrast)
    rtol, atol = (1e-4, 1e-6) if name in WIDE else (1e-3, 1e-4)
    np.testing.assert_allclose(found, predicted(loaded, d, contrast), rtol=rtol, atol=atol)
    assert np.abs(found).max() > 0.05  # nats: there was something to predict


@pytest.mark.parametrize("contrast", [False, True], ids=["gold alone", "contrast"])
def test_predictions_are_parameter_gradients_at_every_rank(name, contrast, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    last = loaded.anatomy.num_blocks - 1
    sites = [Site(0, "v"), Site(last, "k"), Site(last, "up"), Site(last, "down")]
    edits = [
        Truncate(site, rank, side)
        for site in sites
        for side in ("top", "tail")
        for rank in range(0, min(loaded.anatomy.matrix(site).shape) + 1, 4)
    ]
    expected = predicted(loaded, by_gradients(loaded, edits, contrast), contrast)
    rtol, atol = (1e-9, 1e-12) if name in WIDE else (1e-4, 1e-6)
    np.testing.assert_allclose(values(loaded, edits, contrast=contrast), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_predictions_of_matrices_of_experts_are_finite_differences_and_parameter_gradients(name, as_loaded):
    loaded = as_loaded(tiny(name, torch.float64))
    every = loaded.anatomy.of_experts
    edits = [
        Truncate(site, 1 + 3 * i % (min(m.shape) - 1), "tail" if i % 4 == 3 else "top")
        for i, (site, m) in enumerate(every.items())
    ]
    found = values(loaded, edits)
    expected = predicted(loaded, by_gradients(loaded, edits, contrast=False), contrast=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    some = np.argsort(-np.abs(found))[:4]  # by far more than none: a router sends them nothing
    d = np.stack([by_differences(loaded, edits[i], False, 0.002) for i in some])
    np.testing.assert_allclose(found[some], predicted(loaded, d, contrast=False), rtol=1e-3, atol=1e-5)
    assert np.abs(found[some]).min() > 0.01
    alone = values(
        loaded, [edits[some[0]], Truncate(Site(0, "o"), 2)]
    )  # beside one that a linear layer holds
    np.testing.assert_allclose(alone[0], found[some[0]], rtol=1e-12)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_each_example_is_squared_by_itself(as_loaded):
    """The mean of what single examples give: not the square of a mean, nor of rows."""
    loaded = as_loaded(tiny("gpt2", torch.float64))
    edits = one_of_each(loaded)
    alone = np.stack([values(loaded, edits, examples=[e]) for e in EXAMPLES])
    expected = each_predicted(loaded, by_gradients(loaded, edits, contrast=False), contrast=False)
    np.testing.assert_allclose(alone.T, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values(loaded, edits), alone.mean(0), rtol=1e-9, atol=1e-12)


def test_expected_losses_are_those_of_normal_margins():
    """The approximation against quadrature, where margins and changes are as large as they get."""
    odds, change = np.linspace(-6, 6, 25)[:, None], np.array([-4.0, -1.0, -0.2, 0.0, 0.2, 1.0, 4.0])
    for row in odds:
        one = np.array([Margins(row, np.ones(1)).expected_loss_change(np.array([c])) for c in change])
        expected = expected_losses(np.broadcast_to(row, change.shape), change) - np.logaddexp(0, -row)
        np.testing.assert_allclose(one, expected, atol=0.15)


def test_gold_alone_and_contrast_are_different_questions(as_loaded):
    loaded = as_loaded(tiny("llama", torch.float64))
    edits = one_of_each(loaded)
    assert not np.allclose(values(loaded, edits), values(loaded, edits, contrast=True), rtol=0.05)


def test_a_single_choice_has_nothing_to_lose(as_loaded):
    """Among one choice the gold one has all of the probability: contrast is 0, the log-loss is not."""
    loaded = as_loaded(tiny("llama", torch.float64))
    edits, single = one_of_each(loaded), {0: choices(40, 6, (2,), 0)}
    found = truncation_effects(
        loaded, single, [0], edits, spectra=Spectra(2**24), packing=PACKING, contrast=True
    )
    assert set(found.values.values()) == {0.0}


def test_full_rank_removes_nothing(name, as_loaded):
    loaded = as_loaded(tiny(name))
    edits = [Truncate(site, min(m.shape)) for site, m in loaded.anatomy.matrices.items()]
    assert not values(loaded, edits).any()


# ---------------------------------------------------------------------------------- what must change nothing


@pytest.mark.parametrize("contrast", [False, True], ids=["gold alone", "contrast"])
@pytest.mark.parametrize("family", ["gpt2", "phi3", "bloom", "llama"])
def test_room_for_spectra_and_batches_changes_no_value(family, contrast, as_loaded):
    loaded = as_loaded(tiny(family, torch.float64))
    edits = one_of_each(loaded)
    expected = values(loaded, edits, contrast=contrast)
    for room, packing in ((1, PACKING), (20_000, PACKING), (1, Packing(1, 1, 0)), (2**24, Packing(30, 9, 5))):
        found = values(loaded, edits, contrast=contrast, spectra=Spectra(room), packing=packing)
        np.testing.assert_allclose(found, expected, rtol=1e-9 if family in WIDE else 1e-4, atol=1e-7)


def test_float32_agrees(name, as_loaded):
    double = as_loaded(tiny(name, torch.float64))
    single = as_loaded(tiny(name))
    expected = values(double, one_of_each(double))
    np.testing.assert_allclose(values(single, one_of_each(single)), expected, rtol=1e-3, atol=1e-4)


def test_when_memory_runs_out_batches_halve_and_values_stay(as_loaded):
    loaded = as_loaded(tiny("llama", torch.float64))
    edits, refused = one_of_each(loaded), []
    expected = values(loaded, edits, contrast=True)
    module = loaded.model.get_submodule(loaded.anatomy.matrix(Site(1, "v")).module)
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if x.shape[:-1].numel() > 50:
            refused.append(x.shape)
            raise torch.OutOfMemoryError
        return own(x)

    with swapped_forward(module, forward):
        found = values(loaded, edits, contrast=True)
    assert refused
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_it_leaves_the_model_as_it_was(name, as_loaded):
    loaded = as_loaded(tiny(name))
    before, hooked = {k: v.clone() for k, v in loaded.model.state_dict().items()}, hooks(loaded.model)
    effects(loaded, one_of_each(loaded), contrast=True)
    assert hooks(loaded.model) == hooked
    assert not any("forward" in module.__dict__ for module in loaded.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in loaded.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in loaded.model.state_dict().items())


def test_it_works_within_inference_mode_of_others_and_after_a_judge_used_the_spectra(as_loaded):
    loaded = as_loaded(tiny("llama"))
    edits, spectra = one_of_each(loaded), Spectra(2**24)
    expected = values(loaded, edits)
    with torch.inference_mode():  # as when a judge asked first
        for edit in edits:
            matrix = loaded.anatomy.matrix(edit.matrix)
            spectra(matrix, loaded.model.get_parameter(matrix.weight))
    np.testing.assert_array_equal(values(loaded, edits, spectra=spectra), expected)
    with torch.no_grad():
        np.testing.assert_array_equal(values(loaded, edits), expected)


def test_readings_say_what_they_are(as_loaded):
    loaded, steps = as_loaded(tiny("opt")), []
    edits = one_of_each(loaded)
    found = effects(loaded, edits, spectra=Spectra(1), progress=lambda *said: steps.append(said))
    assert (found.unit, found.split, found.n, found.low_is_removable) == ("nats", "probe", 3, True)
    assert list(found.values) == [str(edit) for edit in edits]
    assert found.ranked()[0][1] == min(found.values.values())
    blocks = loaded.anatomy.num_blocks
    assert steps == [("screen", i + 1, blocks) for i in range(blocks)]
    assert type(found).from_json(found.to_json()) == found
