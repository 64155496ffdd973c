"""Every kernel that is compiled ahead of time: its constants, the types of its arguments and its launch.

Imports neither Triton nor PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .tuning import (
    ARCHITECTURES,
    FP8_FROM,
    HEAD_DIMS,
    KEY_BLOCK,
    LIST_SIZES,
    MINIMUM_SHARE,
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
        parameters: numbers that a launch needs beside its grid.
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

    def tile(self, architecture: int) -> Tile:
        """Return warps and pipeline stages on ``architecture``, which are tuned for the attention kernels alone."""
        kind = kind_of("int8" in self.name, bool(self.constants.get("VALUE_FP8")))
        tile = tile_for(architecture, self.head_dim, kind)
        return tile if self.is_attention else replace(tile, warps=PREPARATION_WARPS, stages=PREPARATION_STAGES)

    @property
    def is_attention(self) -> bool:
        """Whether it is one of the attention kernels, not what prepares their inputs."""
        return self.function.endswith("_attention_kernel")


def _per(size: str, block: int) -> Grid:
    return ((size, block), ("batch*heads", 1))


def _attention(dim: int, dtype: str) -> Iterator[Variant]:
    grid = _per("length", QUERY_BLOCK)
    tile = {"D": dim, "BLOCK_M": QUERY_BLOCK, "BLOCK_N": KEY_BLOCK}
    scales = {"query_scale": "fp32", "key_scale": "fp32", "value_scale": "fp32"}
    lists = {"lists": "i16", "counts": "i32"}
    plain = {"query": dtype, "key": dtype, "value": dtype, "out": dtype}
    yield Variant(f"dense-{dtype}-d{dim}", "dense", "dense_attention_kernel", dim, plain, tile, grid, ("scale",))
    yield Variant(
        f"sparse-{dtype}-d{dim}",
        "sparse",
        "sparse_attention_kernel",
        dim,
        {**plain, **scales, **lists},
        {"INT8": False, "VALUE_FP8": False, "GROUP": QUERY_GROUP, **tile},
        grid,
        ("scale",),
    )
    for fp8 in (False, True):
        pointers = {**plain, **scales, "query": "i8", "key": "i8", "value": "fp8e4nv" if fp8 else dtype}
        constants: dict[str, int | bool] = {"VALUE_FP8": fp8, "GROUP": QUERY_GROUP, **tile}
        end = f"{'fp8-' if fp8 else ''}{dtype}-d{dim}"
        first = FP8_FROM if fp8 else ARCHITECTURES[0]
        yield Variant(f"int8-{end}", "int8", "int8_attention_kernel", dim, pointers, constants, grid, ("scale",), first)
        yield Variant(
            f"sparse-int8-{end}",
            "sparse",
            "sparse_attention_kernel",
            dim,
            {**pointers, **lists},
            {"INT8": True, **constants},
            grid,
            ("scale",),
            first,
        )


def _preparation(dim: int, dtype: str) -> Iterator[Variant]:
    for maximum in (False, True):
        yield Variant(
            f"statistics-{'maximum' if maximum else 'sum'}-{dtype}-d{dim}",
            "statistics",
            "channel_statistics_kernel",
            dim,
            {"x": dtype, "out": "fp32"},
            {"MAXIMUM": maximum, "D": dim, "ROWS": STATISTICS_ROWS},
            _per("splits", 1),
            parameters={"splits": SPLITS},
        )
    for keys in (False, True):
        group = KEY_BLOCK if keys else QUERY_GROUP
        yield Variant(
            f"quantize-{'keys' if keys else 'queries'}-{dtype}-d{dim}",
            "quantize",
            "quantize_kernel",
            dim,
            {"x": dtype, "sums": "fp32", "out": "i8", "scales": "fp32"},
            {"SMOOTH": keys, "GROUP": group, "SPLITS": SPLITS, "D": dim},
            _per("length", group),
        )
        block = KEY_BLOCK if keys else QUERY_BLOCK
        yield Variant(
            f"pool-{'keys' if keys else 'queries'}-{dtype}-d{dim}",
            "pooling",
            "pool_kernel",
            dim,
            {"x": dtype, "out": "fp32"},
            {"TRANSPOSED": keys, "BLOCK": block, "D": dim},
            _per("length", block),
        )
    yield Variant(
        f"values-fp8-{dtype}-d{dim}",
        "values",
        "quantize_values_kernel",
        dim,
        {"value": dtype, "maxima": "fp32", "out": "fp8e4nv", "scales": "fp32"},
        {"BLOCK": KEY_BLOCK, "SPLITS": SPLITS, "D": dim},
        _per("length", KEY_BLOCK),
        first_architecture=FP8_FROM,
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
            parameters={"minimum_share": MINIMUM_SHARE},
        )


def variants() -> list[Variant]:
    """Return all variants, in a stable order."""
    result: list[Variant] = []
    for dim in HEAD_DIMS:
        for dtype in DTYPES:
            result += [*_attention(dim, dtype), *_preparation(dim, dtype)]
        result += _selection(dim)
    return result
