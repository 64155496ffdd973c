"""ONNX Runtime on an NVIDIA GPU (the package ``onnxruntime-gpu``): graphs that work on given addresses of tensors.

It needs no compiled plans and runs on every GPU that CUDA serves, also those that TensorRT-RTX refuses. Tensors stay on
the GPU between the stages, as with plans; weights and what a graph needs in between are the library's own memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..backend_table import BACKENDS_BY_NAME
from ..bundle.kernel_attention import KernelCode
from ..bundle.manifest import StageSpec
from ..bundle.stages import tensor_shape
from ..bundle.store import Bundle
from ..errors import BackendError, BackendUnavailableError, one_line
from .contract import ChunkSizes
from .cuda.attention import AttentionKernels
from .cuda.chain import SegmentChain
from .cuda.driver import OutOfMemory, Stream, driver_problem, no_gpu, open_device
from .cuda.pipeline import DevicePipeline
from .cuda.stage import DeviceStage, check_tensors, covering_optimization_profile
from .libraries import import_library, utf8_path

_SPEC = BACKENDS_BY_NAME["onnxruntime-cuda"]
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "float16": 10, "bfloat16": 16, "int64": 7, "bool": 9}
"""ONNX's numbers of types (onnx.proto, ``TensorProto.DataType``): NumPy has no bfloat16 to name it by."""
_FATAL = 4
"""Least severity that is logged. What fails is raised, too; what is logged besides, as an error, is each algorithm of
cuDNN that does not fit a convolution, before one is found that does."""

_OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "cudaerrormemoryallocation")


def has_cuda() -> bool:
    """Return whether the installed ONNX Runtime is one for NVIDIA GPUs."""
    try:
        return _SPEC.provider in import_library(_SPEC.name).get_available_providers()
    except (BackendUnavailableError, AttributeError):  # missing or broken, or an empty folder of the name
        return False


