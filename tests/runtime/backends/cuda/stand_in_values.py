"""Enumerations, the logger's base class and the runtime configuration of the stand-in libraries, and what computes."""

from __future__ import annotations

import enum
import functools
import os
from typing import Any

import onnxruntime

from mapengine.runtime.bundle.bundle_files import FileIdentity


def inference_session(path: str) -> Any:
    """Load a graph in ONNX Runtime on the CPU; once in a process, as most tests load the same ones."""
    return _inference_session(path, FileIdentity.of(os.stat(path)))


@functools.lru_cache(maxsize=64)
def _inference_session(path: str, _: FileIdentity) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self) -> None:
        self.is_made = True  # the real one crashes in a subclass that does not call this

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class EngineInvalidityDiagnostics(enum.Enum):
    VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER = 1, 2, 4
    OLD_CUDA_RUNTIME, INSUFFICIENT_GPU_MEMORY, MALFORMED_ENGINE, CUDA_ERROR = 8, 16, 32, 64


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IRuntimeCache:
    """Kernels of the shapes that ran, as text; ``compiled`` counts those that were not in the cache."""

    compiled = 0
    serialized = 0

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def add(self, kernel: str) -> None:
        IRuntimeCache.compiled += kernel not in self.kernels
        self.kernels.add(kernel)

    def serialize(self) -> bytes:
        IRuntimeCache.serialized += 1
        return b"stand-in kernels\n" + "\n".join(sorted(self.kernels)).encode()

    def deserialize(self, blob: Any) -> bool:
        head, _, kernels = bytes(blob).partition(b"\n")
        if head != b"stand-in kernels":
            return False
        self.kernels |= set(kernels.decode().splitlines())
        return True
