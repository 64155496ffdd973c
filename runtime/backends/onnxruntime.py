"""ONNX Runtime on the CPU: the small default backend.

Options were chosen by measurement (``docs/results/cpu-choices.md``): one intra-op thread per processor, sequential
execution, no memory arena (it keeps the peak of the largest call as long as the InferenceSession lives, and saves
little time).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, one_line
from ..system.machine import cpu_name, usable_processors
from .contract import Arrays, StageRunner
from .host_pipeline import HostBackend
from .libraries import import_library, library_error, utf8_path

_FLOAT32_PRODUCTS = "1"
"""Level at which a product with 8-bit weights accumulates in float32; the default, 4, is INT8."""

_QUANTIZE_NODE = b"\x22\x0eQuantizeLinear"
"""The type of a node that rounds activations, as an ONNX file has it."""
_TO_FLOAT16 = b"\x0a\x02to\x18\x0a"
"""The attribute of a cast to float16, likewise."""


class OnnxRuntimeBackend(HostBackend):
    """Runs ``.onnx`` stages on the CPU."""

    name = "onnxruntime"
    recovers = True

    def __init__(self, threads: int | None = None) -> None:
        self._library: Any = import_library(self.name)
        self.version: str = self._library.__version__
        self.device = f"CPU: {cpu_name()}"
        self.threads = threads or usable_processors()

    def load_stage(self, name: str, path: Path, arithmetic: str = "fp32") -> StageRunner:
        """See :class:`.HostBackend`; every precision that this library has is in the file."""
        return _Stage(name, self._load(name, path, self._options()))

    def profile_stage(self, path: Path, inputs: Arrays, prefix: Path) -> str:
        """Run a stage once with the library's profiler and return what it wrote: JSON, an event per node that ran.

        Args:
            prefix: of the file that the profiler writes.

        Raises:
            BackendError: the library refuses or fails.
        """
        options = self._options()
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        inference_session = self._load(path.stem, path, options)
        try:
            _Stage(path.stem, inference_session).run(inputs)
        finally:
            written = Path(inference_session.end_profiling())
        return written.read_text(encoding="utf-8")

    def _options(self) -> Any:
        options = self._library.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        # Every stage has threads of its own. Those of one stage would go on spinning while the next one runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what fails is raised, too; warnings speak of the graph's internals
        # Where only weights are in 8 bits the library would round what they multiply to INT8 too, by itself.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _FLOAT32_PRODUCTS)
        return options

    def _load(self, name: str, path: Path, options: Any) -> Any:
        try:
            graph = path.read_bytes()
        except OSError as error:
            raise BackendError(
                f"onnxruntime {self.version} cannot load the stage {name}: {path} cannot be read ({error.strerror}); "
                f"check that it exists and its permissions"
            ) from error
        try:
            if _QUANTIZE_NODE in graph and _TO_FLOAT16 not in graph:
                # Without VNNI the sums of two products of 8 bits saturate at 16, unless both are unsigned. Where
                # products are not in 8 bits after all (weights alone are, or casts to float16 stand between), nothing
                # saturates, and the library fails with this option.
                options.add_session_config_entry("session.x64quantprecision", "1")
            with utf8_path(path, self.name) as place:
                return self._library.InferenceSession(place, options, providers=["CPUExecutionProvider"])
        except BackendError:
            raise
        except Exception as error:  # the library raises a dozen private types
            what = f"onnxruntime {self.version} cannot load the stage {name}"
            raise library_error(what, error, one_line(error), "build the bundle again") from error


class _Stage:
    def __init__(self, name: str, inference_session: Any) -> None:
        self._name = name
        self._inference_session = inference_session
        self._outputs = [output.name for output in inference_session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        try:
            values = self._inference_session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise library_error(f"onnxruntime failed in the stage {self._name}", error, one_line(error)) from error
        return dict(zip(self._outputs, values, strict=True))
