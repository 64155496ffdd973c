"""How attention kernels are launched in bundles that were written before it was recorded.

New bundles say it themselves, in the words of the kernels that they hold; nothing is added here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...bundle.kernel_attention import KernelAttention, KernelCode

_PITCH = "64*length/64"
_SCALE = {32: "0.25503486164919736", 64: "0.18033688011112042", 128: "0.12751743082459868"}  # log2(e) / sqrt(D)
_LISTS = {"lists": "2*heads*length/128*length/64", "counts": "4*heads*length/128"}
_WORKSPACE: Mapping[str, Mapping[str, str]] = {
    "statistics-sum": {"sums": "128*{dim}*heads"},
    "statistics-maximum": {"maxima": "128*{dim}*heads"},
    "quantize-queries": {"int8_query": "{dim}*heads*length", "query_scale": "4*heads*length/32"},
    "quantize-keys": {"int8_key": "{dim}*heads*length", "key_scale": "4*heads*length/64"},
    "pool-queries": {"pooled_query": "4*{dim}*heads*length/128"},
    "pool-keys": {"pooled_key": "4*{dim}*heads*length/64"},
    "values-fp8": {"fp8_value": "{dim}*heads*" + _PITCH, "value_scale": "4*{dim}*heads"},
    "select-512": _LISTS,
    "select-2048": _LISTS,
}
_INT8 = {"query": "int8_query", "key": "int8_key", "in_token": "{dim}", "in_head": "{dim}*length"}
_16_BIT_VALUES = {"value_scale": "query_scale"}
_FP8_VALUES = {"value": "fp8_value", "value_token": _PITCH, "value_head": "{dim}*" + _PITCH}
_GIVEN: Mapping[str, Mapping[str, str]] = {
    "statistics-sum": {"x": "key", "out": "sums"},
    "statistics-maximum": {"x": "value", "out": "maxima"},
    "quantize-queries": {"x": "query", "sums": "query_scale", "out": "int8_query", "scales": "query_scale"},
    "quantize-keys": {"x": "key", "out": "int8_key", "scales": "key_scale"},
    "pool-queries": {"x": "query", "out": "pooled_query"},
    "pool-keys": {"x": "key", "out": "pooled_key"},
    "values-fp8": {"out": "fp8_value", "scales": "value_scale"},
    "select": {"query": "pooled_query", "key": "pooled_key", "key_blocks": "length/64", "minimum": "length/640"},
    "sparse": dict.fromkeys(("query_scale", "key_scale", "value_scale"), "counts"),
    "int8": _INT8 | _16_BIT_VALUES,
    "sparse-int8": _INT8 | _16_BIT_VALUES,
    "int8-fp8": _INT8 | _FP8_VALUES,
    "sparse-int8-fp8": _INT8 | _FP8_VALUES,
}
_USUAL = {
    **dict.fromkeys(("in_batch", "value_batch", "out_batch"), "0"),
    **dict.fromkeys(("in_head", "value_head", "out_head"), "{dim}"),
    "value_token": "in_token",
    "out_token": "{dim}*heads",
}


def with_values(code: KernelCode) -> KernelCode:
    """Return ``code`` with the values of its arguments, its workspace and the tokens that it takes."""
    if all(argument.value is not None for argument in code.arguments):
        return code
    stem, _, dim = code.variant.rpartition("-d")
    stem = stem.removesuffix("-fp16").removesuffix("-bf16")
    given = {**_USUAL, "scale": _SCALE[int(dim)], **_GIVEN.get(stem.rstrip("-0123456789"), {}), **_GIVEN.get(stem, {})}
    arguments = [replace(part, value=given.get(part.name, part.name).format(dim=dim)) for part in code.arguments]
    return replace(
        code,
        arguments=tuple(arguments),
        parameters=code.parameters or ({"splits": 32} if stem.startswith("statistics") else {}),
        workspace={name: size.format(dim=dim) for name, size in _WORKSPACE.get(stem, {}).items()},
        longest=64 * int(stem.removeprefix("select-")) if stem.startswith("select-") else None,
    )


def with_launches(attention: KernelAttention) -> KernelAttention:
    """Return ``attention`` with the kernels that it launches."""
    if attention.launches:
        return attention
    end, kind = f"{'fp16' if attention.dtype == 'float16' else 'bf16'}-d{attention.head_dim}", attention.traits
    steps: list[tuple[str, ...]] = []
    if kind.sparse:
        selections = tuple(f"select-{size}-d{attention.head_dim}" for size in (512, 2048))
        steps += [(f"pool-queries-{end}",), (f"pool-keys-{end}",), selections]
    if kind.int8:
        steps += [(f"{name}-{end}",) for name in ("quantize-queries", "statistics-sum", "quantize-keys")]
    if kind.fp8:
        steps += [(f"statistics-maximum-{end}",), (f"values-fp8-{end}",)]
    stem = "dense" if attention.kernel == "flash" else attention.kernel
    return replace(attention, launches=(*steps, (f"{stem}-{end}",)))
