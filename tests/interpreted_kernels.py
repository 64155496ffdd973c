"""Triton's interpreter for the kernels: they run on the CPU.

A Triton function is interpreted or compiled from the moment its module is imported, Triton's own library included. So
all are imported once with ``TRITON_INTERPRET`` set, before any test module, and what another test may have imported
without it is dropped first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest

MODULES = ("dense", "int8", "sparse")
MISSING = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]


@functools.cache
def import_interpreted() -> None:
    """Import the kernels for the interpreter, the first time in a process."""
    if MISSING:
        return
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        for name in [name for name in sys.modules if f"{name}.".startswith(("triton.", "mapengine.kernels."))]:
            if not name.startswith("triton._C"):  # an extension module cannot be loaded twice
                del sys.modules[name]
        for module in MODULES:
            importlib.import_module(f"mapengine.kernels.{module}")
        _patch_language_once()
        _check_no_overflow()
        _make_types_once()
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def _patch_language_once() -> None:
    """Keep the interpreter from patching ``triton.language`` at every launch and at every call within a kernel.

    Again and again that takes half of the time. What is patched stays so, as nothing is compiled in this process.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang
    patched: set[int] = set()

    def patch_once(function: Any) -> Any:
        if id(function.__globals__) not in patched:  # those of a module, which stays
            patched.add(id(function.__globals__))
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


def _check_no_overflow() -> None:
    """Keep the interpreter from computing whether a sum overflows: it does nothing with the answer unless debugging."""
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _make_types_once() -> None:
    """Keep the interpreter from making the type of a tensor, and comparing all of it, at every operation.

    What it describes a tensor with (its shape, and that wrapped as constants) is the same for all of a shape.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    core, semantic = interpreter.tl.core, interpreter.TritonSemantic
    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    numpy_type, broadcast, equal = interpreter._get_np_dtype, semantic.broadcast_impl_value, core.dtype.__eq__
    shapes: dict[Any, Any] = {}
    types: dict[Any, dict[str, Any]] = {}
    tensors: dict[Any, tuple[Any, Any]] = {}
    numpy_types: dict[str, Any] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(size.value if type(size) is core.constexpr else size for size in getattr(shape, "values", shape))
        key = (element_ty.name, sizes)
        if key not in types:
            make_type(self, element_ty, shape)
            self.shape = shapes.setdefault(sizes, self.shape)
            types[key] = self.__dict__
        self.__dict__ = types[key]

    def tensor(self: Any, handle: Any, type: Any) -> None:
        key = id(type.shape) if type.is_block() else None  # shapes stay
        if key not in tensors:
            make_tensor(self, handle, type)
            tensors[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = tensors[key]

    def numpy_type_once(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in numpy_types:
            numpy_types[name] = numpy_type(kind)
        return numpy_types[name]

    def broadcast_unequal(self: Any, lhs: Any, rhs: Any) -> Any:
        alike = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
        return (lhs, rhs) if alike else broadcast(self, lhs, rhs)

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)
    interpreter._get_np_dtype, semantic.broadcast_impl_value = numpy_type_once, broadcast_unequal


@contextlib.contextmanager
def only_programs(module: ModuleType, name: str, numbers: Sequence[int]) -> Iterator[None]:
    """Of the grid of a module's kernel, run only the programs with these numbers on the first axis.

    They see the sizes of the whole grid. What the others would write stays as it is.
    """
    kernel, builder = getattr(module, name), importlib.import_module("triton.runtime.interpreter").interpreter_builder

    class Some:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            assert max(numbers) < grid[0]
            set_sizes, set_program = builder.set_grid_dim, builder.set_grid_idx

            def launch(*arguments: Any, **options: Any) -> None:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(builder, "set_grid_dim", lambda _, *others: set_sizes(grid[0], *others))
                    patch.setattr(builder, "set_grid_idx", lambda x, *others: set_program(numbers[x], *others))
                    kernel[(len(numbers), *grid[1:])](*arguments, **options)

            return launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, Some())
        yield
