"""Block-sparse attention: exact on what it keeps, dense at threshold 1, and keeping what it promises."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from mapengine.kernels import sparse
from mapengine.kernels.dense import dense_attention
from mapengine.kernels.errors import KernelInputError
from mapengine.kernels.int8 import int8_attention
from mapengine.kernels.selection import Selection
from mapengine.kernels.sparse import sparse_attention

from ..interpreted_kernels import only_programs
from .inputs import EXTREMES, LARGEST, SOME_BLOCKS, Qkv, check, exact, of_some_blocks, random_qkv, view_qkv
from .twins import select_reference, sparse_attention_reference, token_mask

MODES = [(False, False), (True, False), (True, True)]
modes = pytest.mark.parametrize(("int8", "fp8"), MODES, ids=["16-bit", "INT8", "INT8 and FP8"])


def check_sparse(qkv: Qkv, selection: Selection, int8: bool = False, fp8: bool = False) -> None:
    """Compare with the twin, both against float64 over the same pairs."""
    found, counts = sparse_attention(*qkv, selection, int8=int8, fp8_values=fp8)
    kept = select_reference(*qkv[:2], selection)
    assert torch.equal(counts.long(), kept.sum(-1))
    peer = sparse_attention_reference(*qkv, selection, int8=int8, fp8_values=fp8)
    check(found, peer, exact(qkv, token_mask(kept, qkv[0].shape[1])))


@pytest.mark.slow
@modes
@pytest.mark.parametrize("shape", [(1, 97, 2, 64), (1, 256, 1, 32), (1, 1, 1, 128)], ids=str)
def test_threshold_one_is_the_dense_kernel_bit_by_bit(shape: tuple[int, int, int, int], int8: bool, fp8: bool) -> None:
    for dtype in (torch.float16, torch.bfloat16)[: 1 if int8 else 2]:
        qkv = random_qkv(*shape, dtype)
        dense = int8_attention(*qkv, fp8_values=fp8) if int8 else dense_attention(*qkv)
        found, counts = sparse_attention(*qkv, Selection(1.0), int8=int8, fp8_values=fp8)
        assert torch.equal(found, dense)
        assert (counts == -(-shape[1] // 64)).all()


@pytest.mark.slow
@modes
def test_errs_at_most_twice_as_much_as_its_twin(int8: bool, fp8: bool) -> None:
    selection = Selection(0.6, 0.1, view_tokens=82, extra_tokens=1)
    check_sparse(view_qkv(6, 81, 2, 64), selection, int8, fp8)


@pytest.mark.parametrize("length", [1, 15, 64, 97, pytest.param(1370, marks=pytest.mark.slow)])
def test_odd_lengths(length: int) -> None:
    check_sparse(random_qkv(1, length, 1, 64, torch.bfloat16), Selection(0.5, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [32, 128])
def test_head_sizes(dim: int) -> None:
    check_sparse(random_qkv(2, 331, 1, dim), Selection(0.5, 0.0))


@pytest.mark.slow
def test_two_views_of_the_largest_size() -> None:
    qkv, selection = view_qkv(2, 1369, 1, 64), Selection(0.6, 0.1, view_tokens=1370, extra_tokens=1)
    assert qkv[0].shape[1] == LARGEST
    with only_programs(sparse, "sparse_attention_kernel", SOME_BLOCKS):
        found, counts = sparse_attention(*qkv, selection)
    kept = select_reference(*qkv[:2], selection)
    assert torch.equal(counts.long(), kept.sum(-1))
    peer, wanted = sparse_attention_reference(*qkv, selection), exact(qkv, token_mask(kept, LARGEST))
    check(*map(of_some_blocks, (found, peer, wanted)))


@pytest.mark.slow
@pytest.mark.parametrize(("int8", "fp8"), MODES[::2], ids=["16-bit", "INT8 and FP8"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_values(name: str, int8: bool, fp8: bool) -> None:
    qkv = EXTREMES[name](random_qkv(1, 331, 1, 64))
    found, counts = sparse_attention(*qkv, Selection(0.5, 0.0), int8=int8, fp8_values=fp8)
    assert torch.isfinite(found).all()
    assert (counts >= 1).all()
    if not int8:
        check_sparse(qkv, Selection(0.5, 0.0))


def kept_mass(query: torch.Tensor, key: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Share of the exact attention of each query that its kept blocks hold: (B, L, H, D) x 2, (B, H, Nq, Nk) -> (B, H,
    L)."""
    scores = torch.einsum("blhd,bmhd->bhlm", query.double(), key.double()) / query.shape[-1] ** 0.5
    return scores.softmax(-1).masked_fill(~token_mask(kept, query.shape[1]), 0.0).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["views", "random"])
def test_kept_mass_is_at_least_the_threshold_on_average(kind: str, threshold: float) -> None:
    if kind == "views":
        qkv, selection = view_qkv(8, 400, 1, 64), Selection(threshold, 0.0, view_tokens=401, extra_tokens=1)
    else:
        qkv, selection = random_qkv(1, 4000, 1, 64), Selection(threshold, 0.0)
    kept = select_reference(*qkv[:2], selection)
    assert kept_mass(*qkv[:2], kept).mean() >= threshold
    assert kept.float().mean() < 1


@pytest.mark.slow
def test_matching_views_need_few_blocks() -> None:
    query, key, _ = view_qkv(4, 1369, 1, 64)
    selection = Selection(0.9, 0.0, view_tokens=1370, extra_tokens=1)
    kept = select_reference(query, key, selection)
    assert kept[:, :, :-1, 22:].float().mean() < 0.5  # beyond the reference view
    assert kept_mass(query, key, kept).mean() > 0.9


def test_fp8_values_without_int8_are_refused() -> None:
    with pytest.raises(KernelInputError, match="int8=True"):
        sparse_attention(*random_qkv(1, 15, 1, 64), Selection(0.5), fp8_values=True)
