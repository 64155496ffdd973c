"""OpenVINO on the CPU (x86 and Arm): the fastest CPU backend that was measured.

Its default precision is bfloat16 wherever the processor has it. This backend asks for float32 unless the bundle says
otherwise: a bundle promises a parity with the reference, so reduced precision is a property of the bundle, never of
the machine. Such a bundle has float32 tensors in its files, and the library rounds inside its transformers.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, BackendUnavailableError
from ..system.machine import cpu_name, usable_processors
from ..system.mapped_files import released_meanwhile
from .contract import BF16_STAGES, Arrays, StageRunner
from .host_pipeline import HostBackend
from .libraries import import_library, library_error

_CHECK = re.compile(r"(Check '.*') failed at \S+:\d+:?$")
_PLACE = re.compile(r"Exception from \S+:\d+:?$|" + _CHECK.pattern)
"""What OpenVINO's errors begin with: a line of its source for each function that they passed."""
_threads_failed = threading.Event()


@dataclass(frozen=True)
class ExecutionNode:
    """A node of the execution graph: kind (``FullyConnected``), kernel (``brgemm_avx512_amx_i8``), precision (``i8``),
    and the shapes of the last run, -1 where the graph does not say."""

    kind: str
    kernel: str
    precision: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


class OpenVinoBackend(HostBackend):
    """Runs ``.onnx`` stages on the CPU."""

    name = "openvino"

    def __init__(self, threads: int | None = None) -> None:
        self._library: Any = import_library(self.name)
        self._core: Any = self._library.Core()
        self.version: str = self._library.__version__
        self.device = f"CPU: {cpu_name()}"
        self.threads = threads or usable_processors()

    def load_stage(self, name: str, path: Path, arithmetic: str = "fp32") -> StageRunner:
        """See :class:`.HostBackend`.

        Raises:
            BackendUnavailableError: BF16 arithmetic on a processor without bfloat16.
        """
        weights = weights_of(path)
        with released_meanwhile(weights):
            compiled = self._compile(name, path, arithmetic)
        return _Stage(name, compiled, weights)

    def renew(self) -> None:
        """See :class:`.HostBackend`; from now on in new threads, see :func:`_in_a_sound_thread`."""
        _threads_failed.set()
        self._core = self._library.Core()

    def has_bf16(self) -> bool:
        """Return whether this processor multiplies bfloat16."""
        return "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def execution_graph(self, path: Path, inputs: Arrays, arithmetic: str = "fp32") -> list[ExecutionNode]:
        """Run a stage once, as :meth:`load_stage` would, and list the nodes of its execution graph.

        Raises:
            BackendError: the library refuses or fails.
        """
        compiled = self._compile(path.stem, path, arithmetic)
        _Stage(path.stem, compiled, weights_of(path)).run(inputs)
        nodes = []
        for node in compiled.get_runtime_model().get_ops():
            facts = {key: _text(node.get_rt_info()[key]) for key in ("layerType", "primitiveType", "runtimePrecision")}
            shapes = tuple(_shape(port.get_partial_shape()) for port in node.inputs())
            made = _shape(node.output(0).get_partial_shape()) if node.outputs() else ()
            nodes.append(
                ExecutionNode(facts["layerType"], facts["primitiveType"], facts["runtimePrecision"], shapes, made)
            )
        return nodes

    def _compile(self, name: str, path: Path, arithmetic: str) -> Any:
        loose = arithmetic == "bf16" and name in BF16_STAGES
        if loose and not self.has_bf16():
            raise BackendUnavailableError(
                f"{self.device} has no bfloat16 products; build the bundle in fp32, or in int8 with fp32 around it"
            )
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if loose else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(self.threads),
            # Where only weights are in 8 bits the plugin would round what they multiply as well, by itself.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        try:
            return _in_a_sound_thread(
                lambda: self._core.compile_model(self._core.read_model(str(path)), "CPU", options)
            )
        except Exception as error:
            what = f"openvino {self.version} cannot load the stage {name}"
            fix = "use the backend onnxruntime or build the bundle again"
            raise library_error(what, error, cause(error), fix) from error


class _Stage:
    def __init__(self, name: str, compiled: Any, weights: Path) -> None:
        self._name = name
        self._weights: Path | None = weights
        self._compiled = compiled
        self._inputs = {port.get_any_name(): np.dtype(port.get_element_type().to_dtype()) for port in compiled.inputs}
        self._outputs = [port.get_any_name() for port in compiled.outputs]
        self._lock = threading.Lock()

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        # OpenVINO itself runs with whatever lies in an input that is not given, and converts types silently.
        given = {name: value.dtype for name, value in inputs.items()}
        if given != self._inputs:
            raise BackendError(
                f"openvino failed in the stage {self._name}: it takes {_listed(self._inputs)}, got {_listed(given)}"
            )
        with self._lock:
            weights, self._weights = self._weights, None
        try:
            # Each call has a request of its own. One that is used again still holds the results of its last call, and
            # where memory runs out the library gives these back without an error; a new one has none, which shows. So
            # the caller may have the buffers themselves.
            request = self._compiled.create_infer_request()
            contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
            # The first call packs the weights.
            with nullcontext() if weights is None else released_meanwhile(weights):
                results = _in_a_sound_thread(lambda: request.infer(contiguous, share_inputs=True, share_outputs=True))
            outputs = {name: results[i] for i, name in enumerate(self._outputs)}
        except Exception as error:
            raise library_error(f"openvino failed in the stage {self._name}", error, cause(error)) from error
        return outputs


def weights_of(path: Path) -> Path:
    """Return the file beside a stage that has its weights.

    Compiling copies every weight, and the first call packs some: both read a mapping of the file, whose pages would
    double their memory.
    """
    return path.with_name(f"{path.name}.data")


def _in_a_sound_thread(call: Callable[[], Any]) -> Any:
    """Call a function that compiles kernels, in a new thread once a stage has failed in this process.

    Where the library's code generator fails for lack of memory, that stays noted for the thread: no kernel of a later
    call is made, and the process ends where one is used.
    """
    if not _threads_failed.is_set():
        return call()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def cause(error: BaseException) -> str:
    """Return the sentence of OpenVINO's error that says what is wrong: the last, behind the places that it passed."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not _PLACE.match(line)]
    checks = [found.group(1) for line in lines if (found := _CHECK.match(line))]
    text = told[-1] if told else f"{checks[-1]} failed" if checks else type(error).__name__
    return text.removeprefix("-- ").rstrip(".:")


def _text(value: Any) -> str:
    """Return a value of the runtime information, which versions of the library wrap differently."""
    return str(getattr(value, "value", value))


def _shape(partial: Any) -> tuple[int, ...]:
    return tuple(int(side.get_length()) if side.is_static else -1 for side in partial)


def _listed(inputs: Mapping[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in inputs.items()) or "nothing"
