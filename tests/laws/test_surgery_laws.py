"""What must hold whenever a model is cut: mask ≡ cut to the bit, whole again to the bit, nothing else moved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from fixtures.zoo import ZOO, tiny, written_
from torch import Tensor, nn

from secateur.core.plan import Plan, Truncate
from secateur.core.site import Site
from secateur.errors import PlanError, UnknownName
from secateur.hf.anatomy import Anatomy, anatomy
from secateur.hf.matrices import Matrix
from secateur.linalg.spectrum import Spectrum, spectrum
from secateur.surgery.mask import masked
from secateur.surgery.operations import ReplaceWeight, decompose, resolve
from secateur.surgery.spectra import Spectra

MODEL = "fingerprint"
TOKENS = torch.tensor([[5, 17, 40, 3, 88, 61, 23, 9, 71, 34], [90, 4, 4, 55, 12, 7, 66, 31, 8, 20]])


@pytest.fixture(params=sorted(ZOO))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def operations(parts: Anatomy, *edits: Truncate) -> tuple[ReplaceWeight, ...]:
    return resolve(Plan(MODEL, edits), parts, MODEL)


def everything(parts: Anatomy) -> list[Truncate]:
    """One edit of every matrix, of different ranks and from both sides."""
    return [
        Truncate(site, 1 + 5 * i % min(m.shape), "tail" if i % 3 == 1 else "top")
        for i, (site, m) in enumerate(parts.matrices.items())
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_bitwise(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [key for key in found if not torch.equal(found[key], expected[key])]
    assert not differing


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def read(model: nn.Module, matrix: Matrix) -> Tensor:
    return matrix.read(model.get_parameter(matrix.weight)).clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_is_cut_and_leaves_no_trace(name, dtype):
    model = tiny(name, dtype)
    parts, before, whole = anatomy(model), state(model), logits(model)
    planned = operations(parts, *everything(parts))
    cut = copy.deepcopy(model)
    written_(cut, planned)
    for how in (decompose, Spectra(2**20), Spectra(1)):
        for _ in range(2):  # the second time from spectra that are kept
            with masked(model, planned, how):
                assert_bitwise(state(model), state(cut))
                assert torch.equal(logits(model), logits(cut))
            assert_bitwise(state(model), before)
    assert torch.equal(logits(model), whole)
    assert not torch.equal(logits(cut), whole)


def test_mask_restores_after_an_exception_inside(name):
    model = tiny(name)
    parts, before = anatomy(model), state(model)
    with pytest.raises(KeyboardInterrupt), masked(model, operations(parts, *everything(parts))):
        raise KeyboardInterrupt
    assert_bitwise(state(model), before)


def test_mask_restores_when_a_later_operation_fails():
    model = tiny("phi3")
    parts, before = anatomy(model), state(model)
    seen: list[Matrix] = []

    def breaks(matrix: Matrix, weight: Tensor) -> Spectrum:
        seen.append(matrix)
        if len(seen) == 4:
            raise torch.OutOfMemoryError
        return decompose(matrix, weight)

    with (
        pytest.raises(torch.OutOfMemoryError),
        masked(model, operations(parts, *everything(parts)), breaks),
    ):
        pytest.fail("the mask was on")
    assert len(seen) == 4
    assert_bitwise(state(model), before)


def test_masks_within_masks_unwind():
    model = tiny("gpt2")
    parts, before = anatomy(model), state(model)
    q, k = Truncate(Site(0, "q"), 2), Truncate(Site(0, "k"), 2)
    both = copy.deepcopy(model)
    written_(both, operations(parts, q, k))
    with masked(model, operations(parts, q)):
        inside = state(model)
        with masked(model, operations(parts, k)):
            assert_bitwise(state(model), state(both))
        assert_bitwise(state(model), inside)
    assert_bitwise(state(model), before)


def test_the_empty_plan_changes_no_bit(name):
    model = tiny(name)
    before, whole = state(model), logits(model)
    nothing = resolve(Plan(MODEL), anatomy(model), MODEL)
    with masked(model, nothing):
        assert torch.equal(logits(model), whole)
    written_(model, nothing)
    assert_bitwise(state(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_rank_is_the_original_to_rounding(name, dtype):
    model = tiny(name, dtype)
    parts, before, whole = anatomy(model), state(model), logits(model)
    written_(model, operations(parts, *(Truncate(s, min(m.shape)) for s, m in parts.matrices.items())))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=tolerance)
    error = (logits(model) - whole).norm() / whole.norm()
    assert error < (1e-4 if dtype == torch.float32 else 1e-10)


def test_rank_0_is_zero_and_the_whole_tail_is_everything(name):
    model = tiny(name, torch.float64)
    parts = anatomy(model)
    for site, matrix in parts.matrices.items():
        original = read(model, matrix)
        for side in ("top", "tail"):
            with masked(model, operations(parts, Truncate(site, 0, side))):
                assert not read(model, matrix).any()
        with masked(model, operations(parts, Truncate(site, min(matrix.shape), "tail"))):
            torch.testing.assert_close(read(model, matrix), original, rtol=0, atol=1e-13)


def test_truncation_is_that_of_numpy_and_what_is_cut_off_is_the_other_side(name):
    model = tiny(name, torch.float64)
    parts = anatomy(model)
    for number, (site, matrix) in enumerate(parts.matrices.items()):
        original, full = read(model, matrix), min(matrix.shape)
        rank = 1 + 7 * number % (full - 1)
        u, s, vh = np.linalg.svd(original.numpy(), full_matrices=False)
        with masked(model, operations(parts, Truncate(site, rank))):
            top = read(model, matrix)
        with masked(model, operations(parts, Truncate(site, full - rank, "tail"))):
            tail = read(model, matrix)
        expected = torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank])
        torch.testing.assert_close(top, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(top + tail, original, rtol=0, atol=1e-13)


def test_a_truncated_matrix_leaves_its_neighbors_to_the_bit(name):
    """Fused q, k, v and gate, up: the others' rows of the same parameter do not move, nor does any other."""
    model = tiny(name)
    parts, before = anatomy(model), state(model)
    for site, matrix in parts.matrices.items():
        with masked(model, operations(parts, Truncate(site, 1))):
            now = state(model)
            expected = before | {matrix.weight: now[matrix.weight]}
            assert_bitwise(now, expected)
            assert not torch.equal(now[matrix.weight], before[matrix.weight])
            for other in parts.matrices.values():
                if other is not matrix:
                    assert torch.equal(other.read(now[other.weight]), other.read(before[other.weight])), site


