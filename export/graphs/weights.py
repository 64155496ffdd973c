"""Weights in another type, converted one at a time while the file is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

EMBED_LIMIT = 32 * 2**20
"""Weights below this stay inside the .onnx file."""

_BLOCK = 1 << 20
"""Numbers looked at at a time: a mapped file is then never copied as a whole."""


def largest_weight(tensor: ir.TensorProtocol) -> float:
    """Return the largest magnitude of a tensor; infinity if one of its numbers is not finite."""
    largest = 0.0
    for block in _blocks(tensor.numpy()):
        found = float(np.abs(block).max(initial=0.0))
        largest = max(largest, found if np.isfinite(found) else np.inf)
    return largest


def _blocks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def converted(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """Return ``tensor`` rounded to nearest even in ``dtype``; nothing is read or computed before it is written."""

    def convert() -> ir.Tensor:
        return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def save_model(model: ir.Model, path: Path) -> Path | None:
    """Write ``model``, with weights of more than a few megabytes in ``<path>.data``.

    Returns:
        The file of the weights, or None if they are inside.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    large = sum(tensor.nbytes for tensor in tensors if tensor is not None) > EMBED_LIMIT
    data_path = path.with_name(f"{path.name}.data") if large else None
    if not large:  # those that lie beside another file would be left there
        ir.external_data.load_to_model(model)
    ir.save(model, path, external_data=data_path.name if data_path else None)
    return data_path
