"""Attention by compiled kernels, between two segments of a stage: which kernels run, on what, in which memory.

Tensors are read and written where the segments have them, (1, L, H * D) or packed (1, L, 3 * H * D), so nothing is
copied; what the kernels need besides lies in a workspace that the segments use too. The arithmetic is described with
the kernels (``mapengine.kernels``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import BundleNotFoundError, ProfileError
from ...kernel_attention import (
    KEY_BLOCK,
    LIST_SIZES,
    MINIMUM_SHARE,
    QUERY_BLOCK,
    QUERY_GROUP,
    SPLITS,
    KernelAttention,
    KernelCode,
)
from .compiled_kernel import CompiledKernel, choose_code
from .cuda import ALIGNMENT, Device

_TYPES = {"float16": "fp16", "bfloat16": "bf16"}
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class _Call:
    """One attention: its shape and the addresses of queries, keys, values and result."""

    length: int
    view_tokens: int
    query: int
    key: int
    value: int
    out: int


class _Launcher(Protocol):
    """What puts one kernel into the stream: its variant, and the arguments that differ from the common ones."""

    def __call__(self, variant: str, **arguments: int | float) -> None: ...


class AttentionKernels:
    """The kernels that the attention of a chain needs, loaded for one GPU."""

    def __init__(
        self, device: Device, folder: Path, codes: Iterable[KernelCode], attention: Iterable[KernelAttention]
    ) -> None:
        """Load what ``attention`` needs from the bundle in ``folder``, with the GPU current.

        Raises:
            DeviceError: no kernel for this GPU is in the bundle. BackendError: the driver refuses one.
            BundleNotFoundError: a file cannot be read.
        """
        codes = tuple(codes)
        self._kernels: dict[str, CompiledKernel] = {}
        for layer in attention:
            for variant in needed_variants(layer):
                if variant in self._kernels:
                    continue
                code = choose_code(codes, variant, device.compute_capability)
                path = folder / code.file.file
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise BundleNotFoundError(f"{path} cannot be read ({error}); build the bundle again") from error
                self._kernels[variant] = CompiledKernel(device, content, code)

    def workspace(self, attention: KernelAttention, length: int) -> int:
        """Bytes that the attention over ``length`` tokens needs besides its tensors."""
        return _end(_parts(attention, length))

    def enqueue(
        self,
        attention: KernelAttention,
        stream: int,
        *,
        length: int,
        view_tokens: int,
        addresses: Mapping[str, int],
        workspace: int,
    ) -> None:
        """Put the kernels into a stream.

        Args:
            length: L. view_tokens: tokens of one view, class token included.
            addresses: of the tensors that ``attention`` names.
            workspace: address of as many bytes as :meth:`workspace` says, a multiple of 256.

        Raises:
            ProfileError: the sequence is longer than the kernels take.
        """
        packed = 2 * attention.num_heads * attention.head_dim if attention.packed else 0
        call = _Call(
            length,
            view_tokens,
            addresses[attention.query],
            addresses[attention.key] + packed,
            addresses[attention.value] + 2 * packed,
            addresses[attention.out],
        )
        memory = {name: workspace + start for name, (start, _) in _parts(attention, length).items()}
        end = f"{_TYPES[attention.dtype]}-d{attention.head_dim}"
        channels = attention.num_heads * attention.head_dim
        common: dict[str, int | float] = {
            "length": length,
            "heads": attention.num_heads,
            "in_batch": 0,  # one sequence: its index is always zero
            "in_token": 3 * channels if attention.packed else channels,
            "in_head": attention.head_dim,
            "out_batch": 0,
            "out_token": channels,
            "out_head": attention.head_dim,
            "scale": _LOG2_E / math.sqrt(attention.head_dim),
            "query": call.query,
            "key": call.key,
            "value": call.value,
            "out": call.out,
        }
        sizes = {"length": length, "splits": SPLITS, "batch*heads": attention.num_heads}

        def launch(variant: str, **arguments: int | float) -> None:
            self._kernels[variant].launch(stream, {**common, **arguments}, sizes)

        if attention.kernel == "flash":
            launch(f"dense-{end}")
        elif attention.kernel == "int8":
            launch(f"statistics-sum-{end}", x=call.key, out=memory["sums"])
            scales = memory["query_scale"], memory["key_scale"]
            launch(f"quantize-queries-{end}", x=call.query, sums=scales[0], out=memory["query"], scales=scales[0])
            launch(f"quantize-keys-{end}", x=call.key, sums=memory["sums"], out=memory["key"], scales=scales[1])
            launch(
                f"int8-{end}",
                query=memory["query"],
                key=memory["key"],
                query_scale=scales[0],
                key_scale=scales[1],
                value_scale=scales[0],  # not read: values are in 16 bits
                value_batch=0,
                value_token=common["in_token"],
                value_head=attention.head_dim,
            )
        else:
            self._enqueue_sparse(attention, end, call, memory, launch)

    def _enqueue_sparse(
        self, attention: KernelAttention, end: str, call: _Call, memory: Mapping[str, int], launch: _Launcher
    ) -> None:
        key_blocks = -(-call.length // KEY_BLOCK)
        size = next((size for size in LIST_SIZES if key_blocks <= size), None)
        if size is None:
            raise ProfileError(
                f"block-sparse attention takes up to {LIST_SIZES[-1] * KEY_BLOCK} tokens, not {call.length}; use fewer "
                f"or smaller views, or a bundle with --attention native"
            )
        launch(f"pool-queries-{end}", x=call.query, out=memory["pooled_query"])
        launch(f"pool-keys-{end}", x=call.key, out=memory["pooled_key"])
        assert attention.threshold is not None
        launch(
            f"select-{size}-d{attention.head_dim}",
            query=memory["pooled_query"],
            key=memory["pooled_key"],
            lists=memory["lists"],
            counts=memory["counts"],
            key_blocks=key_blocks,
            view_tokens=call.view_tokens,
            extra_tokens=attention.extra_tokens,
            threshold=attention.threshold,
            minimum=math.ceil(MINIMUM_SHARE * key_blocks - 1e-6),
        )
        unused = dict.fromkeys(("query_scale", "key_scale", "value_scale"), memory["counts"])
        token = 3 * attention.num_heads * attention.head_dim if attention.packed else 0
        launch(
            f"sparse-{end}",
            lists=memory["lists"],
            counts=memory["counts"],
            value_batch=0,
            value_token=token or attention.num_heads * attention.head_dim,
            value_head=attention.head_dim,
            **unused,
        )


def needed_variants(attention: KernelAttention) -> tuple[str, ...]:
    """Names of the compiled kernels that an attention launches, for every length."""
    end = f"{_TYPES[attention.dtype]}-d{attention.head_dim}"
    if attention.kernel == "flash":
        return (f"dense-{end}",)
    if attention.kernel == "int8":
        return tuple(f"{name}-{end}" for name in ("statistics-sum", "quantize-queries", "quantize-keys", "int8"))
    selections = (f"select-{size}-d{attention.head_dim}" for size in LIST_SIZES)
    return (f"pool-queries-{end}", f"pool-keys-{end}", *selections, f"sparse-{end}")


def _parts(attention: KernelAttention, length: int) -> dict[str, tuple[int, int]]:
    """Offset and bytes of each tensor in the workspace."""
    heads, dim = attention.num_heads, attention.head_dim
    queries, keys = -(-length // QUERY_BLOCK), -(-length // KEY_BLOCK)
    sizes: dict[str, int] = {}
    if attention.kernel == "int8":
        sizes = {
            "query": heads * length * dim,
            "key": heads * length * dim,
            "query_scale": 4 * heads * -(-length // QUERY_GROUP),
            "key_scale": 4 * heads * keys,
            "sums": 4 * heads * SPLITS * dim,
        }
    elif attention.kernel == "sparse":
        sizes = {
            "pooled_query": 4 * heads * queries * dim,
            "pooled_key": 4 * heads * keys * dim,
            "lists": 2 * heads * queries * keys,
            "counts": 4 * heads * queries,
        }
    found: dict[str, tuple[int, int]] = {}
    for name, size in sizes.items():
        found[name] = _end(found), size
    return found


def _end(parts: Mapping[str, tuple[int, int]]) -> int:
    return max((-(-(start + size) // ALIGNMENT) * ALIGNMENT for start, size in parts.values()), default=0)
