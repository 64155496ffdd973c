"""ONNX Runtime for GPUs without a GPU: the part of its Python API that the runtime uses.

The real library computes a graph on the CPU, on the raw addresses of a binding, when the stream of the stand-in driver
gets there. What the real one would answer with garbage or a crash is a ``mistake`` of the driver, which fails the test.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .stand_in_driver import StandInDriver
from .stand_in_values import inference_session

PROVIDER = "CUDAExecutionProvider"
_TYPES: dict[int, Any] = {1: np.float32, 2: np.uint8, 10: np.float16, 16: ml_dtypes.bfloat16, 7: np.int64, 9: np.bool_}
_NAMES = {
    "tensor(float)": 1,
    "tensor(float16)": 10,
    "tensor(bfloat16)": 16,
    "tensor(int64)": 7,
    "tensor(bool)": 9,
    "tensor(uint8)": 2,
}


class StandInOnnxRuntime:
    """What ``import onnxruntime`` gives where ``onnxruntime-gpu`` is installed.

    Attributes:
        enqueued: launches by graph, replays of recorded ones included.
        has_provider: whether it was compiled for GPUs. loads: whether its CUDA libraries are found.
        refuse: what the next runs raise.
    """

    SessionOptions = onnxruntime.SessionOptions
    __version__ = "1.31.1"

    def __init__(self, driver: StandInDriver) -> None:
        self.driver = driver
        self.enqueued: dict[str, int] = {}
        self.has_provider = True
        self.loads = True
        self.refuse: str | None = None

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"] if self.has_provider else ["CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        raise OSError("libcudnn.so.9: cannot open shared object file")  # where the system has them it must not matter

    def set_default_logger_severity(self, level: int) -> None:
        assert level == 4

    def InferenceSession(self, path: str, options: Any, providers: Sequence[Any]) -> InferenceSession:
        return InferenceSession(self, path, options, providers)


class InferenceSession:
    def __init__(self, library: StandInOnnxRuntime, path: str, options: Any, providers: Sequence[Any]) -> None:
        (name, given), fallback = providers
        assert (name, fallback) == (PROVIDER, "CPUExecutionProvider")
        assert given["use_tf32"] == "0"
        if not library.driver.has_context():
            library.driver.mistake("a session is made with no GPU current")
        self._library = library
        self._stream = int(given["user_compute_stream"])
        self._name = Path(path).stem
        assert options.intra_op_num_threads == options.inter_op_num_threads == 1
        self._inference_session = inference_session(path)
        self._kinds = {
            v.name: v.type for v in (*self._inference_session.get_inputs(), *self._inference_session.get_outputs())
        }
        self._inside = threading.Lock()

    def get_inputs(self) -> Any:
        return self._inference_session.get_inputs()

    def get_outputs(self) -> Any:
        return self._inference_session.get_outputs()

    def get_providers(self) -> list[str]:
        return self._library.get_available_providers() if self._library.loads else ["CPUExecutionProvider"]

    def io_binding(self) -> IOBinding:
        return IOBinding()

    def run_with_iobinding(self, binding: IOBinding) -> None:
        driver = self._library.driver
        if self._library.refuse is not None:
            raise RuntimeError(self._library.refuse)
        if not self._inside.acquire(blocking=False):
            driver.mistake(f"{self._name}: two threads use the memory of one session at once")
            return
        try:
            inputs, outputs = dict(binding.inputs), dict(binding.outputs)
            missing = {v.name for v in (*self.get_inputs(), *self.get_outputs())} - {*inputs, *outputs}
            if missing:
                raise RuntimeError(f"Missing Input: {sorted(missing)}")
            if driver.is_capturing(self._stream):
                driver.mistake(f"{self._name}: a run waits in a recording")
            driver.enqueue(self._stream, lambda: self._compute(inputs, outputs))
            driver.cuStreamSynchronize(self._stream)
        finally:
            self._inside.release()

    def _compute(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._library.enqueued[self._name] = self._library.enqueued.get(self._name, 0) + 1
        for name, (kind, shape, address) in {**inputs, **outputs}.items():
            if _NAMES[self._kinds[name]] != kind:
                self._library.driver.mistake(f"{self._name}: {name} is bound as another type")
            if not self._library.driver.contains(address, math.prod(shape) * np.dtype(_TYPES[kind]).itemsize):
                self._library.driver.mistake(f"{self._name}: {name} is outside of its allocation")
                return
        given = {name: _at(*value) for name, value in inputs.items()}
        found = self._inference_session.run(list(outputs), given)
        for (name, value), result in zip(outputs.items(), found, strict=True):
            if result.shape != value[1]:
                self._library.driver.mistake(f"{self._name}: {name} is {result.shape}, bound as {value[1]}")
            else:
                _at(*value)[...] = result


class IOBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def bind_input(self, name: str, device: str, index: int, kind: int, shape: tuple[int, ...], address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.inputs[name] = (kind, tuple(shape), address)

    def bind_output(self, name: str, device: str, index: int, kind: int, shape: tuple[int, ...], address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.outputs[name] = (kind, tuple(shape), address)


def _at(kind: int, shape: tuple[int, ...], address: int) -> NDArray[Any]:
    dtype = np.dtype(_TYPES[kind])
    raw = (ctypes.c_byte * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)
