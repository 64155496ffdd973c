"""The differences between ``tensorrt`` 10.x, ``tensorrt`` 11.x and ``tensorrt_rtx``, and how they are found.

Nothing here touches a TensorRT runtime before a driver with a GPU was found: without one TensorRT-RTX returns ``None``
where an object is expected, and the lean runtime of TensorRT crashes the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...backend_table import TENSORRT_BACKENDS
from ...errors import InputError
from ..libraries import import_library


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT library.

    Attributes:
        name: the backend's name. library: the Python module. version: of the library, such as ``10.13.3.9``.
    """

    name: str
    library: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX compiles ahead of time without a GPU, for a range of GPUs, and specialises kernels at run time.

        TensorRT times kernels on the GPU that is there, and its plans are for that GPU.
        """
        return self.name == "tensorrt-rtx"

    def create_network(self, builder: Any) -> Any:
        """Create a network whose tensor types are those of the graph (the only kind that TensorRT 11 knows)."""
        flag = getattr(self.library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    @property
    def captures_graphs(self) -> bool:
        """TensorRT-RTX makes CUDA graphs by itself; for TensorRT the caller captures what a context launches.

        A graph that is captured around TensorRT-RTX would keep the kernels that it replaces by specialised ones later.
        """
        return self.is_rtx

    def create_context(self, engine: Any, runtime_cache: Any = None) -> Any:
        """Create an execution context without memory of its own; None where the library cannot.

        The caller gives it memory with ``set_device_memory``, so that contexts that run one after the other share it.
        """
        strategy = self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.is_rtx:
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = self.library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if runtime_cache is not None:
            config.set_runtime_cache(runtime_cache)
        return engine.create_execution_context(config)

    def create_runtime_cache(self, engine: Any) -> Any | None:
        """Create the cache of kernels compiled at run time; None for TensorRT, which compiles at build time."""
        return engine.create_runtime_config().create_runtime_cache() if self.is_rtx else None

    def plan_problem(self, runtime: Any, plan: Any) -> str | None:
        """Return why the library cannot run a plan, from the plan's header; None where it names no reason.

        ``plan`` is a buffer that can be sliced. TensorRT has no such check.
        """
        if not hasattr(runtime, "get_engine_validity"):
            return None
        validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
        if validity != self.library.EngineValidity.INVALID:
            return None
        known = self.library.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name.lower().replace("_", " ") for name, member in known if int(bits) & int(member.value)]
        return ", ".join(reasons) or f"diagnostics {int(bits):#x}"


def load_flavour(name: str) -> Flavour:
    """Import a TensorRT library.

    Raises:
        InputError: no such flavour.
        BackendUnavailableError: the package is not installed, or is broken.
    """
    if name not in TENSORRT_BACKENDS:
        raise InputError(f"unknown TensorRT flavour {name!r}; use {' or '.join(TENSORRT_BACKENDS)}")
    library = import_library(name)
    return Flavour(name, library, str(library.__version__))
