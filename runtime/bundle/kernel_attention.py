"""Attention over all views: how many keys it has, and what the manifest says of kernels of ours that compute it.

A layer may keep a share of its keys (:class:`KeyShare`): the tokens of the reference view, of each other view a grid of
patch tokens, which has the square root of the share along both sides, rounded up, all class tokens and the scale
token.

A stage whose attention is left to compiled kernels is a chain of plans. Between two of them the runtime launches the
kernels that :class:`KernelCode` describes, on the tensors that :class:`KernelAttention` names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from ..typed_json.codec import Fail
from ..typed_json.fields import ADDED, FLAT, Bounds, Count, Measure, OneOf, Positive, Text
from .file_record import FileRecord


@dataclass(frozen=True)
class Kernel:
    """What an attention kernel does beside FlashAttention-2 in 16 bits.

    Attributes:
        int8: queries and keys are in INT8. fp8: values and softmax are in FP8, which GPUs have from compute capability
            8.9 on. sparse: each block of queries attends to a choice of key blocks, which a threshold decides.
    """

    int8: bool = False
    fp8: bool = False
    sparse: bool = False


KERNELS = {
    "flash": Kernel(),
    "int8": Kernel(int8=True),
    "int8-fp8": Kernel(int8=True, fp8=True),
    "sparse": Kernel(sparse=True),
    "sparse-int8": Kernel(int8=True, sparse=True),
    "sparse-int8-fp8": Kernel(int8=True, fp8=True, sparse=True),
}
"""The kernels that a build can ask for."""

TOKENS = "tokens"
"""Axis of the tensors between segments: the tokens of all views, and the scale token."""

POINTER_TYPES = ("fp16", "bf16", "fp32", "i8", "i16", "i32", "fp8e4nv")
ARGUMENT_TYPES = (*(f"*{name}" for name in POINTER_TYPES), "i32", "fp32")


def all_tokens(views: int, rows: int, columns: int, extra_tokens: int) -> int:
    """Tokens of ``views`` views of ``rows`` x ``columns`` patches with their class tokens, and the scale token."""
    return views * (rows * columns + extra_tokens) + 1


def kernel_name(kernel: str, threshold: float | None) -> str:
    """A kernel as a build names it, such as ``sparse:0.9``."""
    return kernel if threshold is None else f"{kernel}:{threshold:g}"


@dataclass(frozen=True)
class KernelAttention:
    """One attention between two segments, over one sequence of L tokens.

    Attributes:
        layer: name of the network's layer.
        kernel: one of :data:`KERNELS`.
        threshold: share of the attention's mass that a sparse kernel keeps, in (0, 1]; None for the others.
        num_heads, head_dim: H and D.
        dtype: ``float16`` or ``bfloat16``, of all tensors.
        query, key, value: tensors (1, L, H * D) that the segment before gives, (1, K, H * D) for the K keys of a
            ``key_share``; or all three the same tensor (1, L, 3 * H * D), which is packed.
        out: tensor (1, L, H * D) that the segment behind reads.
        extra_tokens: class tokens at the end of each view's tokens.
        key_share: share of the tokens that are keys, see :class:`KeyShare`; None for all.
        launches: the kernels that compute it, in order; per launch those of which the first is taken that is for so
            many tokens. Empty in bundles from before it was recorded.
    """

    layer: str
    kernel: Annotated[str, OneOf(tuple(KERNELS))]
    threshold: Measure | None
    num_heads: Positive
    head_dim: Positive
    dtype: Annotated[str, OneOf(("float16", "bfloat16"))]
    query: str
    key: str
    value: str
    out: str
    extra_tokens: Annotated[int, Bounds(0, 1)]
    launches: Annotated[tuple[tuple[str, ...], ...], ADDED] = ()
    key_share: Annotated[Measure | None, ADDED] = None

    @property
    def name(self) -> str:
        """The kernel as a build names it, such as ``sparse:0.9``."""
        return kernel_name(self.kernel, self.threshold)

    @property
    def traits(self) -> Kernel:
        """What the kernel does."""
        return KERNELS[self.kernel]

    @property
    def packed(self) -> bool:
        """Whether queries, keys and values are one tensor."""
        return self.query == self.key == self.value

    def check_fields(self, fail: Fail) -> None:
        """Refuse a threshold that the kernel does not take."""
        given = self.threshold is not None
        if given != self.traits.sparse or (self.threshold is not None and not 0 < self.threshold <= 1):
            fail("threshold", "must be a share above 0 and up to 1 for a sparse kernel, and null otherwise")
        if self.key_share is not None and (not 0 < self.key_share < 1 or self.traits.sparse or self.packed):
            fail("key_share", "must be null for a sparse kernel and for packed tensors, and else above 0 and below 1")


_FACTOR = r"([a-z_][a-z0-9_]{0,63}|\d{1,18}|\d{1,9}\.\d{1,24})(/[1-9]\d{0,17})?"
Product = Annotated[str, Text("a product such as 4*heads*length/64", rf"{_FACTOR}(\*{_FACTOR})*")]
"""Numbers and names with ``*`` between them. A factor with a divisor is rounded up."""


def product(text: str, known: Mapping[str, float]) -> float:
    """Return the value of a :data:`Product`.

    Raises:
        KeyError: a name that is not ``known``.
    """
    result: float = 1
    for factor in text.split("*"):
        name, _, divisor = factor.partition("/")
        value = float(name) if "." in name else int(name) if name[0].isdigit() else known[name]
        result *= -(-value // int(divisor)) if divisor else value
    return result


@dataclass(frozen=True)
class KernelArgument:
    """An argument of a kernel; the type of a pointer begins with ``*``, and ``value`` is what :func:`product` takes."""

    name: str
    type: Annotated[str, OneOf(ARGUMENT_TYPES)]
    value: Annotated[Product | None, ADDED] = None


@dataclass(frozen=True)
class GridSide:
    """Programs along one side of a launch: a named size divided by a number, rounded up."""

    of: Annotated[str, OneOf(("length", "key_length", "splits", "batch*heads"))]
    per: Positive


@dataclass(frozen=True)
class KernelCode:
    """A compiled kernel and how it is launched, as the ahead-of-time compiler recorded it.

    Attributes:
        file: machine code (``.cubin``), or PTX (``.ptx``), which the driver compiles for any later architecture.
        variant: for example ``dense-fp16-d64``. architecture: compute capability times ten.
        entry: name of the function in the file.
        arguments: in order. scratch_pointers: null pointers that follow them.
        grid: along x and y.
        threads: per program. shared_bytes: of dynamic shared memory.
        parameters: numbers that the grid is made of beside those of the attention.
        workspace: what the kernel writes for those behind it, with the bytes of each.
        longest: tokens that it takes at most; None for any number.
    """

    file: Annotated[FileRecord, FLAT]
    variant: str
    architecture: Annotated[int, Bounds(80, 10_000)]
    entry: str
    arguments: tuple[KernelArgument, ...]
    scratch_pointers: Annotated[int, Bounds(0, 8)]
    grid: tuple[GridSide, GridSide]
    threads: Annotated[int, Bounds(32, 1024)]
    shared_bytes: Annotated[int, Bounds(0, 2**20)]
    parameters: Annotated[Mapping[str, Measure], ADDED] = field(default_factory=dict)
    workspace: Annotated[Mapping[str, Product], ADDED] = field(default_factory=dict)
    longest: Annotated[Positive | None, ADDED] = None

    @property
    def is_ptx(self) -> bool:
        """Whether the file is PTX."""
        return self.file.file.endswith(".ptx")

    @classmethod
    def from_compiled(cls, file: FileRecord, entry: Mapping[str, Any]) -> KernelCode:
        """Return the record of an entry of the ahead-of-time compiler's manifest (``mapengine.kernels``)."""
        arguments = tuple(KernelArgument(**argument) for argument in entry["arguments"])
        x, y = (GridSide(**side) for side in entry["grid"])
        same = ("variant", "architecture", "entry", "scratch_pointers", "threads", "shared_bytes", "parameters")
        given = {name: entry[name] for name in (*same, "workspace", "longest")}
        return cls(file=file, arguments=arguments, grid=(x, y), **given)


