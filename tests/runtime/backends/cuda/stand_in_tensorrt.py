"""TensorRT and TensorRT-RTX without a GPU: the part of their Python API that the runtime uses.

A "plan" names an ONNX graph, which ONNX Runtime computes on the raw addresses that a context was given, when the stream
of the stand-in driver gets there. The API's rules are enforced: what a real library answers with a refusal is refused
and logged; what it would answer with garbage or a crash is a ``mistake`` of the driver, which fails the test.
``test_stand_ins.py`` holds the names against the real package.
"""

from __future__ import annotations

import ctypes
import json
import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.bundle.kernel_attention import kept_keys

from .stand_in_driver import StandInDriver
from .stand_in_values import (
    CudaGraphStrategy,
    DataType,
    EngineInvalidityDiagnostics,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    ILogger,
    IRuntimeConfig,
    TensorIOMode,
    inference_session,
)

MAGIC = b"stand-in plan 1\n"
HEADER = 64
ALIGNMENT = 256

_DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}


def write_plan(path: Path, graph: Path, spec: Mapping[str, Any], scratch: int = 4096) -> None:
    """Write the plan of a stage.

    Args:
        graph: ONNX file that computes it.
        spec: the stage in the manifest's JSON form: tensors and profiles.
        scratch: bytes of memory that a context needs per view and patch.
    """
    body = {"graph": str(graph), "spec": spec, "scratch": scratch}
    path.write_bytes(MAGIC.ljust(HEADER, b"\0") + json.dumps(body).encode())


class StandInTensorRt:
    """What ``import tensorrt`` or ``import tensorrt_rtx`` gives.

    Attributes:
        runtimes, contexts: how many were made. enqueued: launches by stage, replays of graphs included.
        alive: engines and contexts that exist now.
        recaptures: how often TensorRT-RTX had to record its own graph again, because something changed.
        invalid: bits of ``EngineInvalidityDiagnostics`` that every plan is said to have.
        refuse: calls that fail from now on, with what they write to the log.
        noise: added to everything that stages give.
    """

    ILogger = ILogger
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    TensorIOMode = TensorIOMode
    DataType = DataType
    CudaGraphStrategy = CudaGraphStrategy
    EngineValidity = EngineValidity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics

    def __init__(self, driver: StandInDriver, name: str, version: str) -> None:
        self.driver = driver
        self.name = name
        self.is_rtx = name == "tensorrt-rtx"
        self.__version__ = version
        self.runtimes = 0
        self.contexts = 0
        self.alive = 0
        self.enqueued: dict[str, int] = {}
        self.recaptures = 0
        self.invalid = 0
        self.refuse: dict[str, str] = {}
        self.noise = 0.0
        if not self.is_rtx:
            for name in ("CudaGraphStrategy", "EngineValidity", "EngineInvalidityDiagnostics"):
                setattr(self, name, None)

    def Runtime(self, logger: Any) -> Runtime:
        kind = RtxRuntime if self.is_rtx else Runtime
        return kind(self, logger)


