"""Attention that our own kernels compute between two segments of a stage: what the manifest says of it.

A stage whose attention is left to compiled kernels is a chain of plans. Between two of them the runtime launches the
kernels that :class:`KernelCode` describes, on the tensors that :class:`KernelAttention` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .codec import Reader
from .file_record import FileRecord

FP8_FROM = 89
"""First compute capability, times ten, whose tensor cores multiply FP8."""


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

    @property
    def first_architecture(self) -> int:
        """The oldest GPUs that the kernel can be compiled for: compute capability times ten."""
        return FP8_FROM if self.fp8 else 80


KERNELS = {
    "flash": Kernel(),
    "int8": Kernel(int8=True),
    "int8-fp8": Kernel(int8=True, fp8=True),
    "sparse": Kernel(sparse=True),
    "sparse-int8": Kernel(int8=True, sparse=True),
    "sparse-int8-fp8": Kernel(int8=True, fp8=True, sparse=True),
}
"""The kernels that a build can ask for."""

QUERY_BLOCK, KEY_BLOCK, QUERY_GROUP, SPLITS = 128, 64, 32, 32
"""Queries and keys per block of the choice of keys, queries per INT8 scale, parts of the keys' mean: compiled in."""
LIST_SIZES = (512, 2048)
"""Blocks of keys that a compiled choice of keys holds."""
MINIMUM_SHARE = 0.1
"""Least share of the blocks of keys that a sparse kernel keeps."""

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
        query, key, value: tensors (1, L, H * D) that the segment before gives; or all three the same tensor
            (1, L, 3 * H * D), which is packed.
        out: tensor (1, L, H * D) that the segment behind reads.
        extra_tokens: class tokens at the end of each view's tokens.
    """

    layer: str
    kernel: str
    threshold: float | None
    num_heads: int
    head_dim: int
    dtype: str
    query: str
    key: str
    value: str
    out: str
    extra_tokens: int

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

    @classmethod
    def read(cls, reader: Reader) -> KernelAttention:
        """Read one element of ``attention`` of a stage."""
        fields = reader.fields(*cls.__dataclass_fields__)
        kernel = fields["kernel"].choice(KERNELS)
        threshold = None if fields["threshold"].is_null() else fields["threshold"].number()
        sparse = KERNELS[kernel].sparse
        if sparse != (threshold is not None) or (threshold is not None and not 0 < threshold <= 1):
            fields["threshold"].fail("must be a share above 0 and up to 1 for a sparse kernel, and null otherwise")
        return cls(
            fields["layer"].text(),
            kernel,
            threshold,
            fields["num_heads"].integer(1),
            fields["head_dim"].integer(1),
            fields["dtype"].choice(("float16", "bfloat16")),
            fields["query"].text(),
            fields["key"].text(),
            fields["value"].text(),
            fields["out"].text(),
            fields["extra_tokens"].integer(0, 1),
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class KernelCode:
    """A compiled kernel and how it is launched, as the ahead-of-time compiler recorded it.

    Attributes:
        file: machine code (``.cubin``), or PTX (``.ptx``), which the driver compiles for any later architecture.
        variant: for example ``dense-fp16-d64``. architecture: compute capability times ten.
        entry: name of the function in the file.
        arguments: name and type of each, in order; a type that begins with ``*`` is a pointer.
        scratch_pointers: null pointers that follow the arguments.
        grid: along x and y the named size divided by a number, rounded up.
        threads: per program. shared_bytes: of dynamic shared memory.
    """

    file: FileRecord
    variant: str
    architecture: int
    entry: str
    arguments: tuple[tuple[str, str], ...]
    scratch_pointers: int
    grid: tuple[tuple[str, int], tuple[str, int]]
    threads: int
    shared_bytes: int

    @property
    def is_ptx(self) -> bool:
        """Whether the file is PTX."""
        return self.file.file.endswith(".ptx")

    @classmethod
    def read(cls, reader: Reader) -> KernelCode:
        """Read one element of ``kernels``."""
        fields = reader.fields("file", "sha256", "bytes", *list(cls.__dataclass_fields__)[1:])
        arguments = []
        for item in fields["arguments"].items():
            argument = item.fields("name", "type")
            arguments.append((argument["name"].text(), argument["type"].choice(ARGUMENT_TYPES)))
        sides = [item.fields("of", "per") for item in fields["grid"].items()]
        if len(sides) != 2:
            fields["grid"].fail("must have two sides")
        x, y = ((side["of"].choice(("length", "splits", "batch*heads")), side["per"].integer(1)) for side in sides)
        return cls(
            FileRecord.read(fields),
            fields["variant"].text(),
            fields["architecture"].integer(80, 10_000),
            fields["entry"].text(),
            tuple(arguments),
            fields["scratch_pointers"].integer(0, 8),
            (x, y),
            fields["threads"].integer(32, 1024),
            fields["shared_bytes"].integer(0, 2**20),
        )

    @classmethod
    def from_compiled(cls, file: FileRecord, entry: Mapping[str, Any]) -> KernelCode:
        """From an entry of the ahead-of-time compiler's manifest (``mapengine.kernels``)."""
        x, y = ((str(side["of"]), int(side["per"])) for side in entry["grid"])
        return cls(
            file,
            entry["variant"],
            entry["architecture"],
            entry["entry"],
            tuple((argument["name"], argument["type"]) for argument in entry["arguments"]),
            entry["scratch_pointers"],
            (x, y),
            entry["threads"],
            entry["shared_bytes"],
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {
            **self.file.to_json(),
            "variant": self.variant,
            "architecture": self.architecture,
            "entry": self.entry,
            "arguments": [{"name": name, "type": kind} for name, kind in self.arguments],
            "scratch_pointers": self.scratch_pointers,
            "grid": [{"of": of, "per": per} for of, per in self.grid],
            "threads": self.threads,
            "shared_bytes": self.shared_bytes,
        }
