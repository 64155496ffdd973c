"""A kernel that was compiled ahead of time: loaded from its machine code, launched by its record in the manifest."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from ...bundle.kernel_attention import KernelAttention, KernelCode, product
from ...errors import BackendError, DeviceError
from .driver import Device

_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory of a launch that needs no permission (CUDA programming guide, "Shared Memory")."""
_SCALARS: dict[str, Any] = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}


def choose_code(codes: Iterable[KernelCode], variant: str, capability: str, attention: KernelAttention) -> KernelCode:
    """Choose the code of ``variant`` for a GPU: machine code of its architecture, or PTX, which the driver compiles.

    Args:
        codes: of a bundle. capability: compute capability, such as ``8.9``. attention: what the kernel is for.

    Raises:
        DeviceError: the bundle has neither, or there is none for such a GPU.
    """
    architecture = int(capability.replace(".", ""))
    found = [code for code in codes if code.variant == variant]
    for code in found:
        if code.architecture == architecture and not code.is_ptx:
            return code
    for code in found:
        if code.is_ptx and code.architecture <= architecture:
            return code
    # Its PTX is that of the oldest GPU that a kernel can be compiled for.
    oldest = min((code.architecture for code in found if code.is_ptx), default=architecture)
    if architecture < oldest:
        other = attention.name.replace("-fp8", "") if attention.traits.fp8 else "native"
        raise DeviceError(
            f"the bundle's attention {attention.name} needs compute capability {oldest / 10} or newer, and this GPU "
            f"has {capability}; build the bundle again with --attention {other}"
        )
    raise DeviceError(
        f"the bundle's attention kernel {variant} was not compiled for compute capability {capability}; build the "
        f"bundle again with --target {capability}, or with --attention native"
    )


class CompiledKernel:
    """A loaded kernel. Like all of the GPU's objects it belongs to the context that was current when it was made."""

    def __init__(self, device: Device, content: bytes, code: KernelCode) -> None:
        """Load ``content``, whose hash was checked.

        Raises:
            BackendError: the driver refuses the code.
        """
        self.code = code
        self._device = device
        driver = device._driver
        self._module = device.call(f"load the kernel {code.variant}", driver.cuModuleLoadData, content + b"\0")
        weakref.finalize(self, _unload, device, self._module)
        self._function = device.call(
            f"find the kernel {code.entry}", driver.cuModuleGetFunction, self._module, code.entry.encode()
        )
        if code.shared_bytes > _SHARED_BYTES:
            kind = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            device.call(
                f"give the kernel {code.variant} {code.shared_bytes} bytes of shared memory",
                driver.cuFuncSetAttribute,
                self._function,
                kind,
                code.shared_bytes,
            )

    def values(self, known: Mapping[str, float]) -> list[float]:
        """Return the value of every argument, by the names in the manifest; pointers are addresses.

        Raises:
            KeyError: a name that is not ``known``.
        """
        return [product(part.value or part.name, known) for part in self.code.arguments]

    def launch(self, stream: int, known: Mapping[str, float]) -> None:
        """Put one launch into a stream, with what the names in the manifest stand for."""
        code = self.code
        given = zip(code.arguments, self.values(known), strict=True)
        cells = [_SCALARS.get(part.type, ctypes.c_void_p)(value) for part, value in given]
        cells += [ctypes.c_void_p(0) for _ in range(code.scratch_pointers)]
        pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        x, y = (int(-(-product(side.of, {**known, **code.parameters}) // side.per)) for side in code.grid)
        # The driver copies the values before it returns, also into a graph that is recorded.
        self._device.call(
            f"launch the kernel {code.variant}",
            self._device._driver.cuLaunchKernel,
            self._function,
            *(x, y, 1),
            *(code.threads, 1, 1),
            code.shared_bytes,
            stream,
            ctypes.addressof(pointers),
            0,
        )


def _unload(device: Device, module: Any) -> None:
    with contextlib.suppress(BackendError), device.current():  # at the end of the process the driver may be gone
        device.call("unload a kernel", device._driver.cuModuleUnload, module)