class Runtime:
    def __init__(self, library: StandInTensorRt, logger: Any) -> None:
        if not isinstance(logger, ILogger) or not logger.is_made:
            raise TypeError("incompatible constructor arguments")
        self._library = library
        self._logger = logger
        self._engines: weakref.WeakSet[ICudaEngine] = weakref.WeakSet()
        library.runtimes += 1

    def __del__(self) -> None:
        if getattr(self, "_engines", None):
            self._library.driver.mistake("a runtime is destroyed before its engines")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan = bytes(memoryview(serialized_engine))
        if not self._library.driver.has_context():
            self._library.driver.mistake("a plan is deserialised with no GPU current")
        text = self._library.refuse.get("deserialize_cuda_engine")
        if text is None and not plan.startswith(MAGIC):
            text = "Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match"
        if text is not None:
            self._logger.log(ILogger.Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {text}")
            return None
        kind = RtxEngine if self._library.is_rtx else ICudaEngine
        engine = kind(self._library, self._logger, json.loads(plan[HEADER:]))
        self._engines.add(engine)
        return engine


class RtxRuntime(Runtime):
    engine_header_size = HEADER

    def get_engine_validity(self, buffer: Any) -> tuple[EngineValidity, int]:
        header = bytes(buffer)
        assert len(header) <= HEADER
        bits = self._library.invalid | (0 if header.startswith(MAGIC) else 32)
        return (EngineValidity.INVALID if bits else EngineValidity.VALID), bits


class ICudaEngine:
    def __init__(self, library: StandInTensorRt, logger: Any, plan: Mapping[str, Any]) -> None:
        self._library = library
        self._logger = logger
        self._inference_session = inference_session(plan["graph"])
        self._types = {value.name: value.type for value in self._inference_session.get_inputs()}
        self._stage = Path(plan["graph"]).stem
        self._inputs = {tensor["name"]: tensor for tensor in plan["spec"]["inputs"]}
        self._outputs = {tensor["name"]: tensor for tensor in plan["spec"]["outputs"]}
        self._tensors = self._inputs | self._outputs
        self._profiles = plan["spec"]["profiles"]
        self._scratch = plan["scratch"]
        library.alive += 1

    def __del__(self) -> None:
        if hasattr(self, "_scratch"):
            self._library.alive -= 1

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in self._tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_DTYPES[self._tensors[name]["dtype"]]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        largest = {axis: limits["max"] for axis, limits in self._profiles[profile_index].items()}
        return self._scratch * math.prod(largest.values())

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        if not isinstance(strategy, ExecutionContextAllocationStrategy):
            raise TypeError("create_execution_context(): incompatible function arguments")
        return self._context(strategy, None)

    def _context(self, strategy: Any, config: Any) -> IExecutionContext | None:
        text = self._library.refuse.get("create_execution_context")
        if text is not None:
            self._logger.log(ILogger.Severity.ERROR, text)
            return None
        if not self._library.driver.has_context():
            self._library.driver.mistake("a context is made with no GPU current")
        return IExecutionContext(self, strategy, config)


class RtxEngine(ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any) -> IExecutionContext | None:
        if isinstance(runtime_config, IRuntimeConfig):
            return self._context(runtime_config.get_execution_context_allocation_strategy(), runtime_config)
        return super().create_execution_context(runtime_config)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: Any, config: Any) -> None:
        self._engine = engine
        self._library = engine._library
        self._driver = engine._library.driver
        self._config = config
        self._profile = 0
        self._axes: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._needed: int | None = None
        self._version = 0
        """Changes with everything that a recorded graph depends on."""
        self._flushed = -1
        """The version that was enqueued without being recorded: only that may be recorded next."""
        self._own_graph: int | None = None
        """The version of which TensorRT-RTX holds its own graph."""
        self._pending: list[int] = []
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self._driver.mistake("the context allocates memory of its own")
        self._library.contexts += 1
        self._library.alive += 1

    def __del__(self) -> None:
        if hasattr(self, "_pending"):
            self._library.alive -= 1
            if self._pending and not self._driver.broken:
                self._driver.mistake("a context is destroyed while it runs")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._engine._profiles):
            return self._refuse("setOptimizationProfileAsync: profile index is out of range")
        self._driver.enqueue(stream_handle, lambda: None)
        self._profile, self._shapes, self._axes = profile_index, {}, {}
        self._version += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Every axis within the profile, and of one value in all tensors."""
        tensor = self._engine._inputs.get(name)
        if tensor is None or len(shape) != len(tensor["shape"]):
            return self._refuse(f"setInputShape: {name} has no shape like {shape}")
        for axis, value in zip(tensor["shape"], shape, strict=True):
            if isinstance(axis, int):
                if axis != value:
                    return self._refuse(f"setInputShape: static dimension of {name} is {axis}, not {value}")
                continue
            factor, _, free = axis.rpartition("*")
            limits = self._engine._profiles[self._profile][free]
            size, rest = divmod(value, int(factor or 1))
            if rest or not limits["min"] <= size <= limits["max"]:
                return self._refuse(f"setInputShape: {name} does not satisfy profile {self._profile}: {shape}")
            if self._axes.setdefault(free, size) != size:
                return self._refuse(f"setInputShape: {name} contradicts another input: {shape}")
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name] = tuple(shape)
            self._version += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine._inputs:
            return self._shapes.get(name) or (-1,) * len(self._engine._inputs[name]["shape"])
        shape = []
        for axis in self._engine._outputs[name]["shape"]:
            factor, _, free = str(axis).rpartition("*")
            shape.append(axis if isinstance(axis, int) else int(factor or 1) * self._axis(free))
        return tuple(shape)

    def _axis(self, name: str) -> int:
        """A real library follows the graph; what a segment makes of all views has the tokens of the v1.1 network."""
        axes = self._axes
        if name == "tokens" and name not in axes and {"views", "patch_rows", "patch_columns"} <= set(axes):
            return axes["views"] * (axes["patch_rows"] * axes["patch_columns"] + 1) + 1
        if name.startswith("keys_") and name not in axes and {"views", "patch_rows", "patch_columns"} <= set(axes):
            share = float(name.removeprefix("keys_"))
            return kept_keys(axes["views"], axes["patch_rows"], axes["patch_columns"], 1, share)
        return axes.get(name, -1)

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            self._refuse("updateDeviceMemorySizeForShapes: shapes are missing")
            return 0
        self._needed = self._engine._scratch * math.prod(self._axes.values())
        return self._needed

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % ALIGNMENT:
            self._driver.mistake("the memory of a context is not aligned")
        if self._memory != (memory, size):
            self._memory = (memory, size)
            self._version += 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._tensors:
            return self._refuse(f"setTensorAddress: {name} is no tensor")
        if memory % ALIGNMENT:
            self._driver.mistake(f"the address of {name} is no multiple of {ALIGNMENT}")
        if self._addresses.get(name) != memory:
            self._addresses[name] = int(memory)
            self._version += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        text = self._library.refuse.get("execute_async_v3")
        if text is not None:
            return self._refuse(text)
        if self.infer_shapes() or len(self._addresses) < len(self._engine._tensors):
            return self._refuse("enqueueV3: shapes or addresses are missing")
        if self._needed is None or self._memory is None or self._memory[1] < self._needed:
            return self._refuse("enqueueV3: the context has not enough device memory")
        if self._pending and self._pending[-1] != stream_handle:
            self._driver.mistake("a context is enqueued in two streams at once")
        if self._driver.is_capturing(stream_handle):
            if self._library.is_rtx:
                self._driver.mistake("a graph is recorded around TensorRT-RTX, which replaces its kernels later")
            if self._flushed != self._version:
                return self._refuse("enqueueV3: a change has to be enqueued before it can be recorded")
            self._driver.enqueue(stream_handle, self._recorded())
            return True
        self._flushed = self._version
        self._record_own_graph()
        compute = self._snapshot()
        self._pending.append(stream_handle)

        def run() -> None:
            self._pending.pop()
            compute()

        self._driver.enqueue(stream_handle, run)
        return True

    def _recorded(self) -> Callable[[], None]:
        version, compute = self._version, self._snapshot()

        def run() -> None:
            # "Modifying the context from which the graph was captured" makes the graph's launch undefined.
            if self._version != version:
                self._driver.mistake(f"{self._engine._stage}: a recorded graph runs after its context was changed")
            compute()

        return run

    def _snapshot(self) -> Callable[[], None]:
        """What an enqueue takes along: later changes of the context do not reach it."""
        addresses, memory = dict(self._addresses), self._memory
        shapes = {name: self.get_tensor_shape(name) for name in self._engine._tensors}
        return lambda: self._compute(addresses, shapes, memory)

    def _record_own_graph(self) -> None:
        config = self._config
        if config is None:
            return
        if config.get_runtime_cache() is not None:
            config.get_runtime_cache().add(f"{self._engine._stage} {sorted(self._shapes.items())}")
        if config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE and self._own_graph != self._version:
            self._library.recaptures += self._own_graph is not None
            self._own_graph = self._version

    def _compute(self, addresses: Mapping[str, int], shapes: Mapping[str, Any], memory: Any) -> None:
        stage, engine = self._engine._stage, self._engine
        self._library.enqueued[stage] = self._library.enqueued.get(stage, 0) + 1
        sizes = {name: math.prod(shapes[name]) * _dtype(engine._tensors[name]).itemsize for name in addresses}
        ranges = [(name, address, sizes[name]) for name, address in addresses.items()] + [("memory", *memory)]
        for index, (name, start, size) in enumerate(ranges):
            if not self._driver.contains(start, size):
                self._driver.mistake(f"{stage}: {name} is outside of its allocation")
                return
            for other, begin, length in ranges[:index]:
                if start < begin + length and begin < start + size:
                    self._driver.mistake(f"{stage}: {name} overlaps {other}")
        inputs = {
            name: _at(addresses[name], shapes[name], tensor).astype(_runtime_type(engine._types[name]))
            for name, tensor in engine._inputs.items()
        }
        outputs = engine._inference_session.run(list(engine._outputs), inputs)
        ctypes.memset(memory[0], 0xAB, memory[1])
        for (name, tensor), value in zip(engine._outputs.items(), outputs, strict=True):
            noise = 0 if value.dtype == bool else np.float32(self._library.noise)
            _at(addresses[name], shapes[name], tensor)[...] = value + noise

    def _refuse(self, text: str) -> bool:
        self._engine._logger.log(ILogger.Severity.ERROR, f"IExecutionContext::{text}")
        return False


def _dtype(tensor: Mapping[str, Any]) -> np.dtype[Any]:
    return np.dtype(tensor["dtype"])


def _runtime_type(name: str) -> str:
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bool)": "bool", "tensor(uint8)": "uint8"}
    return names[name]


def _at(address: int, shape: Any, tensor: Mapping[str, Any]) -> NDArray[Any]:
    size = math.prod(shape)
    raw = (ctypes.c_byte * (size * _dtype(tensor).itemsize)).from_address(address)
    return np.frombuffer(raw, _dtype(tensor)).reshape(shape)