class OnnxRuntimeCudaBackend:
    """Runs ``.onnx`` stages on the first GPU that the process sees (``CUDA_VISIBLE_DEVICES`` chooses)."""

    name = _SPEC.name

    def __init__(self) -> None:
        """Find the GPU and load the library.

        Raises:
            BackendUnavailableError: the package is not installed or is the one for CPUs, or there is no GPU to run on.
        """
        problem = driver_problem()
        if problem is not None:
            raise no_gpu(self.name, problem)
        self._library: Any = import_library(self.name)
        self.version: str = self._library.__version__
        if _SPEC.provider not in self._library.get_available_providers():
            raise BackendUnavailableError(
                f"the installed onnxruntime {self.version} is for processors only; run: pip uninstall onnxruntime, "
                f"then {_SPEC.install_command}"
            )
        self._library.set_default_logger_severity(_FATAL)
        with contextlib.suppress(Exception):  # libraries that are where the system finds them need no help
            self._library.preload_dlls()
        self._device = open_device()
        self.compute_capability: str | None = self._device.compute_capability
        self.device = self._device.description

    def open_pipeline(self, bundle: Bundle, chunks: ChunkSizes) -> DevicePipeline:
        """See :class:`.contract.Backend`."""
        manifest = bundle.manifest
        with self._device.current():
            stages = {
                name: self.load_stage(name, bundle.files.place, spec, manifest.kernels)
                for name, spec in manifest.stages.items()
            }
        return DevicePipeline(self._device, stages, chunks, stream=self._device.lasting_stream())

    def load_stage(self, name: str, folder: Path, spec: StageSpec, kernels: Iterable[KernelCode]) -> DeviceStage:
        """Load a stage, with the GPU current; it runs in the device's lasting stream.

        Args:
            name: of the stage. folder: of the bundle. spec: of the stage. kernels: that the bundle has.

        Raises:
            BackendError: the library refuses a file. DeviceError: the bundle has no kernel for this GPU.
        """
        stream = self._device.lasting_stream()
        if not spec.segments:
            return self._load_graph(name, folder, spec, stream)
        parts = [self._load_graph(f"{name}_{index}", folder, part, stream) for index, part in enumerate(spec.segments)]
        return SegmentChain(name, spec, parts, AttentionKernels(self._device, folder, kernels, spec.attention))

    def _load_graph(self, name: str, folder: Path, spec: StageSpec, stream: Stream) -> _Graph:
        assert spec.file is not None
        library = self._library
        options = library.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the processor only enqueues
        provider = {
            "device_id": "0",
            "user_compute_stream": str(stream.handle),
            "use_tf32": "0",  # 10 bits of mantissa are not float32
            "arena_extend_strategy": "kSameAsRequested",
            # The search over all algorithms runs again for each shape, in the call that has it.
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        try:
            with utf8_path(folder / spec.file.file, "onnxruntime") as place:
                inference_session = library.InferenceSession(
                    place, options, providers=[(_SPEC.provider, provider), "CPUExecutionProvider"]
                )
        except BackendError:
            raise
        except Exception as error:  # the library raises a dozen private types
            raise _refusal(f"onnxruntime {self.version} cannot load the stage {name}", error) from error
        stream.synchronize()  # what the library copies for it is done, should the InferenceSession go at once
        if (
            _SPEC.provider not in inference_session.get_providers()
        ):  # it says so on stderr and takes the processor instead
            raise BackendUnavailableError(
                f"onnxruntime {self.version} cannot load its CUDA libraries; install CUDA and cuDNN as it needs them: "
                f"{_SPEC.install_command}"
            )
        return _Graph(inference_session, name, spec)


class _Graph:
    """A loaded graph; see :class:`.cuda.stage.DeviceStage`."""

    recordable = False
    """A run ends by waiting for the GPU, so it cannot be recorded. Without the wait the library frees its host memory
    when the InferenceSession ends, in a callback in which CUDA allows no call, and the process dies (1.31.1, H200)."""

    def __init__(self, inference_session: Any, name: str, spec: StageSpec) -> None:
        self.name = name
        self.spec = spec
        self.inputs = {tensor.name: tensor for tensor in spec.inputs}
        self.outputs = {tensor.name: tensor for tensor in spec.outputs}
        self.tensors = self.inputs | self.outputs
        self.inference_session = inference_session
        self._check_tensors()

    def optimization_profile(self, axes: Mapping[str, int]) -> int:
        """See :func:`.cuda.stage.covering_optimization_profile`."""
        return covering_optimization_profile(self.name, self.spec, axes)

    def context(self, stream: int, axes: Mapping[str, int]) -> tuple[_Binding, int]:
        """Return a binding for one shape and 0 bytes: the library's own memory is not counted."""
        self.optimization_profile(axes)
        return _Binding(self, axes), 0

    def enqueue(self, context: _Binding, stream: int) -> None:
        """Run the graph in the stream that the InferenceSession was made with."""
        try:
            self.inference_session.run_with_iobinding(context.binding)
        except Exception as error:
            raise _refusal(f"onnxruntime failed in the stage {self.name}", error) from error

    def failed(self, what: str) -> BackendError:
        """Return the error for a refusal."""
        return BackendError(f"onnxruntime failed in the stage {self.name}: {what}; build the bundle again")

    def _check_tensors(self) -> None:
        found = {
            value.name: value.type
            for value in (*self.inference_session.get_inputs(), *self.inference_session.get_outputs())
        }
        wanted = {name: f"tensor({spec.dtype.replace('float32', 'float')})" for name, spec in self.tensors.items()}
        check_tensors(f"the graph of {self.name}", found, wanted)


class _Binding:
    """Addresses of a graph's tensors for one shape; see :class:`.cuda.stage.StageContext`."""

    def __init__(self, graph: _Graph, axes: Mapping[str, int]) -> None:
        self.binding = graph.inference_session.io_binding()
        self._graph = graph
        self._axes = dict(axes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Bind a tensor to its address."""
        graph = self._graph
        bind = self.binding.bind_input if name in graph.inputs else self.binding.bind_output
        spec = graph.tensors[name]
        bind(name, "cuda", 0, _ELEMENT_TYPES[spec.dtype], tensor_shape(spec, self._axes), address)
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        """Do nothing: the library has memory of its own."""


def _refusal(what: str, error: Exception) -> BackendError:
    text = str(error).lower()
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfMemory(
            f"{what}, because the GPU's memory is full; use fewer or smaller views in one call, or close other "
            f"programs that use the GPU"
        )
    return BackendError(f"{what}: {one_line(error)}; build the bundle again")
