"""The INT8 kernel, with 16-bit and FP8 values, against float64 and against its plain twin."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from mapengine.kernels import int8
from mapengine.kernels.int8 import int8_attention

from ..interpreted_kernels import only_programs
from .inputs import EXTREMES, LARGEST, SOME_BLOCKS, check, contiguous, errors, exact, of_some_blocks, random_qkv
from .twins import int8_attention_reference, quantize_queries_reference

FP8 = pytest.mark.parametrize("fp8", [False, True], ids=["16-bit values", "FP8 values"])
SHAPES = [  # batch, length, heads, head size, dtype
    (1, 1, 1, 64, torch.float16),
    (1, 15, 2, 32, torch.bfloat16),
    (1, 64, 1, 128, torch.float16),
    pytest.param((2, 97, 2, 64, torch.float16), marks=pytest.mark.slow),
    (1, 97, 1, 128, torch.bfloat16),
    pytest.param((1, 346, 1, 64, torch.float16), marks=pytest.mark.slow),
]


@pytest.mark.slow
@FP8
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape[:4])))
def test_errs_at_most_twice_as_much_as_its_twin(shape: tuple[int, int, int, int, torch.dtype], fp8: bool) -> None:
    qkv = random_qkv(*shape)
    expected = exact(qkv)
    found = int8_attention(*qkv, fp8_values=fp8)
    check(found, int8_attention_reference(*qkv, fp8_values=fp8), expected)
    assert errors(found, expected)[1] < (0.05 if fp8 else 0.02) * float(expected.square().mean().sqrt())


@pytest.mark.slow
@FP8
@pytest.mark.parametrize("keys", [1, 97])
def test_keys_may_be_fewer(keys: int, fp8: bool) -> None:
    query, _, _ = random_qkv(1, 70, 2, 32)
    _, key, value = random_qkv(1, keys, 2, 32, seed=1)
    found = int8_attention(query, key, value, fp8_values=fp8)
    check(found, int8_attention_reference(query, key, value, fp8_values=fp8), exact((query, key, value)))


@pytest.mark.slow
def test_two_views_of_the_largest_size() -> None:
    qkv = random_qkv(1, LARGEST, 1, 64)
    with only_programs(int8, "int8_attention_kernel", SOME_BLOCKS):
        found = int8_attention(*qkv)
    check(*map(of_some_blocks, (found, int8_attention_reference(*qkv), exact(qkv))))


@pytest.mark.slow
@FP8
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_values(name: str, fp8: bool) -> None:
    qkv = EXTREMES[name](random_qkv(1, 97, 1, 64))
    check(int8_attention(*qkv, fp8_values=fp8), int8_attention_reference(*qkv, fp8_values=fp8), exact(qkv))


@pytest.mark.slow
def test_smoothing_takes_a_shared_bias_off_the_keys() -> None:
    query, key, value = contiguous(random_qkv(1, 97, 1, 64))
    biased = (query, (key.float() + 40 * torch.randn(64)).half(), value)
    expected = exact(biased)
    smoothed = errors(int8_attention(*biased), expected)[1]
    # The same keys, quantised with their bias.
    (query8, query_scale), (key8, key_scale) = (
        quantize_queries_reference(biased[0]),
        quantize_queries_reference(biased[1]),
    )
    scales = (x.repeat_interleave(32, 2)[:, :, :97] for x in (query_scale, key_scale))
    query_scale, key_scale = scales
    scores = query8.float() @ key8.float().transpose(2, 3) * query_scale[..., None] * key_scale[:, :, None] / 8
    plain = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value.float())
    assert smoothed < 0.2 * errors(plain, expected)[1]


@pytest.mark.slow
@FP8
def test_strides_do_not_matter(fp8: bool) -> None:
    packed = random_qkv(2, 70, 2, 64)
    expected = int8_attention(*packed, fp8_values=fp8)
    assert torch.equal(int8_attention(*contiguous(packed), fp8_values=fp8), expected)
