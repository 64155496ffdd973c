"""A stage that is cut at its attention: segments with compiled kernels between them, used as one stage.

To a shape context the chain is one stage: one context with one block of memory and one launch, which puts all
segments and kernels into the stream, so that one CUDA graph holds them. Inside, the block of memory has two parts: a
workspace that segments and kernels take in turn, and the tensors that lead from one segment to a later one, where those
that are not alive together share their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...bundle.kernel_attention import TOKENS, KernelAttention, all_tokens, kept_keys, keys_axis
from ...bundle.manifest import StageSpec, TensorSpec
from ...errors import BackendError
from .attention import AttentionKernels
from .driver import ALIGNMENT
from .stage import DeviceStage, tensor_bytes


class SegmentChain:
    """The segments of a stage in order, and the attention behind each but the last; see :class:`.stage.DeviceStage`."""

    def __init__(self, name: str, spec: StageSpec, segments: Sequence[DeviceStage], kernels: AttentionKernels) -> None:
        """Join loaded segments.

        Args:
            name: of the stage. spec: the chain in the manifest.
            segments: in order. kernels: loaded for ``spec.attention``.
        """
        self.name = name
        self.spec = spec
        self.inputs = {tensor.name: tensor for tensor in spec.inputs}
        self.outputs = {tensor.name: tensor for tensor in spec.outputs}
        self.tensors = self.inputs | self.outputs
        self.segments = tuple(segments)
        self.kernels = kernels
        known = {tensor.name: tensor for segment in self.segments for tensor in segment.tensors.values()}
        self.carried = {name: tensor for name, tensor in known.items() if name not in self.tensors}

    @property
    def recordable(self) -> bool:
        """Whether all of it may be recorded into one CUDA graph."""
        return all(segment.recordable for segment in self.segments)

    def optimization_profile(self, axes: Mapping[str, int]) -> int:
        """Return the number of the first segment's optimization profile; see :class:`.stage.DeviceStage`."""
        axes = self._with_tokens(axes)
        first, *_ = [segment.optimization_profile(axes) for segment in self.segments]
        return first

    def context(self, stream: int, axes: Mapping[str, int]) -> tuple[Any, int]:
        """Create a context for one shape, without memory; returns it and the bytes that it needs."""
        axes = self._with_tokens(axes)
        made = [segment.context(stream, axes) for segment in self.segments]
        joined = ChainContext(self, [context for context, _ in made], [size for _, size in made], axes)
        return joined, joined.memory_bytes

    def enqueue(self, joined: ChainContext, stream: int) -> None:
        """Put all segments and kernels into the stream; the tensors' addresses and the memory are set."""
        for index, segment in enumerate(self.segments):
            segment.enqueue(joined.contexts[index], stream)
            if index < len(self.spec.attention):
                joined.attend(index, stream)

    def failed(self, what: str) -> BackendError:
        """Return the error for a refusal of the library, with the library's own words."""
        return self.segments[0].failed(what)

    def _with_tokens(self, axes: Mapping[str, int]) -> dict[str, int]:
        extra = self.spec.attention[0].extra_tokens
        sizes = axes["views"], axes["patch_rows"], axes["patch_columns"], extra
        shares = {entry.key_share for entry in self.spec.attention} - {None}
        keys = {keys_axis(share): kept_keys(*sizes, share) for share in shares if share is not None}
        return {**axes, TOKENS: all_tokens(*sizes), **keys}


class ChainContext:
    """What :class:`.shape_context.ShapeContext` does with a context, for all segments of a chain.

    Attributes:
        contexts: the library's context per segment.
        memory_bytes: what :meth:`set_device_memory` has to give.
    """

    def __init__(self, chain: SegmentChain, contexts: list[Any], sizes: list[int], axes: Mapping[str, int]) -> None:
        self.contexts = contexts
        self._chain = chain
        self._length = axes[TOKENS]
        self._key_lengths = [key_length(entry, axes) for entry in chain.spec.attention]
        self._view_tokens = (axes[TOKENS] - 1) // axes["views"]
        self._sizes = sizes
        self._addresses: dict[str, int] = {}
        self._workspace = 0
        attention = chain.spec.attention
        pairs = zip(attention, self._key_lengths, strict=True)
        needed = [*sizes, *(chain.kernels.workspace(entry, self._length, keys) for entry, keys in pairs)]
        self._workspace_bytes = _aligned(max(needed))
        self._offsets, carried = place(lifetimes(chain.spec, chain.carried, axes))
        self.memory_bytes = self._workspace_bytes + carried

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the address of a tensor in every segment that has it; returns whether all took it."""
        self._addresses[name] = address
        pairs = zip(self._chain.segments, self.contexts, strict=True)
        return all(context.set_tensor_address(name, address) for segment, context in pairs if name in segment.tensors)

    def set_device_memory(self, address: int, size: int) -> None:
        """Work in ``size`` bytes at ``address``."""
        self._workspace = address
        for context in self.contexts:
            context.set_device_memory(address, self._workspace_bytes)
        for name, offset in self._offsets.items():
            if not self.set_tensor_address(name, address + self._workspace_bytes + offset):
                raise self._chain.failed(f"it refuses the address of {name}")

    def attend(self, index: int, stream: int) -> None:
        """Launch the attention behind segment ``index``."""
        self._chain.kernels.enqueue(
            self._chain.spec.attention[index],
            stream,
            length=self._length,
            key_length=self._key_lengths[index],
            view_tokens=self._view_tokens,
            addresses=self._addresses,
            workspace=self._workspace,
        )


def key_length(attention: KernelAttention, axes: Mapping[str, int]) -> int:
    """Return how many keys an attention has, from the axes of the tensors between segments."""
    return axes[TOKENS if attention.key_share is None else keys_axis(attention.key_share)]


@dataclass(frozen=True)
class Lifetime:
    """Bytes of a tensor, and the first and last step that has it: segment i is step 2 i, its attention 2 i + 1."""

    size: int
    first: int
    last: int


def lifetimes(spec: StageSpec, carried: Mapping[str, TensorSpec], axes: Mapping[str, int]) -> dict[str, Lifetime]:
    """Return when each tensor between segments is alive."""
    steps: dict[str, list[int]] = {name: [] for name in carried}
    for index, segment in enumerate(spec.segments):
        for tensor in (*segment.inputs, *segment.outputs):
            if tensor.name in steps:
                steps[tensor.name].append(2 * index)
    for index, entry in enumerate(spec.attention):
        for name in {entry.query, entry.key, entry.value, entry.out} & set(steps):
            steps[name].append(2 * index + 1)
    return {name: Lifetime(tensor_bytes(carried[name], axes), min(when), max(when)) for name, when in steps.items()}


def place(tensors: Mapping[str, Lifetime]) -> tuple[dict[str, int], int]:
    """Place tensors in one block of memory such that those that are alive together do not overlap.

    Offsets are multiples of 256. The largest tensor comes first, each at the lowest offset that is free: within a few
    percent of the least for a transformer, whose tensors have few sizes.

    Returns:
        The offset of each tensor, and the bytes of the block.
    """
    offsets: dict[str, int] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].size, item[0])):
        taken = sorted(
            (offsets[other], offsets[other] + _aligned(known.size))
            for other, known in tensors.items()
            if other in offsets and tensor.first <= known.last and known.first <= tensor.last
        )
        start = 0
        for low, high in taken:
            if start + tensor.size <= low:
                break
            start = max(start, high)
        offsets[name] = start
        end = max(end, start + _aligned(tensor.size))
    return offsets, end


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
