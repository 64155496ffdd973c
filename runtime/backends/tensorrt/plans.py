"""A stage as a TensorRT plan: deserialised, checked against the manifest, with its optimization profiles."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from typing import Any

from ...bundle.bundle_files import BundleFiles
from ...bundle.manifest import StageSpec
from ...bundle.stages import tensor_shape
from ...errors import BackendError, VersionError
from ..cuda.driver import OutOfMemory
from ..cuda.stage import check_tensors, covering_optimization_profile
from .flavour import Flavour

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # errors are raised; who wants the library's own words configures logging


@functools.cache  # TensorRT keeps the first logger that it is given, for the life of the process
def make_logger(flavour: Flavour) -> Any:
    """Return a TensorRT logger that writes to :mod:`logging` and keeps each thread's last error (``last_error``)."""
    levels = {
        "INTERNAL_ERROR": logging.ERROR,
        "ERROR": logging.ERROR,
        "WARNING": logging.WARNING,
        "INFO": logging.INFO,
        "VERBOSE": logging.DEBUG,
    }

    class Logger(flavour.library.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._local = threading.local()

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity.name, logging.INFO)
            if level == logging.ERROR:
                self._local.error = message
            _log.log(level, "%s: %s", flavour.name, message)

        def last_error(self) -> str:
            """Return the newest error of this thread, in one line, and forget it."""
            text = str(getattr(self._local, "error", "it gives no reason"))
            self._local.error = "it gives no reason"
            return text.strip().splitlines()[0].rstrip(".") if text.strip() else "it gives no reason"

    return Logger()


class Plan:
    """A loaded plan. Contexts are made from it; it holds nothing of a call."""

    def __init__(
        self, flavour: Flavour, runtime: Any, logger: Any, name: str, files: BundleFiles, spec: StageSpec
    ) -> None:
        """Deserialise the plan of the stage ``name``, once its hash is that of the manifest: a plan is code.

        Raises:
            IntegrityError: it has another hash.
            VersionError: the library says that it cannot run this plan.
            BackendError: it refuses the file.
            ManifestError: the plan has other tensors than the manifest says.
        """
        self.name = name
        self.spec = spec
        self.inputs = {tensor.name: tensor for tensor in spec.inputs}
        self.outputs = {tensor.name: tensor for tensor in spec.outputs}
        self.tensors = self.inputs | self.outputs
        self._flavour = flavour
        self._logger = logger
        assert spec.file is not None
        with files.mapped(spec.file) as plan:
            problem = flavour.plan_problem(runtime, plan)
            if problem is not None:
                raise VersionError(
                    f"{flavour.name} {flavour.version} cannot run the plan of {name} on this GPU ({problem}); build "
                    f"the bundle again for it"
                )
            view = memoryview(plan)
            try:
                self.engine = runtime.deserialize_cuda_engine(view)
            finally:
                view.release()
        if self.engine is None:
            raise self._refused(
                f"{flavour.name} {flavour.version} cannot load the stage {name}",
                "build the bundle again on this machine",
            )
        self._runtime = runtime  # has to outlive its engine
        self._making = threading.Lock()
        self._check_tensors()
        self.runtime_cache: Any = flavour.create_runtime_cache(self.engine)

    def optimization_profile(self, axes: Mapping[str, int]) -> int:
        """Return the number of the first optimization profile that covers the axes.

        Raises:
            ProfileError: none does; the message names the build options.
        """
        return covering_optimization_profile(self.name, self.spec, axes)

    def context(self, stream: int, axes: Mapping[str, int]) -> tuple[Any, int]:
        """Create an execution context for one shape, without memory; returns it and the bytes that it needs.

        Args:
            stream: CUDA stream in which the optimization profile is set.
            axes: value of every dynamic axis.
        """
        with self._making:
            context = self._flavour.create_context(self.engine, self.runtime_cache)
        if context is None:
            raise self.failed("no execution context can be made")
        if not context.set_optimization_profile_async(self.optimization_profile(axes), stream):
            raise self.failed("its optimization profile cannot be set")
        for name, tensor in self.inputs.items():
            if not context.set_input_shape(name, tensor_shape(tensor, axes)):
                raise self.failed(f"it refuses {name} of shape {tensor_shape(tensor, axes)}")
        for name, tensor in self.outputs.items():
            # The buffers have the manifest's shapes: a plan that writes more would write over others.
            if tuple(context.get_tensor_shape(name)) != tensor_shape(tensor, axes):
                raise self.failed(f"{name} is not of shape {tensor_shape(tensor, axes)}")
        size = int(context.update_device_memory_size_for_shapes())
        # 0 may also say that the library does not know: then the most that any shape of the profile takes.
        return context, size or int(self.engine.get_device_memory_size_for_profile_v2(self.optimization_profile(axes)))

    def enqueue(self, context: Any, stream: int) -> None:
        """Launch the stage; its tensors' addresses are set."""
        if not context.execute_async_v3(stream):
            raise self.failed("it cannot be launched")

    @property
    def recordable(self) -> bool:
        """Whether launches may be recorded; not where the library makes CUDA graphs of them itself."""
        return not self._flavour.captures_graphs

    def failed(self, what: str) -> BackendError:
        """Return the error for a refusal of the library, with the library's own words."""
        return self._refused(f"{self._flavour.name} failed in the stage {self.name}: {what}", "build the bundle again")

    def _refused(self, what: str, fix: str) -> BackendError:
        reason = self._logger.last_error()
        if "out of memory" in reason.lower() or "outofmemory" in reason.lower():
            return OutOfMemory(
                f"{what}, because the GPU's memory is full ({reason}); use fewer or smaller views in one call, or "
                f"close other programs that use the GPU"
            )
        return BackendError(f"{what} ({reason}); {fix}")

    def _check_tensors(self) -> None:
        engine = self.engine
        found = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            found[name] = (engine.get_tensor_mode(name).name, _DTYPES.get(kind, kind))
        wanted = {name: ("INPUT", spec.dtype) for name, spec in self.inputs.items()}
        wanted |= {name: ("OUTPUT", spec.dtype) for name, spec in self.outputs.items()}
        check_tensors(f"the plan of {self.name}", found, wanted)
