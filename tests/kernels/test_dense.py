"""The dense kernel against float64, and against what PyTorch makes of the same precision."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'mapengine[kernels]'")
pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from mapengine.kernels import dense
from mapengine.kernels.dense import dense_attention
from mapengine.kernels.errors import KernelInputError
from mapengine.kernels.launch import split_qkv

from ..interpreted_kernels import only_programs
from .inputs import (
    EXTREMES,
    LARGEST,
    SOME_BLOCKS,
    check,
    contiguous,
    errors,
    exact,
    of_some_blocks,
    random_qkv,
    torch_attention,
)
from .twins import dense_attention_reference

SHAPES = [  # batch, length, heads, head size
    (1, 1, 1, 64),
    (2, 1, 3, 32),
    (1, 15, 2, 32),
    (2, 15, 1, 128),
    (3, 64, 1, 64),
    (1, 64, 2, 128),
    (2, 97, 3, 64),
    (1, 128, 1, 64),
    (1, 129, 1, 32),
    pytest.param((1, 346, 1, 64), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errs_at_most_twice_as_much_as_torch(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    qkv = random_qkv(*shape, dtype)
    check(dense_attention(*qkv), torch_attention(qkv), exact(qkv))


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1, 15, 64, 97])
def test_keys_may_be_fewer(keys: int) -> None:
    query, _, _ = random_qkv(1, 70, 2, 32)
    _, key, value = random_qkv(1, keys, 2, 32, seed=1)
    qkv = (query, key, value)
    check(dense_attention(*qkv), torch_attention(qkv), exact(qkv))


@pytest.mark.slow
def test_two_views_of_the_largest_size() -> None:
    qkv = random_qkv(1, LARGEST, 1, 64)
    with only_programs(dense, "dense_attention_kernel", SOME_BLOCKS):
        found = dense_attention(*qkv)
    check(*map(of_some_blocks, (found, torch_attention(qkv), exact(qkv))))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_values(name: str, dtype: torch.dtype) -> None:
    qkv = EXTREMES[name](random_qkv(1, 97, 2, 64, dtype))
    check(dense_attention(*qkv), dense_attention_reference(*qkv), exact(qkv))


@pytest.mark.slow
def test_strides_do_not_matter() -> None:
    packed = random_qkv(2, 97, 2, 64)
    expected = dense_attention(*packed)
    assert torch.equal(dense_attention(*contiguous(packed)), expected)
    every_other = torch.randn(4, 200, 3 * 2 * 64).half()
    qkv = split_qkv(every_other, 2)
    sliced = tuple(x[::2, 3:100] for x in qkv)
    assert torch.equal(dense_attention(*sliced), dense_attention(*(x.contiguous() for x in sliced)))


@pytest.mark.slow
def test_heads_and_sequences_do_not_mix() -> None:
    query, key, value = random_qkv(2, 70, 3, 32)
    whole = dense_attention(query, key, value)
    for batch in range(2):
        for head in range(3):
            part = (x[batch : batch + 1, :, head : head + 1].contiguous() for x in (query, key, value))
            assert torch.equal(dense_attention(*part)[0, :, 0], whole[batch, :, head])


def test_the_twin_is_attention() -> None:
    qkv = random_qkv(2, 97, 2, 64)
    check(dense_attention_reference(*qkv).contiguous(), torch_attention(qkv), exact(qkv))


def test_the_check_fails_for_a_kernel_that_is_wrong() -> None:
    qkv = random_qkv(1, 97, 1, 64)
    expected = exact(qkv)
    wrong = torch_attention(qkv).contiguous()
    wrong[0, 96] = wrong[0, 95]
    with pytest.raises(AssertionError):
        check(wrong, torch_attention(qkv), expected)
    assert errors(expected, expected) == (0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k, v: (q.float(), k.float(), v.float()), "float16 and bfloat16"),
        (lambda q, k, v: (q[..., :48], k[..., :48], v[..., :48]), "head size is 48"),
        (lambda q, k, v: (q, k[:, :10], v), "values have the shape"),
        (lambda q, k, v: (q, k[:, :0], v[:, :0]), "there are no keys"),
        (lambda q, k, v: (*(x.expand(2, -1, -1, -1) for x in (q, k[:, :10], v)),), "keys have the shape"),
        (lambda q, k, v: (q, k, v.bfloat16()), "values have the dtype"),
        (lambda q, k, v: (q, k, v.contiguous()), "values have the strides"),
        (lambda q, k, v: (q[0], k[0], v[0]), "batch, length, heads, head size"),
        (lambda q, k, v: (q[:, :0], k[:, :0], v[:, :0]), "batch, length, heads, head size"),
        (lambda q, k, v: tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)), "contiguous"),
    ],
)
def test_refusals(change: object, words: str) -> None:
    with pytest.raises(KernelInputError, match=words):
        dense_attention(*change(*random_qkv(1, 20, 2, 64)))  # type: ignore[operator]


def test_a_qkv_tensor_of_another_width_is_refused() -> None:
    with pytest.raises(KernelInputError, match="head size"):
        split_qkv(torch.zeros(1, 5, 100), 2)
