"""The interface of a stage on a GPU, for every library that computes one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from ...bundle.manifest import StageSpec, TensorSpec
from ...bundle.stages import tensor_shape
from ...errors import BackendError, ManifestError, ProfileError

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "bool": 1, "uint8": 1}


class StageContext(Protocol):
    """A stage for one shape of tensors."""

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the address of a tensor; returns whether the library accepts it."""
        ...

    def set_device_memory(self, address: int, size: int) -> None:
        """Set the memory to work in."""
        ...


class DeviceStage(Protocol):
    """A loaded stage. Contexts are made from it; it holds nothing of a call."""

    name: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    tensors: dict[str, TensorSpec]

    @property
    def recordable(self) -> bool:
        """Whether what a context launches may be recorded into a CUDA graph, from its second run on."""
        ...

    def optimization_profile(self, axes: Mapping[str, int]) -> int:
        """Return the number of the first optimization profile that covers the axes; ``ProfileError`` if none does."""
        ...

    def context(self, stream: int, axes: Mapping[str, int]) -> tuple[StageContext, int]:
        """Create a context for one shape, without memory; returns it and the bytes that it needs."""
        ...

    def enqueue(self, context: Any, stream: int) -> None:
        """Enqueue the stage, whose addresses and memory are set. The caller holds the stream's turn."""
        ...

    def failed(self, what: str) -> BackendError:
        """Return the error for a refusal of the library, with the library's own words where it has any."""
        ...


def covering_optimization_profile(name: str, spec: StageSpec, axes: Mapping[str, int]) -> int:
    """Return the number of the first optimization profile of the stage ``name`` that covers the axes.

    Raises:
        ProfileError: none does; the message names the build options.
    """
    for index, profile in enumerate(spec.optimization_profiles):
        if all(profile[axis].min <= value <= profile[axis].max for axis, value in axes.items() if axis in profile):
            return index
    asked = ", ".join(f"{axis} {value}" for axis, value in axes.items())
    raise ProfileError(
        f"the stage {name} was not built for {asked}; build the bundle with --views and --resolution that cover the "
        f"request"
    )


def check_tensors(what: str, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Refuse a file with other tensors than the manifest says.

    Args:
        what: for the message, such as "the plan of aggregator". found, wanted: what is compared, by name of a tensor.

    Raises:
        ManifestError: the message names the tensors that differ.
    """
    different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if different:
        raise ManifestError(
            f"{what} has other tensors than the manifest says ({', '.join(different)}); build the bundle again"
        )


def tensor_bytes(spec: TensorSpec, axes: Mapping[str, int]) -> int:
    """Return the size of a tensor in bytes."""
    return math.prod(tensor_shape(spec, axes)) * _BYTES[spec.dtype]
