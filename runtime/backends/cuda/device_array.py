"""Arrays that stay on the GPU after a call, for libraries that speak DLPack or ``__cuda_array_interface__``."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, InputError
from .. import dlpack
from .driver import Buffer, Device

_ALIGNMENT = 256
"""Of arrays in one block, as libraries expect of memory that CUDA gave."""

Shape = tuple[tuple[int, ...], np.dtype[Any]]


class _Memory:
    """A block of the GPU's memory, given back when nothing refers to it any more."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        buffer = device.allocate(size)
        self.address = buffer.address
        weakref.finalize(self, _give_back, device, buffer)


def _give_back(device: Device, buffer: Buffer) -> None:
    with contextlib.suppress(BackendError):  # the GPU is broken, or the process ends
        device.free_soon(buffer)


class DeviceArray:
    """A C-contiguous array on the GPU, whose values are there.

    It is valid until :meth:`release`, or until nobody refers to it; what took it by DLPack keeps its memory as long as
    it wants.

    Attributes:
        name: of the output. shape, dtype: as of a NumPy array.
    """

    def __init__(self, name: str, memory: _Memory, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Use :func:`allocate` or :func:`to_device`."""
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._memory: _Memory | None = memory
        self._offset = offset

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Where the first element is, on the GPU.

        Raises:
            InputError: it was released.
        """
        return self._held.address + self._offset

    @property
    def _held(self) -> _Memory:
        if self._memory is None:
            raise InputError(f"{self.name} was released and has no values any more; call infer again")
        return self._memory

    def release(self) -> None:
        """Give the memory up, which the arrays of a view share; a second time does nothing."""
        self._memory = None

    def numpy(self) -> NDArray[Any]:
        """Return a copy on the host.

        Raises:
            InputError: it was released.
        """
        device, address = self._held.device, self.address
        with device.current(), contextlib.ExitStack() as held:
            stream, pinned = device.stream(), device.pinned(self.shape, self.dtype)
            held.callback(stream.free)
            held.callback(pinned.free)
            stream.download(address, pinned)
            stream.synchronize()
            return pinned.array.copy()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the type and the number of the device, as DLPack has them."""
        return dlpack.CUDA, self._held.device.ordinal

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule. The values are complete, so no stream has to wait for another.

        Raises:
            InputError: it was released.
            BufferError: another device, or a copy, is asked for.
        """
        memory, device = self._held, self.__dlpack_device__()
        if copy or dl_device not in (None, device):
            raise BufferError(f"{self.name} is handed over where it is, without a copy; copy it afterwards")
        return dlpack.capsule(self.address, self.shape, self.dtype, device, memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface; raises InputError if the array was released."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,  # the values are complete
            "version": 3,
        }

    def __repr__(self) -> str:
        state = "released" if self._memory is None else f"on {self._memory.device.name}"
        return f"DeviceArray({self.name}, {self.shape}, {self.dtype}, {state})"


def allocate(device: Device, arrays: Mapping[str, Shape]) -> dict[str, DeviceArray]:
    """Return uninitialised arrays by name, in one block of memory. The GPU must be current.

    Raises:
        OutOfMemory: there is not enough.
    """
    places, size = {}, 0
    for name, (shape, dtype) in arrays.items():
        places[name] = size
        size += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    memory = _Memory(device, size)
    return {name: DeviceArray(name, memory, places[name], *arrays[name]) for name in arrays}


def to_device(device: Device, arrays: Mapping[str, NDArray[Any]]) -> dict[str, DeviceArray]:
    """Copy arrays to the GPU, into one block of memory.

    Raises:
        OutOfMemory: there is not enough.
    """
    with device.current(), contextlib.ExitStack() as held:
        result = allocate(device, {name: (array.shape, array.dtype) for name, array in arrays.items()})
        stream = device.stream()
        held.callback(stream.free)
        for name, array in arrays.items():
            pinned = device.pinned(array.shape, array.dtype)
            held.callback(pinned.free)
            pinned.array[...] = array
            stream.upload(pinned, result[name].address)
        stream.synchronize()
        return result