_STEPS = 2**16


@dataclass(frozen=True)
class KeyShare:
    """A block of the aggregator with attention over all views, and the share of the keys that it keeps."""

    block: Count
    share: Measure

    def check_fields(self, fail: Fail) -> None:
        """Refuse a block that attends within views, and a share that is none."""
        if self.block % 2:
            fail("block", f"must be one with attention over all views, which have even numbers, not {self.block}")
        if not 0 < self.share <= 1:
            fail("share", f"must be above 0 and up to 1, not {self.share:g}")


def keys_axis(share: float) -> str:
    """Return the name of the axis that keys have where ``share`` of them are kept."""
    return f"keys_{share!r}"


def side_steps(share: float) -> int:
    """Return the share of a side that a grid keeps, in 65536ths: whole numbers, so that every backend rounds alike."""
    return max(1, round(math.sqrt(share) * _STEPS))


def kept_side(count: int, share: float) -> int:
    """Return how many of ``count`` rows or columns a grid keeps; ``count`` may be a symbol of a trace."""
    return (count * side_steps(share) + _STEPS - 1) // _STEPS


def kept_keys(views: int, rows: int, columns: int, extra_tokens: int, share: float) -> int:
    """Return the keys of ``views`` views of ``rows`` x ``columns`` patches with their class tokens, and the scale
    token, of which ``share`` are kept; 1 keeps all."""
    kept = kept_side(rows, share) * kept_side(columns, share)
    return rows * columns + (views - 1) * kept + views * extra_tokens + 1
