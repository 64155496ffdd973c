"""What prepares the inputs of the attention kernels, each against its plain twin."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from mapengine.kernels.errors import KernelInputError
from mapengine.kernels.pooling import pool
from mapengine.kernels.quantize import quantize_keys, quantize_queries
from mapengine.kernels.selection import Selection, list_size, select
from mapengine.kernels.statistics import channel_statistics
from mapengine.kernels.tuning import KEY_BLOCK, SPLITS
from mapengine.kernels.values import quantize_values

from .inputs import EXTREMES, random_qkv, view_qkv
from .twins import (
    always_kept,
    channel_statistics_reference,
    pool_reference,
    quantize_keys_reference,
    quantize_queries_reference,
    quantize_values_reference,
    select_reference,
)

SHAPES = [(1, 1, 1, 64), (2, 15, 1, 32), (1, 64, 2, 64), (2, 97, 1, 128), (1, 1370, 1, 64)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.mark.slow
@shapes
def test_statistics(shape: tuple[int, int, int, int]) -> None:
    _, key, _ = random_qkv(*shape, torch.bfloat16)
    for what in ("sum", "maximum"):
        found, expected = channel_statistics(key, what), channel_statistics_reference(key, what)
        assert found.shape == (shape[0], shape[2], SPLITS, shape[3])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@shapes
def test_queries_and_keys_are_quantised_as_by_the_twin(shape: tuple[int, int, int, int]) -> None:
    query, key, _ = random_qkv(*shape)
    for found, expected in (
        (quantize_queries(query), quantize_queries_reference(query)),
        (quantize_keys(key), quantize_keys_reference(key)),
    ):
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0)
        difference = (found[0].int() - expected[0].int()).abs()
        # A level that lies between two whole numbers may go either way.
        assert difference.max() <= 1
        assert difference.float().mean() < 1e-3


def test_quantised_queries_are_within_half_a_step() -> None:
    query, _, _ = EXTREMES["outlier channels"](random_qkv(1, 97, 2, 64))
    levels, scales = quantize_queries(query)
    restored = levels.float() * scales.repeat_interleave(32, 2)[:, :, :97, None]
    steps = scales.repeat_interleave(32, 2)[:, :, :97, None]
    assert ((restored - query.float().transpose(1, 2)).abs() <= 0.501 * steps).all()
    assert levels.abs().max() == 127


@pytest.mark.slow
def test_equal_keys_quantise_to_zeros_with_positive_scales() -> None:
    _, key, _ = EXTREMES["all-equal keys"](random_qkv(1, 97, 1, 64))
    levels, scales = quantize_keys(key)
    assert (scales > 0).all()
    assert ((levels.float() * scales.repeat_interleave(64, 2)[:, :, :97, None]).abs() < 1e-5).all()


@pytest.mark.slow
@shapes
def test_values_are_rounded_to_fp8_as_by_torch(shape: tuple[int, int, int, int]) -> None:
    _, _, value = random_qkv(*shape, torch.bfloat16)
    (found, scales), (expected, expected_scales) = quantize_values(value), quantize_values_reference(value)
    assert found.shape[-1] % KEY_BLOCK == 0
    assert torch.equal(scales, expected_scales)
    assert torch.equal(found.float(), expected.float())
    assert (found.float()[..., shape[1] :] == 0).all()


@pytest.mark.slow
@shapes
def test_pooling(shape: tuple[int, int, int, int]) -> None:
    query, _, _ = random_qkv(*shape)
    for transposed in (False, True):
        expected = pool_reference(query, KEY_BLOCK, transposed)
        torch.testing.assert_close(pool(query, KEY_BLOCK, transposed), expected, rtol=1e-5, atol=1e-5)


SELECTIONS = [
    Selection(0.9, 0.0),
    Selection(0.5, 0.0, view_tokens=65, extra_tokens=1),
    Selection(0.3, 0.4, view_tokens=65, extra_tokens=1),
    Selection(0.8, 0.1, view_tokens=130),
    Selection(1e-6, 0.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("kind", ["views", "random"])
def test_selection_is_that_of_sorting(selection: Selection, kind: str) -> None:
    query, key, _ = view_qkv(10, 64, 2, 64) if kind == "views" else random_qkv(2, 651, 1, 32)
    lists, counts = select(query, key, selection)
    expected = select_reference(query, key, selection)
    found = torch.zeros_like(expected)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in counts.shape)).tolist():
        blocks = lists[tuple(index)][: counts[tuple(index)]].long()
        assert (blocks.diff() > 0).all()
        found[(*index, blocks)] = True
    assert torch.equal(found, expected)
    kept = always_kept(query.shape[1], selection)
    assert found[..., kept].all()
    assert found[:, :, -1].all()
    assert found.float().mean(-1).min() >= selection.minimum


def test_special_tokens() -> None:
    # Six views of 100 tokens, one of them a class token, and the scale token: 601 tokens in ten blocks of 64.
    kept = always_kept(601, Selection(0.5, 0.0, view_tokens=100, extra_tokens=1))
    # View 0 is in blocks 0 and 1; class tokens 99, 199, ... 599 are in blocks 1, 3, 4, 6, 7 and 9, the scale token in
    # 9.
    assert kept.nonzero().flatten().tolist() == [0, 1, 3, 4, 6, 7, 9]
    # Without class tokens, and where no view is named.
    assert always_kept(601, Selection(0.5, 0.0, view_tokens=100)).nonzero().flatten().tolist() == [0, 1, 9]
    assert always_kept(601, Selection(0.5, 0.0)).nonzero().flatten().tolist() == [9]


@pytest.mark.slow
def test_equal_blocks_are_kept_together() -> None:
    query, key, _ = EXTREMES["all-equal keys"](random_qkv(1, 640, 1, 64))
    assert (select(query, key, Selection(0.5, 0.0))[1] == 10).all()


@pytest.mark.slow
@pytest.mark.parametrize("length", [640, 641])
def test_queries_of_the_last_block_see_all_keys(length: int) -> None:
    query, key, _ = random_qkv(1, length, 1, 32)
    counts = select(query, key, Selection(0.3, 0.0))[1][0, 0]
    assert counts[-1] == -(-length // KEY_BLOCK)
    assert (counts[:-1] < counts[-1]).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0.0,), "threshold"), ((1.1,), "threshold"), ((0.5, -0.1), "least share"), ((0.5, 0.1, 3, 4), "class tokens")],
)
def test_selections_that_make_no_sense(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(KernelInputError, match=words):
        Selection(*arguments)


def test_a_sequence_beyond_the_largest_list_is_refused() -> None:
    assert [list_size(n) for n in (1, 512, 513, 2048)] == [512, 512, 2048, 2048]
    with pytest.raises(KernelInputError, match="fewer views"):
        list_size(2049)
