"""Attention by compiled kernels, between two segments of a stage: which kernels run, on what, in which memory.

Tensors are read and written where the segments have them, (1, L, H * D) or packed (1, L, 3 * H * D), so nothing is
copied; what the kernels need besides lies in a workspace that the segments use too. Block sizes and other numbers that
the kernels were compiled with come with them in the bundle; their arithmetic is described in ``mapengine.kernels``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...bundle.bundle_files import BundleFiles
from ...bundle.kernel_attention import KERNELS, KernelAttention, KernelCode
from ...errors import ProfileError
from .compiled_kernel import CompiledKernel, choose_code
from .driver import ALIGNMENT, Device

_TYPES = {"float16": "fp16", "bfloat16": "bf16"}
_STEMS = {name: "dense" if name == "flash" else name for name in KERNELS}
"""What the names of compiled attention kernels begin with."""
_LOG2_E = math.log2(math.e)
_UNRECORDED = {"splits": 32, "minimum_share": 0.1}
"""Parameters of the kernels of bundles that were written before these were recorded."""


class AttentionKernels:
    """The kernels that the attention of a chain needs, loaded for one GPU."""

    def __init__(
        self, device: Device, folder: Path, codes: Iterable[KernelCode], attention: Iterable[KernelAttention]
    ) -> None:
        """Load what ``attention`` needs from the bundle in ``folder``, with the GPU current.

        Raises:
            DeviceError: no kernel for this GPU is in the bundle. BackendError: the driver refuses one.
            BundleNotFoundError: a file cannot be read. IntegrityError: one has another hash than in the manifest.
        """
        codes = tuple(codes)
        files = BundleFiles(folder)
        self._kernels: dict[str, CompiledKernel] = {}
        for layer in attention:
            for variant in needed_variants(layer, {code.variant for code in codes}):
                if variant in self._kernels:
                    continue
                code = choose_code(codes, variant, device.compute_capability, layer)
                self._kernels[variant] = CompiledKernel(device, files.read(code.file), code)

    def workspace(self, attention: KernelAttention, length: int) -> int:
        """Return the bytes that the attention over ``length`` tokens needs besides its tensors."""
        return _end(self._parts(attention, length))

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
        channels = attention.num_heads * attention.head_dim
        step = 2 * channels if attention.packed else 0  # bytes from queries to keys to values
        query, key = addresses[attention.query], addresses[attention.key] + step
        token = 3 * channels if attention.packed else channels
        memory = {name: workspace + start for name, (start, _) in self._parts(attention, length).items()}
        end = _suffix(attention)
        common: dict[str, int | float] = {
            "length": length,
            "heads": attention.num_heads,
            "in_batch": 0,  # one sequence: its index is always zero
            "in_token": token,
            "in_head": attention.head_dim,
            "value_batch": 0,
            "value_token": token,
            "value_head": attention.head_dim,
            "out_batch": 0,
            "out_token": channels,
            "out_head": attention.head_dim,
            "scale": _LOG2_E / math.sqrt(attention.head_dim),
            "query": query,
            "key": key,
            "value": addresses[attention.value] + 2 * step,
            "out": addresses[attention.out],
        }
        sizes: dict[str, float] = {"length": length, "batch*heads": attention.num_heads}

        def launch(variant: str, **arguments: int | float) -> None:
            self._kernels[variant].launch(stream, {**common, **arguments}, sizes | self._parameters(variant))

        kind = attention.traits
        prepared: dict[str, int | float] = {}  # what the attention itself takes in place of the common arguments
        if kind.sparse:
            selection = self._selection(attention, length)  # refuse before anything is launched
            launch(f"pool-queries-{end}", x=query, out=memory["pooled_query"])
            launch(f"pool-keys-{end}", x=key, out=memory["pooled_key"])
            key_blocks = self._programs(f"pool-keys-{end}", length)
            lists = {"lists": memory["lists"], "counts": memory["counts"]}
            assert attention.threshold is not None
            launch(
                selection,
                query=memory["pooled_query"],
                key=memory["pooled_key"],
                key_blocks=key_blocks,
                view_tokens=view_tokens,
                extra_tokens=attention.extra_tokens,
                threshold=attention.threshold,
                minimum=math.ceil(self._parameters(selection)["minimum_share"] * key_blocks - 1e-6),
                **lists,
            )
            # Scales that are not read are some address all the same.
            prepared |= lists | dict.fromkeys(("query_scale", "key_scale", "value_scale"), memory["counts"])
        if kind.int8:
            scales = memory["query_scale"], memory["key_scale"]
            launch(f"quantize-queries-{end}", x=query, sums=scales[0], out=memory["query"], scales=scales[0])
            launch(f"statistics-sum-{end}", x=key, out=memory["sums"])
            launch(f"quantize-keys-{end}", x=key, sums=memory["sums"], out=memory["key"], scales=scales[1])
            prepared |= {
                "query": memory["query"],  # (H, L, D)
                "key": memory["key"],
                "query_scale": scales[0],
                "key_scale": scales[1],
                "value_scale": scales[0],  # read with FP8 values only
                "in_token": attention.head_dim,
                "in_head": length * attention.head_dim,
            }
        if kind.fp8:
            launch(f"statistics-maximum-{end}", x=common["value"], out=memory["maxima"])
            launch(f"values-fp8-{end}", maxima=memory["maxima"], out=memory["value"], scales=memory["value_scale"])
            pitch = self._pitch(attention, length)
            prepared |= {
                "value": memory["value"],  # (H, D, pitch): the stride of a "token" is that of a channel
                "value_scale": memory["value_scale"],
                "value_token": pitch,
                "value_head": attention.head_dim * pitch,
            }
        launch(f"{_STEMS[attention.kernel]}-{end}", **prepared)

    def _parts(self, attention: KernelAttention, length: int) -> dict[str, tuple[int, int]]:
        """Return offset and bytes of each tensor in the workspace."""
        heads, dim = attention.num_heads, attention.head_dim
        kind, end = attention.traits, _suffix(attention)
        sizes: dict[str, int] = {}
        if kind.int8:
            sizes |= {
                "query": heads * length * dim,
                "key": heads * length * dim,
                "query_scale": 4 * heads * self._programs(f"quantize-queries-{end}", length),
                "key_scale": 4 * heads * self._programs(f"quantize-keys-{end}", length),
                "sums": 4 * heads * int(self._parameters(f"statistics-sum-{end}")["splits"]) * dim,
            }
        if kind.fp8:
            sizes |= {
                "value": heads * dim * self._pitch(attention, length),
                "value_scale": 4 * heads * dim,
                "maxima": 4 * heads * int(self._parameters(f"statistics-maximum-{end}")["splits"]) * dim,
            }
        if kind.sparse:
            queries, keys = (self._programs(f"pool-{side}-{end}", length) for side in ("queries", "keys"))
            sizes |= {
                "pooled_query": 4 * heads * queries * dim,
                "pooled_key": 4 * heads * keys * dim,
                "lists": 2 * heads * queries * keys,
                "counts": 4 * heads * queries,
            }
        found: dict[str, tuple[int, int]] = {}
        for name, size in sizes.items():
            found[name] = _end(found), size
        return found

    def _programs(self, variant: str, length: int) -> int:
        """Return how many blocks a kernel cuts ``length`` tokens into, a program for each."""
        return -(-length // self._block(variant))

    def _block(self, variant: str) -> int:
        return self._kernels[variant].code.grid[0].per

    def _parameters(self, variant: str) -> dict[str, float]:
        return {**_UNRECORDED, **self._kernels[variant].code.parameters}

    def _pitch(self, attention: KernelAttention, length: int) -> int:
        """Return the bytes from a channel to the next of transposed FP8 values: whole blocks of tokens."""
        variant = f"values-fp8-{_suffix(attention)}"
        return self._programs(variant, length) * self._block(variant)

    def _selection(self, attention: KernelAttention, length: int) -> str:
        """Return the smallest choice of key blocks that takes ``length`` tokens."""
        pool = f"pool-keys-{_suffix(attention)}"
        blocks, selections = self._programs(pool, length), _selections(attention, self._kernels)
        for size, variant in selections.items():
            if blocks <= size:
                return variant
        raise ProfileError(
            f"block-sparse attention takes up to {max(selections) * self._block(pool)} tokens, not {length}; use fewer "
            f"or smaller views, or a bundle with --attention native"
        )


def needed_variants(attention: KernelAttention, known: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the compiled kernels that an attention launches, for every length.

    Args:
        known: names of all kernels that there are; the choice of key blocks is compiled for some numbers of blocks.
    """
    end, kind = _suffix(attention), attention.traits
    names: list[str] = []
    if kind.sparse:
        selections = _selections(attention, known).values() or (f"select-*-d{attention.head_dim}",)
        names += [f"pool-queries-{end}", f"pool-keys-{end}", *selections]
    if kind.int8:
        names += [f"{name}-{end}" for name in ("quantize-queries", "statistics-sum", "quantize-keys")]
    if kind.fp8:
        names += [f"statistics-maximum-{end}", f"values-fp8-{end}"]
    return (*names, f"{_STEMS[attention.kernel]}-{end}")


def _suffix(attention: KernelAttention) -> str:
    return f"{_TYPES[attention.dtype]}-d{attention.head_dim}"


def _selections(attention: KernelAttention, known: Iterable[str]) -> dict[int, str]:
    """Names of the kernels that choose key blocks, by how many blocks they hold, ascending."""
    found = (re.fullmatch(rf"select-(\d+)-d{attention.head_dim}", name) for name in known)
    return dict(sorted((int(match[1]), match[0]) for match in found if match))


def _end(parts: Mapping[str, tuple[int, int]]) -> int:
    return max((-(-(start + size) // ALIGNMENT) * ALIGNMENT for start, size in parts.values()), default=0)
