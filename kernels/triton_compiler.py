"""One variant for one architecture through Triton and ptxas, with no GPU. The only file of the build that imports
Triton."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

from .errors import KernelCompileError, KernelUnavailableError
from .variants import Variant

PTX_VERSIONS = {80: 84, 89: 84}
"""PTX ISA of the architectures whose PTX is stored for newer chips: 8.4, the first with FP8 matrix products on sm_89,
which drivers from CUDA 12.4 on compile. Triton's default is newer."""

ALIGNMENT = 16
"""What the code relies on: pointers are multiples of as many bytes, strides (``*_batch``, ``*_token``, ``*_head``) of
as many elements. Rows of 32 or more channels keep to it."""

_LOG = {
    "registers": r"Used (\d+) registers",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
    "stack_bytes": r"(\d+) bytes stack frame",
}
_MATRIX = re.compile(
    r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w:]*?(?:\.[\w:]+)*?(\.m\d+n\d+k\d+|\.kind)([\w.:]*)"
)
_ENVIRONMENT = {
    "TRITON_ALWAYS_COMPILE": "1",
    "TRITON_DUMP_PTXAS_LOG": "1",  # registers and spills are nowhere else
    "TRITON_DISABLE_LINE_INFO": "1",  # otherwise the code holds the path of the source
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one variant.

    Attributes:
        cubin: machine code.
        ptx: the PTX it was assembled from.
        entry: name of the kernel inside both.
        arguments: (name, type) of the arguments in launch order.
        scratch_pointers: null pointers to pass after them.
        shared_bytes: dynamic shared memory of a launch.
        threads: threads per program.
        resources: registers and spills per thread, as ptxas reports them.
        tensor_cores: the matrix instructions in the PTX.
    """

    cubin: bytes
    ptx: str
    entry: str
    arguments: tuple[tuple[str, str], ...]
    scratch_pointers: int
    shared_bytes: int
    threads: int
    resources: dict[str, int]
    tensor_cores: list[str]


def _kernel(variant: Variant) -> Any:
    """Return the Triton function of ``variant``."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise KernelUnavailableError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it")
    try:
        module = importlib.import_module(f".{variant.module}", __package__)
    except ImportError as error:
        raise KernelUnavailableError(
            f"compiling kernels needs Triton ({error}); run: pip install 'mapengine[kernels]'"
        ) from error
    return getattr(module, variant.function)


def source_hash(variant: Variant) -> str:
    """Return the SHA-256 of the kernel's source, of every function it calls and of the constants it reads: Triton's own
    key."""
    return str(_kernel(variant).cache_key)


def versions() -> dict[str, str]:
    """Return the versions of Triton and of the assembler that it brings."""
    try:
        import triton
        from triton import knobs
    except ImportError as error:
        raise KernelUnavailableError(
            f"compiling kernels needs Triton ({error}); run: pip install 'mapengine[kernels]'"
        ) from error
    found = {"triton": str(triton.__version__)}
    for name in ("ptxas", "ptxas_blackwell"):
        tool = getattr(knobs.nvidia, name, None)
        if tool is not None:
            text = subprocess.run([tool.path, "--version"], capture_output=True, text=True, check=False).stdout
            match = re.search(r"\bV([\d.]+)", text)
            found[name] = match[1] if match else "unknown"
    return found


def signature(variant: Variant, names: list[str]) -> dict[str, str]:
    """Return Triton's type of each argument in ``names``."""
    types = {name: f"*{kind}" for name, kind in variant.pointers.items()}
    types |= dict.fromkeys(variant.floats, "fp32") | dict.fromkeys(variant.constants, "constexpr")
    unknown = sorted(set(types) - set(names))
    if unknown:
        raise KernelCompileError(f"{variant.name}: {variant.function} has no argument {', '.join(unknown)}")
    return {name: types.get(name, "i32") for name in names}


def compile_variant(variant: Variant, architecture: int) -> Compiled:
    """Compile ``variant`` for sm_``architecture``.

    Raises:
        KernelUnavailableError: Triton is not installed.
        KernelCompileError: the compiler refused it; the message holds its first words.
    """
    kernel = _kernel(variant)
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = signature(variant, kernel.arg_names)
    aligned = [n for n, kind in types.items() if kind[0] == "*" or n.endswith(("_batch", "_token", "_head"))]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in aligned}
    source = ASTSource(kernel, types, dict(variant.constants), attributes)
    tile = variant.tile(architecture)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    if architecture in PTX_VERSIONS:
        options["ptx_version"] = PTX_VERSIONS[architecture]
    log = io.StringIO()
    saved = dict(os.environ)
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(log), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.update(_ENVIRONMENT, TRITON_CACHE_DIR=cache)
        try:
            result = triton_compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            ptx, cubin, metadata = result.asm["ptx"], result.asm["cubin"], result.metadata
        except Exception as error:
            raise KernelCompileError(f"{variant.name} for sm_{architecture}: {_reason(error)}") from error
        finally:
            os.environ.clear()
            os.environ.update(saved)
    resources = {name: int(found[1]) for name, how in _LOG.items() if (found := re.search(how, log.getvalue()))}
    arguments = tuple((name, kind) for name, kind in types.items() if kind != "constexpr")
    entry = str(metadata.name)
    head = re.search(rf"\.entry {entry}\((.*?)\)", ptx, re.S)
    parameters = head[1].count(".param") if head else len(arguments)
    return Compiled(
        cubin=cubin,
        ptx=ptx,
        entry=entry,
        arguments=arguments,
        scratch_pointers=parameters - len(arguments),
        shared_bytes=int(metadata.shared),
        threads=32 * int(metadata.num_warps),
        resources=resources,
        tensor_cores=sorted({"".join(parts) for parts in _MATRIX.findall(ptx)}),
    )


def _reason(error: Exception) -> str:
    """Return the line of a compiler's complaint that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"fatal|error", line, re.I) and "Repro" not in line]
    return (told or lines or [type(error).__name__])[-1][:300]
