"""DLPack: how an array is handed to another library without a copy (dmlc.github.io/dlpack, ``DLManagedTensor``)."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

CPU, CUDA = 1, 2
"""``DLDeviceType``."""
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
"""``DLDataTypeCode``, by the kind of a NumPy type."""
_NAME = b"dltensor"  # a consumer renames the capsule, and calls the deleter when it is done


class _DLDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("dl_tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _DELETER))


_exported: dict[int, Any] = {}
"""What each tensor that a consumer may still read needs, by the tensor's address."""


@_DELETER
def _delete(address: int) -> None:
    _exported.pop(address, None)


# The capsule has no reference left when this runs, so it must not become a Python object again.
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    """Give back what nobody consumed."""
    if _is_valid(capsule, _NAME):
        _delete(_pointer(capsule, _NAME))


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)


def capsule(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: object
) -> object:
    """Return a capsule for a C-contiguous array.

    Args:
        address: of its first element. shape: of it. dtype: of its elements.
        device: type and number, such as (:data:`CUDA`, 0).
        owner: whose reference keeps the memory, until the consumer is done.
    """
    managed = _DLManagedTensor()
    tensor = managed.dl_tensor
    sides = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    tensor.data = address
    tensor.device = _DLDevice(*device)
    tensor.ndim = len(shape)
    tensor.dtype = _DLDataType(_CODES[dtype.kind], 8 * dtype.itemsize, 1)
    tensor.shape, tensor.strides, tensor.byte_offset = sides, steps, 0
    managed.manager_ctx, managed.deleter = None, _delete
    place = ctypes.addressof(managed)
    _exported[place] = managed, sides, steps, owner
    return _new(place, _NAME, ctypes.cast(_destroy, ctypes.c_void_p))
