"""Compiled kernels for the stand-in driver: the "machine code" names a Triton kernel, which the interpreter runs on
the raw addresses of a launch. The rules of a GPU are enforced: shared memory that was asked for, alignment, bounds."""

from __future__ import annotations

import ctypes
import importlib
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapengine.kernels.compile import chosen
from mapengine.kernels.variants import Variant, variants
from mapengine.runtime.bundle.kernel_attention import GridSide, KernelArgument, KernelCode
from mapengine.runtime.bundle.store import BundleWriter

from .stand_in_status import INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, NOT_FOUND, Fault

ALIGNMENT = 16
MAGIC = "stand-in kernel"
SHARED_BYTES = 64 * 1024
THREADS = 256
SCRATCH_POINTERS = 2
_TYPES = {
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "fp8e4nv": "float8_e4m3fn",
}


@dataclass
class Function:
    """A kernel of a loaded module."""

    variant: Variant
    arguments: list[list[str]]
    shared_bytes: int = 48 * 1024

    def values(self, pointer: int) -> list[Any]:
        """The arguments of a launch, which have to be as many and of the types that the code takes."""
        kinds = [kind for _, kind in self.arguments] + ["*"] * SCRATCH_POINTERS
        cells = (ctypes.c_void_p * len(kinds)).from_address(pointer)
        found: list[Any] = []
        for cell, kind in zip(cells, kinds, strict=True):
            ctype: Any = ctypes.c_uint64 if kind[0] == "*" else {"i32": ctypes.c_int32, "fp32": ctypes.c_float}[kind]
            found.append(ctype.from_address(cell).value)
        assert found[-SCRATCH_POINTERS:] == [0] * SCRATCH_POINTERS
        return found[:-SCRATCH_POINTERS]

    def run(self, values: list[Any], grid: tuple[int, int], block_of: Callable[[int], tuple[int, int]]) -> None:
        """Compute; ``block_of`` gives start and size of the block of memory that has an address."""
        kernel = getattr(importlib.import_module(f"mapengine.kernels.{self.variant.module}"), self.variant.function)
        given: dict[str, Any] = dict(self.variant.constants)
        for (name, kind), value in zip(self.arguments, values, strict=True):
            given[name] = _tensor(value, kind[1:], *block_of(value)) if kind[0] == "*" else value
            if kind[0] == "*" or name.endswith(("_batch", "_token", "_head")):
                assert value % ALIGNMENT == 0, f"{name} = {value:#x} is no multiple of {ALIGNMENT}"
        kernel[grid](**given)


def _tensor(address: int, kind: str, start: int, size: int) -> Any:
    import torch

    dtype = getattr(torch, _TYPES[kind])
    left = start + size - address
    raw = (ctypes.c_byte * left).from_address(address)
    return torch.frombuffer(raw, dtype=dtype, count=left // dtype.itemsize)


def load(image: int) -> Function:
    """A module's only kernel, from the address of its "machine code"."""
    body = json.loads(ctypes.string_at(image))
    assert body["kind"] == MAGIC
    return Function(next(v for v in variants() if v.name == body["variant"]), body["arguments"])


def write_kernels(writer: BundleWriter, head_dim: int, architecture: int = 89) -> tuple[KernelCode, ...]:
    """Every variant of a head size as "machine code" in a bundle."""
    import_module = importlib.import_module
    codes = []
    for variant, _ in chosen([architecture], [head_dim]):
        function = getattr(import_module(f"mapengine.kernels.{variant.module}"), variant.function)
        types = {name: f"*{kind}" for name, kind in variant.pointers.items()} | dict.fromkeys(variant.floats, "fp32")
        names = [name for name in function.arg_names if name not in variant.constants]
        arguments = [[name, types.get(name, "i32")] for name in names]
        body = {"kind": MAGIC, "variant": variant.name, "arguments": arguments}
        path = Path(writer.folder / f"{variant.name}.sm_{architecture}.cubin")
        path.write_text(json.dumps(body), encoding="utf-8")
        codes.append(
            KernelCode(
                writer.record(path.name),
                variant.name,
                architecture,
                variant.function,
                tuple(KernelArgument(name, kind, variant.value(name)) for name, kind in arguments),
                SCRATCH_POINTERS,
                (GridSide(*variant.grid[0]), GridSide(*variant.grid[1])),
                THREADS,
                SHARED_BYTES if variant.is_attention else 1024,
                variant.parameters,
                variant.workspace,
                variant.longest,
            )
        )
    return tuple(codes)


class KernelCalls:
    """The driver's functions for kernels; what they need of the driver is in :class:`.stand_in_driver.StandInDriver`.

    Attributes:
        kernels: how often each variant ran.
    """

    kernels: dict[str, int]
    blocks: dict[int, int]
    handles: dict[int, Any]
    enqueue: Callable[..., None]
    mistake: Callable[[str], None]

    def cuModuleLoadData(self, image: int) -> int:
        self._unsafe()
        try:
            return self._handle(load(image))
        except (ValueError, AssertionError):
            raise Fault(INVALID_IMAGE) from None

    def cuModuleUnload(self, module: int) -> None:
        self._unsafe()
        self._drain_all()
        del self.handles[module]

    def cuModuleGetFunction(self, module: int, name: bytes) -> int:
        self._need_context()
        if self.handles[module].variant.function != name.decode():
            raise Fault(NOT_FOUND)
        return module

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self._need_context()
        if attribute != 8:  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            raise Fault(INVALID_VALUE)
        self.handles[function].shared_bytes = value

    def cuLaunchKernel(self, function: int, *rest: int) -> None:
        x, y, z, threads, _, _, shared, stream, arguments, extra = rest
        kernel = self.handles.get(function)
        if not isinstance(kernel, Function) or extra:
            raise Fault(INVALID_HANDLE)
        if z != 1 or not (x and y) or y > 65535 or threads % 32 or shared > kernel.shared_bytes:
            raise Fault(INVALID_VALUE)
        values = kernel.values(arguments)  # now: the caller may change them afterwards

        def run() -> None:
            self.kernels[kernel.variant.name] = self.kernels.get(kernel.variant.name, 0) + 1
            try:
                kernel.run(values, (x, y), self._block)
            except Exception:
                self.mistake(f"{kernel.variant.name}: {traceback.format_exc()}")

        self.enqueue(stream, run)

    def _block(self, address: int) -> tuple[int, int]:
        for start, size in self.blocks.items():
            if start <= address < start + size:
                return start, size
        raise ValueError(f"{address:#x} is in no block of memory")