def test_fused_matrices_cut_together_are_each_cut_alone(name):
    """No operation sees what another one of the same plan has written."""
    model = tiny(name)
    parts = anatomy(model)
    edits = everything(parts)
    alone = {}
    for edit in edits:
        with masked(model, operations(parts, edit)):
            alone[edit] = read(model, parts.matrix(edit.matrix))
    with masked(model, operations(parts, *edits)):
        for edit in edits:
            assert torch.equal(read(model, parts.matrix(edit.matrix)), alone[edit]), str(edit)


def test_plans_that_do_not_fit_are_refused_before_anything_is_touched(name):
    parts = anatomy(tiny(name))
    with pytest.raises(PlanError, match="fingerprint other"):
        resolve(Plan("other"), parts, MODEL)
    site, matrix = next(iter(parts.matrices.items()))
    with pytest.raises(PlanError, match=rf"{site}.*rank is at most {min(matrix.shape)}"):
        operations(parts, Truncate(site, min(matrix.shape) + 1))
    with pytest.raises(UnknownName, match=r"no matrix b9\.q"):
        operations(parts, Truncate(Site(9, "q"), 1))


def test_operations_come_lowest_block_first():
    parts = anatomy(tiny("llama-tied-biased"))
    planned = operations(parts, *reversed(everything(parts)))
    assert [op.matrix.site.block for op in planned] == sorted(site.block for site in parts.matrices)


def counting(calls: list[Site]) -> Callable[[Tensor], Spectrum]:
    def count(matrix: Tensor) -> Spectrum:
        calls.append(tuple(matrix.shape))
        return spectrum(matrix)

    return count


def test_spectra_decompose_each_matrix_once_while_there_is_room(monkeypatch):
    model = tiny("llama")
    parts, calls = anatomy(model), []
    monkeypatch.setattr("secateur.surgery.operations.spectrum", counting(calls))
    spectra = Spectra(2**20)
    for rank in (1, 2, 3):
        with masked(model, operations(parts, *(Truncate(site, rank) for site in parts.matrices)), spectra):
            pass
    assert len(calls) == len(parts.matrices)


def test_spectra_keep_the_latest_used_within_their_bytes():
    model = tiny("llama")
    parts = anatomy(model)
    q, k, v = (parts.matrix(Site(0, kind)) for kind in "qkv")
    sizes = {m: decompose(m, model.get_parameter(m.weight)).num_bytes for m in (q, k, v)}
    spectra = Spectra(sizes[q] + max(sizes[k], sizes[v]))

    def ask(matrix: Matrix) -> Spectrum:
        return spectra(matrix, model.get_parameter(matrix.weight))

    first, second = ask(q), ask(k)
    assert ask(q) is first  # and k is now the one used longest ago
    third = ask(v)
    assert ask(q) is first
    assert ask(v) is third
    assert ask(k) is not second


def test_groups_of_spectra_fit_and_cover():
    parts = anatomy(tiny("llama"))
    matrices = list(parts.matrices.values())
    need = {m: 4 * (min(m.shape) * (sum(m.shape) + 1)) for m in matrices}
    for limit in (1, 10_000, 20_000, 2**30):
        groups = Spectra(limit).fitting(matrices)
        assert [m for group in groups for m in group] == matrices
        assert all(len(group) == 1 or sum(need[m] for m in group) <= limit for group in groups)
    assert len(Spectra(2**30).fitting(matrices)) == 1
    assert len(Spectra(1).fitting(matrices)) == len(matrices)
