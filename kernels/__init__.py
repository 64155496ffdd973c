"""Fused attention kernels for long sequences, and their ahead-of-time compilation.

    from mapengine.kernels import Selection, dense_attention, int8_attention, sparse_attention

The kernels are in Triton, one a file: `dense`, `int8`, `sparse`, and what prepares their inputs, `statistics`,
`quantize`, `values`, `pooling`, `selection`. Importing this package needs neither Triton nor PyTorch; using one of
these names does. `python -m mapengine.kernels compile` builds machine code for engines, with no GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .costs import Cost
from .errors import (
    KernelCompileError,
    KernelError,
    KernelInputError,
    KernelOutputError,
    KernelUnavailableError,
)

if TYPE_CHECKING:
    from .dense import dense_attention
    from .int8 import int8_attention
    from .launch import split_qkv
    from .selection import Selection
    from .sparse import sparse_attention

__all__ = [
    "Cost",
    "KernelCompileError",
    "KernelError",
    "KernelInputError",
    "KernelOutputError",
    "KernelUnavailableError",
    "Selection",
    "dense_attention",
    "int8_attention",
    "sparse_attention",
    "split_qkv",
]

_LAZY = {
    "Selection": "selection",
    "dense_attention": "dense",
    "int8_attention": "int8",
    "sparse_attention": "sparse",
    "split_qkv": "launch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_LAZY[name]}", __name__)
        importlib.import_module("torch")  # which its functions import when they run, as the compiler does without
        return getattr(module, name)
    except ModuleNotFoundError as error:
        raise KernelUnavailableError(
            f"{name} needs Triton and PyTorch ({error}); run: pip install 'mapengine[kernels]' torch"
        ) from error
