"""Every kernel that is compiled ahead of time: its constants, the types of its arguments and its launch.

A launch is written for engines, which know nothing of these kernels: the value of every argument, and the bytes of what
a kernel leaves for the next ones, are *products* such as ``4*heads*length/64``, of numbers and of the names in
:data:`GIVEN`. A name or number with a divisor is rounded up: ``length/64`` is the number of blocks. A pointer is the
name of one of the attention's tensors (``query``, ``key``, ``value``, ``out``) or of something in a workspace.

Imports neither Triton nor PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .tuning import (
    ARCHITECTURES,
    FP8_FROM,
    HEAD_DIMS,
    KEY_BLOCK,
    LEAST_OF,
    LIST_SIZES,
    LOG2_E,
    PREPARATION_STAGES,
    PREPARATION_WARPS,
    QUERY_BLOCK,
    QUERY_GROUP,
    SPLITS,
    STATISTICS_ROWS,
    Tile,
    kind_of,
    tile_for,
)

DTYPES = ("fp16", "bf16")
GIVEN = ("length", "key_length", "heads", "batch", "in_token", "view_tokens", "extra_tokens", "threshold")
"""What an engine says of an attention over one sequence: tokens L, keys K (as many, but for a choice of them), heads H,
1, elements from a token of the inputs to the next, tokens and class tokens of a view, and the share of the mass that a
block-sparse kernel keeps."""
Grid = tuple[tuple[str, int], tuple[str, int]]
"""Programs along x and y: each the named size divided by the number, rounded up."""


@dataclass(frozen=True)
class Variant:
    """One kernel with its constants fixed.

    Attributes:
        name: unique; also the stem of its files. module: file of this package that defines ``<function>``. function:
            the Triton function. head_dim: channels per head D. pointers: type of what each pointer argument points
            to, in Triton's names; arguments not named here or in ``floats``
            are 32-bit whole numbers.
        floats: float32 arguments.
        constants: compile-time arguments.
        grid: programs of a launch.
        first_architecture: compute capability that it needs.
        parameters: numbers that the grid is made of, beside those of the attention.
        given: products for the arguments that are not what :meth:`value` says by their names.
        workspace: what it writes for the kernels behind it, with the bytes of each as a product.
        longest: tokens that it takes at most; None for any number.
    """

    name: str
    module: str
    function: str
    head_dim: int
    pointers: dict[str, str]
    constants: dict[str, int | bool]
    grid: Grid
    floats: tuple[str, ...] = ()
    first_architecture: int = ARCHITECTURES[0]
    parameters: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    workspace: Mapping[str, str] = field(default_factory=dict)
    longest: int | None = None

    def value(self, argument: str) -> str:
        """Return the product that an argument gets: tensors, sizes and strides of one packed or contiguous sequence."""
        dim = self.head_dim
        usual = {
            **dict.fromkeys(("in_batch", "value_batch", "out_batch"), "0"),  # one sequence: its index is always zero
            **dict.fromkeys(("in_head", "value_head", "out_head"), str(dim)),
            "value_token": "in_token",
            "out_token": f"{dim}*heads",
            "scale": repr(LOG2_E / math.sqrt(dim)),
        }
        return {**usual, **self.given}.get(argument, argument)

    def tile(self, architecture: int) -> Tile:
        """Return warps and pipeline stages on ``architecture``, which are tuned for the attention kernels alone."""
        kind = kind_of("int8" in self.name, bool(self.constants.get("VALUE_FP8")))
        tile = tile_for(architecture, self.head_dim, kind)
        return tile if self.is_attention else replace(tile, warps=PREPARATION_WARPS, stages=PREPARATION_STAGES)

    @property
    def is_attention(self) -> bool:
        """Whether it is one of the attention kernels, not what prepares their inputs."""
        return self.function.endswith("_attention_kernel")


def launch_order(kernel: str, dtype: str, head_dim: int) -> tuple[tuple[str, ...], ...]:
    """Return the variants that an attention launches, in order.

    Args:
        kernel: ``flash``, ``int8``, ``int8-fp8``, ``sparse``, ``sparse-int8`` or ``sparse-int8-fp8``.
        dtype: ``fp16`` or ``bf16``.

    Returns:
        One entry per launch: the variants of which the first runs that takes so many tokens.
    """
    end = f"{dtype}-d{head_dim}"
    steps: list[tuple[str, ...]] = []
    if "sparse" in kernel:
        steps += [(f"pool-queries-{end}",), (f"pool-keys-{end}",)]
        steps.append(tuple(f"select-{size}-d{head_dim}" for size in LIST_SIZES))
    if "int8" in kernel:
        steps += [(f"{name}-{end}",) for name in ("quantize-queries", "statistics-sum", "quantize-keys")]
    if "fp8" in kernel:
        steps += [(f"statistics-maximum-{end}",), (f"values-fp8-{end}",)]
    return (*steps, (f"{'dense' if kernel == 'flash' else kernel}-{end}",))


def _per(size: str, block: int) -> Grid:
    return ((size, block), ("batch*heads", 1))


def _attention(dim: int, dtype: str) -> Iterator[Variant]:
    grid = _per("length", QUERY_BLOCK)
    tile = {"D": dim, "BLOCK_M": QUERY_BLOCK, "BLOCK_N": KEY_BLOCK}
    scales = ("query_scale", "key_scale", "value_scale")
    lists = {"lists": "i16", "counts": "i32"}
    plain = {"query": dtype, "key": dtype, "value": dtype, "out": dtype}
    yield Variant(f"dense-{dtype}-d{dim}", "dense", "dense_attention_kernel", dim, plain, tile, grid, ("scale",))
    yield Variant(
        f"sparse-{dtype}-d{dim}",
        "sparse",
        "sparse_attention_kernel",
        dim,
        {**plain, **dict.fromkeys(scales, "fp32"), **lists},
        {"INT8": False, "VALUE_FP8": False, "GROUP": QUERY_GROUP, **tile},
        grid,
        ("scale",),
        given=dict.fromkeys(scales, "counts"),  # not read, so any address
    )
    for fp8 in (False, True):
        pointers = {**plain, **dict.fromkeys(scales, "fp32"), "query": "i8", "key": "i8"}
        given = {"query": "int8_query", "key": "int8_key", "in_token": str(dim), "in_head": f"{dim}*length"}
        if fp8:
            pointers["value"] = "fp8e4nv"
            pitch = f"{KEY_BLOCK}*key_length/{KEY_BLOCK}"  # the stride of a "token" is that of a channel
            given |= {"value": "fp8_value", "value_token": pitch, "value_head": f"{dim}*{pitch}"}
        else:
            given["value_scale"] = "query_scale"  # not read
        constants: dict[str, int | bool] = {"VALUE_FP8": fp8, "GROUP": QUERY_GROUP, **tile}
        end = f"{'fp8-' if fp8 else ''}{dtype}-d{dim}"
        first = FP8_FROM if fp8 else ARCHITECTURES[0]
        for name, more, flags in (("int8", {}, {}), ("sparse-int8", lists, {"INT8": True})):
            module = name.partition("-")[0]
            function = f"{module}_attention_kernel"
            yield Variant(
                f"{name}-{end}",
                module,
                function,
                dim,
                {**pointers, **more},
                {**flags, **constants},
                grid,
                ("scale",),
                first,
                given=given,
            )


def _preparation(dim: int, dtype: str) -> Iterator[Variant]:
    for maximum in (False, True):
        out = "maxima" if maximum else "sums"
        yield Variant(
            f"statistics-{'maximum' if maximum else 'sum'}-{dtype}-d{dim}",
            "statistics",
            "channel_statistics_kernel",
            dim,
            {"x": dtype, "out": "fp32"},
            {"MAXIMUM": maximum, "D": dim, "ROWS": STATISTICS_ROWS},
            _per("splits", 1),
            parameters={"splits": SPLITS},
            given={"x": "value" if maximum else "key", "out": out, "length": "key_length"},
            workspace={out: f"{4 * dim * SPLITS}*heads"},
        )
    for keys in (False, True):
        side, many = ("key", "keys") if keys else ("query", "queries")
        group, length = (KEY_BLOCK, "key_length") if keys else (QUERY_GROUP, "length")
        out, scales = f"int8_{side}", f"{side}_scale"
        yield Variant(
            f"quantize-{many}-{dtype}-d{dim}",
            "quantize",
            "quantize_kernel",
            dim,
            {"x": dtype, "sums": "fp32", "out": "i8", "scales": "fp32"},
            {"SMOOTH": keys, "GROUP": group, "SPLITS": SPLITS, "D": dim},
            _per(length, group),
            given={
                **{"x": side, "out": out, "scales": scales, "length": length},
                "sums": "sums" if keys else scales,  # read for keys only
            },
            workspace={out: f"{dim}*heads*{length}", scales: f"4*heads*{length}/{group}"},
        )
        block = KEY_BLOCK if keys else QUERY_BLOCK
        yield Variant(
            f"pool-{many}-{dtype}-d{dim}",
            "pooling",
            "pool_kernel",
            dim,
            {"x": dtype, "out": "fp32"},
            {"TRANSPOSED": keys, "BLOCK": block, "D": dim},
            _per("length", block),
            given={"x": side, "out": f"pooled_{side}"},
            workspace={f"pooled_{side}": f"{4 * dim}*heads*length/{block}"},
        )
    yield Variant(
        f"values-fp8-{dtype}-d{dim}",
        "values",
        "quantize_values_kernel",
        dim,
        {"value": dtype, "maxima": "fp32", "out": "fp8e4nv", "scales": "fp32"},
        {"BLOCK": KEY_BLOCK, "SPLITS": SPLITS, "D": dim},
        _per("key_length", KEY_BLOCK),
        first_architecture=FP8_FROM,
        given={"out": "fp8_value", "scales": "value_scale", "length": "key_length"},
        workspace={
            "fp8_value": f"{dim * KEY_BLOCK}*heads*key_length/{KEY_BLOCK}",
            "value_scale": f"{4 * dim}*heads",
        },
    )


def _selection(dim: int) -> Iterator[Variant]:
    for size in LIST_SIZES:
        yield Variant(
            f"select-{size}-d{dim}",
            "selection",
            "select_kernel",
            dim,
            {"query": "fp32", "key": "fp32", "lists": "i16", "counts": "i32"},
            {"D": dim, "BLOCK_M": QUERY_BLOCK, "BLOCK_N": KEY_BLOCK, "SIZE": size},
            _per("length", QUERY_BLOCK),
            ("threshold", "scale"),
            given={
                "query": "pooled_query",
                "key": "pooled_key",
                "key_blocks": f"length/{KEY_BLOCK}",
                "minimum": f"length/{KEY_BLOCK * LEAST_OF}",  # the product's form of :func:`.tuning.least_blocks`
            },
            workspace={
                "lists": f"2*heads*length/{QUERY_BLOCK}*length/{KEY_BLOCK}",
                "counts": f"4*heads*length/{QUERY_BLOCK}",
            },
            longest=size * KEY_BLOCK,
        )


def variants() -> list[Variant]:
    """Return all variants, in a stable order."""
    result: list[Variant] = []
    for dim in HEAD_DIMS:
        for dtype in DTYPES:
            result += [*_attention(dim, dtype), *_preparation(dim, dtype)]
        result += _selection(dim)
    return result
